"""Exercises of the chapter "What a flow cannot do"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion import counting, odeint
from companion.analysis.reversal import best_spiral, least_lipschitz
from companion.exercises.checking import Exercise, WrongAnswer, close, listed, number, tensor
from companion.running_costs import kinetic_energy, solve_with_costs

__all__ = ["CHEAP", "EXERCISES", "LEAST", "PADDING", "RATE", "SPIRAL", "WORK"]


# Warm-up: a spiral that reverses


def _check_spiral(answer: Callable[[float], Sequence[float]]) -> str:
    """Compare growth and Lipschitz constant for several angles."""
    for angle in (2.0, 2.5, 3.0):
        growth, steep = listed(
            answer(angle), 2, "Return two numbers: the growth and the Lipschitz constant."
        )
        right = -math.log(-math.cos(angle))
        where = f"(angle {angle})"
        if close(growth, -right):
            raise WrongAnswer(f"Then the line would come out shrunk: mind the sign. {where}")
        if not close(growth, right):
            factor = math.exp(min(growth, 50)) * math.cos(angle)
            raise WrongAnswer(f"With that growth x ends at {factor:.3g} x, not at -x. {where}")
        if close(steep, growth + angle):
            raise WrongAnswer(f"Growth and turn are at right angles: they do not add up. {where}")
        if not close(steep, math.hypot(growth, angle)):
            raise WrongAnswer(
                f"The matrix stretches every vector by the same factor. By which? {where}"
            )
    return "Right: the velocity has a part along the state and one across it."


def _spiral(angle: float) -> list[float]:
    growth = -math.log(-math.cos(angle))
    return [growth, math.hypot(growth, angle)]


SPIRAL = Exercise(
    id="limits-ex-spiral",
    check=_check_spiral,
    solution=_spiral,
    wrong={
        "no growth": lambda b: [0.0, b],
        "the wrong sign": lambda b: [-_spiral(b)[0], _spiral(b)[1]],
        "no logarithm": lambda b: [-1 / math.cos(b), math.hypot(1 / math.cos(b), b)],
        "a sum": lambda b: [_spiral(b)[0], _spiral(b)[0] + b],
        "the turn alone": lambda b: [_spiral(b)[0], b],
        "the square": lambda b: [_spiral(b)[0], _spiral(b)[1] ** 2],
        "one number": lambda b: _spiral(b)[1],
    },
)


# Core: the least constant for any factor


def _check_least(answer: Callable[[float], float]) -> str:
    """Compare for factors on both sides of 1."""
    for factor in (1.0, 2.0, 0.25, 20.0):
        found = number(answer(factor), "Return one number, the least Lipschitz constant.")
        right = least_lipschitz(factor)
        if abs(found - right) <= 2e-4 * right:
            continue
        where = f"(factor {factor:g})"
        if not math.isfinite(found):
            raise WrongAnswer(
                f"{found} is no constant. At a quarter turn the cosine is 0; keep away. {where}"
            )
        if factor != 1 and abs(found - least_lipschitz()) < 1e-3:
            raise WrongAnswer(f"That is the constant for -x. Where does c come in? {where}")
        if close(found, math.hypot(math.pi, math.log(factor))):
            raise WrongAnswer(
                f"A whole half turn is one way. Turn less: what must the growth be then? {where}"
            )
        if found < right:
            raise WrongAnswer(
                f"{found:.4f} is less than any field can do. Is the logarithm that of the growth, "
                f"c over minus the cosine? {where}"
            )
        raise WrongAnswer(f"{found:.4f} can be beaten: search the angles more finely. {where}")
    return "Right, for shrinking and for stretching reversals."


def _least(factor: float) -> float:
    angles = torch.linspace(math.pi / 2 + 1e-4, math.pi, 20001, dtype=torch.float64)
    growth = torch.log(factor / -torch.cos(angles))
    return float(torch.hypot(angles, growth).min())


LEAST = Exercise(
    id="limits-ex-least",
    check=_check_least,
    solution=_least,
    wrong={
        "half a turn": lambda c: math.hypot(math.pi, math.log(c)),
        "always that of -x": lambda c: _least(1.0),
        "a coarse search": lambda c: min(
            math.hypot(b, math.log(c / -math.cos(b))) for b in (1.6, 2.1, 2.6, 3.1)
        ),
        "the factor upside down": lambda c: _least(1 / c),
        "growth alone": lambda c: abs(math.log(c)),
        "a sum": lambda c: float(
            min(b / 100 + abs(math.log(c / -math.cos(b / 100))) for b in range(158, 315))
        ),
        "not a number": lambda c: math.nan,
        "a list": lambda c: [_least(c), 1.9924],
    },
)


# Core: why zeros


def _check_padding(answer: Callable[[float], Any]) -> str:
    """Follow (1, k) along the linear field, and look at its norm."""
    for slope in (1.0, 4.0, 30.0):
        matrix = tensor(answer(slope), (2, 2), "Return a matrix of two rows and two columns.")
        if not bool(matrix.isfinite().all()):
            raise WrongAnswer("The matrix has entries that are not finite.")
        start = torch.tensor([1.0, slope], dtype=torch.float64)
        end = torch.linalg.matrix_exp(matrix) @ start
        steep, enough = float(torch.linalg.matrix_norm(matrix, 2)), 2 * math.atan(1 / slope)
        where = f"(k = {slope:g})"
        if abs(float(end[0]) + 1) > 1e-4 * slope:
            raise WrongAnswer(
                f"(x, kx) ends with the first coordinate {float(end[0]):.4g} x, not -x. {where}"
            )
        if steep > enough * (1 + 1e-4):
            raise WrongAnswer(
                f"That does it, with the Lipschitz constant {steep:.4g}; {enough:.4g} is enough. "
                f"Draw the start: how far is it to its mirror image? {where}"
            )
    return "Right: with a large k hardly anything has to move. Zeros are what makes it hard."


def _turn_by(angle: float) -> Tensor:
    return angle * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


PADDING = Exercise(
    id="limits-ex-padding",
    check=_check_padding,
    solution=lambda k: _turn_by(2 * math.atan(1 / k)),
    wrong={
        "half a turn": lambda k: _turn_by(math.pi),
        "the spiral for zeros": lambda k: best_spiral(),
        "clockwise": lambda k: _turn_by(-2 * math.atan(1 / k)),
        "to the vertical": lambda k: _turn_by(math.atan(1 / k)),
        "the other way round": lambda k: _turn_by(-2 * (math.pi - math.atan(k))),
        "an angle": lambda k: 2 * math.atan(1 / k),
        "a shrinking": lambda k: -torch.eye(2, dtype=torch.float64),
    },
)


# Core: a running cost


def _check_work(answer: Callable[..., Any]) -> str:
    """Compare with the companion, on a linear field and on one that depends on time."""
    matrix = torch.tensor([[-0.4, 2.0], [-1.0, 0.3]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.7, -0.2]], dtype=torch.float64)

    def steady(t: Any, x: Tensor) -> Tensor:
        return x @ matrix.T.to(x)

    def changing(t: Any, x: Tensor) -> Tensor:
        return torch.cos(3 * torch.as_tensor(t)) + x @ matrix.T.to(x)

    for field in (steady, changing):
        hint = "Return one number for each of the points, a tensor of shape (points,)."
        found = tensor(answer(field, x), None, hint)
        right = solve_with_costs(field, x, [0.0, 1.0], {"work": kinetic_energy})[1]["work"][-1]
        if found.shape == ():
            raise WrongAnswer(f"{hint} Yours is one number for all.")
        if found.shape != right.shape:
            raise WrongAnswer(hint)
        if torch.allclose(found, right, rtol=2e-3):
            continue
        speeds = field(torch.tensor(0.0), x).square().sum(1)
        if torch.allclose(found, speeds, rtol=1e-3):
            raise WrongAnswer("That is the cost at time 0. Integrate it along the way.")
        if torch.allclose(found, right / 2, rtol=2e-3):
            raise WrongAnswer("The mean over the coordinates is half of their sum here.")
        raise WrongAnswer(
            f"The first point's cost is {float(right[0]):.4f}, and yours {float(found[0]):.4f}. Is "
            "it the square of the speed, at the place and time where the point is?"
        )
    return "Right: any cost along the way is one more coordinate of the state."


def _work(field: Callable[..., Tensor], x: Tensor, power: float = 2.0) -> Tensor:
    def both(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        velocity = field(t, state[0])
        return velocity, velocity.norm(dim=1) ** power

    paid: Tensor = odeint(both, (x, torch.zeros_like(x[:, 0])), [0.0, 1.0])[1][-1]
    return paid


WORK = Exercise(
    id="limits-ex-work",
    check=_check_work,
    solution=_work,
    wrong={
        "the length of the way": lambda f, x: _work(f, x, 1.0),
        "only at the start": lambda f, x: f(torch.tensor(0.0), x).square().sum(1),
        "only at the end": lambda f, x: (
            f(torch.tensor(1.0), odeint(f, x, [0.0, 1.0])[-1]).square().sum(1)
        ),
        "the mean over coordinates": lambda f, x: _work(f, x) / 2,
        "one number for all": lambda f, x: _work(f, x).mean(),
        "the squared distance": lambda f, x: (odeint(f, x, [0.0, 1.0])[-1] - x).square().sum(1),
        "the states": lambda f, x: odeint(f, x, [0.0, 1.0])[-1],
    },
)


# Open: train a field that turns cheaply

ENOUGH = 2.4
"""The largest rate that an answer may have; 2.1836 is the least there can be."""


def _check_cheap(answer: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Solve for 21 points of the line, and measure how fast pairs of states come and go.

    The rates are read at irregular times, so that no field can be still whenever they are read.
    """
    form = "Answer with a field(t, x), for states of shape (points, 2)."
    if not callable(answer):
        raise WrongAnswer(form)
    line = torch.linspace(-1, 1, 21, dtype=torch.float64)
    start = torch.stack([line, torch.zeros_like(line)], 1)

    def field(t: Tensor, x: Tensor) -> Tensor:
        try:
            return tensor(answer(t, x), x.shape, form)
        except RuntimeError:  # a network in single precision
            return tensor(answer(t.float(), x.float()), x.shape, form)

    times = _moments()
    try:
        path: Tensor = odeint(field, start, times.tolist(), method="rk4", steps=1)
    except ValueError as error:
        raise WrongAnswer(f"The field could not be solved: {error}") from None
    loss = float((path[-1, :, 0] + line).square().mean())
    if abs(loss - float(line.square().mean())) < 0.03:
        raise WrongAnswer(f"The loss is {loss:.3f}, that of ending at 0. There is room to turn.")
    if loss > 1e-3:
        raise WrongAnswer(f"The loss on x -> -x is {loss:.2g}; train until it is below 0.001.")
    rates = torch.tensor([_rate(field(t, x), x) for t, x in zip(times, path, strict=True)])
    steep, mean = float(rates.max()), float(torch.trapezoid(rates, times))
    reached = -float(((path[-1, 1:, 0] - path[-1, :-1, 0]) / (line[1:] - line[:-1])).min())
    if steep > ENOUGH:
        raise WrongAnswer(
            f"It turns the line, but changes the distance of two points at the rate {steep:.2f}; "
            f"{ENOUGH} is allowed. Let training pay for a steep field."
        )
    if mean < 0.99 * least_lipschitz(reached):
        raise WrongAnswer(
            f"The rates have the mean {mean:.2f}, too little to turn a line round: the field "
            "moves between the times at which they are read."
        )
    return f"Right: the largest rate is {steep:.3f}, and {least_lipschitz():.3f} is the least."


def _moments() -> Tensor:
    """Return the times from 0 to 1 at which the rates are read, at irregular distances."""
    draws = torch.rand(159, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([draws.new_tensor([0.0, 1.0]), draws]).sort().values


def _rate(velocity: Tensor, x: Tensor) -> float:
    first, second = torch.triu_indices(len(x), len(x), 1)
    apart = (x[first] - x[second]).norm(dim=1).clamp_min(1e-9)
    return float(((velocity[first] - velocity[second]).norm(dim=1) / apart).max())


class _Linear(nn.Module):
    """A linear field with the matrix given."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return x @ self.matrix.T.to(x)


def _at_moments(speed: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return half a turn that takes place now and then."""
    turn = _turn_by(math.pi)
    return lambda t, x: speed(t) * (x @ turn.T.to(x))


CHEAP = Exercise(
    id="limits-ex-cheap",
    check=_check_cheap,
    solution=_Linear(best_spiral()),
    wrong={
        "half a turn": _Linear(_turn_by(math.pi)),
        "towards zero": _Linear(-6 * torch.eye(2, dtype=torch.float64)),
        "not trained": _Linear(_turn_by(0.0)),
        "a quarter turn too many": _Linear(_turn_by(3 * math.pi / 2)),
        "nearly": _Linear(best_spiral(0.9)),
        "still at every twentieth": _at_moments(lambda t: 1 - torch.cos(40 * math.pi * t)),
        "still when looked at": _at_moments(lambda t: 1.5 * (t != _moments()).all()),
        "one coordinate": lambda t, x: -x[:, :1],
        "a matrix": best_spiral(),
    },
)


# Explore: where an implicit method begins to pay


def evaluations(rate: float, method: str) -> int:
    """Count what van der Pol's oscillator costs from time 0 to 5, at a tolerance of 1e-4.

    Example:
        >>> evaluations(1.0, "dopri5")
        92
    """

    def field(t: Tensor, state: Tensor) -> Tensor:
        x, y = state
        return torch.stack([rate * (y + x - x**3 / 3), -x / rate])

    start = torch.tensor([2.0, 2 / 3], dtype=torch.float64)
    gradient = "adjoint" if method == "scipy_solver" else "backprop"
    with counting() as stats, torch.no_grad():
        odeint(field, start, [0.0, 5.0], method=method, rtol=1e-4, atol=1e-4, gradient=gradient)
    return stats.nfe


def _check_rate(answer: float) -> str:
    """Accept what is near the rate from which on LSODA takes fewer, and tell both counts."""
    rate = number(answer, "Answer with one number, the rate.")
    if not 0.1 <= rate <= 100:
        raise WrongAnswer("Look at rates between 0.1 and 100.")
    explicit, implicit = (evaluations(rate, method) for method in ("dopri5", "scipy_solver"))
    said = f"At the rate {rate:g}, dopri5 takes {explicit} evaluations and LSODA {implicit}"
    if rate < 4.2 or implicit >= explicit:
        more = "a tie that does not last" if implicit < explicit else "not yet fewer"
        raise WrongAnswer(f"{said}: {more}. Go on to higher rates.")
    if rate > 6.0:
        raise WrongAnswer(f"{said}; it did so at a lower rate already. Halve the interval.")
    return f"Right: {said}, and the gap widens with the rate."


RATE = Exercise(
    id="limits-ex-rate",
    check=_check_rate,
    solution=5.0,
    wrong={
        "the first tie": 2.0,
        "where both are equally stiff": 1.0,
        "far beyond": 30.0,
        "the next power of ten": 10.0,
        "one over the rate": 1 / 5,
        "a time": 500.0,
        "not yet fewer": 4.2,
        "a step back": 4.9,
        "the counts": [128.0, 121.0],
    },
)


EXERCISES = (SPIRAL, LEAST, PADDING, WORK, CHEAP, RATE)
