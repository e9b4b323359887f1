"""The ledger: every claim of the catalogue beside what the recorded runs measured.

`{ledger}` draws the tables from `book/results/*.json`; nothing in them is typed by hand.
`` {recorded}`S22-F3a.full error_tied_scaled_256 .3f` `` cites one recorded number in prose: the
run, the name of a scalar (or a claim's ID, for its observed value), the format.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole

from companion.claims import CATALOGUE, Statement
from companion.experiments import experiments
from companion.results import Claim, Result

FOLDER = Path("book/results")
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


def page(results: list[Result], chapters: dict[int, str]) -> Iterator[str]:
    """Yield the lines of the ledger in Markdown; `chapters` maps numbers to document names."""
    for source, paper in SOURCES.items():
        yield from ("", f"## {paper}", "")
        yield from table(
            ("Claim", "Statement", "Chapter", "Paper", "Smoke run", "Full run"),
            (
                claim_row(statement, results, chapters)
                for statement in CATALOGUE.values()
                if statement.source == source
            ),
        )
    yield from misses(results)
    yield from ("", "## Recorded runs", "")
    if results:
        heads = ("Experiment", "Tier", "Seed", "Device", "Software", "Duration", "Finished (UTC)")
        yield from table((*heads, "Code", "Data"), map(run_row, results))
    else:
        yield "No run is recorded yet."


def claim_row(
    statement: Statement, results: list[Result], chapters: dict[int, str]
) -> tuple[str, ...]:
    document = chapters.get(statement.chapter)
    chapter = f"{{doc}}`{statement.chapter} </{document}>`" if document else str(statement.chapter)
    cells = []
    for tier in TIERS:
        decided = [
            f"{verdict(claim)} [{result.experiment}]"
            for result in results
            for claim in result.claims
            if result.provenance.tier == tier and claim.id == statement.id
        ]
        absent = "not yet run" if document else "chapter to come"
        cells.append("; ".join(decided) or absent)
    return (statement.id, statement.text, chapter, statement.paper or "–", *cells)


def verdict(claim: Claim) -> str:
    text = f"{claim.text}: {claim.observed:.3g} ({expected(claim)})"
    return f"holds: {text}" if claim.holds else f"**misses**: {text}"


def expected(claim: Claim) -> str:
    if claim.low is None:
        return f"at most {claim.high:g}"
    if claim.high is None:
        return f"at least {claim.low:g}"
    return f"from {claim.low:g} to {claim.high:g}"


def misses(results: list[Result]) -> Iterator[str]:
    missed = [(result, claim) for result in results for claim in result.misses]
    yield from ("", "## Misses, explained", "")
    if not missed:
        yield "No recorded claim misses its range."
    for result, claim in missed:
        run = f"{result.experiment}, {result.provenance.tier} tier"
        yield f"- **{claim.id}** ({run}): {verdict(claim)}. {claim.note}"


def run_row(result: Result) -> tuple[str, ...]:
    made = result.provenance
    entry = experiments().get(result.experiment)
    changed = "" if entry is not None and entry.source == made.source else ", changed since"
    software = ", ".join(f"{name} {made.versions[name]}" for name in ("torch", "python"))
    data = f"`{result.findings.data[:10]}`" if result.findings.data else "made by the package"
    return (
        result.experiment,
        made.tier,
        str(made.seed),
        made.device,
        software,
        f"{made.seconds:.0f} s",
        made.finished.removesuffix("+00:00").replace("T", " "),
        f"`{made.source[:10]}`{changed}",
        data,
    )


def table(heads: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    heads = tuple(heads)
    yield _row(heads)
    yield _row(["---"] * len(heads))
    yield from map(_row, rows)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def chapters(env: BuildEnvironment) -> dict[int, str]:
    names = (Path(name) for name in env.found_docs if name.startswith("notebooks/"))
    return {int(path.name[:2]): str(path) for path in names if path.name[:2].isdigit()}


class Ledger(SphinxDirective):
    has_content = False

    def run(self) -> list[nodes.Node]:
        results = read_results(Path(self.env.srcdir) / FOLDER)
        lines = list(page(results, chapters(self.env)))
        holder = nodes.Element()
        holder.document = self.state.document
        self.state.nested_parse(
            StringList(lines, source="ledger"), self.content_offset, holder, match_titles=1
        )
        return holder.children


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
        return format(float(number), form[0] if form else ".3g")


def outdated(app: Sphinx, env: BuildEnvironment, *changes: Any) -> list[str]:
    """Draw the ledger anew in every build: results, chapters or the package may have changed."""
    return [name for name in ("book/ledger",) if name in env.found_docs]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("ledger", Ledger)
    app.add_role("recorded", Recorded())
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
