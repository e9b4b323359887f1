"""A hash of the code a module rests on, blind to comments, docstrings and layout.

Results and executed notebooks record this hash. It tells whether the code behind a number has
changed since, without time stamps and without false alarms from edited prose.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_PACKAGE = __name__.partition(".")[0]
_ROOT = Path(__file__).parent.parent


def source_hash(modules: Iterable[str]) -> str:
    """Hash the parsed code of ``modules`` and of every module of this package they import.

    Imports are followed through the package's files without running them, also those inside
    functions. ``from companion import X`` leads to the module that defines ``X``. Two versions of
    Python give the same hash for code that parses to the same tree.

    Args:
        modules: names such as ``"companion.solve"``.

    Returns:
        A SHA-256 as 64 hexadecimal digits.

    Raises:
        ValueError: a name is not a module of this package.

    Example:
        >>> len(source_hash(["companion.files"]))
        64
    """
    digest = hashlib.sha256()
    for name in sorted(closure(modules)):
        digest.update(f"{name}\n{spelled(name)}\n".encode())
    return digest.hexdigest()


def code_hash(code: str) -> str:
    """Hash one piece of Python code by its parsed tree, without comments and docstrings.

    Example:
        >>> code_hash("x = 1  # one") == code_hash("x=1"), code_hash("x = 1") == code_hash("x = 2")
        (True, False)
    """
    return hashlib.sha256(canonical(ast.parse(code)).encode()).hexdigest()


def imported_modules(code: str, package: str = "") -> set[str]:
    """Return the modules of this package that ``code`` imports, by name, directly.

    Args:
        code: Python source.
        package: the package the code lives in, which relative imports start from.

    Example:
        >>> sorted(imported_modules("from companion.files import replacing; import torch"))
        ['companion.files']
    """
    return {name for node in ast.walk(ast.parse(code)) for name in _targets(node, package)}


def closure(modules: Iterable[str]) -> set[str]:
    """Return ``modules`` and all modules of this package they import, directly or not.

    The packages a module lies in count as imported, because Python runs them first; the
    top-level one, which only re-exports, does not.

    Example:
        >>> "companion.files" in closure(["companion.results"])
        True
    """
    waiting, found = list(modules), set[str]()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        path = _file(name)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in _parsed(path).imports:
            waiting += _targets(node, package)
        if package not in (name, _PACKAGE):
            waiting.append(package)
    return found


def spelled(module: str) -> str:
    """Return the parsed code of a module of this package as :func:`canonical` spells it.

    Raises:
        ValueError: there is no such module in this package.

    Example:
        >>> spelled("companion.files").startswith("Module(body=[Import(names=[alias(name='os')])")
        True
    """
    return _parsed(_file(module)).spelled


def canonical(node: object) -> str:
    """Spell a syntax tree without positions, bare strings and empty fields.

    ``ast.dump`` would do, but it shows empty fields that come and go between Python versions.
    """
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields)
        shown = [f"{name}={canonical(value)}" for name, value in fields if value not in (None, [])]
        return f"{type(node).__name__}({','.join(shown)})"
    if isinstance(node, list):
        return f"[{','.join(canonical(item) for item in node if not _is_bare_string(item))}]"
    return repr(node)


def _is_bare_string(node: object) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


class _Parsed:
    """One file, parsed; what follows from its tree is found once, when it is first asked for."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_bytes())

    @functools.cached_property
    def spelled(self) -> str:
        return canonical(self.tree)

    @functools.cached_property
    def imports(self) -> list[ast.AST]:
        """The import statements, also those inside functions."""
        kinds = (ast.Import, ast.ImportFrom)
        return [node for node in ast.walk(self.tree) if isinstance(node, kinds)]


def _parsed(path: Path) -> _Parsed:
    stat = path.stat()
    return _parsed_once(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _parsed_once(path: Path, changed: int, size: int) -> _Parsed:
    """Parse each version of a file once in a process: a hash of one module reads a hundred."""
    return _Parsed(path)


def _file(name: str) -> Path:
    """Return the file of a module of this package."""
    if name.partition(".")[0] == _PACKAGE:
        base = _ROOT.joinpath(*name.split("."))
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return path
    raise ValueError(f"module must be one of the package {_PACKAGE!r}; got {name!r}")


def _exists(name: str) -> bool:
    try:
        return bool(_file(name))
    except ValueError:
        return False


def _targets(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules of this package that one statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if _exists(alias.name))
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, base]) if base else ".".join(above)
        if _exists(base):
            yield from (_origin(base, alias.name) for alias in node.names)


def _origin(module: str, name: str) -> str:
    """Return the module that ``from module import name`` takes the name from."""
    if _exists(f"{module}.{name}"):
        return f"{module}.{name}"
    path = _file(module)
    if path.name != "__init__.py":
        return module
    for node in _parsed(path).imports:
        if isinstance(node, ast.ImportFrom) and name in {a.asname or a.name for a in node.names}:
            original = next(a.name for a in node.names if (a.asname or a.name) == name)
            for target in _targets(
                ast.ImportFrom(node.module, [ast.alias(original)], node.level), module
            ):
                return target
    return module
