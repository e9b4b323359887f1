"""The asynchronous leapfrog: a two-step-like scheme that can be run backwards exactly."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from companion.solve import Carried, Field, GridSolver, Stage, Step

__all__ = ["AsyncLeapfrog"]


@dataclass(frozen=True)
class AsyncLeapfrog(GridSolver):
    r"""``steps`` equal steps of the asynchronous leapfrog between consecutive output times.

    The state carries a velocity along, $v_0 = f(t_0, y_0)$. With $m = y_n + \frac h2 v_n$, one
    step is

    $$v_{n+1} = 2 f(t_n + \tfrac h2, m) - v_n, \qquad y_{n+1} = m + \tfrac h2 v_{n+1} .$$

    It is of order 2 with one evaluation a step. Given $(y_{n+1}, v_{n+1})$ the same formulas give
    $m$, then $v_n$ and $y_n$: no equation has to be solved (Mutze 2013; Zhuang et al. 2021). The
    price is a velocity that is only neutrally stable: on dissipative fields it oscillates.

    Every interval between output times starts with a fresh velocity.
    """

    steps: int
    method: ClassVar[str] = "async_leapfrog"

    @override
    def start(self, field: Field, y: Tensor, first: Step) -> Carried:
        return y, field(self.entrance(first), y)

    @override
    def onward(self, field: Field, carried: Carried, step: Step) -> Carried:
        y, v = carried
        half = step.size(y) / 2
        middle = y + half * v
        v = 2 * field(self.middle(step), middle) - v
        return middle + half * v, v

    @override
    def stages(self, step: Step) -> list[Stage]:
        return [*([self.entrance(step)] if step.n == 0 else []), self.middle(step)]

    def entrance(self, first: Step) -> Stage:
        """Return where the first velocity of an interval is evaluated."""
        return first.stage(Fraction(0), 0.0)

    def middle(self, step: Step) -> Stage:
        """Return where the field is evaluated in a step."""
        return step.stage(Fraction(1, 2), 0.5)
