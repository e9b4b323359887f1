"""Constant memory with exact gradients, for a scheme that runs backwards exactly."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from companion.gradients.function import Given, Kept, recomputing_states
from companion.gradients.pullback import Taped, taped
from companion.gradients.randomness import replayable, replaying
from companion.leapfrog import AsyncLeapfrog
from companion.solve import Interval, Problem, Stage, States, Step, intervals

__all__ = ["Reversible"]


@dataclass(frozen=True)
class Reversible:
    r"""Run ``method="async_leapfrog"`` backwards and differentiate on the way.

    The scheme's inverse is explicit, so states come back up to rounding, and the gradient is that
    of :class:`Backprop` up to rounding. Memory does not depend on the number of steps: state and
    velocity are kept at the output times. Backwards, one evaluation gives the earlier state and the
    vector-Jacobian product (Zhuang et al. 2021).

    The scheme is another network than Euler's with the same weights, and it is less stable.

    Random numbers (dropout) and batch norm are treated as by :class:`Reconstruct`.

    Raises:
        ValueError: in a solve with another method, or for a module whose mode changed before the
            backward pass.

    Example:
        >>> from companion import odeint
        >>> y0 = torch.ones(1, requires_grad=True)
        >>> y = odeint(
        ...     lambda t, y: -y, y0, [0.0, 1.0], method="async_leapfrog", steps=50,
        ...     gradient="reversible",
        ... )
        >>> torch.autograd.grad(y[-1].sum(), y0)
        (tensor([0.3679]),)
    """

    records_graph: ClassVar[bool] = False  # so parameters must be named

    def differentiable_states(self, problem: Problem) -> States:
        """Return the states at all output times."""
        if not isinstance(problem.solver, AsyncLeapfrog):
            raise ValueError(
                "gradient: 'reversible' needs method='async_leapfrog', which runs backwards "
                "exactly; use gradient='reconstruct', 'checkpoint' or 'backprop' with other methods"
            )
        return recomputing_states(self, problem, [[s] for s in problem.solver.grid(problem.t)])

    def forward(self, problem: Problem) -> tuple[States, Kept]:
        """Solve with random numbers that can be drawn again; keep states and velocities."""
        assert isinstance(problem.solver, AsyncLeapfrog)
        kept: list[Tensor] = []
        with replayable(problem.field, problem.y0.device) as field:
            for step, _, carried in problem.solver.walk(replace(problem, field=field)):
                if step.last:
                    kept += carried
        states = [problem.y0, *kept[::2]]
        problem = replace(problem, field=field.recomputation())
        return states, Kept(problem, kept, field.base is not None)

    def backward(self, given: Given) -> Iterator[Tensor]:
        """Run the scheme backwards through the intervals from the last to the first."""
        spans, a = list(intervals(given.problem.t)), given.grad_ys[-1]
        for i in reversed(range(len(spans))):
            y, v = given.tensors[2 * i : 2 * i + 2]
            a = yield from _Back(given, i, spans[i]).interval(y, v, a)


class _Back:
    """One interval, taken backwards."""

    def __init__(self, given: Given, output: int, span: Interval) -> None:
        assert isinstance(given.problem.solver, AsyncLeapfrog)
        self.solver, self.field, self.sums = given.problem.solver, given.problem.field, given.sums
        self.span, self.output = span, output
        self.seeded, self.grad_y = given.notes, given.grad_ys[output]

    def interval(self, y: Tensor, v: Tensor, a: Tensor) -> Generator[Tensor, None, Tensor]:
        """Go back from state ``y`` and velocity ``v``; return ``a`` pulled back to the start.

        What is yielded after each step but the first in time is not the whole gradient there: the
        velocity has a part of it.
        """
        steps = [
            Step(self.span, self.output, n, self.solver.steps) for n in range(self.solver.steps)
        ]
        half = steps[0].size(y) / 2
        a_v = torch.zeros_like(v)
        for step in reversed(steps):
            middle = y - half * v
            reaching = a_v + half * a  # everything that the new velocity does to the loss
            with replaying(a.device, self.seeded):
                tape = self._taped(self.solver.middle, step, middle)
                grad = self._pull(tape, 2 * reaching, self.solver.middle(step))
            earlier = 2 * tape.value.detach() - v
            y = middle - half * earlier
            self._add_step_size((a * v).sum() + ((a + grad) * earlier).sum())
            a, v = a + grad, earlier
            a_v = half * a - reaching
            if step.n > 0:
                yield a
        with replaying(a.device, self.seeded):
            tape = self._taped(self.solver.entrance, steps[0], y)
            a = a + self._pull(tape, a_v, self.solver.entrance(steps[0])) + self.grad_y
        yield a
        return a

    def _taped(self, place: Callable[[Step], Stage], step: Step, y: Tensor) -> Taped:
        def evaluate(y: Tensor, span: Interval) -> Tensor:
            return self.field(place(step._replace(span=span)), y)

        return taped(evaluate, y, self.span, self.sums.times is not None)

    def _pull(self, tape: Taped, cotangent: Tensor, stage: Stage) -> Tensor:
        return self.sums.pull(tape, cotangent, self.field.uses(stage), self.output)

    def _add_step_size(self, grad: Tensor) -> None:
        """Add the loss's derivative through half the step size to the times that define it."""
        if self.sums.times is not None:
            share = grad / (2 * self.solver.steps)
            self.sums.times.add((self.output, self.output + 1), (-share, share), 1.0)
