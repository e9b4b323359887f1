"""The buffers that a solve's own evaluations read and change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from companion.solve import Stage

__all__ = ["BufferLog", "cloned", "read_buffers", "running_statistics"]

Tensors = dict[str, Tensor]


def cloned(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return copies; what is one tensor under two names is one copy."""
    copies = {id(tensor): tensor.clone() for tensor in tensors.values()}
    return {name: copies[id(tensor)] for name, tensor in tensors.items()}


def running_statistics(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the norms of a module that keep running statistics."""
    for part in module.modules():
        if isinstance(part, _NormBase) and part.track_running_stats:
            yield part


def read_buffers(module: nn.Module) -> frozenset[str]:
    """Return the names of the buffers that an evaluation may read.

    Running statistics in training mode are written and not read: they would be by far the most to
    keep, and need not be.
    """
    unread = {id(norm) for norm in running_statistics(module) if norm.training}
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules(remove_duplicate=False)
        if id(part) not in unread
        for name, buffer in part._buffers.items()
        if buffer is not None
    )


class _Finding(NamedTuple):
    """What one evaluation of a step found: where it stands, and the buffers that had changed."""

    c: Fraction
    number: int
    buffers: Tensors


class BufferLog:
    """What the evaluations of a forward solve found in the buffers of one set (a module, a cell).

    What nothing changes is kept once. A changed buffer is kept for every evaluation.
    """

    def __init__(self, start: Tensors, live: Mapping[str, Tensor], read: frozenset[str]) -> None:
        """Keep ``start``, copies of ``live``; follow those whose names are in ``read``."""
        self.start = start
        self.read = [name for name in start if name in read]
        self.unseen = False  # whether changes may leave the versions alone, as those by .data do
        self._seen = self._signature(live)
        self._latest: Tensors = {}
        self._found: dict[tuple[int, int], list[_Finding]] = {}

    def note(self, stage: Stage, live: Mapping[str, Tensor]) -> None:
        """Note what an evaluation at ``stage`` is about to find."""
        if not self.read:
            return
        if self._moved(live):
            self._seen = self._signature(live)
            self._latest = cloned({name: live[name] for name in self.read})
        if stage.c is None:
            return
        step = stage.output, stage.step
        if not self._latest and step not in self._found:
            self._found.clear()  # nothing had changed in earlier steps
        finding = _Finding(stage.c, stage.number, self._latest)
        self._found.setdefault(step, []).append(finding)

    def at(self, stage: Stage) -> Tensors:
        """Return copies of what the evaluation at ``stage``, or the nearest one, has found."""
        found, c = self._found.get((stage.output, stage.step)), stage.c
        if found is None or c is None:
            return cloned(self.start)
        nearest = min(found, key=lambda one: (abs(one.c - c), abs(one.number - stage.number)))
        return cloned(self.start | nearest.buffers)

    def changed(self, live: Mapping[str, Tensor]) -> list[str]:
        """Name the buffers that are read and are not as they were at the start."""
        return [name for name in self.read if not torch.equal(live[name], self.start[name])]

    def _signature(self, live: Mapping[str, Tensor]) -> list[tuple[Tensor, int]]:
        return [(live[name], _version(live[name])) for name in self.read]

    def _moved(self, live: Mapping[str, Tensor]) -> bool:
        pairs = zip(self.read, self._seen, strict=True)
        return self.unseen or any(
            live[name] is not tensor or _version(tensor) != before
            for name, (tensor, before) in pairs
        )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
