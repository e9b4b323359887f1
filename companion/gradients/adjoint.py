"""The continuous adjoint: solve a second differential equation backwards in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from companion.gradients.function import Given, Kept, recomputing_states
from companion.gradients.pullback import differentiate
from companion.gradients.randomness import draws, random_state, same_state
from companion.methods import TorchdiffeqSolver, get_solver, inherited
from companion.schemes import SCHEMES, advance
from companion.solve import (
    Field,
    FixedStep,
    GridSolver,
    Interval,
    Problem,
    Solver,
    Stage,
    States,
    Step,
    intervals,
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

    The field must be a function of $t$ and $y$. Noise that it draws in its first evaluation and
    keeps is allowed.

    Args:
        method: the backward solve's method; the forward solve's if ``None``.
        steps: its steps per interval; the forward solve's if ``None``.
        rtol: its relative tolerance; the forward solve's if ``None``.
        atol: its absolute tolerance; the forward solve's if ``None``.

    Raises:
        ValueError: in a solve, for a field that draws random numbers or follows buffers that it
            changes, for a backward method that would step across knots of the field, or settings
            no solver accepts.

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
    records_graph: ClassVar[bool] = False  # so parameters must be named

    def differentiable_states(self, problem: Problem) -> States:
        """Return the states at all output times."""
        self._check_knots(problem, self._backward_solver(problem.solver))
        return recomputing_states(self, problem)

    def forward(self, problem: Problem) -> tuple[States, Kept]:
        """Solve; keep the outputs."""
        before = random_state(problem.y0.device)
        ys = problem.integrate()
        ends = _ends(problem, ys)
        moved = not same_state(before, random_state(problem.y0.device))
        if moved and draws(problem.field, ends):
            raise ValueError(
                "gradient: 'adjoint' needs a deterministic field, and this one draws random "
                "numbers (dropout in training mode?); use gradient='checkpoint' or 'backprop'"
            )
        for stage, y in ends:
            if names := problem.field.follows(stage, y):
                raise ValueError(
                    "gradient: 'adjoint' needs a field that is a function of t and y, and this one "
                    f"changes and reads its buffer {names[0]!r} (spectral_norm in training mode?); "
                    "use gradient='checkpoint' or 'backprop'"
                )
        return ys, Kept(problem, [], outputs=True)

    def backward(self, given: Given) -> Tensor:
        """Integrate the adjoint from output to output."""
        spans = list(intervals(given.problem.t))
        ends = given.tensors[-len(spans) :]
        solver = self._backward_solver(given.problem.solver)
        way = _FixedSteps(solver) if isinstance(solver, FixedStep) else _Adaptive(solver)
        a = torch.zeros_like(ends[0])
        for i in reversed(range(len(spans))):
            a = way.back(given, i, spans[i], ends[i], a + given.grad_ys[i + 1])
        if given.sums.times is not None:
            given.sums.times.grads = list(_time_gradients(given, a))
        return a + given.grad_ys[0]

    def _backward_solver(self, forward: Solver) -> Solver:
        if self.method is None and forward.method not in SCHEMES and forward.on_grid:
            raise ValueError(
                f"gradient: 'adjoint' has no backward solve by {forward.method}; name one, as in "
                "Adjoint(method='midpoint'), or use gradient='reversible'"
            )
        method = self.method or forward.method
        return get_solver(method, **inherited(forward, method, self.steps, self.rtol, self.atol))

    def _check_knots(self, problem: Problem, backward: Solver) -> None:
        """Refuse to go back over knots at once with a solver that would step across them."""
        knots, forward = problem.field.knots, problem.solver.method
        if knots and backward.method not in SCHEMES:
            raise ValueError(
                f"gradient: Adjoint(method={backward.method!r}) would step across the knots between"
                f" {len(knots) + 1} cells that method={forward!r} solves at once; use one of "
                f"{', '.join(SCHEMES)} backwards, or {backward.method!r} forwards too"
            )


def _ends(problem: Problem, ys: States) -> list[tuple[Stage, Tensor]]:
    """Return the places of the first and the last state."""
    if not isinstance(problem.solver, GridSolver):
        return [(Stage(problem.t[0]), ys[0]), (Stage(problem.t[-1]), ys[-1])]
    spans, steps = list(intervals(problem.t)), problem.solver.steps
    first, last = Step(spans[0], 0, 0, steps), Step(spans[-1], len(spans) - 1, steps - 1, steps)
    return [(first.stage(Fraction(0), 0.0), ys[0]), (last.stage(Fraction(1), 1.0), ys[-1])]


class _FixedSteps:
    """Take the steps of an interval backwards; the parameters' integral is a plain quadrature."""

    def __init__(self, solver: FixedStep) -> None:
        self.solver = solver

    def back(self, given: Given, output: int, span: Interval, y: Tensor, a: Tensor) -> Tensor:
        """Return the adjoint ``a`` at the end of an interval carried back to its start."""
        steps = self.solver.steps
        for n in reversed(range(steps)):
            y, a = self._step(given, Step(span, output, n, steps), y, a)
        return a

    def _step(self, given: Given, step: Step, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        scheme, field, sums = self.solver.scheme, given.problem.field, given.sums.params
        h = -step.size(y)
        slopes_y: list[Tensor] = []
        slopes_a: list[Tensor] = []
        for i, row in enumerate(scheme.rows):
            stage = step.mirrored(scheme.c[i], scheme.fractions[i])
            share = -float(h) * scheme.weights[i]
            indices = sums.select(field.uses(stage)) if share else []
            slope_y, slope_a, grads = _slopes(
                field, stage, advance(y, slopes_y, row, h), advance(a, slopes_a, row, h),
                [sums.params[k] for k in indices],
            )  # fmt: skip
            slopes_y.append(slope_y)
            slopes_a.append(slope_a)
            sums.add(indices, grads, share)
        return advance(y, slopes_y, scheme.weights, h), advance(a, slopes_a, scheme.weights, h)


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


class _Adaptive:
    """Solve an interval backwards as one augmented system, starting with the last step's size."""

    def __init__(self, solver: Solver) -> None:
        assert isinstance(solver, TorchdiffeqSolver)
        self.solver = solver
        self.last_step: float | None = None

    def back(self, given: Given, output: int, span: Interval, y: Tensor, a: Tensor) -> Tensor:
        """Return the adjoint ``a`` at the end of an interval carried back to its start."""
        t0, t1 = (float(t) for t in span)
        field, sums = given.problem.field, given.sums.params
        indices = sums.select(field.uses(Stage(t1, output=output)))
        params = [sums.params[k] for k in indices]
        sizes = [y.numel(), a.numel(), *(_reals(p).numel() for p in params)]

        def augmented(t: Tensor, s: Tensor) -> Tensor:
            parts = torch.split(s, sizes)
            slope_y, slope_a, grads = _slopes(
                field, Stage(t, output=output), parts[0].view_as(y), parts[1].view_as(a), params
            )
            blocks = [
                part.new_zeros(part.shape) if grad is None else -_reals(grad).to(part.dtype)
                for part, grad in zip(parts[2:], grads, strict=True)
            ]
            return torch.cat([slope_y.reshape(-1), slope_a.reshape(-1), *blocks])

        start = torch.cat([y.reshape(-1), a.reshape(-1), y.new_zeros(sum(sizes[2:]))])
        states, self.last_step = self.solver.run(
            augmented, start, (t1, t0), first_step=self.last_step, norm=_worst_block(y.numel())
        )
        parts = torch.split(states[-1], sizes)
        grads = [_like(p, part) for p, part in zip(params, parts[2:], strict=True)]
        sums.add(indices, grads, 1.0)
        return parts[1].view_as(a)


def _reals(tensor: Tensor) -> Tensor:
    """Return the entries in a row, a complex one as its two parts."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def _like(param: Tensor, reals: Tensor) -> Tensor:
    """Undo :func:`_reals` for a tensor shaped like ``param``."""
    if not param.is_complex():
        return reals.view_as(param).to(param.dtype)
    return torch.view_as_complex(reals.reshape(*param.shape, 2).contiguous()).to(param.dtype)


def _worst_block(n: int) -> Callable[[Tensor], Tensor]:
    """Measure an error of the augmented system: the largest root mean square of its three blocks.

    One norm over everything would let many parameters drown an error of a small state.
    """

    def norm(error: Tensor) -> Tensor:
        blocks = [b for b in (error[:n], error[n : 2 * n], error[2 * n :]) if b.numel()]
        return torch.stack([b.square().mean().sqrt() for b in blocks]).max()

    return norm


def _time_gradients(given: Given, a: Tensor) -> Tensor:
    """Return ``g_i . f(t_i, y_i)`` for later outputs, ``-a(t_0) . f(t_0, y_0)`` for the first."""
    t, field = given.problem.t, given.problem.field
    assert isinstance(t, Tensor)
    adjoints = [-a, *given.grad_ys[1:]]
    products = [
        (adjoint * field(Stage(time), y)).sum()
        for time, y, adjoint in zip(t.unbind(), given.tensors, adjoints, strict=True)
    ]
    return torch.stack(products).to(t.dtype)
