"""Store the state every few steps, and recompute the steps in between when they are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from companion.gradients.recompute import (
    Accumulator,
    RandomState,
    autocast_as,
    autocast_mode,
    check_modes,
    check_params,
    differentiate,
    first_order,
    modes,
    random_state,
    same_state,
    set_random_state,
    solve_with,
)
from companion.gradients.segments import Segment, fixed_step, segments
from companion.solve import FixedStep, Interval, Problem, States

__all__ = ["Checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    r"""Store one state every ``every`` steps; recompute the rest backwards.

    The gradient is that of :class:`Backprop`, the exact gradient of the discretised problem. Memory
    is ``steps / every`` states plus what ``every`` steps store; time grows by one forward solve.
    With ``every`` near the square root of the number of steps, memory grows like that root (Chen,
    Xu, Zhang and Guestrin 2016).

    Fields that draw from torch's global generators (dropout) are recomputed with the numbers they
    drew; other sources of chance, and state outside a module's buffers, are not known here. A
    module's buffers are updated by the forward solve only.

    Args:
        every: number of steps between stored states, at least 1.
        params: tensors to differentiate besides the state and a module's own parameters. A field
            that reads others is refused, as far as its first evaluation shows.

    Raises:
        ValueError: for ``every < 1``, a method without a fixed grid, or a field that draws random
            numbers in some steps only.
        TypeError: for ``params`` that are not a tuple or list of tensors.

    Example:
        >>> from companion import odeint
        >>> y0 = torch.ones(1, requires_grad=True)
        >>> y = odeint(
        ...     lambda t, y: -y, y0, [0.0, 1.0], method="euler", steps=2, gradient="checkpoint"
        ... )
        >>> torch.autograd.grad(y[-1].sum(), y0)
        (tensor([0.2500]),)
    """

    every: int = 1
    params: tuple[Tensor, ...] | None = dataclasses.field(default=None, compare=False)
    records_graph: ClassVar[bool] = False  # so parameters must be named

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(
                f"every: {self.every!r} is not allowed; it must be an integer of at least 1"
            )
        check_params(self.params)

    def solve(self, problem: Problem) -> States:
        """Return the states at all output times."""
        if not isinstance(problem.solver, FixedStep):
            raise ValueError(
                "gradient: 'checkpoint' needs a fixed-step method; "
                "use gradient='adjoint' or 'backprop' with adaptive ones"
            )
        return solve_with(_Checkpointed, problem, self.every)


class _Checkpointed(torch.autograd.Function):
    """The forward solve without a graph; the backward pass segment by segment."""

    @staticmethod
    def forward(
        ctx: Any, problem: Problem, every: int, t: Tensor | None, y0: Tensor, *params: Tensor
    ) -> Tensor:
        ctx.mode, ctx.modes = autocast_mode(y0), modes(problem.field)
        with autocast_as(ctx.mode):
            ys, starts, ctx.random = _forward_segments(problem, every)
        ctx.problem = replace(problem, y0=torch.empty(0))
        ctx.every = every
        ctx.count = len(starts)
        ctx.save_for_backward(*starts, *params)
        return ys

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        starts, params = saved[: ctx.count], saved[ctx.count :]
        check_modes(ctx.problem.field, ctx.modes)
        problem = replace(ctx.problem, field=ctx.problem.field.recomputation())
        sums = Accumulator(params, ctx.needs_input_grad[4:])
        times = None
        if ctx.needs_input_grad[2]:
            times = Accumulator(problem.t, [True] * len(problem.t))
        a = grad_ys[-1]
        parts = zip(segments(problem, ctx.every), starts, ctx.random, strict=True)
        with autocast_as(ctx.mode):
            for segment, start, random in reversed(list(parts)):
                with _replayed(random, start.device):
                    a = _backward_segment(problem, segment, start, a, sums, times)
                if segment.steps.start == 0:
                    a = a + grad_ys[segment.output]
        grad_t = None if times is None else torch.stack(times.filled())
        return None, None, grad_t, a, *sums.grads


def _run(problem: Problem, y: Tensor, interval: Interval, steps: range) -> Tensor:
    solver = fixed_step(problem)
    for n in steps:
        y = solver.step(problem.field, y, interval, n, problem.scale)
    return y


def _forward_segments(
    problem: Problem, every: int
) -> tuple[Tensor, list[Tensor], list[RandomState | None]]:
    """Solve; return the outputs, the states where segments start, and the generators' states.

    Generator states are kept only if the first segment drew random numbers. A field that starts to
    draw them later is found out at the end, and refused.
    """
    y = problem.y0
    outputs, starts = [y], []
    random: list[RandomState | None] = []
    first = random_state(y.device)
    state: RandomState | None = first
    solver = fixed_step(problem)
    for _, interval, steps in segments(problem, every):
        starts.append(y)
        random.append(state)
        y = _run(problem, y, interval, steps)
        if steps.stop == solver.steps:
            outputs.append(y)
        if state is not None:
            after = random_state(y.device)
            if len(starts) == 1 and same_state(state, after):
                random, state = [None], None
            else:
                state = after
    if state is None and not same_state(first, random_state(y.device)):
        raise ValueError(
            "gradient: 'checkpoint' repeats the random numbers of a field that draws them in every "
            "step, and this one starts to draw later; use gradient='backprop'"
        )
    if problem.stats is not None:
        problem.stats.steps += solver.steps * (len(outputs) - 1)
    return torch.stack(outputs), starts, random


def _backward_segment(
    problem: Problem,
    segment: Segment,
    start: Tensor,
    a: Tensor,
    sums: Accumulator,
    times: Accumulator | None,
) -> Tensor:
    """Recompute a segment with a graph; return ``a`` pulled back to its start."""
    output, interval, steps = segment
    solver = fixed_step(problem)
    stages = [solver.stage(interval, n, i) for n in steps for i in range(solver.scheme.stages)]
    indices = sums.select(sorted(set().union(*map(problem.field.uses, stages))))
    ends: list[Tensor] = []
    with torch.enable_grad():
        y = start.detach().requires_grad_()
        if times is not None:
            ends = [times.params[output + k].detach().requires_grad_() for k in (0, 1)]
            interval = (ends[0], ends[1])
        end = _run(problem, y, interval, steps)
    grad_y, *grads = differentiate(end, [y, *ends, *(sums.params[k] for k in indices)], a)
    assert grad_y is not None  # a step adds to y, so its end depends on it
    sums.add(indices, grads[len(ends) :], 1.0)
    if times is not None:
        times.add((output, output + 1), grads[:2], 1.0)
    return grad_y


@contextmanager
def _replayed(random: RandomState | None, device: torch.device) -> Iterator[None]:
    """Draw the numbers that follow the state ``random``, and put the generators back after."""
    if random is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        set_random_state(random, device)
        yield
