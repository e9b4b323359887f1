"""The ledger: every claim of the catalogue beside what the recorded runs measured.

`{ledger}` draws the page from `book/results/*.json`; nothing on it is typed by hand.
`` {recorded}`S22-F3a.full error_tied_scaled_256 .3f` `` cites one recorded number in prose: the
run, the name of a scalar (or a claim's ID, for its observed value), the format.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from html_elements import element
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole
from verdicts import analogue, expected, number, status, summary

from companion.chapters import CHAPTERS
from companion.claims import CATALOGUE, Statement
from companion.results import Claim, Result

FOLDER = Path("book/results")
PAGE = "book/ledger"
TIERS = ("smoke", "full")
SOURCES = {
    "C18": "Chen et al. (2018)",
    "Q20": "Queiruga et al. (2020)",
    "S22": "Sander et al. (2022)",
    "here": "Results of this course",
}


def read_results(folder: Path) -> list[Result]:
    """Return the recorded results; a file is called ID.TIER.json after what it holds."""
    results = []
    for path in sorted(folder.glob("*.json")):
        result = Result.load(path)
        name = f"{result.experiment}.{result.provenance.tier}.json"
        if path.name != name:
            raise ValueError(f"{path} holds {name}; the file must be called so")
        results.append(result)
    return results


def anchor(id: str) -> str:
    """Return where the row of a claim is found on the page."""
    return f"claim-{id.lower()}"


def run_anchor(experiment: str) -> str:
    """Return where the recorded runs of an experiment are found on the page."""
    return f"run-{experiment.lower()}"


def deciding(results: Iterable[Result], id: str) -> list[Result]:
    return [result for result in results if any(claim.id == id for claim in result.claims)]


@dataclass
class Wording:
    """The words of a row as nodes: formulas are set, and the chapter's number is a link."""

    chapter: nodes.Node
    text: list[nodes.Node]
    paper: list[nodes.Node]


def claim_row(
    statement: Statement, results: list[Result], written: bool, words: Wording
) -> nodes.Node:
    """Return the row of a claim; ``results`` decide it, ``written`` says of its chapter."""
    claims = [claim for result in results for claim in result.claims if claim.id == statement.id]
    stand_in = analogue(statement, results)
    word = status(claims, stand_in, written)
    source: list[nodes.Node | str] = ["Chapter ", words.chapter]
    if words.paper:
        source += [" · in the paper: ", *words.paper]
    head = element("a", statement.id, href=f"#{anchor(statement.id)}", class_="claim-id")
    parts = [
        element("p", head, " ", *words.text, class_="claim-text"),
        element("p", *source, class_="claim-source"),
        element("p", *verdict(word, claims, statement, stand_in), class_="claim-verdict"),
        *explanations(claims, results),
    ]
    if claims:
        parts.append(fold(statement.id, results))
    facets = {"data-source": SOURCES[statement.source], "data-verdict": word}
    number = CHAPTERS[statement.chapter].number
    return element(
        "li", *parts, id=anchor(statement.id), class_="claim", data_chapter=str(number), **facets
    )


def verdict(
    word: str, claims: list[Claim], statement: Statement, stand_in: str
) -> Iterator[nodes.Node | str]:
    yield element("strong", word, class_=f"verdict-{word.split()[0]}")
    if stand_in:
        yield f" (an analogue: the paper's claim is about {statement.data})"
    if claims:
        yield f", {summary(claims)}"


def explanations(claims: list[Claim], results: list[Result]) -> Iterator[nodes.Node]:
    """Yield why claims miss, each reason once, and whether code has moved since."""
    for note in dict.fromkeys(claim.note for claim in claims if not claim.holds):
        yield element("p", f"Why it misses: {note}", class_="claim-note")
    for result in results:
        if result.moved:
            run = f"{result.experiment}, {result.provenance.tier} run"
            yield element("p", f"Moved since: {', '.join(result.moved)} ({run})")


def fold(id: str, results: list[Result]) -> nodes.Node:
    """Return the folded table of every number that decides a claim."""
    name = element("summary", "What was measured", aria_label=f"What was measured for {id}")
    heads = ("Run", "Measured", "Expected", "Smoke run", "Full run")
    return element("details", name, table(heads, measurements(id, results)))


def measurements(id: str, results: list[Result]) -> Iterator[tuple[nodes.Node | str, ...]]:
    """Yield the cells of a claim's numbers, the tiers of one number side by side."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for result in results:
        for claim in result.claims:
            if claim.id == id:
                key = (result.experiment, claim.text, expected(claim))
                miss = "" if claim.holds else " (misses)"
                rows.setdefault(key, {})[result.provenance.tier] = number(claim.observed) + miss
    for (experiment, text, span), cells in rows.items():
        run = element("a", experiment, href=f"#{run_anchor(experiment)}")
        yield run, text, span, *(cells.get(tier, "–") for tier in TIERS)


def runs(results: list[Result]) -> nodes.Node:
    """Return the folded table of the recorded runs."""
    heads = ("Experiment", "Tier", "Seed", "Device", "Software", "Duration", "Finished (UTC)")
    known: set[str] = set()
    rows = []
    for result in results:
        first = result.experiment not in known
        known.add(result.experiment)
        given = {"id": run_anchor(result.experiment)} if first else {}
        rows.append((element("span", result.experiment, **given), *run_row(result)))
    name = element("summary", f"All {len(rows)} recorded runs")
    return element("details", name, table((*heads, "Code", "Data"), rows), id="recorded-runs-table")


def run_row(result: Result) -> tuple[str, ...]:
    """Return how the numbers of a result came about, its experiment's name apart."""
    made = result.provenance
    software = ", ".join(f"{name} {made.versions[name]}" for name in ("torch", "python"))
    digest, _, origin = (result.findings.data or "").partition(" ")
    return (
        made.tier,
        str(made.seed),
        made.device,
        software,
        f"{made.seconds:.0f} s",
        made.finished.removesuffix("+00:00").replace("T", " "),
        made.source[:10],
        f"{digest[:10]} {origin}".rstrip() if digest else "made by the package",
    )


def table(heads: Iterable[str], rows: Iterable[Iterable[nodes.Node | str]]) -> nodes.Node:
    """Return a table in a box that scrolls, reached by the keyboard too."""
    head = element("thead", element("tr", *(element("th", h, scope="col") for h in heads)))
    body = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    whole = element("table", head, element("tbody", *body), class_="table")
    return element("div", whole, class_="claim-table", tabindex="0")


class Ledger(SphinxDirective):
    has_content = False

    def run(self) -> list[nodes.Node]:
        results = read_results(Path(self.env.srcdir) / FOLDER)
        found: list[nodes.Node] = []
        for source, paper in SOURCES.items():
            chosen = (row for row in CATALOGUE.values() if row.source == source)
            rows = [self._row(statement, deciding(results, statement.id)) for statement in chosen]
            found.append(self._section(paper, element("ul", *rows, class_="claims")))
        made = runs(results) if results else nodes.paragraph("", "No run is recorded yet.")
        return [*found, self._section("Recorded runs", made)]

    def _section(self, title: str, content: nodes.Node) -> nodes.Node:
        section = nodes.section("", nodes.title("", title), content, names=[title.lower()])
        self.state.document.note_implicit_target(section, section)
        return section

    def _row(self, statement: Statement, results: list[Result]) -> nodes.Node:
        chapter = CHAPTERS[statement.chapter]
        written = chapter.notebook in self.env.found_docs
        name = str(chapter.number)
        (link,) = self._nodes(f"{{doc}}`{name} </{chapter.notebook}>`" if written else name)
        words = Wording(link, self._nodes(statement.text), self._nodes(statement.paper))
        return claim_row(statement, results, written, words)

    def _nodes(self, text: str) -> list[nodes.Node]:
        return self.state.inline_text(text, self.lineno)[0] if text else []


class Recorded(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        try:
            return [nodes.Text(self._value())], []
        except (OSError, KeyError, ValueError) as error:
            message = f"{{recorded}}`{self.text}`: {error}"
            return [], [self.inliner.reporter.error(message, line=self.lineno)]

    def _value(self) -> str:
        run, name, *form = self.text.split()
        path = Path(self.env.srcdir) / FOLDER / f"{run}.json"
        self.env.note_dependency(str(path))
        result = Result.load(path)
        number = result.claim(name).observed if name in CATALOGUE else result[name]
        shown = format(float(number), form[0] if form else ".3g")
        return re.sub(r"^-", "\N{MINUS SIGN}", shown)


def outdated(app: Sphinx, env: BuildEnvironment, *changes: Any) -> list[str]:
    """Draw the ledger anew in every build: results, chapters or the package may have changed."""
    return [name for name in (PAGE,) if name in env.found_docs]


def add_filters(app: Sphinx, pagename: str, *rest: Any) -> None:
    """Give the ledger, and no other page, the script that filters its rows."""
    if pagename == PAGE:
        app.add_js_file("ledger.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("html_elements")
    app.add_directive("ledger", Ledger)
    app.add_role("recorded", Recorded())
    app.connect("env-get-outdated", outdated)
    app.connect("html-page-context", add_filters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
