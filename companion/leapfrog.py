"""The asynchronous leapfrog: a two-step-like scheme that can be run backwards exactly."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from companion.solve import Field, Interval, Stage, Stats, Times, intervals, step_size

__all__ = ["AsyncLeapfrog"]


@dataclass(frozen=True)
class AsyncLeapfrog:
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

    def solve(
        self, field: Field, y0: Tensor, t: Times, scale: float = 1.0, stats: Stats | None = None
    ) -> list[Tensor]:
        """Solve from ``t[0]``; return the states at all of ``t``."""
        states = [y0]
        for interval in intervals(t):
            y, _ = self.interval(field, states[-1], interval, scale)
            states.append(y)
        if stats is not None:
            stats.steps += self.steps * (len(states) - 1)
        return states

    def interval(
        self, field: Field, y: Tensor, interval: Interval, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Return state and velocity at the end of an interval."""
        v = field(self.start(interval), y)
        for n in range(self.steps):
            half = step_size(interval, self.steps, scale, y) / 2
            middle = y + half * v
            v = 2 * field(self.stage(interval, n), middle) - v
            y = middle + half * v
        return y, v

    def start(self, interval: Interval) -> Stage:
        """Return where the first velocity of an interval is evaluated."""
        return Stage(interval[0], 0, self.steps, Fraction(0))

    def stage(self, interval: Interval, n: int) -> Stage:
        """Return where the field is evaluated in step ``n`` of an interval."""
        t0, t1 = interval
        return Stage(t0 + (n + 0.5) * ((t1 - t0) / self.steps), n, self.steps, Fraction(1, 2))

    def first_non_finite(self, field: Field, y0: Tensor, t: Times, scale: float) -> float | None:
        """Return the first output time at which the state is not finite."""
        states = self.solve(field, y0, t, scale)
        return next(
            (float(x) for x, y in zip(t, states, strict=True) if not y.isfinite().all()), None
        )
