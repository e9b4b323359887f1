"""Exercises of the chapter "A free order of accuracy"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.analysis.reconstruction import reconstruction, trajectory
from companion.block import OdeBlock
from companion.exercises.checking import Exercise, WrongAnswer, close, listed, tensor
from companion.gradients import Reconstruct

__all__ = ["EXERCISES", "EXTRAPOLATE", "FACTORS", "STEP", "STRAIGHT"]

F64 = torch.float64


def _filled(value: Any) -> Any:
    """Return an answer in which no ``...`` is left."""
    parts = value if isinstance(value, tuple | list) else [value]
    if any(part is ... for part in parts):
        raise WrongAnswer("Fill in the dots first.")
    return value


# Warm-up: what a linear layer leaves


def _check_factors(answer: Callable[[float, int], Any]) -> str:
    """Compare ``answer(rate, layers)`` with the kept x_0 over the true one: reverse, corrected."""
    for rate, layers in ((0.8, 4), (-1.5, 6), (2.0, 10)):
        hint = "Return two numbers, for reverse and corrected."
        reverse, corrected = listed(answer(rate, layers), 2, hint)
        wanted = _factors(rate, layers)
        case = f"At rate={rate}, layers={layers}"
        if close(reverse, wanted[1]) and close(corrected, wanted[0]):
            raise WrongAnswer(f"{case}: the two are swapped. Reverse comes first.")
        if not close(reverse, wanted[0]):
            raise WrongAnswer(
                f"{case}: not the factor of reverse. A layer multiplies by 1 + u with u = rate / "
                "layers, its reversal by 1 - u; for all N layers take the product to the power N."
            )
        if not close(corrected, wanted[1]):
            raise WrongAnswer(
                f"{case}: not the factor of corrected. Insert the guess (1 - u) x' into "
                "x' - u * guess, multiply by 1 + u, and take the power N."
            )
    return "Right: 1 - u^2 and 1 + u^3 a layer."


def _factors(rate: float, layers: int) -> tuple[float, float]:
    u = rate / layers
    return (1 - u**2) ** layers, (1 + u**3) ** layers


FACTORS = Exercise(
    id="free-order-ex-factors",
    check=_check_factors,
    solution=_factors,
    wrong={
        "swapped": lambda rate, n: _factors(rate, n)[::-1],
        "one layer only": lambda rate, n: (1 - (rate / n) ** 2, 1 + (rate / n) ** 3),
        "minus in the cube": lambda rate, n: (_factors(rate, n)[0], (1 - (rate / n) ** 3) ** n),
        "the reversal alone": lambda rate, n: ((1 - rate / n) ** n, _factors(rate, n)[1]),
        "corrected like reverse": lambda rate, n: (_factors(rate, n)[0],) * 2,
        "one number": lambda rate, n: _factors(rate, n)[0],
        "unfilled": lambda rate, n: ...,
    },
)


# Core: the corrected step, with two evaluations

Phi = Callable[[Tensor], Tensor]


def _check_step(answer: Callable[[Phi, Tensor, float], Any]) -> str:
    """Run ``answer(phi, after, h)``; compare guess and kept state, and count evaluations."""
    weight = torch.tensor([[0.3, -1.0], [0.5, 0.2]], dtype=F64)
    after, h = torch.tensor([0.7, -0.4], dtype=F64), 0.25
    seen: list[Tensor] = []

    def phi(x: Tensor) -> Tensor:
        x = torch.as_tensor(x).to(weight)
        seen.append(x)
        return torch.tanh(weight @ x) + 0.1 * x

    got = answer(phi, after.clone(), h)
    count = len(seen)
    hint = "Return two tensors: the guess and the state to go on from."
    guess, kept = tensor(got, (2, *after.shape), hint)
    value = phi(after)
    first = after - h * value
    second = after - h * phi(first)
    if close(guess, after + h * value):
        raise WrongAnswer("The guess goes forwards: subtract h * phi(after).")
    if close(guess, second):
        raise WrongAnswer("The guess has been swept once more. The gradient is taken at the first.")
    if not close(guess, first):
        raise WrongAnswer("Not the paper's guess, after - h * phi(after).")
    if close(kept, first):
        raise WrongAnswer("That is the paper's rule: it goes on from the guess itself.")
    if close(kept, first - h * phi(first)):
        raise WrongAnswer("Subtract from the state after the layer, not from the guess.")
    if not close(kept, second):
        raise WrongAnswer("Not after - h * phi(guess).")
    if count > 2:
        raise WrongAnswer(f"Right states, but {count} evaluations; the rule makes two.")
    return "Right: both states, two evaluations."


def _step(phi: Phi, after: Tensor, h: float) -> tuple[Tensor, Tensor]:
    guess = after - h * phi(after)
    return guess, after - h * phi(guess)


def _again(phi: Phi, after: Tensor, h: float) -> tuple[Tensor, Tensor]:
    return after - h * phi(after), after - h * phi(after - h * phi(after))


def _swept(phi: Phi, after: Tensor, h: float) -> tuple[Tensor, Tensor]:
    _, guess = _step(phi, after, h)
    return guess, after - h * phi(guess)


STEP = Exercise(
    id="free-order-ex-step",
    check=_check_step,
    solution=_step,
    wrong={
        "the paper's rule": lambda phi, after, h: (after - h * phi(after),) * 2,
        "three evaluations": _again,
        "swept before the guess": _swept,
        "from the guess": lambda phi, after, h: (
            guess := after - h * phi(after), guess - h * phi(guess)),
        "forwards": lambda phi, after, h: (guess := after + h * phi(after), after - h * phi(guess)),
        "no step size": lambda phi, after, h: (guess := after - phi(after), after - phi(guess)),
        "one tensor": lambda phi, after, h: after - h * phi(after),
        "a list of three": lambda phi, after, h: [*_step(phi, after, h), after],
        "a state cut short": lambda phi, after, h: [x[:1] for x in _step(phi, after, h)],
        "unfilled": lambda phi, after, h: ...,
    },
)  # fmt: skip


# Core: a prediction from kept states


def _check_extrapolate(answer: Callable[[Sequence[Tensor], int], Any]) -> str:
    """Run ``answer(kept, order)`` on polynomials, and on states that lie on none."""
    times = torch.arange(1, 7, dtype=F64)
    for order in (1, 2, 3):
        powers = [times**k for k in range(order + 1)]
        states = torch.stack([sum(powers, torch.zeros(6, dtype=F64)), powers[order]], dim=1)
        got = _as_state(answer(list(states), order))
        wanted = torch.tensor([1.0, 0.0], dtype=F64)  # the polynomials at time 0
        if not torch.allclose(got, wanted, atol=2e-3):  # of terms up to 1,500, in single precision
            raise WrongAnswer(
                f"On a polynomial of degree {order} the guess must be exact. With p = 1 it is "
                "2 * kept[0] - kept[1]; in general the coefficients are binomials of p + 1."
            )
        rough = torch.randn(6, 2, generator=torch.Generator().manual_seed(order), dtype=F64)
        if not close(_as_state(answer(list(rough), order)), _extrapolate(rough, order)):
            raise WrongAnswer(f"Order {order} uses {order + 1} states, the ones nearest by.")
    return "Right: exact on polynomials of degree p, from p + 1 states."


def _as_state(value: Any) -> Tensor:
    return tensor(value, (2,), "Return one tensor, shaped like a state.")


def _extrapolate(kept: Sequence[Tensor] | Tensor, order: int) -> Tensor:
    terms = [(-1) ** j * math.comb(order + 1, j + 1) * kept[j] for j in range(order + 1)]
    return torch.stack(terms).sum(0)


def _one_lower(kept: Sequence[Tensor], order: int) -> Tensor:
    return _extrapolate(kept, order - 1)


def _all_of_them(kept: Sequence[Tensor], order: int) -> Tensor:
    return _extrapolate(kept, len(kept) - 1)


def _far_ones(kept: Sequence[Tensor], order: int) -> Tensor:
    return _extrapolate(kept[::-1], order)


def _linear(kept: Sequence[Tensor], order: int) -> Tensor:
    return 2 * kept[0] - kept[1]


EXTRAPOLATE = Exercise(
    id="free-order-ex-extrapolate",
    check=_check_extrapolate,
    solution=_extrapolate,
    wrong={
        "one degree too low": _one_lower,
        "through all states": _all_of_them,
        "in the wrong direction": _far_ones,
        "linear for every order": _linear,
        "a number": lambda kept, order: 0.0,
        "unfilled": lambda kept, order: ...,
    },
)


# Open: where a prediction wins


def _check_straight(answer: tuple[Sequence[nn.Module], Tensor]) -> str:
    """Compare the distances from x_0 at which the corrected and the predicted rule arrive."""
    answer = _filled(answer)
    try:
        modules, x = answer
        block = OdeBlock.from_modules(list(_filled(modules))).double()
    except (TypeError, ValueError, AttributeError) as error:
        raise WrongAnswer(f"Answer with a list of modules and a start. {error}") from None
    x = tensor(x, None, "Answer with a list of modules and a start.")
    if block.steps < 16:
        raise WrongAnswer(f"{block.steps} layers; take 16 or more, so that orders can show.")
    states = trajectory(block, x)
    steepness = _steepness(block, states)
    if not steepness < 0.5:
        raise WrongAnswer(
            f"Some layer has a slope of {steepness:.2f} N at a sample. Keep Lip/N below 0.5."
        )
    errors = {}
    for rule in ("corrected", "predicted"):
        seen = reconstruction(block, states[-1], Reconstruct(rule))
        errors[rule] = float((seen[0] - x).norm())
    if not errors["corrected"] > 1e-5:
        raise WrongAnswer(
            f"The corrected rule is off by {errors['corrected']:.0e} only. There is nothing to "
            "gain: let the layers depend on the state."
        )
    ratio = errors["predicted"] / errors["corrected"]
    if not ratio < 0.1:
        raise WrongAnswer(
            f"The prediction's error is {ratio:.2g} times that of the corrected rule; make it less "
            "than a tenth. The prediction errs by the second difference of the states. Which "
            "trajectories have none?"
        )
    return f"Right: the prediction's error is {ratio:.1e} times that of the corrected rule."


def _steepness(block: OdeBlock, states: Tensor) -> float:
    """Return the largest norm of a layer's Jacobian over the number of layers."""
    h = 1 / block.steps
    steepest = 0.0
    for n, x in enumerate(states[:-1]):
        weights = {name: p[n] for name, p in block.weights.stacks.named_parameters()}

        def layer(x: Tensor, weights: dict[str, Tensor] = weights) -> Tensor:
            value: Tensor = torch.func.functional_call(block.weights.template, weights, (x,))
            return value

        jacobian = torch.func.jacrev(layer)(x.reshape(-1) if x.ndim == 1 else x[0])
        steepest = max(steepest, h * float(torch.linalg.matrix_norm(jacobian.detach(), 2)))
    return steepest


def straight_layers(layers: int, rate: float = 3.0) -> tuple[list[nn.Module], Tensor]:
    """Return linear layers that pull towards a point which moves at a constant speed."""
    modules: list[nn.Module] = []
    for n in range(layers):
        module = nn.Linear(1, 1).double()
        nn.init.constant_(module.weight, -rate)
        nn.init.constant_(module.bias, 1 + rate * n / layers)
        modules.append(module)
    return modules, torch.zeros(1, dtype=F64)


def _random_layers(layers: int) -> tuple[list[nn.Module], Tensor]:
    generator = torch.Generator().manual_seed(0)
    modules: list[nn.Module] = []
    for _ in range(layers):
        module = nn.Sequential(nn.Linear(3, 3).double(), nn.Tanh())
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=F64)
        modules.append(module)
    return modules, torch.ones(3, dtype=F64)


def _tied_layers(layers: int) -> tuple[list[nn.Module], Tensor]:
    modules, start = straight_layers(layers)
    return modules[:1] * layers, start


STRAIGHT = Exercise(
    id="free-order-ex-straight",
    check=_check_straight,
    solution=straight_layers(64),
    wrong={
        "few layers": straight_layers(8),
        "steep layers": straight_layers(64, rate=80.0),
        "layers that ignore the state": straight_layers(64, rate=0.0),
        "independent layers": _random_layers(32),
        "tied layers, a decay": _tied_layers(32),
        "no start": straight_layers(16)[0],
        "unfilled": ([...], torch.zeros(1)),
    },
)

EXERCISES = (FACTORS, STEP, EXTRAPOLATE, STRAIGHT)
