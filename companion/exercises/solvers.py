"""Exercises of the chapter "Take good steps"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion import counting, odeint
from companion.exercises.checking import Exercise, WrongAnswer, close, listed, number, tensor

__all__ = ["BALL", "EXERCISES", "LOWER", "SIZE", "STIFF", "THIRD"]


# Warm-up: the price of stability

LIMITS = {"euler": (1, 2.0), "midpoint": (2, 2.0), "rk4": (4, 2.785293563405)}
"""For each scheme its stages, and the longest step times rate at which a decay is stable."""


def _check_stiff(answer: Callable[[float, float], Sequence[float]]) -> str:
    """Compare the evaluations of all three schemes, for decays of several rates and times."""
    for rate, time in ((500.0, 3.0), (120.0, 2.6), (7.0, 1.0)):
        found = listed(
            answer(rate, time), 3, "Return three numbers: evaluations of euler, midpoint and rk4."
        )
        steps = [math.ceil(rate * time / limit) for _, limit in LIMITS.values()]
        wanted = [n * stages for n, (stages, _) in zip(steps, LIMITS.values(), strict=True)]
        for name, got, right, count in zip(LIMITS, found, wanted, steps, strict=True):
            if not close(got, right):
                where = f"rate {rate:g} up to time {time:g}, {name}"
                raise WrongAnswer(f"{_stiff_hint(name, got, count, rate * time)} ({where})")
    return "Right: where stability decides, Euler's method is the cheapest of the three."


def _stiff_hint(name: str, got: float, steps: int, product: float) -> str:
    stages, limit = LIMITS[name]
    if stages > 1 and close(got, steps):
        return "These are steps. How often does the scheme evaluate the field in each?"
    if close(got, stages * product / limit):
        return "The number of steps must be a whole one, large enough for stability."
    if close(got, stages * math.floor(product / limit)):
        return "One step fewer than needed: the steps are too long by a little."
    return "Each step may be as long as the limit of the scheme over the rate, and no longer."


def _evaluations(rate: float, time: float) -> list[float]:
    return [stages * math.ceil(rate * time / limit) for stages, limit in LIMITS.values()]


STIFF = Exercise(
    id="solvers-ex-stiff",
    check=_check_stiff,
    solution=_evaluations,
    wrong={
        "steps": lambda r, t: [math.ceil(r * t / limit) for _, limit in LIMITS.values()],
        "no whole number": lambda r, t: [s * r * t / limit for s, limit in LIMITS.values()],
        "rounded down": lambda r, t: [s * int(r * t / limit) for s, limit in LIMITS.values()],
        "one over the rate": lambda r, t: [s * math.ceil(r * t) for s, _ in LIMITS.values()],
        "the limit of rk4 for all": lambda r, t: [
            s * math.ceil(r * t / 2.785293563405) for s, _ in LIMITS.values()
        ],
        "one number": lambda r, t: r * t / 2,
        "stages as limits": lambda r, t: [s * math.ceil(r * t / s) for s, _ in LIMITS.values()],
    },
)


# Core: a scheme of order three

_TREES = (
    "One dot: the weights must have the sum 1.",
    "Two dots in a row: the sum of b_i c_i must be 1/2.",
    "Two dots on one: the sum of b_i c_i^2 must be 1/3.",
    "Three dots in a row: the sum of b_i a_ij c_j must be 1/6.",
)


def _check_third(answer: Sequence[float]) -> str:
    """Check the row sums, then the conditions of order three, tree by tree."""
    hint = "Give six numbers, in the order a21, a31, a32, b1, b2, b3."
    a21, a31, a32, b1, b2, b3 = listed(answer, 6, hint)
    if not close(a21, 1 / 3):
        raise WrongAnswer(f"The second stage stands at 1/3, and c2 = a21; yours is {a21:.4g}.")
    if not close(a31 + a32, 1.0):
        raise WrongAnswer(
            f"The third stage stands at 1, and c3 = a31 + a32; yours is {a31 + a32:.4g}."
        )
    sums = (b1 + b2 + b3, b2 * a21 + b3, b2 * a21**2 + b3, b3 * a32 * a21)
    for condition, total, wanted in zip(_TREES, sums, (1, 1 / 2, 1 / 3, 1 / 6), strict=True):
        if not close(total, wanted):
            raise WrongAnswer(f"{condition} Yours is {total:.5g}.")
    return "Right: four conditions hold, so the order is three."


THIRD = Exercise(
    id="solvers-ex-third",
    check=_check_third,
    solution=[1 / 3, -1.0, 2.0, 0.0, 3 / 4, 1 / 4],
    wrong={
        "Kutta's weights": [1 / 3, -1.0, 2.0, 1 / 6, 2 / 3, 1 / 6],
        "the stages of Kutta's scheme": [1 / 2, -1.0, 2.0, 1 / 6, 2 / 3, 1 / 6],
        "no third row": [1 / 3, 0.0, 0.0, 0.0, 3 / 4, 1 / 4],
        "only the second slope feeds the third": [1 / 3, 0.0, 1.0, 0.0, 3 / 4, 1 / 4],
        "weights of order two": [1 / 3, -1.0, 2.0, 1 / 2, 0.0, 1 / 2],
        "equal weights": [1 / 3, -1.0, 2.0, 1 / 3, 1 / 3, 1 / 3],
        "weights that miss the sum": [1 / 3, -1.0, 2.0, 1 / 4, 3 / 4, 1 / 4],
        "rounded": [0.333, -1.0, 2.0, 0.0, 0.75, 0.25],
        "five numbers": [1 / 3, -1.0, 2.0, 3 / 4, 1 / 4],
    },
)


# Core: the next step size

Size = Callable[[float, float, int], float]


def _check_size(answer: Size) -> str:
    """Ask for the next size after steps that were right, bad, too good, and hopeless."""

    def size(h: float, ratio: float, order: int) -> float:
        return number(answer(h, ratio, order), "Return one number, the next step.")

    h = 0.25
    if not close(size(h, 1.0, 2), 0.9 * h):
        raise WrongAnswer("A ratio of exactly 1 leaves the safety factor: 0.9 h.")
    for ratio, order in ((2.0, 2), (0.4, 4), (3.0, 4)):
        got, wanted = size(h, ratio, order), 0.9 * h * ratio ** (-1 / (order + 1))
        if not close(got, wanted):
            raise WrongAnswer(_size_hint(got / h / 0.9, ratio, order))
    if not close(size(h, 1e9, 2), 0.2 * h):
        raise WrongAnswer("After a hopeless step, shorten it to a fifth and no further.")
    if not close(size(h, 1e-9, 2), 10 * h):
        raise WrongAnswer("A step that was far too good may grow tenfold, not more.")
    return "Right: this is the controller of SciPy's RK23 and RK45."


def _size_hint(factor: float, ratio: float, order: int) -> str:
    if (factor > 1) == (ratio > 1):
        return (
            f"A ratio of {ratio:g} makes your step go the wrong way: is it too long or too short?"
        )
    if close(factor, ratio ** (-1 / order)):
        return (
            f"An estimate of order {order} shrinks like h^{order + 1} in one step. Which power of "
            "the ratio undoes that?"
        )
    return f"For the ratio {ratio:g}, what h would have made it 1? The estimate is C h^(order + 1)."


def _next_size(h: float, ratio: float, order: int) -> float:
    factor: float = 0.9 * ratio ** (-1 / (order + 1))
    return h * min(10.0, max(0.2, factor))


SIZE = Exercise(
    id="solvers-ex-size",
    check=_check_size,
    solution=_next_size,
    wrong={
        "the exponent of the global error": lambda h, r, q: (
            h * min(10.0, max(0.2, 0.9 * r ** (-1 / q)))
        ),
        "upside down": lambda h, r, q: h * min(10.0, max(0.2, 0.9 * r ** (1 / (q + 1)))),
        "no safety": lambda h, r, q: h * min(10.0, max(0.2, r ** (-1 / (q + 1)))),
        "no limits": lambda h, r, q: 0.9 * h * r ** (-1 / (q + 1)),
        "no limit above": lambda h, r, q: h * max(0.2, 0.9 * r ** (-1 / (q + 1))),
        "the factor alone": lambda h, r, q: _next_size(h, r, q) / h,
        "proportional": lambda h, r, q: h * min(10.0, max(0.2, 0.9 / r)),
        "nothing returned": lambda h, r, q: None,
    },
)


# Core: train a throw


def second_landing(speed: float, keep: float = 0.8) -> float:
    """Return when a ball lands for the second time that is thrown up from height 1.

    Example:
        >>> round(second_landing(0.0), 4)
        1.174
    """
    impact = math.sqrt(speed**2 + 2 * 9.81)
    return (speed + impact + 2 * keep * impact) / 9.81


def _check_ball(answer: float) -> str:
    """Accept both throws, up and down, that bring the second landing to time 2."""
    speed = number(answer, "Give one number, the speed at the start.")
    if not math.isfinite(speed):
        raise WrongAnswer("The speed is not finite. Did the training diverge?")
    landing = second_landing(speed)
    if abs(landing - 2) > 1e-3:
        first = (speed + math.sqrt(speed**2 + 19.62)) / 9.81
        if abs(first - 2) < 1e-3:
            raise WrongAnswer("The first landing is at time 2. The second is asked for.")
        if abs(second_landing(speed, 1.0) - 2) < 1e-3:
            raise WrongAnswer("Does your ball lose a fifth of its speed when it bounces?")
        near = " Train a little longer." if abs(landing - 2) < 0.03 else ""
        raise WrongAnswer(f"With that speed the second landing is at {landing:.4f}.{near}")
    way = "up" if speed > 0 else "down, which is the other answer"
    return f"Right: thrown {way}, and the second landing is at {landing:.4f}."


BALL = Exercise(
    id="solvers-ex-ball",
    check=_check_ball,
    solution=4.0371,
    wrong={
        "the first landing": 9.3195,
        "no loss": 2.8725,
        "not trained": 1.0,
        "trained too little": 4.0,
        "the wrong sign": -4.0371,
        "diverged": math.nan,
        "two numbers": [4.0371, -10.8497],
    },
)


# Open: where the lower order wins

_FORM = "Give (field, start, end, tolerance): a function of t and x, a state, a time, a number."


def _check_lower(answer: Any) -> str:
    """Solve with both pairs, count, and compare the ends with a far more accurate one."""
    if not isinstance(answer, tuple | list) or len(answer) != 4 or not callable(answer[0]):
        raise WrongAnswer(_FORM)
    field, start, *rest = answer
    state = tensor(start, None, _FORM).reshape(-1)
    end, tolerance = (number(value, _FORM) for value in rest)
    if not (0 < end <= 100 and 1e-8 <= tolerance < 1 and 0 < len(state) <= 100):
        raise WrongAnswer("Keep to times up to 100, tolerances from 1e-8 on and 100 variables.")

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return tensor(field(t, x), x.shape, "The field must return a velocity shaped like x.")

    nfe, errors = {}, {}
    exact = _end(velocity, state, end, "dopri5", 1e-4 * tolerance)[0]
    for method in ("bosh3", "dopri5"):
        found, nfe[method] = _end(velocity, state, end, method, tolerance)
        errors[method] = float((found - exact).norm())
    said = ", ".join(f"{m} {nfe[m]} evaluations, error {errors[m]:.1e}" for m in nfe)
    if max(errors.values()) < 1e-12:
        raise WrongAnswer("Both pairs are exact here; the comparison says nothing.")
    if nfe["bosh3"] >= nfe["dopri5"]:
        raise WrongAnswer(f"Here bosh3 is not cheaper: {said}. When is a high order of little use?")
    if errors["bosh3"] > errors["dopri5"]:
        raise WrongAnswer(f"Here bosh3 is cheaper, but less accurate: {said}.")
    return f"Right: {said}."


def _end(
    field: Callable[[Tensor, Tensor], Tensor], start: Tensor, end: float, method: str, tol: float
) -> tuple[Tensor, int]:
    try:
        with counting() as stats:
            ys = odeint(field, start, [0.0, end], method=method, rtol=tol, atol=tol)
    except (TypeError, ValueError) as error:
        raise WrongAnswer(f"The field could not be solved: {error}") from None
    return ys[-1], stats.nfe


def _van_der_pol(t: Tensor, x: Tensor) -> Tensor:
    return torch.stack([x[1], (1 - x[0] ** 2) * x[1] - x[0]])


def _decay(t: Tensor, x: Tensor) -> Tensor:
    return -x


LOWER = Exercise(
    id="solvers-ex-lower",
    check=_check_lower,
    solution=(_van_der_pol, [2.0, 0.0], 20.0, 1e-2),
    wrong={
        "a tight tolerance": (_van_der_pol, [2.0, 0.0], 10.0, 1e-5),
        "cheaper but worse": (lambda t, x: -50 * (x - torch.cos(t)), [0.0], 10.0, 1e-5),
        "a field that stands still": (lambda t, x: 0 * x, [1.0], 1.0, 1e-2),
        "another shape": (lambda t, x: x[:1], [1.0, 2.0], 1.0, 1e-2),
        "no tolerance": (_decay, [1.0], 1.0, 0.0),
        "a blow-up": (lambda t, x: x**2, [1.0], 2.0, 1e-2),
        "only a field": _decay,
    },
)


EXERCISES = (STIFF, THIRD, SIZE, BALL, LOWER)
