"""Store the state every few steps, and recompute the steps in between when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from companion.adaptive import Adaptive
from companion.arguments import store_count
from companion.gradients.accepted_rows import accepted_rows, back_through_accepted_rows
from companion.gradients.accepted_steps import accepted_steps, back_through_accepted_steps
from companion.gradients.function import Given, Kept, recomputing_states
from companion.gradients.pullback import Sums, taped
from companion.gradients.randomness import (
    RandomState,
    draws,
    random_state,
    replayed,
    same_state,
)
from companion.per_sample import PerSample
from companion.solve import FixedStep, Interval, Problem, Stage, States, Step

__all__ = ["Checkpoint"]

SMALL = 1024
"""Adaptive steps of a state of fewer numbers are taken again several at once, so many in all."""


@dataclass(frozen=True)
class Checkpoint:
    r"""Store one state every ``every`` steps; recompute the rest backwards.

    The gradient is that of :class:`Backprop`, the exact gradient of the discretised problem. Memory
    is ``steps / every`` states plus what ``every`` steps store; time grows by one forward solve.
    With ``every`` near the square root of the number of steps, memory grows like that root (Chen,
    Xu, Zhang and Guestrin 2016).

    Of an adaptive solve the accepted steps are the discretised problem: one state is stored for
    every so many of them (of small states, up to 1,024 numbers, for every 8th at most), their sizes
    are held fixed, and rejected attempts are not repeated. The field must be a function of $t$ and
    $y$ there.

    On a fixed grid, fields that draw from torch's global generators (dropout) are recomputed with
    the numbers they drew; other sources of chance, and state outside a module's buffers, are not
    known here. A module's buffers are updated by the forward solve only; those that its own
    evaluations read and change are kept for every evaluation.

    Args:
        every: number of steps between stored states, at least 1.

    Raises:
        ValueError: for ``every < 1``, a method of neither kind, a field that draws random numbers
            in some steps only, or, in an adaptive solve, at all.

    Example:
        >>> import torch
        >>> from companion import odeint
        >>> y0 = torch.ones(1, requires_grad=True)
        >>> y = odeint(
        ...     lambda t, y: -y, y0, [0.0, 1.0], method="euler", steps=2, gradient="checkpoint"
        ... )
        >>> torch.autograd.grad(y[-1].sum(), y0)
        (tensor([0.2500]),)
    """

    every: int = 1
    records_graph: ClassVar[bool] = False  # so parameters must be named

    def __post_init__(self) -> None:
        store_count(self, "every")

    def differentiable_states(self, problem: Problem) -> States:
        """Return the states at all output times."""
        if isinstance(problem.solver, PerSample) and self.every != 1:
            raise ValueError(
                f"every: {self.every} is not allowed with per_sample=True; one state is stored for "
                "every step of the batch"
            )
        if not isinstance(problem.solver, FixedStep | Adaptive | PerSample):
            raise ValueError(
                "gradient: 'checkpoint' needs a Runge-Kutta method, such as 'rk4' or 'dopri5'; "
                f"use gradient='backprop' or 'adjoint' with {problem.solver.method!r}"
            )
        if not isinstance(problem.solver, FixedStep):  # its steps are known when they are taken
            return recomputing_states(self, problem)
        return recomputing_states(
            self, problem, list(problem.solver.segments(problem.t, self.every))
        )

    def forward(self, problem: Problem) -> tuple[States, Kept]:
        """Solve; keep the states where segments start, and the generators' if the field draws."""
        solver = problem.solver
        if isinstance(solver, Adaptive):
            together = min(8, SMALL // max(1, problem.y0.numel()))
            return accepted_steps(problem, max(self.every, together))
        if isinstance(solver, PerSample):
            return accepted_rows(problem)
        assert isinstance(solver, FixedStep)
        states, starts, chance = [problem.y0], [], _Chance(problem)
        for step, y, (after,) in solver.walk(problem):
            if step.n % self.every == 0:
                starts.append(y)
                chance.begin_segment()
            if step.last:
                states.append(after)
            if step.last or (step.n + 1) % self.every == 0:
                chance.end_segment(step, y)
        return states, Kept(problem, starts, chance.finished())

    def backward(self, given: Given) -> Tensor | Iterator[Tensor]:
        """Recompute the segments from the last to the first."""
        if isinstance(given.problem.solver, Adaptive):
            return back_through_accepted_steps(given)
        if isinstance(given.problem.solver, PerSample):
            return back_through_accepted_rows(given)
        return self._through_segments(given)

    def _through_segments(self, given: Given) -> Iterator[Tensor]:
        problem, a = given.problem, given.grad_ys[-1]
        assert isinstance(problem.solver, FixedStep)
        segments = problem.solver.segments(problem.t, self.every)
        parts = zip(segments, given.tensors, given.notes, strict=True)
        for steps, start, random in reversed(list(parts)):
            with replayed(random, start.device):
                a = _pulled_through(problem, steps, start, a, given.sums)
            if steps[0].n == 0:
                a = a + given.grad_ys[steps[0].output]
            yield a


class _Chance:
    """The generators' states where segments start, if the first segment has moved them.

    It may have been another thread: to draw again what was not drawn does no harm.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.device = problem, problem.y0.device
        self.state: RandomState | None = random_state(self.device)
        self.quiet = self.state  # the state after which nobody should have drawn
        self.states: list[RandomState | None] = []
        self.last: tuple[Stage, Tensor] | None = None

    def begin_segment(self) -> None:
        self.states.append(self.state)

    def end_segment(self, step: Step, y: Tensor) -> None:
        assert isinstance(self.problem.solver, FixedStep)
        self.last = self.problem.solver.stages(step)[-1], y
        if self.state is None:
            return
        now = random_state(self.device)
        if len(self.states) == 1 and same_state(self.state, now):
            self.states, self.state, self.quiet = [None], None, now
        else:
            self.state = now

    def finished(self) -> list[RandomState | None]:
        """Return the states, ``None`` if nothing is drawn.

        Raises:
            ValueError: for a field that draws random numbers, but none in the first segment.
        """
        if self.state is None and not same_state(self.quiet, random_state(self.device)):
            assert self.last is not None
            if draws(self.problem.field, [self.last]):
                raise ValueError(
                    "gradient: 'checkpoint' repeats the random numbers of a field that draws them "
                    "in every step, and this one starts to draw later; use gradient='backprop'"
                )
        return self.states


def _pulled_through(
    problem: Problem, steps: list[Step], start: Tensor, a: Tensor, sums: Sums
) -> Tensor:
    """Recompute a segment with a graph; return ``a`` pulled back to its start."""
    solver, field, first = problem.solver, problem.field, steps[0]
    assert isinstance(solver, FixedStep)

    def run(y: Tensor, span: Interval) -> Tensor:
        for step in steps:
            y = solver.ahead(field, y, step._replace(span=span))
        return y

    used = set().union(*(field.uses(stage) for step in steps for stage in solver.stages(step)))
    tape = taped(run, start, first.span, sums.times is not None)
    return sums.pull(tape, a, sorted(used), first.output)
