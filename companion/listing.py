"""Which experiments there are, read from their files: nothing is imported, least of all torch.

An experiment lies in `companion/experiments/<chapter>/<id>_<two words>.py`, so that its ID tells
where to look: S22-F3a is `residual_steps/s22_f3a_layer_factor.py`.
"""

import ast
import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from companion.claims import CATALOGUE

_EXPERIMENTS = Path(__file__).parent / "experiments"
_TIERS = ("full", "tiny")


@dataclass(frozen=True)
class Entry:
    """What an experiment's file says of it.

    Attributes:
        id: the experiment's ID.
        title: one line on what it does.
        paper: where the papers treat it.
        module: the dotted name of its module.
        claims: IDs of the claims it decides.
        parameters: for each tier the values as they are written, by name; those of ``full`` and
            ``tiny`` are the ones that differ from ``smoke``.
    """

    id: str
    title: str
    paper: str
    module: str
    claims: tuple[str, ...]
    parameters: Mapping[str, Mapping[str, str]]

    @property
    def chapter(self) -> str:
        """The slug of the chapter that the experiment belongs to."""
        return self.module.split(".")[-2]


@functools.cache
def entries() -> Mapping[str, Entry]:
    """Return every experiment of the package by ID, in order of ID.

    Raises:
        ValueError: two files declare one ID, or a file is not called after its ID.

    Example:
        >>> entries()["S22-F3a"].chapter
        'residual_steps'
    """
    found: dict[str, Entry] = {}
    for path in sorted(_EXPERIMENTS.glob("*/*.py")):
        for entry in _declared(path):
            if entry.id in found:
                raise ValueError(f"{path}: experiment {entry.id!r} is declared twice")
            if not re.fullmatch(rf"{stem(entry.id)}_[a-z0-9]+_[a-z0-9]+", path.stem):
                raise ValueError(f"{path}: must be called {stem(entry.id)}_<two words>.py")
            found[entry.id] = entry
    return dict(sorted(found.items()))


def stem(id: str) -> str:
    """Return what the file of an experiment begins with.

    Example:
        >>> stem("FW8-T")
        'fw8_t'
    """
    return id.lower().replace("-", "_")


def locate(id: str) -> str:
    """Return the module of the experiment with this ID, from the names of the files alone.

    Raises:
        ValueError: there is none; the message names the nearest ID, or lists all.

    Example:
        >>> locate("S22-F3a")
        'companion.experiments.residual_steps.s22_f3a_layer_factor'
    """
    pattern = re.compile(rf"{re.escape(stem(id))}_[a-z0-9]+_[a-z0-9]+")
    for path in _EXPERIMENTS.glob(f"*/{stem(id)}_*.py"):
        if pattern.fullmatch(path.stem):
            for entry in _declared(path):
                if entry.id == id:
                    return entry.module
    raise ValueError(unknown("experiment", id, entries()))


def unknown(what: str, value: object, known: Iterable[str]) -> str:
    """Return the message for a name that is none, with the nearest one if it is near enough.

    Example:
        >>> unknown("experiment", "s22-f3", ["S22-F3a", "Q20-OB"])
        "experiment: 's22-f3' is not allowed; did you mean 'S22-F3a'?"
        >>> unknown("tier", "big", ["smoke", "full"])
        "tier: 'big' is not allowed; it must be one of ['smoke', 'full']"
    """
    known = list(known)
    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(str(value).casefold(), folded, n=1, cutoff=0.7)
    hint = f"did you mean {folded[near[0]]!r}?" if near else f"it must be one of {known}"
    return f"{what}: {value!r} is not allowed; {hint}"


def _declared(path: Path) -> Iterator[Entry]:
    """Yield what the decorators of a file declare."""
    module = ".".join(("companion", *path.relative_to(_EXPERIMENTS.parent).with_suffix("").parts))
    for node in ast.parse(path.read_bytes()).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "experiment":
                yield _entry(call, node, module)


def _entry(call: ast.Call, function: ast.FunctionDef, module: str) -> Entry:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    id, title = (ast.literal_eval(argument) for argument in call.args)
    constants = [node for node in ast.walk(given["claims"]) if isinstance(node, ast.Constant)]
    constants.sort(key=lambda node: (node.lineno, node.col_offset))  # as they are written
    strings = (node.value for node in constants)
    arguments = function.args
    smoke = {
        argument.arg: ast.unparse(value)
        for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if value is not None
    }
    other = {name: _items(given[name]) for name in _TIERS if name in given}
    claims = dict.fromkeys(text for text in strings if isinstance(text, str) and text in CATALOGUE)
    paper = ast.literal_eval(given["paper"])
    return Entry(id, title, paper, module, tuple(claims), {"smoke": smoke, **other})


def _items(node: ast.expr) -> dict[str, str]:
    if not isinstance(node, ast.Dict):
        return {}
    return {
        ast.literal_eval(name): ast.unparse(value)
        for name, value in zip(node.keys, node.values, strict=True)
        if name is not None
    }
