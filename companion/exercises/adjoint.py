"""Exercises of the chapter "Differentiate through a solver without storing it"."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from companion import odeint
from companion.exercises.checking import Exercise, WrongAnswer, close, listed, number, tensor, whole
from companion.schemes import get_scheme

__all__ = [
    "BOUNCE", "EXERCISES", "FIT", "GAP", "JUMPS", "LINEAR", "PLACES", "RETRACE", "SPACING", "TIMES",
]  # fmt: skip


# Warm-up: the adjoint of a linear equation, by hand


def _check_linear(answer: Callable[[float, float, float], Any]) -> str:
    """Compare ``answer(x0, rate, end)`` with the gradients of x(end)^2 / 2 for x' = rate x."""
    for x0, rate, end in ((1.5, 0.7, 2.0), (-0.8, -1.3, 0.5), (2.0, 0.4, 1.0)):
        got = listed(answer(x0, rate, end), 3, "Return three numbers, dL/dx0, dL/drate, dL/dend.")
        final = x0 * math.exp(rate * end)
        start = final * math.exp(rate * end)
        hints = (
            "dL/dx0 is the adjoint at the start. Where does it end, and at which rate does it grow "
            "on the way back?",
            "dL/drate is the integral of a(t) times the field's derivative by the rate. Show that "
            "the product a(t) x(t) does not depend on t.",
            "dL/dend is the final adjoint times the field at the end.",
        )
        wanted = (start, end * start * x0, rate * final**2)
        for value, right, hint in zip(got, wanted, hints, strict=True):
            if not close(value, right):
                raise WrongAnswer(f"At x0={x0}, rate={rate}, end={end}: {hint}")
    return "Right: all three gradients, at three sets of numbers."


def _linear(x0: float, rate: float, end: float) -> tuple[float, float, float]:
    final = x0 * math.exp(rate * end)
    start = final * math.exp(rate * end)
    return start, end * start * x0, rate * final**2


LINEAR = Exercise(
    id="adjoint-ex-linear",
    check=_check_linear,
    solution=_linear,
    wrong={
        "the adjoint decays on the way back": lambda x, r, T: (
            x, T * x * x, r * (x * math.exp(r * T)) ** 2),
        "the adjoint at the end": lambda x, r, T: (
            x * math.exp(r * T), T * x * x * math.exp(2 * r * T), r * (x * math.exp(r * T)) ** 2),
        "no integral over time": lambda x, r, T: (
            x * math.exp(2 * r * T), x * x * math.exp(2 * r * T), r * (x * math.exp(r * T)) ** 2),
        "the field at the start": lambda x, r, T: (
            x * math.exp(2 * r * T), T * x * x * math.exp(2 * r * T), r * x * x * math.exp(r * T)),
        "two numbers": lambda x, r, T: (
            x * math.exp(2 * r * T), T * x * x * math.exp(2 * r * T)),
        "one number": lambda x, r, T: x * math.exp(2 * r * T),
    },
)  # fmt: skip


# Core: several observation times

Pull = Callable[[float, float, Tensor], Tensor]


def _check_jumps(answer: Callable[[Pull, Sequence[float], Sequence[Tensor]], Tensor]) -> str:
    """Run ``answer(pull, times, grads)`` with the exact pull of x' = A x, logging the calls."""
    A = torch.tensor([[0.3, -1.0], [0.5, 0.2]], dtype=torch.float64)
    times = (0.0, 0.4, 1.0, 1.3)
    generator = torch.Generator().manual_seed(0)
    grads = list(torch.randn(4, 2, generator=generator, dtype=torch.float64))
    calls: list[tuple[float, float]] = []

    def pull(late: float, early: float, a: Tensor) -> Tensor:
        calls.append((late, early))
        pulled: Tensor = torch.linalg.matrix_exp(A.T * (late - early)) @ torch.as_tensor(a).to(A)
        return pulled

    got = tensor(
        answer(pull, times, [g.clone() for g in grads]),
        (2,),
        "Return one tensor shaped like a state: dL/dx(t_0).",
    )
    if any(late < early for late, early in calls):
        raise WrongAnswer("Some call of pull goes forwards in time: call pull(late, early, a).")
    terms = [torch.linalg.matrix_exp(A.T * t) @ g for t, g in zip(times, grads, strict=True)]
    if close(got, sum(terms, torch.zeros(2, dtype=torch.float64))):
        if len(calls) != len(times) - 1:
            raise WrongAnswer(
                f"Right value, but {len(calls)} pulls; three intervals need three pulls."
            )
        if calls != [(late, early) for early, late in pairwise(times)][::-1]:
            raise WrongAnswer(
                "Right value, but some pull reaches over more than one interval. Pull through one "
                "interval, jump, and pull on with the sum."
            )
        return "Right: one sweep, with a jump at every observation."
    hints = {
        "The last gradient counts twice: the sweep starts with it, and no jump follows there.": [
            *terms, terms[-1]],
        "A jump has the wrong sign: the gradients of all observations add.": [
            -terms[0], -terms[1], -terms[2], terms[3]],
        "A loss term is missing: the one at the first time is a jump as well.": terms[1:],
        "A loss term is missing: the sweep starts with the last observation.": terms[:-1],
        "Jumps add to the adjoint; yours replaces it and keeps only the first term.": terms[:1],
    }  # fmt: skip
    for hint, parts in hints.items():
        if close(got, sum(parts, torch.zeros(2, dtype=torch.float64))):
            raise WrongAnswer(hint)
    raise WrongAnswer(
        "Not the gradient. Add an observation's gradient on reaching its time, before pulling on."
    )


def _jumps(pull: Pull, times: Sequence[float], grads: Sequence[Tensor]) -> Tensor:
    a = grads[-1]
    for i in reversed(range(len(times) - 1)):
        a = pull(times[i + 1], times[i], a) + grads[i]
    return a


def _without_first(pull: Pull, times: Sequence[float], grads: Sequence[Tensor]) -> Tensor:
    return _jumps(pull, times, [0 * grads[0], *grads[1:]])


def _without_last(pull: Pull, times: Sequence[float], grads: Sequence[Tensor]) -> Tensor:
    return _jumps(pull, times, [*grads[:-1], 0 * grads[-1]])


def _replacing(pull: Pull, times: Sequence[float], grads: Sequence[Tensor]) -> Tensor:
    _jumps(pull, times, grads)
    return grads[0]


def _late_jump(pull: Pull, times: Sequence[float], grads: Sequence[Tensor]) -> Tensor:
    a = torch.zeros_like(grads[-1])
    for i in reversed(range(len(times) - 1)):
        a = pull(times[i + 1], times[i], a) + grads[i + 1]
    return a + grads[0]


def _forwards(pull: Pull, times: Sequence[float], grads: Sequence[Tensor]) -> Tensor:
    a = grads[0]
    for i in range(len(times) - 1):
        a = pull(times[i], times[i + 1], a) + grads[i + 1]
    return a


def _one_by_one(pull: Pull, times: Sequence[float], grads: Sequence[Tensor]) -> Tensor:
    pulls = [pull(t, times[0], g) for t, g in zip(times, grads, strict=True)]
    return torch.stack(pulls).sum(dim=0)


def _to_the_start(pull: Pull, times: Sequence[float], grads: Sequence[Tensor]) -> Tensor:
    later = zip(times[1:], grads[1:], strict=True)
    return grads[0] + torch.stack([pull(t, times[0], g) for t, g in later]).sum(dim=0)


def _minus(pull: Pull, times: Sequence[float], grads: Sequence[Tensor]) -> Tensor:
    return _jumps(pull, times, [*(-g for g in grads[:-1]), grads[-1]])


def _last_twice(pull: Pull, times: Sequence[float], grads: Sequence[Tensor]) -> Tensor:
    return _jumps(pull, times, [*grads[:-1], 2 * grads[-1]])


JUMPS = Exercise(
    id="adjoint-ex-jumps",
    check=_check_jumps,
    solution=_jumps,
    wrong={
        "the loss at the first time is forgotten": _without_first,
        "the loss at the last time is forgotten": _without_last,
        "a jump replaces the adjoint": _replacing,
        "the jump comes after the interval before it": _late_jump,
        "the sweep runs forwards": _forwards,
        "every term is pulled alone": _one_by_one,
        "every term is pulled to the start": _to_the_start,
        "jumps with a minus sign": _minus,
        "the last gradient counts twice": _last_twice,
        "a number": lambda pull, times, grads: 0.0,
    },
)


# Core: how far apart to put checkpoints


def _cost(steps: int, stages: int, every: int) -> int:
    return -(-steps // every) + every * stages


def _check_spacing(answer: Callable[[int, int], Any]) -> str:
    """Compare the memory of ``answer(steps, stages)`` with that of the best spacing."""
    named = ((100, 1), (100, 4), (1024, 4), (7, 2), (1, 4), (1000, 2), (10, 2), (36, 2))
    cases = (*named, *((steps, stages) for steps in range(1, 81) for stages in range(1, 13)))
    for steps, stages in cases:
        given = answer(steps, stages)
        case = f"For {steps} steps of {stages} stages you answer {given!r}"
        every = whole(given) or 0
        if not 1 <= every <= steps:
            raise WrongAnswer(f"{case}; the spacing is an integer from 1 to the number of steps.")
        cost = _cost(steps, stages, every)
        if cost > min(_cost(steps, stages, k) for k in range(1, steps + 1)):
            where = "the stored states" if steps > every**2 * stages else "one recomputed segment"
            raise WrongAnswer(
                f"{case}, which keeps {cost} items at once, most of them for {where}."
            )
    return f"Right: nothing smaller for any of {len(cases)} pairs of steps and stages."


def _spacing(steps: int, stages: int) -> int:
    return min(range(1, steps + 1), key=lambda every: -(-steps // every) + every * stages)


SPACING = Exercise(
    id="adjoint-ex-spacing",
    check=_check_spacing,
    solution=_spacing,
    wrong={
        "a checkpoint every step": lambda steps, stages: 1,
        "a single checkpoint": lambda steps, stages: steps,
        "the root rounded up": lambda steps, stages: math.ceil(math.sqrt(steps / stages)),
        "the root rounded": lambda steps, stages: max(1, round(math.sqrt(steps / stages))),
        "the root, stages forgotten": lambda steps, stages: math.isqrt(steps),
        "the root of the product": lambda steps, stages: min(steps, math.isqrt(steps * stages)),
        "not an integer": lambda steps, stages: math.sqrt(steps / stages),
    },
)


# Open: accurate forwards, wrong gradient

_TOLERANCE = 1e-6
_BOUNCE_PARTS = "Answer with three things: a module, a start and an end time."


def _check_bounce(answer: tuple[nn.Module, Tensor, float]) -> str:
    """Solve with tolerance 1e-6 and compare the adjoint's gradient with an accurate one."""
    try:
        field, x0, end = answer
    except (TypeError, ValueError):
        raise WrongAnswer(_BOUNCE_PARTS) from None
    end = number(end, _BOUNCE_PARTS)
    if not isinstance(field, nn.Module) or not any(True for _ in field.parameters()):
        raise WrongAnswer("The field must be an nn.Module with at least one parameter.")
    # A copy: the reader's module keeps its precision.
    x0, field = tensor(x0, None, _BOUNCE_PARTS), _Stacked(copy.deepcopy(field).double())
    tight, gradient = _solve(field, x0, end, 1e-10, "backprop")
    loose, by_backprop = _solve(field, x0, end, _TOLERANCE, "backprop")
    _, by_adjoint = _solve(field, x0, end, _TOLERANCE, "adjoint")
    off = _distance(loose, tight)
    if not off <= 1e-3:
        raise WrongAnswer(
            f"The solve itself is off by {off:.1e} times the size of x(T); it may be off by 1e-3 "
            "at most. If the end is near zero, no tolerance of 1e-6 can see it: keep a part of the "
            "state that does not shrink."
        )
    if not gradient.norm() >= 100 * _TOLERANCE:
        raise WrongAnswer(
            f"The gradient itself is {gradient.norm():.1e}, no larger than what a tolerance of "
            f"{_TOLERANCE:.0e} can miss. Find a field whose gradient is at least 1e-4."
        )
    missed, error = _distance(by_backprop, gradient), _distance(by_adjoint, gradient)
    if not missed <= 1e-2:
        raise WrongAnswer(
            f"Backprop through the same solve is off by {missed:.1e} times the gradient's size. "
            "Then the forward solve is to blame, not the way back."
        )
    if not error > 1e-1:
        raise WrongAnswer(
            "The adjoint's gradient is right to within a tenth. Errors grow on the way back by "
            "exp(rate * time): which rate makes 1e-6 matter?"
        )
    return (
        f"Right: the state is off by {off:.0e} times its size, backprop's gradient by "
        f"{missed:.0e} times, the adjoint's by {error:.1f} times. The flow shrinks some direction "
        f"to {_contraction(field, x0, end):.0e}."
    )


def _distance(got: Tensor, wanted: Tensor) -> float:
    """Return the distance in units of the size of ``wanted``."""
    return float(torch.linalg.vector_norm(got - wanted) / torch.linalg.vector_norm(wanted))


def _contraction(field: nn.Module, x0: Tensor, end: float) -> float:
    """Return the smallest singular value of dx(T)/dx(0)."""
    start = x0.clone().requires_grad_()
    x = odeint(field, start, (0.0, end), rtol=1e-10, atol=1e-10)[-1].reshape(-1)
    rows = [torch.autograd.grad(part, start, retain_graph=True)[0].reshape(-1) for part in x]
    return float(torch.linalg.svdvals(torch.stack(rows)).min())


def _solve(
    field: nn.Module, x0: Tensor, end: float, tolerance: float, gradient: str
) -> tuple[Tensor, Tensor]:
    """Return the final state and the gradient of its sum, as one vector."""
    params = tuple(field.parameters())
    try:
        x = odeint(field, x0, (0.0, end), rtol=tolerance, atol=tolerance, gradient=gradient)[-1]
        grads = torch.autograd.grad(x.sum(), params, allow_unused=True)
    except ValueError as error:
        raise WrongAnswer(f"The field could not be solved: {error}") from None
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, params, strict=True)]
    return x.detach(), torch.cat([part.reshape(-1) for part in parts])


class _Stacked(nn.Module):
    """A field whose velocity may be a list of numbers."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        velocity = self.field(t, x)
        if isinstance(velocity, list | tuple):
            velocity = torch.stack([torch.as_tensor(part, dtype=x.dtype) for part in velocity])
        if not isinstance(velocity, Tensor) or velocity.shape != x.shape:
            raise WrongAnswer("The field must return a velocity: a tensor shaped like the state.")
        return velocity


class Decay(nn.Module):
    """The field ``-rate * x``, whose only parameter is the rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate the field."""
        return -self.rate * x


class Braking(nn.Module):
    """The field ``(v, -rate * v)`` of a body at ``x`` with the speed ``v``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate the field."""
        return torch.stack([x[1], -self.rate * x[1]])


class Exchange(nn.Module):
    """Two parts that exchange at a rate: their sum depends neither on time nor on the rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate the field."""
        return torch.stack([self.rate * x[1], -self.rate * x[1]])


_MOVING = torch.tensor([0.0, 1.0], dtype=torch.float64)

BOUNCE = Exercise(
    id="adjoint-ex-bounce",
    check=_check_bounce,
    solution=(Braking(20.0), _MOVING, 1.0),
    wrong={
        "contracts too slowly": (Braking(8.0), _MOVING, 1.0),
        "expands": (Decay(-3.0), torch.ones(1), 1.0),
        "the end is below the tolerance": (Decay(20.0), torch.ones(1), 1.0),
        "the start is below the tolerance": (Decay(1.0), torch.full((1,), 1e-9), 1.0),
        "the gradient is below the tolerance": (Decay(1e-4), torch.full((1,), 1e-5), 1.0),
        "the sum never changes": (Exchange(20.0), _MOVING, 1.0),
        "not a module": (lambda t, x: -20 * x, torch.ones(1), 1.0),
        "no parameter": (nn.Identity(), torch.ones(1), 1.0),
        "no end time": (Decay(20.0), torch.ones(1)),
    },
)


# Core: one Euler step has two gradients


def _check_gap(answer: Callable[[float, float, float], Any]) -> str:
    """Compare with both gradients of one Euler step of x' = rate x, loss x1^2 / 2."""
    for x0, rate, h in ((1.5, 0.7, 0.2), (-0.8, -1.3, 0.5), (2.0, 0.4, 1.0)):
        got = listed(answer(x0, rate, h), 2, "Return two numbers: by backprop, by the adjoint.")
        hints = (
            "backprop differentiates L = x1^2 / 2 with x1 = x0 + h rate x0, and nothing else.",
            "the adjoint's Euler step starts at the end and evaluates everything there: a = x1, "
            "and the derivative of the field by the rate is the state, x1.",
        )
        for value, right, hint in zip(got, _gap(x0, rate, h), hints, strict=True):
            if not close(value, right):
                raise WrongAnswer(f"At x0={x0}, rate={rate}, h={h}: {hint}")
    return "Right: they differ by the factor 1 + h rate, a gap of first order."


def _gap(x0: float, rate: float, h: float) -> tuple[float, float]:
    x1 = x0 + h * rate * x0
    return h * x0 * x1, h * x1 * x1


GAP = Exercise(
    id="adjoint-ex-gap",
    check=_check_gap,
    solution=_gap,
    wrong={
        "no gap": lambda x0, r, h: (_gap(x0, r, h)[0], _gap(x0, r, h)[0]),
        "the exact solution": lambda x0, r, h: (
            h * x0**2 * math.exp(2 * r * h), _gap(x0, r, h)[1]),
        "the adjoint at the start": lambda x0, r, h: (
            _gap(x0, r, h)[0], h * (1 + h * r) * _gap(x0, r, h)[1] / h),
        "the other way round": lambda x0, r, h: _gap(x0, r, h)[::-1],
        "the step is forgotten": lambda x0, r, h: tuple(v / h for v in _gap(x0, r, h)),
        "one number": lambda x0, r, h: _gap(x0, r, h)[0],
    },
)  # fmt: skip


# Core: train a field by the adjoint


def _turning(x0: tuple[float, float], times: Tensor) -> Tensor:
    """Return the point that turns by 2 radians and decays by exp(-0.3) per unit of time."""
    c, s = (2 * times).cos(), (2 * times).sin()
    places = torch.stack([x0[0] * c - x0[1] * s, x0[0] * s + x0[1] * c], 1)
    return torch.exp(-0.3 * times)[:, None] * places


TIMES = torch.linspace(0, 2, 6, dtype=torch.float64)
"""When the point of the exercise ``FIT`` was seen."""

PLACES = _turning((2.0, 0.0), TIMES)
"""Where it was, shape ``(6, 2)``."""


def _check_fit(field: nn.Module) -> str:
    """Follow the trained field from the start that was seen and from one that was not."""
    if not callable(field) or isinstance(field, type):
        raise WrongAnswer("Answer with a field, called as field(t, x).")
    kind = torch.float64
    if isinstance(field, nn.Module):
        kind = next((p.dtype for p in field.parameters()), kind)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        found = field(t.to(kind), x.to(kind))
        return tensor(found, x.shape, "The field must return a velocity shaped like the state.")

    for x0, where in (((2.0, 0.0), "the start it was trained on"), ((0.0, -1.0), "a new start")):
        start = torch.tensor(x0, dtype=torch.float64)
        with torch.no_grad():
            found = odeint(velocity, start, TIMES, method="rk4", steps=10)
        far = float((found - _turning(x0, TIMES)).norm(dim=1).max() / start.norm())
        if not far <= 0.05:
            raise WrongAnswer(
                f"From {where}, {list(x0)}, the field is off by {far:.0%} of its size; 5% are "
                "allowed." + (" What form of field knows more?" if "new" in where else "")
            )
    return f"Right: also from the new start, to {far:.1%}."


class Turning(nn.Module):
    """The linear field of a point that turns and decays."""

    def __init__(self, turn: float = 2.0, decay: float = 0.3) -> None:
        super().__init__()
        matrix = torch.tensor([[-decay, -turn], [turn, -decay]], dtype=torch.float64)
        self.matrix = nn.Parameter(matrix)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate the field."""
        return x @ self.matrix.T


class _ByTime(nn.Module):
    """The velocity of the one trajectory that was seen, whatever the state."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        c, s = (2 * t).cos(), (2 * t).sin()
        return 2 * torch.exp(-0.3 * t) * torch.stack([-0.3 * c - 2 * s, -0.3 * s + 2 * c])


FIT = Exercise(
    id="adjoint-ex-fit",
    check=_check_fit,
    solution=Turning(),
    wrong={
        "not trained": Turning(0.0, 0.0),
        "no decay": Turning(2.0, 0.0),
        "turns the other way": Turning(-2.0, 0.3),
        "learned by heart": _ByTime(),
        "the trajectory": PLACES,
        "a batch": lambda t, x: x[None],
    },
)


# Explore: there and back again

_RETRACE = {"euler": 1, "midpoint": 3, "heun": 3, "rk4": 5}


def _check_retrace(answer: dict[str, int]) -> str:
    """Compare four slopes with p for odd and p + 1 for even orders p."""
    if not isinstance(answer, dict) or set(answer) != set(_RETRACE):
        raise WrongAnswer(f"Answer with a dictionary of four slopes, for {', '.join(_RETRACE)}.")
    slopes = {name: number(answer[name], "A slope is one number.") for name in _RETRACE}
    if all(abs(slopes[name] - get_scheme(name).order) < 0.3 for name in _RETRACE):
        raise WrongAnswer(
            "These are the orders, the slopes of one way. Go back to the start and measure there."
        )
    for name, right in _RETRACE.items():
        if not abs(slopes[name] - right) < 0.3:
            raise WrongAnswer(
                f"{name}: measured on smooth equations, the slope is not {slopes[name]:g}. Use "
                "double precision, several N, and an equation that is not linear."
            )
    return "Right: p where p is odd, p + 1 where it is even."


RETRACE = Exercise(
    id="adjoint-ex-retrace",
    check=_check_retrace,
    solution=_RETRACE,
    wrong={
        "the orders": {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4},
        "one more everywhere": {"euler": 2, "midpoint": 3, "heun": 3, "rk4": 5},
        "nothing comes back": dict.fromkeys(_RETRACE, 0),
        "a method is missing": {"euler": 1, "midpoint": 3, "heun": 3},
        "a list": [1, 3, 3, 5],
    },
)


EXERCISES = (LINEAR, GAP, JUMPS, SPACING, FIT, BOUNCE, RETRACE)
