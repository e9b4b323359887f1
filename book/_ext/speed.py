"""The speed page: tables of the recorded benchmarks.

`{speed}` draws one table for each benchmark in `benchmarks/results/speed.json`; nothing in them is
typed by hand. `make bench` measures anew.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from markdown_table import table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RESULTS = Path("benchmarks/results/speed.json")
CLOSE = 0.95
"""The share of its bar from which a time is called close to it."""
HEADS = ("Work", "Candidate", "Over", "Ratio", "Quartiles", "Of the least", "Bar", "")


def page(content: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the page in Markdown."""
    yield from summary([row for part in content["benchmarks"] for row in part["rows"]])
    for benchmark in content["benchmarks"]:
        yield from ("", f"## {benchmark['question']}", "")
        yield from table(HEADS, lines(benchmark["rows"]))
        yield from ("", benchmark["excluded"])
        yield from (
            f"- {row['candidate']}: {row['note']}" for row in benchmark["rows"] if row["note"]
        )
        yield from ("", origin(benchmark["provenance"]))


def origin(made: dict[str, Any]) -> str:
    """Return a line on where a table's numbers come from."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    finished = made["finished"].removesuffix("+00:00").replace("T", " ")
    return (
        f"*Device: {made['device']}, {made['threads']} thread. Rounds: {made['rounds']}. "
        f"Software: {versions}. Finished: {finished} UTC.*"
    )


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield one line on the times above their bars and one on those close to them."""
    barred = [row for row in rows if row["bar"] is not None and row["ratio"] is not None]
    above = [row for row in barred if row["ratio"] > row["bar"]]
    close = [
        row
        for row in barred
        if row["quantity"] == "time" and CLOSE * row["bar"] < row["ratio"] <= row["bar"]
    ]
    yield f"Of {len(barred)} ratios with a bar, {len(barred) - len(above)} are within it."
    for what, some in (("Above", above), ("Close to it", close)):
        works = dict.fromkeys(row["work"] for row in some)
        named = (
            f"{work} ({'; '.join(row['candidate'] for row in some if row['work'] == work)})"
            for work in works
        )
        yield from ("", f"{what}: {' · '.join(named) or 'none'}.")


def lines(rows: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each line; a work is named in its first line only."""
    before = None
    for row in rows:
        yield ("" if row["work"] == before else row["work"], *cells(row))
        before = row["work"]


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    spread = "" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"
    over = "" if row["quantity"] == "time" else f", {row['quantity']}"
    named = (row["candidate"], f"{row['baseline']}{over}")
    numbers = (_shown(row["ratio"], 3), spread, _shown(row.get("least"), 3), _shown(row["bar"], 2))
    return (*named, *numbers, row["verdict"])


def _shown(number: float | None, digits: int) -> str:
    return "" if number is None else f"{number:.{digits}f}"


class Speed(SphinxDirective):
    has_content = False

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir) / RESULTS
        self.env.note_dependency(str(path))
        lines = list(page(json.loads(path.read_text(encoding="utf-8"))))
        holder = nodes.Element()
        holder.document = self.state.document
        self.state.nested_parse(
            StringList(lines, source="speed"), self.content_offset, holder, match_titles=1
        )
        return holder.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("speed", Speed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
