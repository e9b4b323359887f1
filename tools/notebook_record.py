"""What a notebook's outputs were computed from: hashes of parsed code, found without running any.

Outputs depend on the notebook's own code cells, on the `companion` modules they import, directly or
through other modules, and on the recorded results that they show. Comments, docstrings and layout
are not in a parsed tree, so that edits to them make nothing stale; nor do those to an experiment
whose record a page shows. A record is a plain dictionary, stored in the executed notebook.
"""

import ast
import functools
import hashlib
import importlib.util
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from nbformat import NotebookNode

_ID = re.compile(r"[A-Z][A-Za-z0-9]*(-[A-Za-z0-9]+)*")
_MAGIC = re.compile(r"^\s*[%!].*$", re.MULTILINE)


def record(notebook: NotebookNode, root: Path) -> dict[str, Any]:
    """Return `{"cells": hash, "modules": {name: hash}}` for the code `notebook` runs.

    Modules go by their dotted names, recorded results by those of their files.

    Raises:
        ValueError: a code cell is not Python, named by its number.
    """
    sources = _sources(root)
    parts, imported, named = [], set(), set()
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code":
            continue
        code = _MAGIC.sub("", cell.source)
        try:
            tree = ast.parse(code)
        except SyntaxError as error:
            raise ValueError(f"cell {number} is not Python: {error}") from error
        tags = sorted(cell.metadata.get("tags", []))
        parts.append([sources.canonical(tree), _beside_tree(cell.source, code, tree), tags])
        imported |= sources.imported_modules(code)
        named |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    results = _results(named, root)
    computed = named - {name.partition(".")[0] for name in results}
    modules = sorted(sources.closure(imported | set(_experiments(computed, root))))
    hashes = {name: digest(sources.spelled(name)) for name in modules}
    return {"cells": digest(parts), "modules": {**hashes, **results}}


def digest(value: object) -> str:
    """Return twelve hexadecimal digits that identify a JSON-like `value`."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def _sources(root: Path) -> ModuleType:
    """Load `companion.sources` by itself: importing the package would import PyTorch."""
    spec = importlib.util.spec_from_file_location(
        "companion.sources", root / "companion" / "sources.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _beside_tree(source: str, code: str, tree: ast.Module) -> list[object]:
    """Return what decides a cell's output and is not in its canonical tree.

    Magic lines; whether it ends in `;`, which hides the last value; a last line that is a string.
    """
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    last = [token.string for token in tokens if token.type not in layout and token.string][-1:]
    shown = tree.body[-1].value if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    return [
        [line.strip() for line in _MAGIC.findall(source)],
        last == [";"],
        repr(shown.value) if isinstance(shown, ast.Constant) else None,
    ]


def _results(named: set[object], root: Path) -> dict[str, str]:
    """Return the hashes of what was found in the recorded runs of the experiments `named`."""
    found = {}
    for path in sorted((root / "book" / "results").glob("*.json")):
        if path.name.partition(".")[0] in named:
            content = json.loads(path.read_text(encoding="utf-8"))
            found[path.name] = digest([content[k] for k in ("scalars", "curves", "claims")])
    return found


def _experiments(named: set[object], root: Path) -> Iterator[str]:
    """Yield the modules of experiments whose ID is `named`: `run` finds those without an import."""
    folder = root / "companion" / "experiments"
    for id in sorted(value for value in named if isinstance(value, str) and _ID.fullmatch(value)):
        stem = id.lower().replace("-", "_")
        for path in folder.glob(f"*/{stem}_*.py"):
            if len(path.stem.removeprefix(f"{stem}_").split("_")) == 2:
                yield f"companion.experiments.{path.parent.name}.{path.stem}"
