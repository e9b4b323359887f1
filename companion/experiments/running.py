"""Running an experiment in parts that survive a kill."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from companion.files import replacing
from companion.models import save
from companion.results import decode, encode
from companion.train import Snapshot, Team, differences

Report = Callable[[float, str], None]
"""Receives the finished fraction of the whole run and the name of the part at work."""


@dataclass(frozen=True)
class Part:
    """One resumable unit of an experiment, handed to the function that computes it.

    It passes ``snapshot`` (where and how often to save a state), ``report`` (takes the finished
    fraction) and ``parallel`` (whether several processes share this part) on to
    :func:`companion.train.fit`. ``model`` is the file for what this part trains, or ``None``.
    """

    snapshot: Snapshot | None
    report: Callable[[float], None]
    parallel: bool = False
    model: Path | None = None

    def keep(self, model: nn.Module, name: str = "") -> None:
        """Save a trained model, if trained models are to be kept (``companion run --keep``).

        :func:`companion.models.load` reads it. Of several, ``name`` says which this is.
        """
        path = self.named(name).model
        if path is not None:
            save(model, path)

    def named(self, name: str) -> "Part":
        """Return this part, its model in a file of that name: one of several it trains.

        Example:
            >>> print(Part(None, print, model=Path("rk4.pt")).named("seed 3").model)
            rk4.seed_3.pt
        """
        if self.model is None or not name:
            return self
        return replace(self, model=self.model.with_suffix(f".{_words(name)}.pt"))


@dataclass(frozen=True)
class Run:
    """What an experiment's function gets besides its parameters.

    Attributes:
        seed: seed of the whole run; derive all other seeds from it.
        device: where to compute.
        folder: where parts are kept, or ``None`` to keep nothing.
        every: longest time in seconds between two snapshots.
        report: progress callback.
        data: folder with data sets that do not come with the package, or ``None``.
        models: folder to keep trained models in, or ``None``.
        team: the processes that share the run.
        dtype: the precision to train in: double in the tier ``tiny``, whose numbers must be the
            same on every machine, though training magnifies what is rounded; else single.
    """

    seed: int
    device: torch.device
    folder: Path | None
    every: float
    report: Report
    data: Path | None
    models: Path | None = None
    team: Team = field(default_factory=Team)
    dtype: torch.dtype = torch.float32

    def seeds(self, count: int) -> range:
        """Return ``count`` seeds, from the run's own on."""
        return range(self.seed, self.seed + count)

    def map(
        self,
        compute: Callable[..., Any],
        parts: Mapping[str, tuple[Any, ...]],
        *,
        together: bool = False,
    ) -> dict[str, Any]:
        """Return ``{name: compute(part, *arguments)}``, skipping the parts that are stored.

        Several processes divide the parts among themselves, and each gets all values.

        Args:
            compute: gets a :class:`Part` and the arguments of one part; returns numbers, in
                nested lists and dicts if need be. It must depend on nothing but its arguments.
            parts: the arguments of every part, by a unique name.
            together: whether all processes compute each part, sharing the work inside it; only
                the first one's values are kept.

        Raises:
            TypeError: a part returned something else than numbers, strings, lists and dicts.

        Example:
            >>> run = Run(0, torch.device("cpu"), None, 30.0, lambda fraction, name: None, None)
            >>> run.map(lambda part, x: x * x, {"two": (2,), "three": (3,)})
            {'two': 4, 'three': 9}
        """
        pending = [name for name in parts if not self._finished(name)]
        self.team.wait()  # nobody finishes a part before all have seen what is to be done
        mine = pending if together else pending[self.team.rank :: self.team.size]
        values = {}
        for index, name in enumerate(mine):

            def report(fraction: float, index: int = index, name: str = name) -> None:
                done = len(pending) * (index + fraction) / len(mine)
                self.report(1 - (len(pending) - done) / len(parts), name)

            report(0.0)
            values[name] = self._compute(name, compute, parts[name], report, together)
        self.team.wait()
        self.report(1.0, "done")
        kept = values if self.team.size == 1 else {}
        return {name: kept[name] if name in kept else self._stored(name) for name in parts}

    def _compute(
        self,
        name: str,
        compute: Callable[..., Any],
        arguments: tuple[Any, ...],
        report: Callable[[float], None],
        together: bool,
    ) -> Any:
        parallel = together and self.team.size > 1
        kept = not parallel or self.team.rank == 0
        model = self.models / f"{_words(name)}.pt" if self.models is not None and kept else None
        if self.folder is None:
            value = compute(Part(None, report, model=model), *arguments)
            return decode(json.loads(_spelled(name, value)))
        path = self._path(name, ".pt")
        value = compute(Part(Snapshot(path, self.every), report, parallel, model), *arguments)
        text = _spelled(name, value)
        if kept:
            with replacing(self._path(name, ".json")) as temporary:
                temporary.write_text(f'{{"part": {json.dumps(name)}, "value": {text}}}')
            path.unlink(missing_ok=True)
        return decode(json.loads(text))

    def _finished(self, name: str) -> bool:
        return self.folder is not None and self._path(name, ".json").exists()

    def _stored(self, name: str) -> Any:
        return decode(_read(self._path(name, ".json"))["value"])

    def _path(self, name: str, suffix: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}{suffix}"


def _words(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_")


def _spelled(name: str, value: Any) -> str:
    """Return a part's value as JSON, so that it is the same whether it was stored or not."""
    try:
        return json.dumps(encode(value), allow_nan=False)
    except TypeError as error:
        raise TypeError(
            f"part {name!r} must return numbers, strings, lists and dicts: {error}"
        ) from error


def open_folder(folder: Path, identity: Mapping[str, Any], resume: bool) -> None:
    """Prepare the folder of a run's parts, and never delete any that are there.

    Raises:
        ValueError: the folder holds parts and ``resume`` is false; or they belong to a run with
            another identity, and the message says in which fields; or other files are there.
    """
    marker = folder / "run.json"
    wanted = json.loads(json.dumps(encode(identity)))
    if holds_parts(folder):
        if not marker.exists():
            raise ValueError(f"the folder of parts {folder} holds files that are none; remove it")
        if not resume:
            raise ValueError(
                f"an interrupted run is in {folder}: add --resume (resume=True) to continue it, or "
                "remove that folder to start anew"
            )
        if differing := differences(_read(marker), wanted):
            fields = ", ".join(text.removeprefix("provenance.") for text in differing)
            raise ValueError(
                f"cannot resume from {folder}: it holds another run, which differs in {fields}; "
                "remove that folder to start anew"
            )
        return
    with replacing(marker) as temporary:
        temporary.write_text(json.dumps(wanted, indent=1))


def close_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Remove the parts of a run whose result is saved; those of another run stay."""
    marker = folder / "run.json"
    if not marker.exists() or differences(_read(marker), json.loads(json.dumps(encode(identity)))):
        return
    for path in folder.iterdir():
        if path != marker:  # it goes last: without it nobody knows whose the others are
            path.unlink()
    shutil.rmtree(folder)


def holds_parts(folder: Path) -> bool:
    """Whether there is more in ``folder`` than the description of a run: work worth keeping.

    Example:
        >>> holds_parts(Path("no-such-folder"))
        False
    """
    if not folder.exists():
        return False
    return any(p.name != "run.json" and p.suffix != ".tmp" for p in folder.iterdir())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error}; delete it") from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds no part of a run; delete it")
    return content
