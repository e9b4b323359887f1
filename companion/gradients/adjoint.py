"""The continuous adjoint: solve a second differential equation backwards in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from companion.adams import Adams
from companion.adaptive import Adaptive, Control, Jumps, Taken
from companion.arguments import check_choice
from companion.gradients.determinism import check_function_of_state
from companion.gradients.function import Given, Kept, recomputing_states
from companion.gradients.pullback import differentiate
from companion.gradients.randomness import random_state
from companion.gradients.times import time_gradients
from companion.methods import get_solver, inherited
from companion.pairs import Pair
from companion.schemes import SCHEMES, advance
from companion.scipy_solver import ScipySolver
from companion.solve import (
    Field,
    FixedStep,
    GridSolver,
    Interval,
    NonFiniteError,
    Problem,
    Solver,
    Stage,
    States,
    Step,
    StepLimitError,
    intervals,
)

__all__ = ["NORMS", "Adjoint"]

NORMS = ("seminorm", "full")
"""What an adaptive backward solve measures; see :class:`Adjoint`."""


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
        norm: what an adaptive backward solve measures: ``"seminorm"``, the errors of the state and
            of the adjoint (Kidger, Chen and Lyons 2021), or ``"full"``, that of the parameters'
            integral too. The larger decides.

    Raises:
        ValueError: for another norm; in a solve, for a field that draws random numbers or follows
            buffers that it changes, for a backward method that would step across knots of the
            field, or settings no solver accepts.

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
    norm: str = "seminorm"
    records_graph: ClassVar[bool] = False  # so parameters must be named

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, NORMS)

    def differentiable_states(self, problem: Problem) -> States:
        """Return the states at all output times."""
        self._check_knots(problem, self._backward_solver(problem.solver))
        return recomputing_states(self, problem)

    def forward(self, problem: Problem) -> tuple[States, Kept]:
        """Solve; keep the outputs."""
        before = random_state(problem.y0.device)
        ys = problem.integrate()
        check_function_of_state(
            problem, _ends(problem, ys), before, "'adjoint'",
            "use gradient='checkpoint' or 'backprop'",
        )  # fmt: skip
        return ys, Kept(problem, [], outputs=True)

    def backward(self, given: Given) -> Tensor:
        """Integrate the adjoint from output to output."""
        spans = list(intervals(given.problem.t))
        ends = given.tensors[-len(spans) :]
        way = self._way(self._backward_solver(given.problem.solver))
        a = torch.zeros_like(ends[0])
        for i in reversed(range(len(spans))):
            try:
                a = way.back(given, i, spans[i], ends[i], a + given.grad_ys[i + 1])
            except (NonFiniteError, StepLimitError) as error:
                raise type(error)(
                    f"gradient: the adjoint's backward solve did not succeed: {error}; or use "
                    "gradient='checkpoint'"
                ) from error
        if given.sums.times is not None:
            given.sums.times.grads = time_gradients(given, a)
        return a + given.grad_ys[0]

    def _backward_solver(self, forward: Solver) -> Solver:
        if self.method is None and forward.method not in SCHEMES and forward.on_grid:
            raise ValueError(
                f"gradient: 'adjoint' has no backward solve by {forward.method}; name one, as in "
                "Adjoint(method='midpoint'), or use gradient='reversible'"
            )
        method = self.method or forward.method
        solver = get_solver(method, **inherited(forward, method, self.steps, self.rtol, self.atol))
        if self.norm == "full" and not isinstance(solver, Adaptive):
            raise ValueError(
                f"gradient: Adjoint(norm='full') is for adaptive methods, and {method!r} is none"
            )
        return solver

    def _way(self, solver: Solver) -> _Way:
        if isinstance(solver, FixedStep):
            return _FixedSteps(solver)
        if isinstance(solver, Adaptive):
            return _Controlled(solver, self.norm)
        assert isinstance(solver, Adams | ScipySolver)
        return _Whole(solver)

    def _check_knots(self, problem: Problem, backward: Solver) -> None:
        """Refuse to go back over knots at once with a solver that would step across them."""
        knots, forward = problem.field.knots, problem.solver.method
        if isinstance(problem.solver, Adaptive):
            if knots and not isinstance(backward, Adaptive):
                raise ValueError(
                    f"gradient: Adjoint(method={backward.method!r}) would step across the knots "
                    f"that method={forward!r} steps to; use an adaptive method backwards, too"
                )
        elif knots and backward.method not in SCHEMES:
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


class _Way(Protocol):
    def back(self, given: Given, output: int, span: Interval, y: Tensor, a: Tensor) -> Tensor:
        """Return the adjoint ``a`` at the end of an interval carried back to its start."""


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


class _Controlled:
    """Solve intervals backwards by a pair with error control.

    The parameters' integral is a quadrature along the way: it takes no part in the stages, and none
    in the error unless the norm says so. An interval begins with the size that the last one ended
    with.
    """

    def __init__(self, solver: Adaptive, norm: str) -> None:
        self.solver, self.norm = solver, norm
        self.size: float | None = None

    def back(self, given: Given, output: int, span: Interval, y: Tensor, a: Tensor) -> Tensor:
        """Return the adjoint ``a`` at the end of an interval carried back to its start."""
        t0, t1 = (float(t) for t in span)
        field, n = _Augmented(given, output, t1, y, self.solver.pair), y.numel()
        state = torch.cat([y.reshape(-1), a.reshape(-1)])
        jumps = Jumps.of(replace(given.problem, y0=y))
        control = Control(self.solver, t1, t0, jumps, parts=(n, n), size=self.size)
        measure = partial(field.error_ratio, self.solver) if self.norm == "full" else None
        for step in self.solver.steps_of(field, state, control, measure):
            field.add(step.span.size)
            state = step.after
        self.size = control.size
        return state[n:].view_as(a)


class _Augmented:
    """The field of a state and its adjoint, which keeps the parameters' slopes of a step."""

    def __init__(self, given: Given, output: int, end: float, y: Tensor, pair: Pair) -> None:
        self.field, self.output, self.shape, self.pair = given.problem.field, output, y.shape, pair
        self.sums = given.sums.params
        self.indices = self.sums.select(self.field.uses(Stage(end, output=output)))
        self.read = [self.sums.params[k] for k in self.indices]
        self.grads: dict[int, tuple[Tensor | None, ...]] = {}

    def __call__(self, stage: Stage, state: Tensor) -> Tensor:
        """Return the slopes of the state and of its adjoint."""
        y, a = (part.view(self.shape) for part in state.chunk(2))
        # The last stage is the first of the next step.
        needed = self.pair.tableau.b[stage.number] or stage.number == self.pair.stages - 1
        slope_y, slope_a, grads = _slopes(
            self.field, stage._replace(output=self.output), y, a, self.read if needed else []
        )
        self.grads[stage.number] = grads
        return torch.cat([slope_y.reshape(-1), slope_a.reshape(-1)])

    def add(self, h: float) -> None:
        """Add an accepted step's share of the parameters' integral."""
        for i, weight in enumerate(self.pair.tableau.weights):
            if weight:
                self.sums.add(self.indices, self.grads[i], -h * weight)
        self.grads[0] = self.grads[self.pair.stages - 1]

    def error_ratio(self, solver: Adaptive, step: Taken) -> float:
        """Return the error ratio of a step with the parameters' integral as a third part."""
        n = step.y.numel() // 2
        largest = solver.error_ratio(step, (n, n))
        squares, count = 0.0, 0
        for j, k in enumerate(self.indices):
            zero, total = torch.zeros_like(self.read[j]), self.sums.grads[k]
            every = [self.grads[i] for i in range(self.pair.stages)]
            found = [grads[j] if grads else None for grads in every]
            slopes = [_reals(zero if grad is None else grad) for grad in found]
            before = _reals(zero if total is None else total)
            after = advance(before, slopes, self.pair.tableau.weights, -step.span.size)
            ratio = solver.error_ratio(Taken(step.span, before, slopes, after))
            squares += before.numel() * ratio**2
            count += before.numel()
        return max(largest, math.sqrt(squares / count)) if count else largest


class _Whole:
    """Solve an interval backwards as one system with everything in its state."""

    def __init__(self, solver: Adams | ScipySolver) -> None:
        self.solver = solver

    def back(self, given: Given, output: int, span: Interval, y: Tensor, a: Tensor) -> Tensor:
        """Return the adjoint ``a`` at the end of an interval carried back to its start."""
        t0, t1 = (float(t) for t in span)
        field, sums = given.problem.field, given.sums.params
        indices = sums.select(field.uses(Stage(t1, output=output)))
        params = [sums.params[k] for k in indices]
        sizes = [y.numel(), a.numel(), *(_reals(p).numel() for p in params)]

        def augmented(t: float | Tensor, s: Tensor) -> Tensor:
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
        parts = torch.split(self.solver.run(augmented, start, (t1, t0))[-1], sizes)
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
