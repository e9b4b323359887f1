"""Where a function of time and state changes its sign along a solve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from companion.adaptive import Adaptive, Span, Taken
from companion.solve import Problem, time_like

__all__ = ["Event"]

SAMPLES = 10
"""A step is looked at in so many pieces: two changes in one of them are not seen."""


class Event:
    """An event: one of several values changes its sign.

    A value that is zero at the start, or changes its sign there within rounding (as after a
    bounce, which starts where the last solve found the ground), has the sign that it takes next.

    Attributes:
        time: where it happened, ``None`` before.
        index: which of the values changed.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        """Watch ``function(t, y)``, a floating-point tensor of any shape."""
        self.function = function
        self.time: float | None = None
        self.index = 0

    def value(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the values in a row.

        Raises:
            TypeError: if there is no tensor of floating-point numbers.
            ValueError: if there is no number.
        """
        value = self.function(t, y)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"event_fn: returned {found}; it must return a floating-point tensor")
        if not value.numel():
            raise ValueError("event_fn: returned no number; it must return at least one")
        return value.reshape(-1)

    def until(self, problem: Problem, steps: Iterable[Taken]) -> Iterator[Taken]:
        """Yield the steps of a solve up to the one in which the event happens."""
        solver, t0, t1 = problem.solver, float(problem.t[0]), float(problem.t[-1])
        assert isinstance(solver, Adaptive)
        rounding = 8 * torch.finfo(problem.y0.dtype).eps * max(abs(t0), abs(t1 - t0))
        start = Span(t0, t0 + math.copysign(rounding, t1 - t0))
        known = self._numbers(t0, problem.y0)
        for step in steps:
            found = self._first(solver, step, known, start)
            if found is not None:
                self.index, fraction = found
                self.time = _at(step.span, fraction)
            yield step
            if found is not None:
                return

    def _first(
        self, solver: Adaptive, step: Taken, known: list[float], start: Span
    ) -> tuple[int, float] | None:
        """Return the first change in a step, and bring the values ``known`` up to its end.

        What changes within ``start``, a rounding unit after the first time, is no change.
        """
        fractions = [(k + 1) / SAMPLES for k in range(SAMPLES)]
        with torch.no_grad():
            states = [*solver.inside(step, fractions[:-1]).unbind(), step.after]
        before = 0.0
        for fraction, y in zip(fractions, states, strict=True):
            values = self._numbers(_at(step.span, fraction), y)
            changed = [
                (self._root(solver, step, j, (before, known[j]), (fraction, value)), j)
                for j, value in enumerate(values)
                if known[j] * value < 0 or (value == 0 != known[j])
            ]
            changed = [c for c in changed if abs(_at(step.span, c[0]) - start.t) > abs(start.size)]
            if changed:
                fraction, j = min(changed)
                return j, fraction
            known[:] = values
            before = fraction
        return None

    def _root(
        self,
        solver: Adaptive,
        step: Taken,
        j: int,
        low: tuple[float, float],
        high: tuple[float, float],
    ) -> float:
        """Return the fraction of a step at which value ``j`` is zero, between two known values."""
        ends = dict((low, high))

        def value(fraction: float) -> float:
            if fraction in ends:
                return ends[fraction]
            with torch.no_grad():
                y = solver.inside(step, [fraction])[0]
            return self._numbers(_at(step.span, fraction), y)[j]

        return float(brentq(value, low[0], high[0], xtol=1e-15, rtol=1e-14))

    def _numbers(self, t: float, y: Tensor) -> list[float]:
        with torch.no_grad():
            values: list[float] = self.value(time_like(t, y), y).tolist()
        if any(value != value for value in values):
            raise ValueError(f"event_fn: returned nan at t = {t:.6g}")
        return values


def _at(span: Span, fraction: float) -> float:
    return span.end if fraction == 1.0 else span.t + fraction * span.size
