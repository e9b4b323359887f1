"""The continuous adjoint: solve a second differential equation backwards in time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from companion.gradients.recompute import (
    Accumulator,
    autocast_as,
    autocast_mode,
    check_modes,
    check_params,
    differentiate,
    first_order,
    modes,
    random_state,
    same_state,
    solve_with,
)
from companion.leapfrog import AsyncLeapfrog
from companion.methods import TorchdiffeqSolver, get_solver
from companion.schemes import advance
from companion.solve import (
    Field,
    FixedStep,
    Interval,
    Problem,
    Solver,
    Stage,
    States,
    intervals,
    stacked,
    step_size,
)

__all__ = ["Adjoint"]


@dataclass(frozen=True)
class Adjoint:
    r"""Integrate the adjoint $a = \partial L/\partial y$ from the last output time to the first.

    $$\dot y = f(t, y), \qquad \dot a = -\Bigl(\frac{\partial f}{\partial y}\Bigr)^{\!\top} a,
    \qquad \frac{dL}{d\theta} = \int_{t_0}^{t_1}
    \Bigl(\frac{\partial f}{\partial \theta}\Bigr)^{\!\top} a \, dt .$$

    At an output time the adjoint jumps by the loss's gradient there, and the state restarts from
    the stored output. Times get $dL/dt_i = g_i^\top f(t_i, y_i)$ and
    $dL/dt_0 = -a(t_0)^\top f(t_0, y_0)$ (Chen et al. 2018, section 2 and appendix B).

    Memory does not depend on the number of steps: only the outputs are kept. The gradient is that
    of the continuous problem, discretised afterwards. It differs from the gradient of the
    discretised loss by $O(h^p)$ for a method of order $p$. The state is reconstructed by solving
    backwards, which amplifies errors where the forward solve contracts.

    Args:
        method: the backward solve's method; the forward solve's if ``None``.
        steps: its steps per interval; the forward solve's if ``None``.
        rtol: its relative tolerance; the forward solve's if ``None``.
        atol: its absolute tolerance; the forward solve's if ``None``.
        params: tensors to differentiate besides the state and a module's own parameters. A field
            that reads others is refused, as far as its first evaluation shows.

    Raises:
        ValueError: in a solve, for a field that draws from torch's global generators, or settings
            no solver accepts.
        TypeError: for ``params`` that are not a tuple or list of tensors.

    Example:
        >>> from companion import odeint
        >>> y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
        >>> y = odeint(lambda t, y: -y, y0, [0.0, 1.0], gradient=Adjoint(rtol=1e-9))
        >>> gradient, = torch.autograd.grad(y[-1].sum(), y0)
        >>> round(gradient.item(), 6)
        0.367879
    """

    method: str | None = None
    steps: int | None = None
    rtol: float | None = None
    atol: float | None = None
    params: tuple[Tensor, ...] | None = dataclasses.field(default=None, compare=False)
    records_graph: ClassVar[bool] = False  # so parameters must be named

    def __post_init__(self) -> None:
        check_params(self.params)

    def solve(self, problem: Problem) -> States:
        """Return the states at all output times."""
        backward = self._backward_solver(problem.solver)
        return solve_with(_ContinuousAdjoint, problem, backward)

    def _backward_solver(self, forward: Solver) -> Solver:
        rtol, atol = 1e-7, 1e-9
        if isinstance(forward, AsyncLeapfrog):
            if self.method is None:
                raise ValueError(
                    "gradient: 'adjoint' has no backward solve by async_leapfrog; name one, as in "
                    "Adjoint(method='midpoint'), or use gradient='reversible'"
                )
            method, steps = self.method, forward.steps
        elif isinstance(forward, TorchdiffeqSolver):
            method, steps, rtol, atol = (
                forward.method, forward.steps, forward.rtol, forward.atol,
            )  # fmt: skip
        else:
            assert isinstance(forward, FixedStep)
            method, steps = forward.scheme.name, forward.steps
        return get_solver(
            self.method or method,
            steps if self.steps is None else self.steps,
            rtol if self.rtol is None else self.rtol,
            atol if self.atol is None else self.atol,
        )


class _ContinuousAdjoint(torch.autograd.Function):
    """The forward solve without a graph; the adjoint equation in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, problem: Problem, backward: Solver, t: Tensor | None, y0: Tensor, *params: Tensor
    ) -> Tensor:
        ctx.mode, ctx.modes = autocast_mode(y0), modes(problem.field)
        before = random_state(y0.device)
        with autocast_as(ctx.mode):
            ys = stacked(problem.solve())
        if not same_state(before, random_state(y0.device)):
            raise ValueError(
                "gradient: 'adjoint' needs a deterministic field, and this one draws random "
                "numbers (dropout in training mode?); use gradient='checkpoint' or 'backprop'"
            )
        ctx.problem = replace(problem, y0=torch.empty(0))
        ctx.solver = backward
        ctx.save_for_backward(ys, *params)
        return ys

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        ys, *params = ctx.saved_tensors
        check_modes(ctx.problem.field, ctx.modes)
        sums = Accumulator(params, ctx.needs_input_grad[4:])
        field = ctx.problem.field.recomputation()
        problem = replace(ctx.problem, field=field)
        with autocast_as(ctx.mode):
            a = _solve_backwards(problem, ctx.solver, ys, grad_ys, sums)
            grad_t = None
            if ctx.needs_input_grad[2]:
                grad_t = _time_gradients(problem, ys, grad_ys, a)
        return None, None, grad_t, a + grad_ys[0], *sums.grads


def _solve_backwards(
    problem: Problem, solver: Solver, ys: Tensor, grad_ys: Tensor, sums: Accumulator
) -> Tensor:
    """Return the adjoint at the first time, before that output's own gradient is added."""
    a = torch.zeros_like(ys[0])
    last_step: float | None = None
    for i, interval in reversed(list(enumerate(intervals(problem.t)))):
        a = a + grad_ys[i + 1]
        if isinstance(solver, FixedStep):
            a = _fixed_steps(problem, solver, interval, ys[i + 1], a, sums)
        else:
            assert isinstance(solver, TorchdiffeqSolver)
            a, last_step = _adaptive(problem, solver, interval, ys[i + 1], a, sums, last_step)
    return a


def _fixed_steps(
    problem: Problem,
    solver: FixedStep,
    interval: Interval,
    y: Tensor,
    a: Tensor,
    sums: Accumulator,
) -> Tensor:
    """Take the steps of one interval backwards; the parameters' integral is a plain quadrature."""
    scheme, steps, field = solver.scheme, solver.steps, problem.field
    t0, t1 = interval
    h = -step_size(interval, steps, problem.scale, y)
    from_left = [1 - c for c in scheme.c]
    shares = [-float(h) * weight for weight in scheme.weights]
    for n in reversed(range(steps)):
        slopes_y: list[Tensor] = []
        slopes_a: list[Tensor] = []
        for row, c, fraction, share in zip(
            scheme.rows, from_left, scheme.fractions, shares, strict=True
        ):
            t = t1 + (steps - 1 - n + fraction) * ((t0 - t1) / steps)
            stage = Stage(t, n, steps, c)
            indices = sums.select(field.uses(stage)) if share else []
            slope_y, slope_a, grads = _slopes(
                field, stage, advance(y, slopes_y, row, h), advance(a, slopes_a, row, h),
                [sums.params[k] for k in indices],
            )  # fmt: skip
            slopes_y.append(slope_y)
            slopes_a.append(slope_a)
            sums.add(indices, grads, share)
        y = advance(y, slopes_y, scheme.weights, h)
        a = advance(a, slopes_a, scheme.weights, h)
    return a


def _slopes(
    field: Field, stage: Stage, y: Tensor, a: Tensor, params: list[Tensor]
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """Return ``f``, ``-(df/dy)^T a`` and ``(df/dparams)^T a`` from one evaluation and one VJP."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        f = field(stage, y)
    grad_y, *grads = differentiate(f, [y, *params], a)
    slope_a = torch.zeros_like(a) if grad_y is None else -grad_y
    return f.detach(), slope_a, tuple(grads)


def _adaptive(
    problem: Problem,
    solver: TorchdiffeqSolver,
    interval: Interval,
    y: Tensor,
    a: Tensor,
    sums: Accumulator,
    first_step: float | None,
) -> tuple[Tensor, float | None]:
    """Solve one interval backwards as one augmented system, starting with the last step's size."""
    t0, t1 = (float(t) for t in interval)
    indices = sums.select(problem.field.uses(Stage(t1)))
    params = [sums.params[k] for k in indices]
    sizes = [y.numel(), a.numel(), *(p.numel() for p in params)]

    def augmented(t: Tensor, s: Tensor) -> Tensor:
        parts = torch.split(s, sizes)
        slope_y, slope_a, grads = _slopes(
            problem.field, Stage(t), parts[0].view_as(y), parts[1].view_as(a), params
        )
        blocks = [
            part.new_zeros(part.shape) if grad is None else -grad.reshape(-1).to(part.dtype)
            for part, grad in zip(parts[2:], grads, strict=True)
        ]
        flat = torch.cat([slope_y.reshape(-1), slope_a.reshape(-1), *blocks])
        return flat if problem.scale == 1.0 else problem.scale * flat

    start = torch.cat([y.reshape(-1), a.reshape(-1), y.new_zeros(sum(sizes[2:]))])
    states, last_step = solver.run(
        augmented, start, (t1, t0), first_step=first_step, norm=_worst_block(y.numel())
    )
    parts = torch.split(states[-1], sizes)
    grads = [part.view_as(p).to(p.dtype) for part, p in zip(parts[2:], params, strict=True)]
    sums.add(indices, grads, 1.0)
    return parts[1].view_as(a), last_step


def _worst_block(n: int) -> Callable[[Tensor], Tensor]:
    """Measure an error of the augmented system: the largest root mean square of its three blocks.

    One norm over everything would let many parameters drown an error of a small state.
    """

    def norm(error: Tensor) -> Tensor:
        blocks = [b for b in (error[:n], error[n : 2 * n], error[2 * n :]) if b.numel()]
        return torch.stack([b.square().mean().sqrt() for b in blocks]).max()

    return norm


def _time_gradients(problem: Problem, ys: Tensor, grad_ys: Tensor, a: Tensor) -> Tensor:
    """Return ``g_i . f(t_i, y_i)`` for later outputs, ``-a(t_0) . f(t_0, y_0)`` for the first."""
    adjoints = [-a, *grad_ys[1:]]
    assert isinstance(problem.t, Tensor)
    products = [
        (adjoint * problem.field(Stage(t), y)).sum()
        for t, y, adjoint in zip(problem.t.unbind(), ys, adjoints, strict=True)
    ]
    return problem.scale * torch.stack(products).to(problem.t.dtype)
