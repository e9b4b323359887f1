r"""Embedded Runge-Kutta pairs with step size control, and states at any time inside the steps.

A step is an *attempt*, a pure function of the state, its slope, the time and the size; the rest is
the controller, which decides what becomes of it. Times and sizes are Python floats, outside of
every graph: the gradient of the accepted steps holds them fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from companion.pairs import Pair
from companion.schemes import advance, combination
from companion.solve import (
    NonFiniteError,
    Problem,
    Stage,
    States,
    Stats,
    StepLimitError,
    Times,
)
from companion.time_gradients import with_time_gradients

__all__ = ["Adaptive", "Control", "Jumps", "Outputs", "Span", "Taken", "relative"]

SAFETY = 0.9
"""The next step is this part of the one that would just meet the tolerance."""

SHRINK, GROW = 0.2, 10.0
"""The least and the largest factor from one step to the next."""


Evaluate = Callable[[Stage, Tensor], Tensor]
"""A right-hand side: any field."""


class Span(NamedTuple):
    """The time that a step covers: exact ends, so that no rounding leaves the interval.

    Attributes:
        t: where it starts.
        end: where it ends.
        low: the least time at which the field may be evaluated: a jump lies before it.
        high: the greatest, likewise.
        jumped: whether the field jumps where the step starts.
    """

    t: float
    end: float
    low: float = -math.inf
    high: float = math.inf
    jumped: bool = False

    @property
    def size(self) -> float:
        """The step, negative backwards."""
        return self.end - self.t

    def stage(self, number: int, fraction: float) -> Stage:
        """Return where stage ``number`` is evaluated, ``fraction`` into the step."""
        t = self.end if fraction == 1.0 else self.t + fraction * self.size
        return Stage(min(max(t, self.low), self.high), number=number)


class Taken(NamedTuple):
    """A step with its result.

    Attributes:
        span: the time it covers.
        y: the state before it.
        slopes: the slopes of the stages; the last is that of ``after``.
        after: the state after it.
    """

    span: Span
    y: Tensor
    slopes: list[Tensor]
    after: Tensor


@dataclass(frozen=True)
class Adaptive:
    r"""A pair with error control, by the controller of Hairer, Norsett and Wanner (II.4).

    An attempt is accepted if its error ratio $\rho = \lVert e_i / (\text{atol} + \text{rtol}
    \max(|y_i|, |y_i'|))\rVert$, a root mean square, is below 1. The next step has the size
    $h \min(10, \max(0.2, 0.9 \rho^{-1/(q+1)}))$, where $q$ is the order of the embedded scheme;
    right after a rejection it does not grow. With the same first step this is the controller of
    scipy's ``RK45`` and ``RK23``. An attempt whose numbers are not finite is halved.

    The last step ends exactly at the end, and no stage lies outside of the interval. Outputs inside
    steps come from the pair's polynomial. Of a state in several parts the worst decides.

    Attributes:
        pair: the pair.
        rtol: relative tolerance; half a rounding unit of the state's dtype if that is more.
        atol: absolute tolerance.
        max_steps: most attempts between the first and the last time.
    """

    pair: Pair
    rtol: float
    atol: float
    max_steps: int
    steps: ClassVar[None] = None
    on_grid: ClassVar[bool] = False
    recordable: ClassVar[bool] = True

    @property
    def method(self) -> str:
        """The pair's name."""
        return self.pair.name

    def integrate(self, problem: Problem) -> States:
        """Return the states at all output times, stacked."""
        t = problem.t
        if isinstance(t, Tensor) and t.requires_grad:
            return with_time_gradients(
                problem.field, problem.y0, t,
                lambda y0, times: self.integrate(replace(problem, y0=y0, t=times)),
            )  # fmt: skip
        outputs, states = Outputs(t), [problem.y0.unsqueeze(0)]
        for step in self.walk(problem):
            inside, lands = outputs.of(step.span)
            if inside:
                states.append(self.inside(step, inside))
            if lands:
                states.append(step.after.unsqueeze(0))
        return torch.cat(states)

    def first_non_finite(self, problem: Problem) -> None:
        """Solve nothing again: what cannot be stepped over has been said."""

    def walk(self, problem: Problem) -> Iterator[Taken]:
        """Solve; yield the accepted steps."""
        t0, t1 = float(problem.t[0]), float(problem.t[-1])
        jumps = Jumps.of(problem)
        control = Control(self, t0, t1, jumps, problem.parts, problem.stats)
        return self.steps_of(problem.field, problem.y0, control)

    def steps_of(
        self,
        field: Evaluate,
        y: Tensor,
        control: Control,
        measure: Callable[[Taken], float] | None = None,
    ) -> Iterator[Taken]:
        """Go from ``y`` to where the control says; yield the accepted steps.

        Args:
            field: the right-hand side.
            y: the state where the control stands.
            control: the controller.
            measure: the error ratio of an attempt; :meth:`error_ratio` if ``None``.
        """
        slope: Tensor | None = None
        while control.t != control.end:
            if slope is None:  # at the start, and beyond a jump
                slope = field(control.span(math.inf).stage(0, 0.0), y).to(y.dtype)
            if control.size is None:
                control.size = self._first_size(field, y, slope, control)
            step = self.attempt(field, y, slope, control.proposal())
            ratio = self.error_ratio(step, control.parts) if measure is None else measure(step)
            if control.decide(ratio):
                yield step
                y = step.after
                slope = None if control.t in control.jumps.times else step.slopes[-1]

    def attempt(
        self, field: Evaluate, y: Tensor, slope: Tensor, span: Span, last_slope: bool = True
    ) -> Taken:
        """Take a step from ``y``, where the slope is known: a pure function of what it gets.

        Without the ``last_slope`` there is no error estimate, and no state inside the step.
        """
        pair, after, slopes = self.pair, y, [slope]
        for i in range(1, pair.stages):
            after = advance(y, slopes, pair.tableau.rows[i], span.size)
            if i == pair.stages - 1 and not last_slope:
                break
            # Under autocast a slope may be of lower precision than the state.
            slopes.append(field(span.stage(i, pair.fractions[i]), after).to(y.dtype))
        return Taken(span, y, slopes, after)

    @torch.no_grad()
    def error_ratio(self, step: Taken, parts: Sequence[int] = ()) -> float:
        """Return the estimated error over the tolerance; not finite if a slope is not."""
        total, first = combination(step.slopes, self.pair.error_weights)
        assert total is not None
        scale = self._scale(step.y, step.after)
        return abs(step.span.size * first) * _largest_part(total / scale, parts)

    def inside(self, step: Taken, fractions: Sequence[float]) -> Tensor:
        """Return the states at some fractions of a step, stacked: one small matrix product."""
        h, y = step.span.size, step.y
        weights = [[h * b for b in self.pair.inside(fraction)] for fraction in fractions]
        slopes = torch.stack(step.slopes).reshape(len(step.slopes), -1)
        with torch.autocast(y.device.type, enabled=False):  # it would round the product
            sums = slopes.new_tensor(weights) @ slopes
        return y + sums.reshape(len(fractions), *y.shape)

    def _scale(self, y: Tensor, other: Tensor) -> Tensor:
        rtol = relative(self.rtol, y)
        scale = torch.maximum(y.abs(), other.abs()).mul_(rtol).add_(self.atol)
        # Without an absolute tolerance an entry that stays zero has no scale, and no error.
        return scale if self.atol else scale.clamp_min_(torch.finfo(scale.dtype).tiny)

    def _first_size(self, field: Evaluate, y: Tensor, slope: Tensor, control: Control) -> float:
        """Return the size of the first attempt (Hairer, Norsett and Wanner, II.4), as scipy's."""
        parts, length = control.parts, abs(control.span(math.inf).size)
        if not y.numel():
            return length
        with torch.no_grad():
            scale = self._scale(y, y)
            d0, d1 = _largest_part(y / scale, parts), _largest_part(slope / scale, parts)
        if not math.isfinite(d1):
            raise control.stuck()
        h0 = min(1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1, length)
        span = control.span(h0)
        # Under the gradient mode of the solve, as any other evaluation: the field may rely on it.
        other = field(span.stage(1, 1.0), y.add(slope, alpha=span.size))
        with torch.no_grad():
            d2 = _largest_part((other - slope) / scale, parts) / h0
        if not math.isfinite(d2):
            return h0
        steep = max(d1, d2)
        h1 = (0.01 / steep) ** (1 / (self.pair.lower + 1)) if steep > 1e-15 else max(1e-6, h0 / 1e3)
        return min(100 * h0, h1, length)


class Outputs:
    """Tells which of the output times a step reaches."""

    def __init__(self, t: Times) -> None:
        """Start after the first of the times ``t``."""
        self.times, self.next = t.tolist() if isinstance(t, Tensor) else t, 1

    def of(self, span: Span) -> tuple[list[float], bool]:
        """Return the fractions of the step at which outputs lie inside, and whether one is its end.

        Steps must come in order.
        """
        fractions: list[float] = []
        ahead = 1 if span.end > span.t else -1
        while self.next < len(self.times):
            time = self.times[self.next]
            if time == span.end:
                self.next += 1
                return fractions, True
            if (time - span.end) * ahead > 0:
                break
            fractions.append((time - span.t) / span.size)
            self.next += 1
        return fractions, False


class Jumps(NamedTuple):
    """The times at which a field jumps, and the unit in which it can tell times apart."""

    times: tuple[float, ...] = ()
    unit: float = 0.0

    @classmethod
    def of(cls, problem: Problem) -> Jumps:
        """Return the jumps of a problem's field."""
        dtype = problem.y0.dtype if problem.time_dtype is None else problem.time_dtype
        return cls(problem.field.knots, torch.finfo(dtype).eps)

    def inside(self, start: float, stop: float) -> tuple[float, float]:
        """Return the least and the greatest time to ask the field at, between two stops."""
        low, high = min(start, stop), max(start, stop)
        bounds = [-math.inf, math.inf]
        for k, (jump, inward) in enumerate(((low, 1), (high, -1))):
            if jump in self.times:
                room = high - low
                bounds[k] = jump + inward * min(self.unit * max(abs(jump), room), room / 2)
        return bounds[0], bounds[1]


class Control:
    """Where a solve stands, and how long its next step is.

    Attributes:
        t: the time reached.
        end: the time to reach.
        parts: the sizes of the parts of the state; see :class:`companion.solve.Problem`.
        size: the length of the next attempt; ``None`` before it is known.
    """

    def __init__(
        self,
        solver: Adaptive,
        t: float,
        end: float,
        jumps: Jumps,
        parts: Sequence[int] = (),
        stats: Stats | None = None,
        size: float | None = None,
    ) -> None:
        """Stand at ``t``; count in ``stats``."""
        self.solver, self.t, self.end, self.parts = solver, t, end, parts
        self.jumps, self.stats, self.size = jumps, stats, size
        self.ahead = 1.0 if end > t else -1.0
        between = (x for x in jumps.times if min(t, end) < x < max(t, end))
        self.stops = [*sorted(between, reverse=end < t), end]
        self.bounds = jumps.inside(t, self.stops[0])
        self.tried = 0
        self.rejected = False  # the latest attempt
        self.proposed = 0.0
        self.target = t

    def span(self, size: float) -> Span:
        """Return a step of that size from here, clipped to the next jump or the end."""
        stop = self.stops[0]
        target = self.t + self.ahead * size
        end = stop if (target - stop) * self.ahead >= 0 else target
        return Span(self.t, end, *self.bounds, self.t in self.jumps.times)

    def proposal(self) -> Span:
        """Return the next attempt.

        Raises:
            NonFiniteError: where it would be too short to matter.
            StepLimitError: after too many attempts.
        """
        assert self.size is not None
        least = 10 * math.ulp(self.t)
        if self.rejected and self.size < least:
            raise self.stuck()
        if self.tried == self.solver.max_steps:
            raise self._too_many(self.size)
        self.tried += 1
        self.proposed = max(self.size, least)
        span = self.span(self.proposed)
        self.size, self.target = abs(span.size), span.end
        return span

    def decide(self, ratio: float) -> bool:
        """Say whether the attempt with this error ratio is accepted; choose the next size."""
        assert self.size is not None
        accepted = ratio < 1
        if not math.isfinite(ratio):
            factor = 0.5
        else:
            best = SAFETY * ratio ** (-1 / (self.solver.pair.lower + 1)) if ratio else GROW
            factor = min(best, 1.0 if self.rejected else GROW) if accepted else max(SHRINK, best)
        self.size *= factor
        self.rejected = not accepted
        if accepted:
            self.t = self.target
            if self.t == self.stops[0] != self.end:  # a jump cut the step short
                del self.stops[0]
                self.bounds = self.jumps.inside(self.t, self.stops[0])
                self.size = max(self.size, self.proposed)
        if self.stats is not None:
            self.stats.steps += accepted
            self.stats.rejected += not accepted
        return accepted

    def stuck(self) -> NonFiniteError:
        """Return the error of a solve that cannot go on from here."""
        return NonFiniteError(
            f"y0: {self.solver.method} cannot go on at t = {self.t:.6g}: the state is not finite, "
            "or its error needs steps below rounding; loosen rtol and atol, scale the field down, "
            "or solve a shorter time"
        )

    def _too_many(self, size: float) -> StepLimitError:
        return StepLimitError(
            f"max_steps: {self.solver.method} took {self.tried} steps and stands at t = "
            f"{self.t:.6g}, on the way to {self.end:.6g} in steps of {size:.3g}; loosen rtol "
            "and atol, use method='scipy_solver' if the equation is stiff, or raise max_steps="
        )


def relative(rtol: float, y: Tensor) -> float:
    """Return the relative tolerance that counts for a state: never below a rounding error.

    Smaller ones would take the rounding of the error estimate for an error of the step.
    """
    return max(rtol, torch.finfo(y.dtype).eps / 2)


def _largest_part(ratios: Tensor, parts: Sequence[int]) -> float:
    """Return the largest root mean square of the parts, in one read from the device."""
    if not ratios.numel():
        return 0.0  # nothing to go wrong
    if not parts:
        return float(torch.linalg.vector_norm(ratios)) / math.sqrt(ratios.numel())
    sizes = [size for size in parts if size]
    norms = [torch.linalg.vector_norm(part) for part in _split(ratios, sizes)]
    values = torch.stack(norms).tolist() if norms else [0.0]
    squares = zip(values, sizes, strict=False)
    means = [value / math.sqrt(size) for value, size in squares]
    return math.nan if any(map(math.isnan, means)) else max(means, default=0.0)


def _split(flat: Tensor, sizes: Iterable[int]) -> Iterator[Tensor]:
    start = 0
    for size in sizes:
        yield flat[start : start + size]
        start += size
