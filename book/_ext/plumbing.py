"""Cells that a reader does not need to see are folded: imports, checks, numbers stored for prose.

Nothing is written into the notebooks. While the book is built, a cell that is plumbing gets the tag
`hide-input`, so that its code waits behind a bar. A cell is plumbing

- if it is tagged `setup` or `parameters`, or only imports;
- if it only asserts;
- if it stores numbers for the prose with `glue`, perhaps in a loop, and otherwise only reads what
  is computed or recorded already. A cell that defines, computes or prints something stays in view.
"""

import ast
import json
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

TAGS = {"setup", "parameters"}
FOLDED = "hide-input"
# Calls that read, check or round what is there, an experiment's record included. Whatever else a
# cell calls is something to see.
READS = {
    *("abs", "all", "any", "append", "argmax", "argmin", "array", "asarray", "bool", "claim"),
    *("concatenate", "dict", "diff", "enumerate", "exp", "float", "format", "get", "glue", "index"),
    *("int", "isfinite", "item", "items", "join", "keys", "len", "list", "log", "log10", "log2"),
    *("max", "mean", "median", "min", "pop", "range", "ravel", "replace", "round", "run", "set"),
    *("sorted", "sqrt", "square", "std", "str", "sum", "tolist", "values", "where", "zip"),
}


def is_plumbing(code: str, tags: set[str]) -> bool:
    """Say whether the code of a cell, with its tags, is to be folded."""
    if tags & TAGS:
        return True
    body = ast.parse(code).body
    if not body:
        return False
    if all(isinstance(statement, ast.Import | ast.ImportFrom | ast.Assert) for statement in body):
        return True
    called = set(calls(body))
    defines = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.With, ast.Try)
    shown = any(isinstance(node, defines) for part in body for node in ast.walk(part))
    return "glue" in called and called <= READS and not shown


def calls(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the last name of everything that is called."""
    for part in body:
        for node in ast.walk(part):
            if isinstance(node, ast.Call):
                name = node.func
                yield name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "?")


def fold(app: Sphinx, docname: str, source: list[str]) -> None:
    """Tag the plumbing of a notebook that is about to be read."""
    if not docname.startswith("notebooks/"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        tags = cell["metadata"].setdefault("tags", [])
        code = "".join(cell["source"])
        if cell["cell_type"] == "code" and FOLDED not in tags and is_plumbing(code, set(tags)):
            tags.append(FOLDED)
    source[0] = json.dumps(notebook)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", fold)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
