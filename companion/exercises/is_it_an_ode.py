"""Exercises of the chapter "Is your ResNet an ODE?"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from companion.exercises.checking import Exercise, WrongAnswer, listed, number, tensor

__all__ = ["CERTIFICATE", "EXERCISES", "GAP", "MEASURES", "OPPOSITE"]


# Warm-up: the gap of the residual interpolation when the layers ignore the state


def _check_gap(answer: Callable[[list[float]], float]) -> str:
    """Compare with the two sums, for several sequences of numbers."""
    generator = torch.Generator().manual_seed(0)
    for layers in (7, 30, 2, 1):
        f = torch.randn(layers + 1, generator=generator, dtype=torch.float64).tolist()
        value = number(answer(f), "Return one number, the network's end minus the ODE's.")
        network = sum(f[:-1]) / layers
        ode = sum(a + b for a, b in pairwise(f)) / (2 * layers)
        wanted = network - ode
        if _same(value, wanted):
            continue
        raise WrongAnswer(_gap_hint(value, wanted, layers))
    return "Right: all layers but the first and the one past the last cancel."


def _gap_hint(value: float, wanted: float, layers: int) -> str:
    if _same(value, -wanted):
        return "The size is right, the sign is not: it is the network minus the ODE."
    if _same(value, 2 * wanted):
        return "Twice too large. What is the integral of a line over one interval?"
    if _same(value, layers * wanted):
        return "Each interval has the length 1/N."
    return (
        f"With {layers} layer(s) the answer is {wanted:.4g}, not {value:.4g}. The list has N + 1 "
        "numbers; the last one is no layer, but the ODE sees it. Write both ends as sums."
    )


def _gap(f: list[float]) -> float:
    return (f[0] - f[-1]) / (2 * (len(f) - 1))


GAP = Exercise(
    id="isode-ex-gap",
    check=_check_gap,
    solution=_gap,
    wrong={
        "the ODE minus the network": lambda f: -_gap(f),
        "no half": lambda f: 2 * _gap(f),
        "no 1/N": lambda f: (f[0] - f[-1]) / 2,
        "N + 1 layers": lambda f: (f[0] - f[-1]) / (2 * len(f)),
        "the last layer for the one past it": lambda f: (f[0] - f[-2]) / (2 * (len(f) - 1)),
        "zero": lambda f: 0.0,
        "a list": lambda f: f,
    },
)


# Core: three measures of smoothness


def _check_measures(answer: Callable[[Tensor], Sequence[float]]) -> str:
    """Compare with the definitions on random stacks of matrices."""
    for layers, shape in ((4, (3,)), (9, (2, 5))):
        generator = torch.Generator().manual_seed(layers)
        weights = torch.randn(layers, *shape, generator=generator, dtype=torch.float64)
        steps = [(b - a).norm().item() for a, b in pairwise(weights)]
        wanted = (layers * max(steps), sum(steps), max(steps) ** 2)
        hint = "Return three numbers: slope, variation, delta."
        found = listed(answer(weights.clone()), 3, hint)
        for name, value, right in zip(("slope", "variation", "delta"), found, wanted, strict=True):
            if not _same(value, right):
                raise WrongAnswer(_measure_hint(name, value, right, steps))
    return "Right, for vectors and for matrices."


def _measure_hint(name: str, value: float, wanted: float, steps: list[float]) -> str:
    layers = len(steps) + 1
    if name == "slope" and _same(value * layers, wanted):
        return "The slope divides a step by its length in depth, which is 1/N."
    if name == "slope" and _same(value * layers, wanted * (layers - 1)):
        return "Almost: there are N layers, at distance 1/N, though only N - 1 steps."
    if name == "delta" and _same(value**2, wanted):
        return "Delta is the square of the largest step."
    if _other_summary(name, value, steps):
        summary = "sum" if name == "variation" else "largest"
        return f"The steps are right, but {name} takes their {summary}, over all neighbours."
    return (
        f"The {name} of {layers} layers is {wanted:.4g}, not {value:.4g}. A layer's weights are "
        "one vector: take one norm over all their entries."
    )


def _other_summary(name: str, value: float, steps: list[float]) -> bool:
    """Say whether the right steps were put together by a mean, a sum or a maximum too many."""
    if name == "delta":
        squares = [step**2 for step in steps]
        found = [sum(steps) ** 2, (sum(steps) / len(steps)) ** 2, sum(squares)]
        found.append(sum(squares) / len(steps))
    else:
        scale = len(steps) + 1 if name == "slope" else 1
        found = [scale * one for one in (sum(steps), sum(steps) / len(steps), max(steps))]
        found.append(scale * sum(steps) / (len(steps) + 1))
    return any(_same(value, other) for other in found)


def _measures(weights: Tensor) -> tuple[float, float, float]:
    steps = weights.flatten(1).diff(dim=0).norm(dim=1)
    largest = steps.max().item()
    return len(weights) * largest, steps.sum().item(), largest**2


MEASURES = Exercise(
    id="isode-ex-measures",
    check=_check_measures,
    solution=_measures,
    wrong={
        "the slope without N": lambda w: (_measures(w)[0] / len(w), *_measures(w)[1:]),
        "the slope with N - 1": lambda w: (
            _measures(w)[0] * (len(w) - 1) / len(w),
            *_measures(w)[1:],
        ),
        "delta not squared": lambda w: (*_measures(w)[:2], _measures(w)[2] ** 0.5),
        "differences of norms": lambda w: _measures(w.flatten(1).norm(dim=1, keepdim=True)),
        "the largest entry": lambda w: (
            len(w) * w.diff(dim=0).abs().max().item(),
            *_measures(w)[1:],
        ),
        "operator norms": lambda w: _measures(w) if w.dim() < 3 else (
            len(w) * torch.linalg.matrix_norm(w.diff(dim=0), 2).max().item(), *_measures(w)[1:]
        ),
        "the slope of the mean step": lambda w: (
            len(w) / (len(w) - 1) * _measures(w)[1], *_measures(w)[1:]
        ),
        "delta of the mean step": lambda w: (
            *_measures(w)[:2], (_measures(w)[1] / (len(w) - 1)) ** 2
        ),
        "the mean step": lambda w: (_measures(w)[0], _measures(w)[1] / len(w), _measures(w)[2]),
        "two numbers": lambda w: _measures(w)[:2],
        "one number": lambda w: _measures(w)[0],
    },
)  # fmt: skip


# Core: how deep must a network be to have an inverse?


def _check_certificate(answer: Callable[[Tensor, Tensor], int]) -> str:
    """Compare with the product of the norms, also where that is a whole number."""
    diagonal = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    cases = [(2 * diagonal, diagonal), (0.1 * diagonal, diagonal)]
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        v, w = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
        cases.append((v, w))
    for v, w in cases:
        norms = torch.linalg.matrix_norm(v, 2) * torch.linalg.matrix_norm(w, 2)
        wanted = math.floor(norms.item() + 1e-12) + 1
        given = answer(v.clone(), w.clone())
        value = number(given, "Return a number of layers.")
        if isinstance(given, bool) or not value.is_integer():
            raise WrongAnswer(f"Return a whole number of layers, not {given!r}.")
        if value != wanted:
            raise WrongAnswer(_certificate_hint(int(value), wanted, norms.item()))
    return "Right: one more than the whole part of the product of the two norms."


def _certificate_hint(value: int, wanted: int, product: float) -> str:
    if value == round(product) and value == wanted - 1:
        return f"With the bound {product:.4g} and N = {value} the product hL is not below 1."
    direction = "more layers than it takes" if value > wanted else "not enough layers"
    return (
        f"For the bound {product:.4g} on the Lipschitz constant, {value} is {direction}. Which "
        "norm says how much a matrix stretches a vector, and what is the largest slope of tanh?"
    )


def _certificate(v: Tensor, w: Tensor) -> int:
    return math.floor(_product(v, w, 2) + 1e-12) + 1


CERTIFICATE = Exercise(
    id="isode-ex-certificate",
    check=_check_certificate,
    solution=_certificate,
    wrong={
        "rounded up": lambda v, w: math.ceil(_product(v, w, 2) - 1e-12),
        "Frobenius norms": lambda v, w: math.floor(_product(v, w, "fro")) + 1,
        "the largest entry": lambda v, w: math.floor((v.abs().max() * w.abs().max()).item()) + 1,
        "the norm of the product": lambda v, w: (
            math.floor(torch.linalg.matrix_norm(v @ w, 2).item()) + 1
        ),
        "a sum of norms": lambda v, w: (
            math.floor((torch.linalg.matrix_norm(v, 2) + torch.linalg.matrix_norm(w, 2)).item()) + 1
        ),
        "far too deep": lambda v, w: 1000,
        "not whole": lambda v, w: _product(v, w, 2),
        "always shallow": lambda v, w: 1,
    },
)


def _product(v: Tensor, w: Tensor, norm: Any) -> float:
    return float(torch.linalg.matrix_norm(v, norm) * torch.linalg.matrix_norm(w, norm))


# Open: an ODE that goes the other way


_OPPOSITE_PARTS = "Return a pair: a function, and a list of numbers."


def _check_opposite(answer: tuple[Callable[[Tensor], Tensor], Sequence[float]]) -> str:
    """Integrate the answer's function along the polygon of its weights."""
    try:
        function, weights = answer
    except (TypeError, ValueError):
        raise WrongAnswer(_OPPOSITE_PARTS) from None
    theta = torch.tensor(listed(weights, None, _OPPOSITE_PARTS), dtype=torch.float64)
    layers = len(theta)
    if layers < 11:  # the last interval has theta_N = theta_{N-1}: 2 (1 - 1/N) is the most
        raise WrongAnswer(f"Use at least 11 weights, not {layers}.")
    if not theta.abs().max() <= 1:
        raise WrongAnswer(f"A weight of size {theta.abs().max():.3g} is too large; stay within 1.")
    values = _values(function, torch.linspace(-1, 1, 20001, dtype=torch.float64))
    if not values.abs().max() <= 1 + 1e-9:
        raise WrongAnswer(f"|f| reaches {values.abs().max():.3g} on [-1, 1]; stay within 1.")
    if (jump := values.diff().abs().max()) > 0.05:
        raise WrongAnswer(
            f"f changes by {jump:.2g} between neighbouring points of a fine grid: too steep to "
            "tell from a jump. Make it less steep."
        )
    ends = torch.cat([theta, theta[-1:]])
    local = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    between = ends[:-1, None] + local * (ends[1:] - ends[:-1])[:, None]
    ode = _values(function, between.flatten()).mean().item()
    network = _values(function, theta).mean().item()
    if network - ode < 1.8:
        raise WrongAnswer(
            f"The network ends at {network:.3f}, the ODE at {ode:.3f}. They must be 1.8 apart, the "
            "network above. What does the ODE see between two weights that the network never does?"
        )
    return f"Right: the network moves by {network:.2f}, the ODE by {ode:.2f}."


def _values(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    hint = "The function must map a tensor to one of its shape."
    values = tensor(function(theta), None, hint)
    if values.shape not in (theta.shape, ()):
        raise WrongAnswer(hint)
    return values.expand(theta.shape)


def _same(value: float, wanted: float) -> bool:
    """Compare so that an answer in single precision passes."""
    return math.isclose(value, wanted, rel_tol=1e-5, abs_tol=1e-6)


_ZIGZAG = [(-1.0) ** n for n in range(64)]

OPPOSITE = Exercise(
    id="isode-ex-opposite",
    check=_check_opposite,
    solution=(lambda theta: 2 * theta**30 - 1, _ZIGZAG),
    wrong={
        "the chapter's example": (lambda theta: theta**2, _ZIGZAG),
        "not steep enough": (lambda theta: 2 * theta**4 - 1, _ZIGZAG),
        "smooth weights": (lambda theta: 2 * theta**30 - 1, [n / 64 for n in range(64)]),
        "the sign reversed": (lambda theta: 1 - 2 * theta**30, _ZIGZAG),
        "too large a function": (lambda theta: 4 * theta**30 - 2, _ZIGZAG),
        "too large weights": (lambda theta: theta.abs() - 1, [2 * w for w in _ZIGZAG]),
        "a function that jumps": (
            lambda theta: torch.where(theta.abs() > 0.999, 1.0, -1.0),
            _ZIGZAG,
        ),
        "linear in the weights": (lambda theta: theta, _ZIGZAG),
        "a function as steep as a jump": (
            lambda theta: torch.tanh(1000 * (theta.abs() - 0.99)),
            _ZIGZAG,
        ),
        "few layers": (lambda theta: 2 * theta**30 - 1, _ZIGZAG[:4]),
        "one layer too few": (lambda theta: 2 * theta**100 - 1, _ZIGZAG[:10]),
        "no pair": lambda theta: theta,
        "a function of nothing": (lambda: 1.0, _ZIGZAG),
    },
)


EXERCISES = (GAP, MEASURES, CERTIFICATE, OPPOSITE)
