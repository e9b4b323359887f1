"""Running an experiment in parts that survive a kill."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from companion.files import replacing
from companion.results import decode, encode
from companion.train import Snapshot, differences

Report = Callable[[float, str], None]
"""Receives the finished fraction of the whole run and the name of the part at work."""


@dataclass(frozen=True)
class Part:
    """One resumable unit of an experiment, handed to the function that computes it.

    Attributes:
        snapshot: where and how often training should save its state, or ``None`` for never;
            pass it on to :func:`companion.train.fit`.
        report: takes the finished fraction of this part; pass it on as well.
    """

    snapshot: Snapshot | None
    report: Callable[[float], None]


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
    """

    seed: int
    device: torch.device
    folder: Path | None
    every: float
    report: Report
    data: Path | None

    def map(
        self, compute: Callable[..., Any], parts: Mapping[str, tuple[Any, ...]]
    ) -> dict[str, Any]:
        """Return ``{name: compute(part, *arguments)}``, skipping the parts that are stored.

        Args:
            compute: gets a :class:`Part` and the arguments of one part; returns numbers, in
                nested lists and dicts if need be. It must depend on nothing but its arguments.
            parts: the arguments of every part, by a unique name.

        Example:
            >>> run = Run(0, torch.device("cpu"), None, 30.0, lambda fraction, name: None, None)
            >>> run.map(lambda part, x: x * x, {"two": (2,), "three": (3,)})
            {'two': 4, 'three': 9}
        """
        results = {}
        for index, (name, arguments) in enumerate(parts.items()):

            def report(fraction: float, index: int = index, name: str = name) -> None:
                self.report((index + fraction) / len(parts), name)

            report(0.0)
            results[name] = self._part(name, compute, arguments, report)
        self.report(1.0, "done")
        return results

    def _part(
        self,
        name: str,
        compute: Callable[..., Any],
        arguments: tuple[Any, ...],
        report: Callable[[float], None],
    ) -> Any:
        if self.folder is None:
            return compute(Part(None, report), *arguments)
        stem = hashlib.sha256(name.encode()).hexdigest()[:16]
        finished, snapshot = self.folder / f"{stem}.json", self.folder / f"{stem}.pt"
        if finished.exists():
            return decode(_read(finished)["value"])
        value = compute(Part(Snapshot(snapshot, self.every), report), *arguments)
        with replacing(finished) as temporary:
            temporary.write_text(json.dumps({"part": name, "value": encode(value)}))
        snapshot.unlink(missing_ok=True)
        return value


def open_folder(folder: Path, identity: Mapping[str, Any], resume: bool) -> None:
    """Prepare the folder of a run's parts, and never delete any that are there.

    Args:
        folder: the folder.
        identity: everything that decides the numbers; stored in the folder.
        resume: whether to go on from what is there.

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
