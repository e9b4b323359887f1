"""Accepted steps kept together: the state at any time between the first and the last."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from companion.adaptive import Adaptive, Taken

__all__ = ["Trajectory"]


class Trajectory:
    """A solution as a function of time.

    Attributes:
        solver: the solver that took the steps.
        steps: the accepted steps, in order.
        start: the first time.
        end: the last time, in the last step.
    """

    def __init__(self, solver: Adaptive, steps: Sequence[Taken], end: float) -> None:
        """Keep the steps of a solve up to ``end``."""
        self.solver, self.steps = solver, steps
        self.start, self.end = steps[0].span.t, end
        self.ahead = 1.0 if steps[0].span.end > self.start else -1.0
        self.ends = [self.ahead * step.span.end for step in steps]

    def at(self, times: Sequence[float]) -> Tensor:
        """Return the states at some times, stacked; autograd sees what it saw of the steps."""
        if not times:
            return self.steps[0].y.unsqueeze(0)[:0]
        order = sorted(range(len(times)), key=lambda k: self.ahead * times[k])
        chunks = [
            self._of(self.steps[n], [times[k] for k in group])
            for n, group in groupby(order, key=lambda k: self._step(times[k]))
        ]
        if order == list(range(len(times))):
            return torch.cat(chunks)
        back = sorted(range(len(times)), key=order.__getitem__)
        return torch.cat(chunks)[back]

    def _step(self, t: float) -> int:
        return min(bisect_left(self.ends, self.ahead * t), len(self.steps) - 1)

    def _of(self, step: Taken, times: Sequence[float]) -> Tensor:
        """Return the states at times in one step; its ends are known exactly."""
        t, end = step.span.t, step.span.end
        if times == [end]:
            return step.after.unsqueeze(0)
        if times == [t]:
            return step.y.unsqueeze(0)
        return self.solver.inside(step, [(time - t) / step.span.size for time in times])
