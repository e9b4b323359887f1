"""Solves that give more than states at given times: dense output, and events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from companion.adaptive import Adaptive, Taken
from companion.arguments import not_allowed
from companion.events import Event
from companion.gradients import Backprop, Gradient, explaining, solved
from companion.gradients.function import needs_gradient
from companion.solve import Problem, Stage, Stats, stacked, time_like
from companion.trajectory import Trajectory

__all__ = ["Solution", "solve_to_event", "solve_with_dense_output"]

Unpack = Callable[[Tensor], Any]


@dataclass(frozen=True, eq=False)
class Solution:
    """What ``odeint(..., dense=True)`` returns: the solution at any time of its interval.

    Attributes:
        t: the output times reached, and then the event's, if there was one.
        ys: the states there, as ``odeint`` returns them.
        event_t: the time of the event as a tensor; the last time if there was none; ``None``
            without an ``event_fn``.
        status: ``"end"``, or ``"event"`` if an event stopped the solve.
        stats: evaluations and steps of this solve.

    Example:
        >>> from companion import odeint
        >>> solution = odeint(lambda t, y: -y, torch.ones(1), [0.0, 1.0], dense=True)
        >>> solution(0.5), solution([0.0, 1.0]).shape
        (tensor([0.6065]), torch.Size([2, 1]))
    """

    t: list[float]
    ys: Any
    event_t: Tensor | None
    status: str
    stats: Stats
    _trajectory: Trajectory
    _unpack: Unpack

    def __call__(self, t: float | Sequence[float] | Tensor) -> Any:
        """Return the state at a time, or the states at several, stacked.

        Args:
            t: a number, or a 1-D tensor or sequence of numbers, inside the interval.

        Raises:
            ValueError: for a time outside, or times that need a gradient.
        """
        if isinstance(t, Tensor) and t.requires_grad:
            raise ValueError(
                "t: a solution is not differentiated by the times that it is asked for; give the "
                "times to odeint, or detach() them"
            )
        values: Any = t.tolist() if isinstance(t, Tensor) else t
        single = isinstance(values, int | float)
        try:
            times = [float(x) for x in ([values] if single else values)]
        except (TypeError, ValueError):
            raise TypeError(
                not_allowed("t", t, "pass a number, or a 1-D tensor or sequence of numbers")
            ) from None
        # The ends may be rounded in a tensor's own precision.
        unit = torch.finfo(t.dtype).eps if isinstance(t, Tensor) and t.is_floating_point() else 0.0
        ys = self._trajectory.at([self._inside(time, unit) for time in times])
        return self._unpack(ys[0] if single else ys)

    def _inside(self, time: float, unit: float) -> float:
        """Return a time of the interval; one that is off by ``unit``, relative, is moved there."""
        path = self._trajectory
        low, high = sorted((path.start, path.end))
        near = min(max(time, low), high)
        if not abs(time - near) <= unit * max(abs(low), abs(high)):
            raise ValueError(
                f"t: {time!r} is not allowed; the solution is known from {path.start!r} to "
                f"{path.end!r}"
            )
        return near


class _Shift(torch.autograd.Function):
    """Zero, by which an event's time moves: minus the change of the function over its speed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, speed: Tensor) -> Tensor:
        ctx.save_for_backward(speed)
        return torch.zeros_like(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise ValueError(
                "event_fn: the time and the state of an event have first derivatives only, not "
                "create_graph=True"
            )
        (speed,) = ctx.saved_tensors
        return -grad / speed, None


def solve_with_dense_output(
    problem: Problem, gradient: Gradient, event: Event | None, unpack: Unpack, stats: Stats
) -> Solution:
    """Solve and keep the steps.

    Raises:
        ValueError: for a gradient but ``"backprop"`` where there is something to differentiate.
    """
    if not isinstance(gradient, Backprop) and needs_gradient(problem):
        name = type(gradient).__name__.lower()
        raise ValueError(
            f"gradient: {name!r} differentiates states at given times; use gradient='backprop' "
            "with dense=True"
        )
    path, times = _followed(problem, event)
    ys = path.at(times)
    event_t = None
    if event is not None:
        event_t, ys = _with_event(problem, event, times, ys)
    status = "event" if event is not None and event.time is not None else "end"
    return Solution(times, unpack(ys), event_t, status, stats, path, unpack)


def solve_to_event(problem: Problem, gradient: Gradient, event: Event) -> tuple[Tensor, Tensor]:
    """Solve up to an event; return its time, and the states at the outputs before it and there.

    Backprop differentiates the steps in which it was found. The other gradient methods solve once
    more, to the time that has been found.
    """
    if isinstance(gradient, Backprop) or not needs_gradient(problem):
        path, times = _followed(problem, event)
        return _with_event(problem, event, times, path.at(times))
    with torch.no_grad():
        times = _followed(replace(problem, y0=problem.y0.detach()), event)[1]
    ys = stacked(solved(replace(problem, t=times), gradient, "y0"))
    return _with_event(problem, event, times, ys)


def _followed(problem: Problem, event: Event | None) -> tuple[Trajectory, list[float]]:
    """Return the steps up to an event, and the output times before it with its own."""
    solver, t = problem.solver, problem.t
    assert isinstance(solver, Adaptive)
    assert not isinstance(t, Tensor)
    walk = solver.walk(problem)
    with explaining(problem, "y0"):
        steps: list[Taken] = list(walk if event is None else event.until(problem, walk))
    times, end = list(t), t[-1]
    if event is not None and event.time is not None:
        end, ahead = event.time, 1.0 if t[-1] > t[0] else -1.0
        times = [*(x for x in t if (end - x) * ahead > 0), end]
    return Trajectory(solver, steps, end), times


def _with_event(
    problem: Problem, event: Event, times: list[float], ys: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Attach the derivatives of an event by the implicit function theorem.

    With $g(t, y(t)) = 0$ at the event, a change $\delta y$ of the state at that time, and
    $\delta g$ of the function itself, move it by $\delta t = -\delta g / (g_t + g_y f)$, where
    $\delta g$ contains $g_y\,\delta y$, and the state there by $\delta y + f\,\delta t$.
    """
    t, y = time_like(times[-1], ys), ys[-1]
    if event.time is None or not torch.is_grad_enabled():
        return t, ys
    value = event.value(t, y)[event.index]
    if not value.requires_grad:
        return t, ys
    slope = problem.field(Stage(times[-1]), y).detach()
    with torch.enable_grad():
        leaves = (t.detach().requires_grad_(), y.detach().requires_grad_())
        again = event.value(*leaves)[event.index]
        by_t, by_y = torch.autograd.grad(again, leaves, allow_unused=True)
    speed = torch.zeros_like(t) if by_t is None else by_t
    speed = speed if by_y is None else speed + (by_y * slope).sum()
    shift: Tensor = _Shift.apply(value, speed)  # type: ignore[no-untyped-call]
    return t + shift, torch.cat([ys[:-1], (y + slope * shift).unsqueeze(0)])
