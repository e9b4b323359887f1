"""Constant memory with exact gradients, for a scheme that runs backwards exactly."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from companion.gradients.randomness import SeededField, replayable, replaying
from companion.gradients.recompute import (
    Accumulator,
    autocast_as,
    autocast_mode,
    check_modes,
    check_params,
    differentiate,
    first_order,
    modes,
    needs_gradient,
    solve_with,
)
from companion.leapfrog import AsyncLeapfrog
from companion.solve import Field, Interval, Problem, States, intervals, step_size

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

    Args:
        params: tensors to differentiate besides the state and a module's own parameters. A field
            that reads others is refused, as far as its first evaluation shows.

    Raises:
        ValueError: in a solve with another method, or for a module whose mode changed before the
            backward pass.
        TypeError: for ``params`` that are not a tuple or list of tensors.

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

    params: tuple[Tensor, ...] | None = dataclasses.field(default=None, compare=False)
    records_graph: ClassVar[bool] = False  # so parameters must be named

    def __post_init__(self) -> None:
        check_params(self.params)

    def solve(self, problem: Problem) -> States:
        """Return the states at all output times."""
        if not isinstance(problem.solver, AsyncLeapfrog):
            raise ValueError(
                "gradient: 'reversible' needs method='async_leapfrog', which runs backwards "
                "exactly; use gradient='reconstruct', 'checkpoint' or 'backprop' with other methods"
            )
        if not needs_gradient(problem.field, problem.y0, problem.t):
            with replayable(problem.field, problem.y0.device) as field:  # the masks of training
                return _forward(problem, field)[0]
        return solve_with(_Reversed, problem, None)


class _Reversed(torch.autograd.Function):
    """The forward solve without a graph; the inverse scheme in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, problem: Problem, settings: None, t: Tensor | None, y0: Tensor, *params: Tensor
    ) -> Tensor:
        ctx.mode, ctx.modes = autocast_mode(y0), modes(problem.field)
        with replayable(problem.field, y0.device) as field, autocast_as(ctx.mode):
            states, velocities = _forward(problem, field)
        ctx.problem = replace(problem, field=field, y0=torch.empty(0))
        ctx.count = len(velocities)
        ctx.save_for_backward(*states[1:], *velocities, *params)
        return torch.stack(states)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        saved, k = ctx.saved_tensors, ctx.count
        check_modes(ctx.problem.field, ctx.modes)
        field = ctx.problem.field.recomputation()
        sums = Accumulator(saved[2 * k :], ctx.needs_input_grad[4:])
        times = None
        if ctx.needs_input_grad[2]:
            times = Accumulator(ctx.problem.t, [True] * len(ctx.problem.t))
        a = grad_ys[-1]
        with replaying(grad_ys.device), autocast_as(ctx.mode):
            for i, interval in reversed(list(enumerate(intervals(ctx.problem.t)))):
                field.interval = i
                back = _Back(field, ctx.problem, interval, sums, times is not None)
                a = back.interval(saved[i], saved[k + i], a) + grad_ys[i]
                if times is not None:
                    times.add((i, i + 1), back.times, 1.0)
        grad_t = None if times is None else torch.stack(times.filled())
        return None, None, grad_t, a, *sums.grads


def _forward(problem: Problem, field: SeededField) -> tuple[list[Tensor], list[Tensor]]:
    """Solve; return the states at all output times, and the velocities at all but the first."""
    solver = problem.solver
    assert isinstance(solver, AsyncLeapfrog)
    states: list[Tensor] = [problem.y0]
    velocities: list[Tensor] = []
    for i, interval in enumerate(intervals(problem.t)):
        field.interval = i
        y, v = solver.interval(field, states[-1], interval, problem.scale)
        states.append(y)
        velocities.append(v)
    if problem.stats is not None:
        problem.stats.steps += solver.steps * len(velocities)
    return states, velocities


class _Back:
    """One interval, taken backwards."""

    def __init__(
        self, field: Field, problem: Problem, interval: Interval, sums: Accumulator, times: bool
    ) -> None:
        assert isinstance(problem.solver, AsyncLeapfrog)
        self.field, self.solver, self.scale = field, problem.solver, problem.scale
        self.span, self.sums = interval, sums
        self.times: list[Tensor] = []  # the gradients of the interval's two times, if asked for
        if times:
            assert isinstance(interval[0], Tensor)
            self.times = [torch.zeros_like(interval[0]), torch.zeros_like(interval[0])]

    def interval(self, y: Tensor, v: Tensor, a: Tensor) -> Tensor:
        """Go back from state ``y`` and velocity ``v``; return ``a`` pulled back to the start."""
        half = step_size(self.span, self.solver.steps, self.scale, y) / 2
        a_v = torch.zeros_like(v)
        for n in reversed(range(self.solver.steps)):
            middle = y - half * v
            reaching = a_v + half * a  # everything that the new velocity does to the loss
            value, grad = self._pull(n, middle, 2 * reaching)
            earlier = 2 * value - v
            y = middle - half * earlier
            self._add_step_size((a * v).sum() + ((a + grad) * earlier).sum())
            a, v = a + grad, earlier
            a_v = half * a - reaching
        _, grad = self._pull(None, y, a_v)
        return a + grad

    def _pull(self, n: int | None, y: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate step ``n``, or the start; return the value, and what it pulls back to ``y``."""
        span = self.span
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            ends = [t.detach().requires_grad_() for t in span if isinstance(t, Tensor)]
            if self.times:
                span = (ends[0], ends[1])
            stage = self.solver.start(span) if n is None else self.solver.stage(span, n)
            value = self.field(stage, y)
        indices = self.sums.select(self.field.uses(stage))
        inputs = [y, *ends, *(self.sums.params[k] for k in indices)]
        grad_y, *grads = differentiate(value, inputs, cotangent)
        self.sums.add(indices, grads[len(ends) :], 1.0)
        for k, grad in enumerate(grads[: len(self.times)]):
            if grad is not None:
                self.times[k] = self.times[k] + grad
        return value.detach(), torch.zeros_like(y) if grad_y is None else grad_y

    def _add_step_size(self, grad: Tensor) -> None:
        """Add the loss's derivative through half the step size to the times that define it."""
        if self.times:
            share = grad * (self.scale / (2 * self.solver.steps))
            self.times = [self.times[0] - share, self.times[1] + share]
