"""Say what is wrong with committed notebooks, without running them."""

import ast
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from notebook_record import record
from notebook_sync import RECORD, chapters, code_cells, outputs_digest, read_text

_PATH = re.compile(r"(?<![\w./:<-])(?:/(?:home|root|Users|tmp|usr|opt|var|mnt)/|[A-Z]:\\Users\\)")
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")

_NAMED = 3
"""How many causes of stale outputs a line names."""


def check(root: Path) -> list[str]:
    """Return one line for each fault of the notebooks under `root`."""
    lines = []
    for text in chapters(root):
        lines += [f"{text.name}: {fault}" for fault in faults(text, root)]
    executed = (root / "notebooks").glob("*.ipynb")
    orphans = sorted(path for path in executed if not path.with_suffix(".md").exists())
    return lines + [f"{path.name}: there is no {path.stem}.md to be its source" for path in orphans]


def faults(text: Path, root: Path) -> Iterator[str]:
    """Yield what is wrong with the pair of `text` and its executed notebook."""
    twin = text.with_suffix(".ipynb")
    if not twin.exists():
        yield f"{twin.name} is missing; run `make notebooks`"
        return
    try:
        source, notebook = read_text(text), nbformat.read(twin, as_version=4)
        wanted = record(source, root)
    except ValueError as error:
        yield f"cannot be read: {error}"
        return
    yield from _pair_faults(source, notebook)
    yield from _parameter_faults(source)
    yield from _stale_faults(notebook, wanted)
    expected = 0
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        expected += 1
        for fault in _cell_faults(cell, expected, root):
            yield f"cell {number}: {fault}"


def _pair_faults(source: NotebookNode, notebook: NotebookNode) -> Iterator[str]:
    if len(source.cells) != len(notebook.cells):
        yield f"the text has {len(source.cells)} cells, the notebook {len(notebook.cells)}"
    if source.metadata.get("tiny") != notebook.metadata.get("tiny"):
        yield "the front matter `tiny` differs from the notebook's"
    for number, (left, right) in enumerate(zip(source.cells, notebook.cells, strict=False), 1):
        for what, of in _COMPARED.items():
            if of(left) != of(right):
                yield f"cell {number}: {what} differs from the text"


_COMPARED = {
    "the type": lambda cell: cell.cell_type,
    "the source": lambda cell: cell.source,
    "the set of tags": lambda cell: sorted(cell.metadata.get("tags", [])),
    "the figure metadata": lambda cell: cell.metadata.get("mystnb"),
}


def _parameter_faults(source: NotebookNode) -> Iterator[str]:
    tagged = [c for c in code_cells(source) if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        yield f"{len(tagged)} code cells are tagged `parameters`; there must be one"
        return
    for statement in ast.parse(tagged[0].source).body:
        if not _is_literal_assignment(statement):
            # papermill sets names after this cell: a value derived in it would stay old.
            yield f"the parameters cell may only assign literals, not `{ast.unparse(statement)}`"


def _is_literal_assignment(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return False
    try:
        ast.literal_eval(statement.value)
    except ValueError:
        return False
    return True


def _stale_faults(notebook: NotebookNode, wanted: dict[str, Any]) -> Iterator[str]:
    recorded = notebook.metadata.get(RECORD, {"cells": None, "modules": {}, "outputs": None})
    then, now = recorded["modules"], wanted["modules"]
    newer = ["the code cells"] if recorded["cells"] != wanted["cells"] else []
    newer += [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    if newer:
        more = f" and {len(newer) - _NAMED} more" if len(newer) > _NAMED else ""
        yield f"outputs are older than {', '.join(newer[:_NAMED])}{more}; run `make notebooks`"
    if recorded["outputs"] != outputs_digest(notebook):
        yield "outputs are not those of the recorded run; run `make notebooks`"


def _cell_faults(cell: NotebookNode, expected: int, root: Path) -> Iterator[str]:
    if cell.execution_count is None:
        yield "was not executed"
    elif cell.execution_count != expected:
        yield f"was executed out of order: count {cell.execution_count}, not {expected}"
    if "raises-exception" in cell.metadata.get("tags", []):
        # "Run all" in Colab and papermill would end here, whatever the tag says.
        yield "is tagged `raises-exception`; catch the error in the cell and print it"
    if any(output.output_type == "error" for output in cell.outputs):
        yield "failed"
    if any(output.get("name") == "stderr" for output in cell.outputs):
        yield "wrote to stderr"
    shown = "\n".join(_texts(cell.outputs))
    local = {str(root), str(Path.home()), sys.prefix, tempfile.gettempdir(), "site-packages"}
    found = [path for path in sorted(local) if len(path) > 1 and path in shown]
    found += [match.group() for match in _PATH.finditer(shown)]
    if found:
        yield f"shows a path of the machine it ran on: {found[0]}"
    if address := _ADDRESS.search(shown):
        yield f"shows a memory address: {address.group()}"
    has_image = any(kind.startswith("image/") for o in cell.outputs for kind in o.get("data", {}))
    if has_image and not _alt_text(cell):
        yield "shows a figure without alt text (`mystnb: {image: {alt: …}}`)"


def _texts(outputs: list[NotebookNode]) -> Iterator[str]:
    for output in outputs:
        yield output.get("text", "")
        for kind, value in output.get("data", {}).items():
            if not kind.startswith("image/") or kind == "image/svg+xml":
                yield str(value)


def _alt_text(cell: NotebookNode) -> str:
    return str(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")).strip()
