"""The method knob: schemes of our own on fixed steps, everything else through torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
import torchdiffeq
from torch import Tensor

from companion.arguments import check_choice, check_count, check_number, not_allowed
from companion.leapfrog import AsyncLeapfrog
from companion.schemes import SCHEMES, get_scheme
from companion.solve import (
    FixedStep,
    NonFiniteError,
    Problem,
    Solver,
    Stage,
    Stats,
    Times,
)

__all__ = [
    "ADAPTIVE",
    "METHODS",
    "MULTISTEP",
    "TAKES",
    "TorchdiffeqSolver",
    "get_solver",
    "inherited",
    "takes",
]

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
"""Embedded Runge-Kutta pairs with step size control."""

MULTISTEP = ("explicit_adams", "implicit_adams")
"""Adams methods of variable order on a fixed grid."""

SCIPY = "scipy_solver"

LEAPFROG = "async_leapfrog"

METHODS = (*SCHEMES, LEAPFROG, *ADAPTIVE, *MULTISTEP, SCIPY)
"""Every method name that ``odeint`` and ``OdeBlock`` accept."""

TAKES = {
    **dict.fromkeys((*SCHEMES, LEAPFROG, "explicit_adams"), ("steps",)),
    **dict.fromkeys((*ADAPTIVE, SCIPY), ("rtol", "atol")),
    "implicit_adams": ("steps", "rtol", "atol"),
}
"""The knobs that a method has; it would ignore the others."""

DEFAULTS = {"steps": 1, "rtol": 1e-7, "atol": 1e-9}
"""Values of knobs that are not set."""


def takes(knob: str, method: str) -> bool:
    """Say whether a method has a knob; a name that is no method has all.

    Example:
        >>> takes("steps", "rk4"), takes("steps", "dopri5")
        (True, False)
    """
    return knob in TAKES.get(method, DEFAULTS)


def get_solver(
    method: str | None,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Solver:
    """Return the solver called ``method``, configured.

    Args:
        method: one of ``METHODS``; ``None`` is ``"dopri5"``.
        steps: equal steps between consecutive output times, for methods on a fixed grid; ``None``
            is 1.
        rtol: relative tolerance, for methods that control their error; ``None`` is 1e-7.
        atol: absolute tolerance, likewise; ``None`` is 1e-9.

    Raises:
        ValueError: for an unknown method, ``steps < 1``, a negative tolerance, or a knob that the
            method would ignore.
        TypeError: for a tolerance that is not a number.

    Example:
        >>> get_solver("rk4", steps=20).steps
        20
    """
    method = "dopri5" if method is None else method
    check_choice("method", method, METHODS)
    given = {"steps": steps, "rtol": rtol, "atol": atol}
    for knob, value in given.items():
        if value is not None and not takes(knob, method):
            raise ValueError(not_allowed(knob, value, _instead(method, knob)))
    count = DEFAULTS["steps"] if steps is None else steps
    number = check_count("steps", count)
    if method in SCHEMES:
        return FixedStep(get_scheme(method), number)
    if method == LEAPFROG:
        return AsyncLeapfrog(number)
    tolerances = {
        knob: check_number(knob, DEFAULTS[knob] if given[knob] is None else given[knob], least=0)
        for knob in ("rtol", "atol")
        if takes(knob, method)
    }
    return TorchdiffeqSolver(method, **tolerances, steps=number if takes("steps", method) else None)


class Knobs(TypedDict):
    """The knobs of a solver, ``None`` where it is not set or has none."""

    steps: int | None
    rtol: float | None
    atol: float | None


def inherited(
    old: Solver, method: str, steps: int | None, rtol: float | None, atol: float | None
) -> Knobs:
    """Return the knobs for another method: those given, else those of ``old`` that it has too."""
    return {
        "steps": old.steps if steps is None and takes("steps", method) else steps,
        "rtol": old.rtol if rtol is None and takes("rtol", method) else rtol,
        "atol": old.atol if atol is None and takes("atol", method) else atol,
    }


def _instead(method: str, knob: str) -> str:
    if knob == "steps":
        return (
            f"method={method!r} chooses its own steps; set rtol= and atol=, or use a method on a "
            "fixed grid such as 'rk4'"
        )
    return (
        f"method={method!r} does not control its error; set steps=, or use an adaptive method such "
        "as 'dopri5'"
    )


class _Counted:
    """A torchdiffeq right-hand side with the callbacks that count its steps."""

    def __init__(self, func: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.func = func
        self.accepted = 0
        self.rejected = 0
        self.last_step: float | None = None
        self.reached: float | None = None

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.func(t, y)

    def count_accepted(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.accepted += 1
        self.last_step = abs(float(dt.detach()))
        self.reached = float((t0 + dt).detach())

    def count_rejected(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.rejected += 1


@dataclass(frozen=True)
class TorchdiffeqSolver:
    """A solver of torchdiffeq behind this package's interface."""

    method: str
    rtol: float | None = None
    atol: float | None = None
    steps: int | None = None
    on_grid: ClassVar[bool] = False

    @property
    def recordable(self) -> bool:
        """Whether autograd can record its operations; it cannot look inside scipy."""
        return self.method != SCIPY

    def integrate(self, problem: Problem) -> Tensor:
        """Return the states at all output times, stacked."""
        field, t = problem.field, problem.t

        def func(t: Tensor, y: Tensor) -> Tensor:
            return field(Stage(t), y)

        if isinstance(t, Tensor) and t.requires_grad:
            return self._with_time_gradients(func, problem.y0, t, problem.stats)
        ys, _ = self.run(func, problem.y0, t, problem.stats)
        return ys

    def run(
        self,
        func: Callable[[Tensor, Tensor], Tensor],
        y0: Tensor,
        t: Times,
        stats: Stats | None = None,
        first_step: float | None = None,
        norm: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, float | None]:
        """Solve ``dy/dt = func(t, y)``; return the states and the last accepted step size.

        Args:
            func: the right-hand side in torchdiffeq's form.
            y0: the state at ``t[0]``.
            t: the output times.
            stats: where to count steps.
            first_step: size of the first step to try; chosen by the solver if ``None``.
            norm: how an adaptive method measures its error; root mean square if ``None``.

        Raises:
            NonFiniteError: naming the time at which an adaptive method had to give up.
        """
        if y0.numel() == 0:  # no error to control
            return y0.expand(len(t), *y0.shape), first_step
        counted = self._counted(func)
        times = torch.as_tensor(t, dtype=torch.float64, device=y0.device)
        if self.method not in ADAPTIVE:
            times = times.to(y0.dtype)
        # The Adams methods extrapolate from equal past steps: each interval starts them afresh.
        pieces = times.unfold(0, 2, 1).unbind() if self.method in MULTISTEP else (times,)
        options = self._options(first_step, norm)
        states = [y0.unsqueeze(0)]
        try:
            for piece in pieces:
                ys = torchdiffeq.odeint(
                    counted, states[-1][-1], piece, method=self.method, options=options,
                    **self._tolerances(),
                )  # fmt: skip
                states.append(ys[1:])
        except AssertionError as failure:
            if not str(failure).startswith(("underflow in dt", "non-finite values")):
                raise
            raise self._stuck(float(t[0]) if counted.reached is None else counted.reached) from None
        if stats is not None:
            fixed = 0 if self.steps is None else self.steps * (len(times) - 1)
            stats.steps += counted.accepted + fixed
            stats.rejected += counted.rejected
        return torch.cat(states), counted.last_step

    def _counted(self, func: Callable[[Tensor, Tensor], Tensor]) -> _Counted:
        counted = _Counted(_watched(func) if self.method == SCIPY else func)
        if self.method in ADAPTIVE:
            counted.callback_accept_step = counted.count_accepted  # type: ignore[attr-defined]
            counted.callback_reject_step = counted.count_rejected  # type: ignore[attr-defined]
        return counted

    def _stuck(self, where: float) -> NonFiniteError:
        return NonFiniteError(
            f"y0: {self.method} cannot go on at t = {where:.6g}: the state is not finite, or its "
            "error needs steps below rounding; loosen rtol and atol, scale the field down, or "
            "solve a shorter time"
        )

    def first_non_finite(self, problem: Problem) -> None:
        """Solve nothing again: only the states at the output times are known here."""

    def _tolerances(self) -> dict[str, float]:
        pairs = {"rtol": self.rtol, "atol": self.atol}
        return {name: value for name, value in pairs.items() if value is not None}

    def _options(
        self, first_step: float | None, norm: Callable[[Tensor], Tensor] | None
    ) -> dict[str, Any]:
        if (steps := self.steps) is not None:
            return {"grid_constructor": lambda func, y0, t: _equal_steps(t, steps)}
        options: dict[str, Any] = {}
        if self.method in ADAPTIVE:
            if first_step is not None:
                options["first_step"] = first_step
            if norm is not None:
                options["norm"] = norm
        return options

    def _with_time_gradients(
        self,
        func: Callable[[Tensor, Tensor], Tensor],
        y0: Tensor,
        t: Tensor,
        stats: Stats | None,
    ) -> Tensor:
        """Solve at detached times and attach the flow's exact derivatives with respect to them.

        An output moves with its own time as ``dy(t_i)/dt_i = f(t_i, y_i)``. Moving the start by
        ``d`` is starting from ``y0 - d * f(t_0, y0)``. Both terms below have the value zero.
        """
        shifts = (t - t.detach()).to(y0.dtype).unbind()
        times = t.detach()
        start = y0 - shifts[0] * func(times[0].to(y0.dtype), y0.detach())
        ys, _ = self.run(func, start, times, stats)
        moved = [
            y + shift * func(time.to(y.dtype), y.detach())
            for y, shift, time in zip(ys[1:], shifts[1:], times[1:], strict=True)
        ]
        return torch.stack([y0, *moved])


def _watched(func: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a field refuse what scipy would lose (a graph) or never leave (infinite values)."""
    grad = torch.is_grad_enabled()  # torchdiffeq turns gradients off inside

    def watched(t: Tensor, y: Tensor) -> Tensor:
        with torch.set_grad_enabled(grad):
            value = func(t, y)
        if value.requires_grad:
            raise ValueError(
                f"gradient: 'backprop' cannot see inside {SCIPY}; use gradient='adjoint'"
            )
        if not torch.isfinite(value).all():
            raise ValueError(
                f"y0: the state's derivative is not finite at t = {float(t):.6g}; scale the field "
                "down, or solve a shorter time"
            )
        return value

    return watched


def _equal_steps(t: Tensor, steps: int) -> Tensor:
    """Return the grid of ``steps`` equal steps from ``t[0]`` to ``t[1]``, ends included."""
    t0, t1 = t.tolist()
    grid = torch.linspace(t0, t1, steps + 1, dtype=t.dtype, device=t.device)
    return torch.cat([grid[:-1], t[-1:]])
