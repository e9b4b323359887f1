"""What a notebook's outputs were computed from: hashes of parsed code, found without running any.

Outputs depend on the notebook's own code cells and on the `companion` modules they import, directly
or through other modules. Both are hashed as parsed trees, so that comments, docstrings and layout
make nothing stale. A record is a plain dictionary that is stored in the executed notebook.
"""

import ast
import hashlib
import io
import json
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

PACKAGE = "companion"
_MAGIC = re.compile(r"^\s*[%!].*$", re.MULTILINE)
_DYNAMIC = {"import_module", "__import__", "iter_modules", "walk_packages"}


def record(notebook: NotebookNode, root: Path) -> dict[str, Any]:
    """Return `{"cells": hash, "modules": {dotted name: hash}}` for the code `notebook` runs.

    Raises:
        ValueError: a code cell is not Python, named by its number.
    """
    trees, parts = [], []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code":
            continue
        try:
            tree = ast.parse(_MAGIC.sub("", cell.source))
        except SyntaxError as error:
            raise ValueError(f"cell {number} is not Python: {error}") from error
        trees.append(tree)
        magics = [line.strip() for line in _MAGIC.findall(cell.source)]
        tags = sorted(cell.metadata.get("tags", []))
        parts.append([_dump(tree, is_cell=True), magics, _is_silenced(cell.source), tags])
    files = _Imports(root).closure(trees)
    modules = {name: digest(_dump(ast.parse(path.read_bytes()))) for name, path in files.items()}
    return {"cells": digest(parts), "modules": dict(sorted(modules.items()))}


def digest(value: object) -> str:
    """Return twelve hexadecimal digits that identify a JSON-like `value`."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _dump(node: object, is_cell: bool = False) -> object:
    """Return a tree as nested lists, without docstrings and positions.

    `ast.dump` is not used because its text changes between Python versions. The one place where a
    bare string matters is the top level of a cell, which displays it.
    """
    if isinstance(node, list):
        return [_dump(item) for item in node if is_cell or not _is_bare_string(item)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, getattr(node, name, None)) for name in node._fields if name != "kind")
    kept = [[name, _dump(value, is_cell)] for name, value in fields if value not in (None, [])]
    return [type(node).__name__, *kept]


def _is_bare_string(node: object) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_silenced(source: str) -> bool:
    """Return whether a cell ends in `;`, which hides its value and leaves no trace in the tree."""
    code = _MAGIC.sub("", source)
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER}
    last = [token.string for token in tokens if token.type not in layout and token.string][-1:]
    return last == [";"]


class _Imports:
    """Finds the modules of the package under `root` that some code imports, by reading alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._trees: dict[str, ast.Module] = {}

    def closure(self, trees: Iterable[ast.Module]) -> dict[str, Path]:
        """Return name and file of every package module reachable from `trees`."""
        found: dict[str, Path] = {}
        todo = [module for tree in trees for module in self._imported(tree, package="")]
        while todo:
            module = todo.pop()
            path = self._file(module)
            if path is None or module in found:
                continue
            found[module] = path
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            todo.extend(self._imported(self._tree(module), package))
        return found

    def _imported(self, tree: ast.Module, package: str) -> Iterator[str]:
        # Imports inside functions count too: ast.walk sees the whole tree.
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name
                    if alias.asname is None:  # `import a.b` also binds `a`
                        yield alias.name.partition(".")[0]
            elif isinstance(node, ast.ImportFrom):
                base = _absolute(node, package)
                for alias in node.names:
                    yield self._home(base, alias.name)
            elif isinstance(node, ast.Call) and _called_name(node) in _DYNAMIC:
                yield from self._dynamic(node, package)

    def _home(self, module: str, name: str) -> str:
        """Return the module that `from module import name` depends on.

        A package's `__init__` that only passes a name on is looked through, so that an edit to one
        module does not make every notebook stale.
        """
        if self._file(f"{module}.{name}") is not None:
            return f"{module}.{name}"
        path = self._file(module)
        if path is None or path.name != "__init__.py" or name == "*":
            return module
        for node in ast.walk(self._tree(module)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    target = (_absolute(node, module), alias.name)
                    if (alias.asname or alias.name) == name and target != (module, name):
                        return self._home(*target)
        return module

    def _dynamic(self, call: ast.Call, package: str) -> Iterator[str]:
        """Yield the named module of an import at run time, or the whole package if computed."""
        first = call.args[0] if call.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield package + first.value if first.value.startswith(".") else first.value
            return
        top = self.root / (package or PACKAGE).replace(".", "/")
        for path in sorted(top.rglob("*.py")):
            dotted = path.relative_to(self.root).with_suffix("")
            yield ".".join(dotted.parts).removesuffix(".__init__")

    def _file(self, module: str) -> Path | None:
        if module.partition(".")[0] != PACKAGE:
            return None
        base = self.root.joinpath(*module.split("."))
        candidates = (base / "__init__.py", base.with_suffix(".py"))
        return next((path for path in candidates if path.is_file()), None)

    def _tree(self, module: str) -> ast.Module:
        if module not in self._trees:
            path = self._file(module)
            assert path is not None
            self._trees[module] = ast.parse(path.read_bytes())
        return self._trees[module]


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the dotted name of the module a `from … import` reads, seen from `package`."""
    if node.level == 0:
        return node.module or ""
    parts = package.split(".")
    parents = parts[: len(parts) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _called_name(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
