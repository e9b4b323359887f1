"""A problem, and the loop over depth: what is asked of a field and of a solver, and fixed steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from companion.schemes import Tableau
from companion.transforms import beneath, followed, has_values

__all__ = [
    "Carried",
    "Field",
    "FixedStep",
    "GridSolver",
    "Interval",
    "NonFiniteError",
    "Problem",
    "Solver",
    "Stage",
    "States",
    "Stats",
    "Step",
    "StepLimitError",
    "Times",
    "check_finite",
    "check_start",
    "intervals",
    "stacked",
    "time_like",
]

Times = Sequence[float] | Tensor
"""Output times: floats, or a 1-D tensor when the loss is differentiated with respect to them."""

Interval = tuple[float, float] | tuple[Tensor, Tensor]
"""Two consecutive output times."""

States = Tensor | list[Tensor]
"""The states at all output times, stacked or one by one: who wants the last alone pays no copy."""

Carried = tuple[Tensor, ...]
"""What a solver carries from step to step: the state, and whatever else it needs."""


class Stage(NamedTuple):
    """Where the field is evaluated.

    Attributes:
        t: the time, a float (or a 0-d tensor when times need gradients).
        step: index of the step in its interval, counted in the forward direction of the solve.
        steps: number of equal steps in the interval.
        c: how far into the step, in [0, 1]; ``None`` for a solver that has no fixed grid.
        output: index of the interval between output times.
        number: which stage of the step it is; two may stand at the same place.
    """

    t: float | Tensor
    step: int = 0
    steps: int = 1
    c: Fraction | None = None
    output: int = 0
    number: int = 0


class Step(NamedTuple):
    """One of the equal steps of an interval: where it starts, and how long it is.

    Attributes:
        span: the interval between two output times.
        output: index of the interval.
        n: index of the step in the interval.
        steps: number of steps in the interval.
    """

    span: Interval
    output: int
    n: int
    steps: int

    @property
    def last(self) -> bool:
        """Whether the step ends at an output time."""
        return self.n == self.steps - 1

    @property
    def end(self) -> float:
        """The time at the end of the step."""
        t0, t1 = (float(t) for t in self.span)
        return t0 + (self.n + 1) * (t1 - t0) / self.steps

    def size(self, y: Tensor) -> float | Tensor:
        """Return how long the step is; a tensor has the dtype of ``y``."""
        t0, t1 = self.span
        h = (t1 - t0) / self.steps
        return h.to(y.dtype) if isinstance(h, Tensor) else h

    def stage(self, c: Fraction, fraction: float, number: int = 0) -> Stage:
        """Return the stage at ``c``, which is ``fraction`` as a float, into the step."""
        t0, t1 = self.span
        t = t0 + (self.n + fraction) * ((t1 - t0) / self.steps)
        return Stage(t, self.n, self.steps, c, self.output, number)

    def mirrored(self, c: Fraction, fraction: float) -> Stage:
        """Return the stage as far from the step's end as :meth:`stage` is from its start."""
        t0, t1 = self.span
        t = t1 + (self.steps - 1 - self.n + fraction) * ((t0 - t1) / self.steps)
        return Stage(t, self.n, self.steps, 1 - c, self.output)


class Field(Protocol):
    """A right-hand side, with the tensors it is differentiated by.

    Attributes:
        params: every tensor besides the state that may need a gradient.
        module: the module whose mode decides what an evaluation does, if there is one.
        knots: the times at which it jumps, for a solver that would step across them.
        stats: where to count evaluations, if anywhere.
    """

    params: tuple[Tensor, ...]
    module: nn.Module | None
    knots: tuple[float, ...]
    stats: Stats | None

    def __call__(self, stage: Stage, y: Tensor) -> Tensor:
        """Evaluate the field."""

    def uses(self, stage: Stage) -> Sequence[int]:
        """Return the indices into ``params`` that an evaluation at ``stage`` reads."""

    def recomputation(self, weights: Sequence[Tensor] | None = None) -> Field:
        """Return the field for a backward pass: a pure function of state and ``weights``.

        It reads the tensors ``weights`` in place of ``params``, and the buffers as each evaluation
        of the forward solve found them; it changes nothing.
        """

    def follows(self, stage: Stage, y: Tensor) -> list[str]:
        """Name the buffers that the solve has changed and an evaluation at ``stage`` depends on."""


@dataclass
class Stats:
    """Counts of one or several solves; see :func:`companion.counting`.

    Attributes:
        nfe: evaluations of the field in forward solves.
        nfe_backward: evaluations in backward passes (the adjoint's solve, a checkpoint's
            recomputation). Backprop makes none: it differentiates what the forward solve stored.
        steps: accepted steps of forward solves.
        rejected: rejected steps of forward solves.
        nfe_per_sample: the evaluations that each row of a batch needed, in solves with
            ``per_sample=True``; ``nfe`` counts those of the whole batch.
    """

    nfe: int = 0
    nfe_backward: int = 0
    steps: int = 0
    rejected: int = 0
    nfe_per_sample: Tensor | None = field(default=None, repr=False, compare=False)


class Solver(Protocol):
    """A configured integrator: the method knob.

    Attributes:
        method: its name.
        steps: equal steps between output times, ``None`` if it chooses its own.
        rtol: relative tolerance, ``None`` if it controls no error.
        atol: absolute tolerance, likewise.
        on_grid: whether every stage has a place on a fixed grid of steps.
        recordable: whether autograd can record its operations.
    """

    @property
    def method(self) -> str: ...  # noqa: D102 - above
    @property
    def steps(self) -> int | None: ...  # noqa: D102
    @property
    def rtol(self) -> float | None: ...  # noqa: D102
    @property
    def atol(self) -> float | None: ...  # noqa: D102
    @property
    def on_grid(self) -> bool: ...  # noqa: D102
    @property
    def recordable(self) -> bool: ...  # noqa: D102

    def integrate(self, problem: Problem) -> States:
        """Return the states at all output times, from the first one's."""

    def first_non_finite(self, problem: Problem) -> float | None:
        """Solve again; return the time where the state stops being finite, or ``None``."""


@dataclass(frozen=True)
class Problem:
    """One initial value problem, ready for a gradient method: dy/dt = field(t, y).

    Attributes:
        field: the right-hand side.
        y0: the state at ``t[0]``.
        t: the output times.
        solver: the configured integrator.
        stats: where to count, or ``None``.
        parts: the sizes of the parts of a flat state whose errors are measured apart, so that none
            drowns in another; what is beyond them is not measured. One part if empty.
        time_dtype: the dtype in which the field sees times, if it is not the state's.
    """

    field: Field
    y0: Tensor
    t: Times
    solver: Solver
    stats: Stats | None = None
    parts: tuple[int, ...] = ()
    time_dtype: torch.dtype | None = None

    def integrate(self) -> States:
        """Run the solver; autograd records what its mode says."""
        return self.solver.integrate(self)


class GridSolver(ABC):
    """A solver that takes ``steps`` equal steps between consecutive output times.

    The one loop over steps is :meth:`walk`. Gradient methods differ in what they keep on the way.
    """

    steps: int
    rtol: ClassVar[None] = None
    atol: ClassVar[None] = None
    on_grid: ClassVar[bool] = True
    recordable: ClassVar[bool] = True

    @abstractmethod
    def start(self, field: Field, y: Tensor, first: Step) -> Carried:
        """Return what is carried into the first step of an interval."""

    @abstractmethod
    def onward(self, field: Field, carried: Carried, step: Step) -> Carried:
        """Return what is carried out of a step."""

    @abstractmethod
    def stages(self, step: Step) -> list[Stage]:
        """Return where a step evaluates the field."""

    def grid(self, t: Times) -> Iterator[Step]:
        """Yield all steps in order."""
        for output, span in enumerate(intervals(t)):
            for n in range(self.steps):
                yield Step(span, output, n, self.steps)

    def segments(self, t: Times, every: int | None) -> Iterator[list[Step]]:
        """Yield all steps in order, in lists of at most ``every`` steps of one interval."""
        size = self.steps if every is None else every
        for output, span in enumerate(intervals(t)):
            steps = [Step(span, output, n, self.steps) for n in range(self.steps)]
            for first in range(0, self.steps, size):
                yield steps[first : first + size]

    def walk(self, problem: Problem) -> Iterator[tuple[Step, Tensor, Carried]]:
        """Solve; yield every step with the state before it and what is carried out of it."""
        y = problem.y0
        carried: Carried = (y,)
        for step in self.grid(problem.t):
            if step.n == 0:
                carried = self.start(problem.field, y, step)
            carried = self.onward(problem.field, carried, step)
            if problem.stats is not None:
                problem.stats.steps += 1
            yield step, y, carried
            y = carried[0]

    def integrate(self, problem: Problem) -> list[Tensor]:
        """Return the states at all output times, from the first one's."""
        states = [problem.y0]
        for step, _, carried in self.walk(problem):
            if step.last:
                states.append(carried[0])
        return states

    def first_non_finite(self, problem: Problem) -> float | None:
        """Solve again, step by step; return the time where the state stops being finite."""
        for step, _, carried in self.walk(replace(problem, stats=None)):
            if not torch.isfinite(beneath(carried[0])).all():
                return step.end
        return None


@dataclass(frozen=True)
class FixedStep(GridSolver):
    """``steps`` equal steps of an explicit scheme between consecutive output times."""

    scheme: Tableau
    steps: int

    @property
    def method(self) -> str:
        """The scheme's name."""
        return self.scheme.name

    @override
    def start(self, field: Field, y: Tensor, first: Step) -> Carried:
        return (y,)

    @override
    def onward(self, field: Field, carried: Carried, step: Step) -> Carried:
        return (self.ahead(field, carried[0], step),)

    def ahead(self, field: Field, y: Tensor, step: Step) -> Tensor:
        """Return the state after a step from ``y``.

        Nothing else is read or written: with ``field.recomputation(weights)`` this is a pure
        function of the state, the step's place and size, the weights and the kept buffers.
        """
        return self.scheme.step(self._evaluation(field, step), y, step.size(y))

    def increment(self, field: Field, y: Tensor, step: Step) -> Tensor:
        """Return what a step adds to ``y``, to full precision."""
        return self.scheme.increment(self._evaluation(field, step), y, step.size(y))

    @override
    def stages(self, step: Step) -> list[Stage]:
        places = zip(self.scheme.c, self.scheme.fractions, strict=True)
        return [step.stage(c, fraction, i) for i, (c, fraction) in enumerate(places)]

    def _evaluation(self, field: Field, step: Step) -> _Evaluation:
        c, fractions = self.scheme.c, self.scheme.fractions

        def evaluate(i: int, y: Tensor) -> Tensor:
            return field(step.stage(c[i], fractions[i], i), y)

        return evaluate


class _Evaluation(Protocol):
    def __call__(self, i: int, y: Tensor, /) -> Tensor: ...


def intervals(t: Times) -> Iterator[Interval]:
    """Yield the pairs of consecutive output times."""
    return pairwise(t.unbind()) if isinstance(t, Tensor) else pairwise(t)


def stacked(ys: States) -> Tensor:
    """Return states stacked along a new first axis."""
    return ys if isinstance(ys, Tensor) else torch.stack(ys)


def time_like(t: float | Tensor, y: Tensor) -> Tensor:
    """Return a time as a 0-d tensor of the dtype and device of ``y``."""
    if isinstance(t, Tensor):
        return t.to(y)
    return y.new_full((), t)


class NonFiniteError(ValueError):
    """A state stopped being finite during a solve, or an adaptive solver could not go on."""


class StepLimitError(ValueError):
    """An adaptive solver took as many steps as it was allowed, and is not at the end."""


def check_finite(ys: States, problem: Problem, argument: str = "y0") -> None:
    """Raise an error that says where, if a solve left the finite numbers.

    The check is made once, on the last state: adding a step to a state that is not finite never
    makes it finite. Only a failure pays for the search: the solve is repeated without gradients,
    and without touching the module's buffers.

    Args:
        ys: the states.
        problem: what was solved.
        argument: the name of the initial state in messages.

    Raises:
        NonFiniteError: naming the time at which the state stopped being finite.
    """
    if not has_values(ys[-1]):
        return
    end = beneath(ys[-1]).detach()
    if end.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # nothing has been computed yet
    # A finite sum has finite terms. It is one operation; the sum may overflow, the check may not.
    if torch.isfinite(end.sum()) or torch.isfinite(end).all():
        return
    check_start(problem.y0, argument)
    _check_read(problem.field.params, argument)
    raise NonFiniteError(
        f"{argument}: the state stopped being finite{_where(ys, problem)}; take smaller steps, "
        "scale the field down, or solve a shorter time"
    )


def _where(ys: States, problem: Problem) -> str:
    """Say at which time states stop being finite, if there is one for all of a batch."""
    if isinstance(problem.t, Tensor) and followed(problem.t):
        return ""
    with torch.no_grad():
        where = problem.solver.first_non_finite(
            replace(problem, field=problem.field.recomputation())
        )
    if where is None:
        bad = (k for k, y in enumerate(ys) if not torch.isfinite(beneath(y)).all())
        where = float(problem.t[next(bad)])
    return f" at t = {where:.6g}"


def _check_read(params: Sequence[Tensor], argument: str) -> None:
    """Raise an error if a field's parameters are not finite: no steps would be small enough."""
    for param in params:
        if not torch.isfinite(beneath(param)).all():
            raise NonFiniteError(
                f"{argument}: the state stopped being finite, because the field reads a tensor of "
                f"shape {tuple(param.shape)} with values that are not finite"
            )


def check_start(y0: Tensor, argument: str = "y0") -> None:
    """Raise an error if a solve began with values that are not finite.

    Raises:
        NonFiniteError: saying how many.
    """
    y0 = beneath(y0)
    bad = y0.numel() - int(torch.isfinite(y0).sum())
    if bad:
        raise NonFiniteError(
            f"{argument}: {bad} of {y0.numel()} values are not finite before the first step; it "
            "must hold finite numbers"
        )
