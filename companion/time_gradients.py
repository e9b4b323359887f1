"""Derivatives with respect to output times, for solvers that take times as plain numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from companion.solve import Field, Stage, States, stacked

__all__ = ["with_time_gradients"]


def with_time_gradients(
    field: Field, y0: Tensor, t: Tensor, solve: Callable[[Tensor, list[float]], States]
) -> Tensor:
    """Solve at detached times and attach the flow's exact derivatives with respect to them.

    An output moves with its own time as ``dy(t_i)/dt_i = f(t_i, y_i)``. Moving the start by
    ``d`` is starting from ``y0 - d * f(t_0, y0)``. Both terms below have the value zero.
    """
    shifts = (t - t.detach()).to(y0.dtype).unbind()
    times = t.detach().tolist()
    start = y0 - shifts[0] * field(Stage(times[0]), y0.detach())
    ys = stacked(solve(start, times))
    moved = [
        y + shift * field(Stage(time), y.detach())
        for y, shift, time in zip(ys[1:], shifts[1:], times[1:], strict=True)
    ]
    return torch.stack([y0, *moved])
