"""Exercises of the chapter "What a flow cannot do"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion import odeint
from companion.analysis.reversal import best_spiral, least_lipschitz
from companion.exercises.checking import Exercise, WrongAnswer, close, listed, number, tensor
from companion.running_costs import kinetic_energy, solve_with_costs

__all__ = ["CHEAP", "EXERCISES", "LEAST", "PADDING", "SPIRAL", "WORK"]


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
    """Solve for 21 points of the line, and measure how fast pairs of states come and go."""
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

    times = torch.linspace(0, 1, 21, dtype=torch.float64)
    try:
        path: Tensor = odeint(field, start, times.tolist(), method="rk4", steps=4)
    except ValueError as error:
        raise WrongAnswer(f"The field could not be solved: {error}") from None
    loss = float((path[-1, :, 0] + line).square().mean())
    if abs(loss - float(line.square().mean())) < 0.03:
        raise WrongAnswer(f"The loss is {loss:.3f}, that of ending at 0. There is room to turn.")
    if loss > 1e-3:
        raise WrongAnswer(f"The loss on x -> -x is {loss:.2g}; train until it is below 0.001.")
    steep = max(_rate(field(t, x), x) for t, x in zip(times, path, strict=True))
    if steep > ENOUGH:
        raise WrongAnswer(
            f"It turns the line, but changes the distance of two points at the rate {steep:.2f}; "
            f"{ENOUGH} is allowed. Let training pay for a steep field."
        )
    return f"Right: the largest rate is {steep:.3f}, and {least_lipschitz():.3f} is the least."


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
        "one coordinate": lambda t, x: -x[:, :1],
        "a matrix": best_spiral(),
    },
)


EXERCISES = (SPIRAL, LEAST, PADDING, WORK, CHEAP)
