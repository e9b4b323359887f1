"""The Adams methods of torchdiffeq behind the package's interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torchdiffeq
from torch import Tensor

from companion.solve import Problem, Stage, States, Stats, Times
from companion.time_gradients import with_time_gradients

__all__ = ["MAX_ORDER", "MULTISTEP", "Adams"]

MAX_ORDER = {"explicit_adams": 5, "implicit_adams": 6}
"""The highest order of each method. The interval of stability shrinks as the order grows: at order
12, torchdiffeq's, the explicit method needs steps of less than a thousandth of a time constant."""

MULTISTEP = tuple(MAX_ORDER)
"""Adams methods of variable order on a fixed grid."""


@dataclass(frozen=True)
class Adams:
    """An Adams method, afresh on ``steps`` equal steps in every interval between output times.

    Attributes:
        method: one of :data:`MULTISTEP`.
        steps: the steps in an interval.
        rtol: the relative tolerance of the implicit method's fixed-point sweeps.
        atol: their absolute tolerance.
    """

    method: str
    steps: int
    rtol: float | None = None
    atol: float | None = None
    on_grid: ClassVar[bool] = False
    recordable: ClassVar[bool] = True

    def integrate(self, problem: Problem) -> States:
        """Return the states at all output times, stacked."""
        field, t = problem.field, problem.t

        def func(t: Tensor, y: Tensor) -> Tensor:
            return field(Stage(t), y)

        def solve(y0: Tensor, times: Times) -> Tensor:
            return self.run(func, y0, times, problem.stats)

        if isinstance(t, Tensor) and t.requires_grad:
            return with_time_gradients(field, problem.y0, t, solve)
        return solve(problem.y0, t)

    def run(
        self,
        func: Callable[[Tensor, Tensor], Tensor],
        y0: Tensor,
        t: Times,
        stats: Stats | None = None,
    ) -> Tensor:
        """Solve ``dy/dt = func(t, y)`` and return the states at all times.

        Args:
            func: the right-hand side in torchdiffeq's form.
            y0: the state at ``t[0]``.
            t: the output times.
            stats: where to count steps.
        """
        times = torch.as_tensor(t, dtype=y0.dtype, device=y0.device)
        if not y0.numel():  # no error to measure; what matters is the graph
            return (y0 + func(times[0], y0)).expand(len(times), *y0.shape)
        options = {
            "grid_constructor": lambda func, y0, t: _equal_steps(t, self.steps),
            "max_order": MAX_ORDER[self.method],
        }
        tolerances = {"rtol": self.rtol, "atol": self.atol}
        given = {name: value for name, value in tolerances.items() if value is not None}
        states = [y0.unsqueeze(0)]
        # They extrapolate from equal past steps: each interval starts afresh.
        for piece in times.unfold(0, 2, 1).unbind():
            ys = torchdiffeq.odeint(
                func, states[-1][-1], piece, method=self.method, options=options, **given
            )
            states.append(ys[1:])
        if stats is not None:
            stats.steps += self.steps * (len(times) - 1)
        return torch.cat(states)

    def first_non_finite(self, problem: Problem) -> None:
        """Solve nothing again: only the states at the output times are known here."""


def _equal_steps(t: Tensor, steps: int) -> Tensor:
    """Return the grid of ``steps`` equal steps from ``t[0]`` to ``t[1]``, ends included."""
    t0, t1 = t.tolist()
    grid = torch.linspace(t0, t1, steps + 1, dtype=t.dtype, device=t.device)
    return torch.cat([grid[:-1], t[-1:]])
