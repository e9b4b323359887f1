"""The ledger: every claim of the catalogue beside what the recorded runs measured.

`{ledger}` draws the tables from `book/results/*.json`; nothing in them is typed by hand.
`` {recorded}`S22-F3a.full error_tied_scaled_256 .3f` `` cites one recorded number in prose: the
run, the name of a scalar (or a claim's ID, for its observed value), the format.
"""

from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole

from companion.chapters import CHAPTERS
from companion.claims import CATALOGUE, Statement
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


def page(results: list[Result], written: Container[str]) -> Iterator[str]:
    """Yield the lines of the ledger in Markdown; `written` holds the documents that there are."""
    for source, paper in SOURCES.items():
        yield from ("", f"## {paper}", "")
        yield from table(
            ("Claim", "Statement", "Chapter", "Paper", "Smoke run", "Full run"),
            (
                claim_row(statement, results, written)
                for statement in CATALOGUE.values()
                if statement.source == source
            ),
        )
    yield from misses(results)
    yield from ("", "## What was measured", "")
    yield from measurements(results)
    yield from ("", "## Recorded runs", "")
    if results:
        heads = ("Experiment", "Tier", "Seed", "Device", "Software", "Duration", "Finished (UTC)")
        yield from table((*heads, "Code", "Data"), map(run_row, results))
    else:
        yield "No run is recorded yet."


def claim_row(
    statement: Statement, results: list[Result], written: Container[str]
) -> tuple[str, ...]:
    number, document = CHAPTERS[statement.chapter].number, CHAPTERS[statement.chapter].notebook
    there = document in written
    chapter = f"{{doc}}`{number} </{document}>`" if there else str(number)
    cells = [
        verdicts(claim for _, claim in measured(results, tier) if claim.id == statement.id)
        or ("not yet run" if there else "chapter to come")
        for tier in TIERS
    ]
    return (statement.id, statement.text, chapter, statement.paper or "–", *cells)


def measured(results: list[Result], tier: str) -> list[tuple[str, Claim]]:
    chosen = (result for result in results if result.provenance.tier == tier)
    return [(result.experiment, claim) for result in chosen for claim in result.claims]


def verdicts(claims: Iterable[Claim]) -> str:
    """Join the numbers that hold, then those that miss."""
    claims = list(claims)
    hits = ", ".join(value(claim) for claim in claims if claim.holds)
    misses = ", ".join(value(claim) for claim in claims if not claim.holds)
    parts = (hits and f"holds: {hits}", misses and f"**misses**: {misses}")
    return "; ".join(part for part in parts if part)


def value(claim: Claim) -> str:
    return f"{number(claim.observed)} ({expected(claim)})"


def number(x: float) -> str:
    """Spell a number with three digits, large and small ones with a power of ten."""
    mantissa, _, exponent = f"{x:.3g}".partition("e")
    if exponent:
        return f"${mantissa}\\times 10^{{{int(exponent)}}}$"
    return mantissa.replace("-", "−")


def expected(claim: Claim) -> str:
    if claim.low is None:
        assert claim.high is not None
        return f"at most {number(claim.high)}"
    if claim.high is None:
        return f"at least {number(claim.low)}"
    if claim.low == claim.high:
        return f"exactly {number(claim.low)}"
    return f"{number(claim.low)} to {number(claim.high)}"


def measurements(results: list[Result]) -> Iterator[str]:
    """Yield a table that says in words what each number is."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for tier in TIERS:
        for experiment, claim in measured(results, tier):
            rows.setdefault((experiment, claim.id, claim.text), {})[tier] = verdicts([claim])
    yield from table(
        ("Experiment", "Claim", "Measured", "Smoke run", "Full run"),
        (
            (*key, *(cells.get(tier, "not yet run") for tier in TIERS))
            for key, cells in rows.items()
        ),
    )


def misses(results: list[Result]) -> Iterator[str]:
    missed = [(result, claim) for result in results for claim in result.misses]
    yield from ("", "## Misses, explained", "")
    if not missed:
        yield "No recorded claim misses its range."
    for result, claim in missed:
        run = f"{result.experiment}, {result.provenance.tier} tier"
        yield f"- **{claim.id}** ({run}): {claim.text}: {value(claim)}. {claim.note}"


def run_row(result: Result) -> tuple[str, ...]:
    made = result.provenance
    since = f", moved since: {', '.join(result.moved)}" if result.moved else ""
    software = ", ".join(f"{name} {made.versions[name]}" for name in ("torch", "python"))
    digest, _, origin = (result.findings.data or "").partition(" ")
    data = f"`{digest[:10]}` {origin}".rstrip() if digest else "made by the package"
    return (
        result.experiment,
        made.tier,
        str(made.seed),
        made.device,
        software,
        f"{made.seconds:.0f} s",
        made.finished.removesuffix("+00:00").replace("T", " "),
        f"`{made.source[:10]}`{since}",
        data,
    )


def table(heads: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    heads = tuple(heads)
    yield _row(heads)
    yield _row(["---"] * len(heads))
    yield from map(_row, rows)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


class Ledger(SphinxDirective):
    has_content = False

    def run(self) -> list[nodes.Node]:
        results = read_results(Path(self.env.srcdir) / FOLDER)
        lines = list(page(results, self.env.found_docs))
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
