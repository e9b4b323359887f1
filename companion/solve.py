"""The depth loop: what a field is, where a stage stands, and fixed steps from output to output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from companion.schemes import Tableau

__all__ = [
    "Field",
    "FixedStep",
    "NonFiniteError",
    "Problem",
    "Solver",
    "Stage",
    "States",
    "Stats",
    "Times",
    "check_finite",
    "check_value",
    "intervals",
    "stacked",
    "step_size",
    "time_like",
]

Times = Sequence[float] | Tensor
"""Output times: floats, or a 1-D tensor when the loss is differentiated with respect to them."""


States = Tensor | list[Tensor]
"""The states at all output times, stacked or one by one: who wants the last alone pays no copy."""


class Stage(NamedTuple):
    """Where the field is evaluated.

    Attributes:
        t: the time, a float (or a 0-d tensor when times need gradients).
        step: index of the step in its interval, counted in the forward direction of the solve.
        steps: number of equal steps in the interval.
        c: how far into the step, in [0, 1]; ``None`` for a solver that has no fixed grid.
    """

    t: float | Tensor
    step: int = 0
    steps: int = 1
    c: Fraction | None = None


class Field(Protocol):
    """A right-hand side, with the tensors it is differentiated by.

    Attributes:
        params: every tensor besides the state that may need a gradient.
        module: the module whose mode decides what an evaluation does, if there is one.
    """

    params: tuple[Tensor, ...]
    module: nn.Module | None

    def __call__(self, stage: Stage, y: Tensor) -> Tensor:
        """Evaluate the field."""

    def uses(self, stage: Stage) -> Sequence[int]:
        """Return the indices into ``params`` that an evaluation at ``stage`` reads."""

    def recomputation(self) -> Field:
        """Return the same field for a backward pass: it leaves the module's buffers alone."""


@dataclass
class Stats:
    """Counts of one or several solves; pass an instance as ``stats=``.

    Attributes:
        nfe: evaluations of the field in forward solves.
        nfe_backward: evaluations in backward passes (the adjoint's solve, a checkpoint's
            recomputation). Backprop makes none: it differentiates what the forward solve stored.
        steps: accepted steps of forward solves.
        rejected: rejected steps of forward solves.
    """

    nfe: int = 0
    nfe_backward: int = 0
    steps: int = 0
    rejected: int = 0


class Solver(Protocol):
    """A configured integrator: the method knob."""

    def solve(
        self, field: Field, y0: Tensor, t: Times, scale: float = 1.0, stats: Stats | None = None
    ) -> States:
        """Solve from ``t[0]``; return the states at all of ``t``."""

    def first_non_finite(self, field: Field, y0: Tensor, t: Times, scale: float) -> float | None:
        """Solve again; return the time where the state stops being finite, or ``None``."""


@dataclass(frozen=True)
class Problem:
    """One initial value problem, ready for a gradient method: dy/dt = scale * field(t, y).

    Attributes:
        field: the right-hand side.
        y0: the state at ``t[0]``.
        t: the output times.
        solver: the configured integrator.
        scale: a factor of the field (the papers' epsilon).
        stats: where to count, or ``None``.
    """

    field: Field
    y0: Tensor
    t: Times
    solver: Solver
    scale: float = 1.0
    stats: Stats | None = None

    def solve(self) -> States:
        """Run the solver; autograd records what its mode says."""
        return self.solver.solve(self.field, self.y0, self.t, self.scale, self.stats)


@dataclass(frozen=True)
class FixedStep:
    """``steps`` equal steps of an explicit scheme between consecutive output times."""

    scheme: Tableau
    steps: int

    def solve(
        self, field: Field, y0: Tensor, t: Times, scale: float = 1.0, stats: Stats | None = None
    ) -> States:
        """Solve from ``t[0]``; return the states at all of ``t``."""
        states = [y0]
        for interval in intervals(t):
            y = states[-1]
            for n in range(self.steps):
                y = self.step(field, y, interval, n, scale)
            states.append(y)
        if stats is not None:
            stats.steps += self.steps * (len(states) - 1)
        return states

    def stage(self, interval: Interval, n: int, i: int) -> Stage:
        """Return where stage ``i`` of step ``n`` of an interval is evaluated."""
        t0, t1 = interval
        t = t0 + (n + self.scheme.fractions[i]) * ((t1 - t0) / self.steps)
        return Stage(t, n, self.steps, self.scheme.c[i])

    def step(
        self, field: Field, y: Tensor, interval: Interval, n: int, scale: float = 1.0
    ) -> Tensor:
        """Return the state after step ``n`` of an interval."""

        def evaluate(i: int, y: Tensor) -> Tensor:
            return field(self.stage(interval, n, i), y)

        return self.scheme.step(evaluate, y, step_size(interval, self.steps, scale, y))

    def first_non_finite(self, field: Field, y0: Tensor, t: Times, scale: float) -> float | None:
        """Solve again, step by step, and return the time where the state stops being finite."""
        y = y0
        if not torch.isfinite(y).all():
            return float(t[0])
        for interval in intervals(t):
            for n in range(self.steps):
                y = self.step(field, y, interval, n, scale)
                if not torch.isfinite(y).all():
                    t0, t1 = (float(x) for x in interval)
                    return t0 + (n + 1) * (t1 - t0) / self.steps
        return None


Interval = tuple[float, float] | tuple[Tensor, Tensor]


def intervals(t: Times) -> Iterator[Interval]:
    """Yield the pairs of consecutive output times."""
    return pairwise(t.unbind()) if isinstance(t, Tensor) else pairwise(t)


def step_size(interval: Interval, steps: int, scale: float, y: Tensor) -> float | Tensor:
    """Return the step of an interval times ``scale``; a tensor has the dtype of ``y``."""
    t0, t1 = interval
    h = scale * (t1 - t0) / steps
    return h.to(y.dtype) if isinstance(h, Tensor) else h


def stacked(ys: States) -> Tensor:
    """Return states stacked along a new first axis."""
    return ys if isinstance(ys, Tensor) else torch.stack(ys)


def time_like(t: float | Tensor, y: Tensor) -> Tensor:
    """Return a time as a 0-d tensor of the dtype and device of ``y``."""
    if isinstance(t, Tensor):
        return t.to(y)
    return y.new_full((), t)


def check_value(value: object, y: Tensor, argument: str) -> None:
    """Check that a field's value can be added to the state ``y``.

    Args:
        value: what the field returned.
        y: the state it was evaluated at.
        argument: the field's name in messages.

    Raises:
        TypeError: if the value is not a tensor.
        ValueError: if its shape, device or dtype is not that of the state.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: returned {type(value).__name__}; it must return a tensor")
    if value.shape != y.shape:
        raise ValueError(
            f"{argument}: returned shape {tuple(value.shape)} for a state of shape "
            f"{tuple(y.shape)}; they must be equal"
        )
    if value.device != y.device:
        raise ValueError(
            f"{argument}: returned a tensor on {value.device} for a state on {y.device}; "
            "they must be equal"
        )
    if value.dtype != y.dtype and not torch.is_autocast_enabled(y.device.type):
        raise ValueError(
            f"{argument}: returned {value.dtype} for a state of {y.dtype}; they must be equal"
        )


class NonFiniteError(ValueError):
    """A state stopped being finite during a solve, or an adaptive solver could not go on."""


def check_finite(ys: States, problem: Problem) -> None:
    """Raise an error that says where, if a solve left the finite numbers.

    The check is made once, on the last state: adding a step to a state that is not finite never
    makes it finite. Only a failure pays for the search: the solve is repeated without gradients,
    and without touching the module's buffers.

    Raises:
        NonFiniteError: naming the time at which the state stopped being finite.
    """
    end = ys[-1].detach()
    # A finite sum has finite terms. It is one operation; the sum may overflow, the check may not.
    if torch.isfinite(end.sum()) or torch.isfinite(end).all():
        return
    with torch.no_grad():
        field = problem.field.recomputation()
        where = problem.solver.first_non_finite(field, problem.y0, problem.t, problem.scale)
    if where is None:
        bad = ~torch.isfinite(stacked(ys)).flatten(1).all(dim=1)
        where = float(problem.t[int(bad.nonzero()[0])])
    raise NonFiniteError(
        f"y0: the state stopped being finite at t = {where:.6g}; take smaller steps, scale the "
        "field down, or solve a shorter time"
    )
