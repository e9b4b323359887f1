"""Counts of evaluations and steps, for ``odeint`` and for blocks alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from companion.solve import Stats

__all__ = ["count_too", "counting", "current_stats"]

_current: ContextVar[Stats | None] = ContextVar("stats", default=None)


@contextmanager
def counting(stats: Stats | None = None) -> Iterator[Stats]:
    """Count what all solves do that begin inside, in ``odeint`` and in blocks.

    A backward pass counts with its solve, wherever it runs.

    Args:
        stats: counts to go on with; new ones if ``None``.

    Example:
        >>> import torch
        >>> from companion import OdeBlock, odeint
        >>> block = OdeBlock(torch.nn.Linear(2, 2), method="rk4", steps=5, gradient="adjoint")
        >>> with counting() as stats:
        ...     y = block(torch.zeros(1, 2))
        >>> y.sum().backward()
        >>> stats
        Stats(nfe=20, nfe_backward=20, steps=5, rejected=0)
    """
    if stats is not None and not isinstance(stats, Stats):
        raise TypeError(f"stats: {stats!r} is not allowed; pass a companion.Stats or None")
    stats = Stats() if stats is None else stats
    token = _current.set(stats)
    try:
        yield stats
    finally:
        _current.reset(token)


def current_stats() -> Stats | None:
    """Return the counts that a solve has to add to, if somebody counts."""
    if torch.compiler.is_compiling():  # a compiled solve counts nothing
        return None
    return _current.get()


def count_too(own: Stats) -> None:
    """Add the counts of one solve to those of whoever counts around it."""
    outer = current_stats()
    if outer is not None:
        for name in ("nfe", "nfe_backward", "steps", "rejected"):
            setattr(outer, name, getattr(outer, name) + getattr(own, name))
