"""Memory-free backward: reconstruct each layer's input from its output."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

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
from companion.gradients.reverse_sweep import WAYS_BACK, Layer, ReverseSweep
from companion.gradients.segments import Segment, fixed_step, segments
from companion.solve import FixedStep, NonFiniteError, Problem, States

__all__ = ["Reconstruct"]

ORDERS = range(1, 5)


@dataclass(frozen=True)
class Reconstruct:
    r"""Store the output alone; recompute every layer's input on the way back.

    A layer is one step $x_{n+1} = x_n + h\varphi_n(x_n)$ of any explicit scheme. Its input is
    guessed, $\varphi_n$ is evaluated there with a graph, and the vector-Jacobian product gives the
    gradients. Memory does not depend on the depth. The gradients have an error, because the inputs
    have one. It vanishes as the steps shrink. These are the rules, with the relative error of the
    gradients of Euler's layers:

    - ``reverse``: take the scheme's step with $-h$ from $x_{n+1}$, and go on from there: $O(h)$.
    - ``corrected``: the same guess $\tilde x_n$; go on from $x_{n+1} - h\varphi_n(\tilde x_n)$:
      $O(h^2)$.
    - ``predicted``: extrapolate $\varphi$ from later layers; go on likewise: $O(h^2)$ for any
      weights, $O(h^{p+1})$ for weights smooth in depth.

    The first is the rule of Sander et al. 2022 (equations 6 and 7, for Heun 9). The value that
    the others go on with is the one already computed for the gradient. ``corrected`` therefore
    costs the same; ``predicted`` saves an evaluation a layer. A prediction that turns out poor,
    because weights jump or dropout masks change, is swept once more, and nothing is saved there.

    Each further sweep $x \leftarrow x_{n+1} - h\varphi_n(x)$ gains one order. All this needs
    $h \operatorname{Lip}(\varphi_n) < 1$: in shallow networks the inputs cannot be recovered so.

    Random numbers (dropout) are drawn again from one seed; a mask is then a function of depth. They
    need torch's generators for themselves: do not solve in several threads at once. Batch norm uses
    batch statistics again, and its running statistics are updated by the forward solve only. A
    buffer that changes the output of later steps of the same cell is not followed.

    Args:
        rule: one of ``"reverse"``, ``"corrected"`` and ``"predicted"``.
        order: order $p$ of the prediction, 1 to 4; $p = 1$ repeats the last value.
        sweeps: further sweeps before the evaluation with a graph.
        every: store the true state before every so many steps: errors start anew there, and those
            steps' gradients are exact. ``None`` stores the solve's outputs alone.
        params: tensors to differentiate besides the state and a module's own parameters. A field
            that reads others is refused, as far as its first evaluation shows.

    Raises:
        NonFiniteError: in a backward pass whose reconstructed states leave the finite numbers.
        ValueError: for bad settings; in a solve, for a method without a fixed grid, a prediction
            with synchronised batch norm, a module whose mode changed before the backward pass, or
            a field that draws random numbers in some steps only.
        TypeError: for ``params`` that are not a tuple or list of tensors.

    Example:
        >>> from companion import OdeBlock, PiecewiseConstant
        >>> block = OdeBlock(
        ...     lambda: nn.Linear(2, 2), PiecewiseConstant(cells=64), steps=64,
        ...     gradient=Reconstruct(rule="corrected"),
        ... )
        >>> block(torch.ones(1, 2)).sum().backward()
    """

    rule: str = "reverse"
    order: int = 1
    sweeps: int = 0
    every: int | None = None
    params: tuple[Tensor, ...] | None = dataclasses.field(default=None, compare=False)
    records_graph: ClassVar[bool] = False  # so parameters must be named

    def __post_init__(self) -> None:
        if self.rule not in WAYS_BACK:
            raise ValueError(f"rule: {self.rule!r} is not one of {', '.join(WAYS_BACK)}")
        if not _is_integer(self.order) or self.order not in ORDERS:
            raise ValueError(f"order: {self.order!r} is not allowed; it must be 1, 2, 3 or 4")
        if self.order != 1 and self.rule != "predicted":
            raise ValueError(
                f"order: {self.order!r} is not allowed with rule={self.rule!r}; only 'predicted' "
                "extrapolates"
            )
        if not _is_integer(self.sweeps) or self.sweeps < 0:
            raise ValueError(
                f"sweeps: {self.sweeps!r} is not allowed; it must be an integer of at least 0"
            )
        if self.every is not None and (not _is_integer(self.every) or self.every < 1):
            raise ValueError(
                f"every: {self.every!r} is not allowed; it must be an integer of at least 1, "
                "or None"
            )
        check_params(self.params)

    def solve(self, problem: Problem) -> States:
        """Return the states at all output times."""
        if not isinstance(problem.solver, FixedStep):
            raise ValueError(
                "gradient: 'reconstruct' needs an explicit fixed-step method; use "
                "gradient='reversible' with method='async_leapfrog', 'adjoint' or 'backprop' with "
                "others"
            )
        if self.rule == "predicted" and _synchronised(problem.field.module):
            raise ValueError(
                "gradient: rule='predicted' may take different numbers of evaluations in different "
                "processes, which synchronised batch norm cannot; use rule='corrected'"
            )
        if not needs_gradient(problem.field, problem.y0, problem.t):
            with replayable(problem.field, problem.y0.device) as field:  # the masks of training
                return _forward(problem, field, problem.solver.steps)[0]
        return solve_with(_Reconstructed, problem, self)

    def sweep(self, problem: Problem, times: bool = False) -> ReverseSweep:
        """Return a sweep backwards through ``problem`` by this rule."""
        return ReverseSweep(problem, self.rule, self.order, self.sweeps, times)


class _Reconstructed(torch.autograd.Function):
    """The forward solve without a graph; the reverse sweep in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: Problem,
        rule: Reconstruct,
        t: Tensor | None,
        y0: Tensor,
        *params: Tensor,
    ) -> Tensor:
        ctx.mode, ctx.modes = autocast_mode(y0), modes(problem.field)
        every = fixed_step(problem).steps if rule.every is None else rule.every
        with replayable(problem.field, y0.device) as field, autocast_as(ctx.mode):
            ys, ends = _forward(problem, field, every)
        ctx.problem = replace(problem, field=field, y0=torch.empty(0))
        starts = [] if rule.every is None else [problem.y0, *ends[:-1]]
        ctx.rule, ctx.every, ctx.counts = rule, every, (len(starts), len(ends))
        ctx.save_for_backward(*starts, *ends, *params)
        return ys

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        saved, (i, k) = ctx.saved_tensors, ctx.counts
        ends, params = saved[i : i + k], saved[i + k :]
        starts = saved[:i] or (None,) * k
        check_modes(ctx.problem.field, ctx.modes)
        field = ctx.problem.field.recomputation()
        problem = replace(ctx.problem, field=field)
        sums = Accumulator(params, ctx.needs_input_grad[4:])
        times = None
        if ctx.needs_input_grad[2]:
            times = Accumulator(problem.t, [True] * len(problem.t))
        sweep = ctx.rule.sweep(problem, times is not None)
        parts = zip(segments(problem, ctx.every), starts, ends, strict=True)
        a = grad_ys[-1]
        with replaying(grad_ys.device), autocast_as(ctx.mode):
            for segment, start, end in reversed(list(parts)):
                field.interval = segment.output
                if segment.steps.stop == fixed_step(problem).steps:
                    sweep.start_interval()
                a = _backward(sweep, segment, start, end, a, sums, times)
                if segment.steps.start == 0:
                    a = a + grad_ys[segment.output]
        grad_t = None if times is None else torch.stack(times.filled())
        return None, None, grad_t, a, *sums.grads


def _forward(problem: Problem, field: SeededField, every: int) -> tuple[Tensor, list[Tensor]]:
    """Solve; return the outputs and the states where segments end."""
    y, solver = problem.y0, fixed_step(problem)
    outputs, ends = [y], []
    for segment in segments(problem, every):
        field.interval = segment.output
        for n in segment.steps:
            y = solver.step(field, y, segment.interval, n, problem.scale)
        ends.append(y)
        if segment.steps.stop == solver.steps:
            outputs.append(y)
    if problem.stats is not None:
        problem.stats.steps += solver.steps * (len(outputs) - 1)
    return torch.stack(outputs), ends


def _backward(
    sweep: ReverseSweep,
    segment: Segment,
    start: Tensor | None,
    end: Tensor,
    a: Tensor,
    sums: Accumulator,
    times: Accumulator | None,
) -> Tensor:
    """Go back through a segment from ``end``; return ``a`` pulled back to its start."""
    for n in reversed(segment.steps):
        known = start if n == segment.steps.start else None
        layer = sweep.back(segment.interval, n, end, known)
        indices = sums.select(sweep.uses(segment.interval, n))
        a = _pulled_back(layer, a, indices, segment.output, sums, times)
        end = layer.state
    if segment.steps.start == 0 and not torch.isfinite(end).all():
        raise NonFiniteError(
            "gradient: a reconstructed state is not finite, though the solve was; its steps are "
            "too long to be undone: take more, store states with every=, or use "
            "gradient='checkpoint'"
        )
    return a


def _pulled_back(
    layer: Layer,
    a: Tensor,
    indices: list[int],
    output: int,
    sums: Accumulator,
    times: Accumulator | None,
) -> Tensor:
    """Return ``a`` pulled back through one layer, and add to the sums."""
    inputs = [layer.start, *layer.ends, *(sums.params[k] for k in indices)]
    grad_y, *grads = differentiate(layer.increment, inputs, a)
    sums.add(indices, grads[len(layer.ends) :], 1.0)
    if times is not None:
        times.add((output, output + 1), grads[:2], 1.0)
    return a if grad_y is None else a + grad_y


def _synchronised(module: nn.Module | None) -> bool:
    return module is not None and any(isinstance(m, nn.SyncBatchNorm) for m in module.modules())


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
