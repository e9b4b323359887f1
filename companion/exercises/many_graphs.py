"""Exercises of the chapter "One model, many graphs"."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from companion import OdeBlock, PiecewiseConstant
from companion.exercises.checking import Exercise, WrongAnswer, listed, tensor
from companion.train import seeded

__all__ = ["EXACT", "EXERCISES", "GAUGE", "IDENTITY", "TWO_GRAPHS"]


# Warm-up: a network that does nothing


def _check_identity(answer: Any) -> str:
    """Multiply the two layers x + theta x, and solve the equation they discretise."""
    first, second = listed(answer, 2, "Give two numbers, the weights of the two layers.")
    product = (1 + first) * (1 + second)
    if not math.isclose(product, 1.0, rel_tol=1e-5):
        raise WrongAnswer(
            f"The network multiplies by {product:.9g}, not by 1. A layer x + theta x multiplies by "
            "1 + theta."
        )
    flow = math.exp(min(first + second, 700.0))
    if flow <= 1000:
        raise WrongAnswer(
            f"The network is the identity, and the flow multiplies by {flow:.3g}; more than 1000 "
            "is asked for. In units of a step, the flow takes x to exp(theta) x."
        )
    return f"Right: the network does nothing, the flow multiplies by {flow:.3g}."


IDENTITY = Exercise(
    id="graphs-ex-identity",
    check=_check_identity,
    solution=(8.0, -8 / 9),
    wrong={
        "nothing at all": (0.0, 0.0),
        "the flow is the identity": (8.0, -8.0),
        "too small": (2.0, -2 / 3),
        "two reflections": (-9.0, -9 / 8),
        "one number": 8.0,
        "half the step": (16.0, -16 / 9),
    },
)


# Core: what the factor epsilon does to training

Factors = tuple[float, float, float]


def _check_gauge(answer: Callable[[float], Factors]) -> str:
    """Train a block at a scale, and one at scale 1 with the answer's settings."""
    for scale in (3.0, 8.0):
        factors = listed(answer(scale), 3, "Return three numbers: start, rate, decay.")
        start, rate, decay = factors
        if not _agree(scale, start, 0.0, 0.0, steps=0):
            raise WrongAnswer(
                f"scale {scale:g}: before training the two networks differ already. The block adds "
                "scale times (V g(x) + c)."
            )
        if not _agree(scale, start, rate, 0.0, decays=False):
            raise WrongAnswer(
                f"scale {scale:g}: the start is right, but without weight decay they train "
                "differently. A step on V moves the product scale * V by scale times as much, and "
                "the gradient for V has a factor scale already."
            )
        if not _agree(scale, start, rate, decay):
            raise WrongAnswer(
                f"scale {scale:g}: right without weight decay. With it, a step takes "
                "rate * decay * V off the weights: a fixed share of them, which must stay the same."
            )
    return "Right: the same network after every step."


def _agree(
    scale: float, start: float, rate: float, decay: float, steps: int = 12, decays: bool = True
) -> bool:
    wanted = _trained(scale, 1.0, 1.0, 1.0, steps, decays)
    return torch.allclose(_trained(1.0, start, rate, decay, steps, decays), wanted, rtol=1e-6)


def _trained(
    scale: float, start: float, rate: float, decay: float, steps: int, decays: bool
) -> Tensor:
    """Train a block of 4 layers; ``start``, ``rate`` and ``decay`` are for V and c alone."""
    with seeded(0):
        block = OdeBlock(_perceptron, PiecewiseConstant(4), steps=4, scale=scale)
        x, target = torch.randn(2, 16, 3, dtype=torch.float64)
    inner, outer = list(block.parameters())[:2], list(block.parameters())[2:]
    with torch.no_grad():
        for p in outer:
            p.mul_(start)
    lr, weight_decay = 1e-3, 0.5 if decays else 0.0
    groups: list[dict[str, Any]] = [
        {"params": inner},
        {"params": outer, "lr": rate * lr, "weight_decay": decay * weight_decay},
    ]
    optimiser = torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=weight_decay)
    for _ in range(steps):
        optimiser.zero_grad()
        loss: Tensor = (block(x) - target).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        end: Tensor = block(x)
    return end


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).double()


GAUGE = Exercise(
    id="graphs-ex-gauge",
    check=_check_gauge,
    solution=lambda scale: (scale, scale**2, scale**-2),
    wrong={
        "only the start": lambda scale: (scale, 1.0, 1.0),
        "the rate once": lambda scale: (scale, scale, 1 / scale),
        "the decay unchanged": lambda scale: (scale, scale**2, 1.0),
        "the inverse": lambda scale: (1 / scale, scale**-2, scale**2),
        "the start unchanged": lambda scale: (1.0, scale**2, scale**-2),
        "the decay like the rate": lambda scale: (scale, scale**2, scale**2),
        "two numbers": lambda scale: (scale, scale**2),
    },
)


# Core: how far is the flow?

Estimate = Callable[[Tensor, Tensor, int], Tensor]
_ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def _check_two_graphs(answer: Estimate) -> str:
    """Compare the estimate with the distance to a fine solution, for four schemes."""
    with seeded(1):
        block = OdeBlock(_perceptron, PiecewiseConstant(2), scale=2.0)
        x = torch.randn(8, 3, dtype=torch.float64)
    with torch.no_grad():
        flow = block.with_graph(method="rk4", steps=512)(x)
        for method, order in _ORDERS.items():
            steps = 64 if order == 1 else 32
            coarse = block.with_graph(method=method, steps=steps)(x)
            fine = block.with_graph(method=method, steps=2 * steps)(x)
            _compare(answer(coarse.clone(), fine.clone(), order), coarse, fine, flow, method)
    return "Right: two graphs tell how far the coarse one is from the flow."


def _compare(answer: Any, coarse: Tensor, fine: Tensor, flow: Tensor, method: str) -> None:
    error = flow - coarse
    found = tensor(answer, error.shape, "Return a tensor of the shape of the two outputs.")

    def near(wanted: Tensor) -> bool:
        return bool((found - wanted).norm() <= 0.03 * wanted.norm())

    if near(error):
        return
    if near(-error):
        raise WrongAnswer(f"{method}: the right size, the wrong sign. Return flow minus coarse.")
    if near(flow):
        raise WrongAnswer(
            f"{method}: that is the flow itself, or an output near it. Subtract the coarse output."
        )
    if near(flow - fine):
        raise WrongAnswer(
            f"{method}: that is the error of the fine graph. Return the coarse one's."
        )
    share = float(found.norm() / error.norm())
    raise WrongAnswer(
        f"{method}: {share:.2f} of the error. The coarse error is 2^p times the fine one, and fine "
        "minus coarse is the difference of the two."
    )


def _two_graphs(coarse: Tensor, fine: Tensor, order: int) -> Tensor:
    power = 2.0**order
    return (fine - coarse) * (power / (power - 1))


TWO_GRAPHS = Exercise(
    id="graphs-ex-two-graphs",
    check=_check_two_graphs,
    solution=_two_graphs,
    wrong={
        "the difference alone": lambda coarse, fine, order: fine - coarse,
        "the fine error": lambda coarse, fine, order: (fine - coarse) / (2**order - 1),
        "the flow": lambda coarse, fine, order: coarse + _two_graphs(coarse, fine, order),
        "the wrong sign": lambda coarse, fine, order: -_two_graphs(coarse, fine, order),
        "always order one": lambda coarse, fine, order: _two_graphs(coarse, fine, 1),
        "twice the order": lambda coarse, fine, order: (
            (fine - coarse) * 2 * order / (2 * order - 1)
        ),
        "a number": lambda coarse, fine, order: 1.0,
        "the norm": lambda coarse, fine, order: _two_graphs(coarse, fine, order).norm(),
    },
)


# Open: large steps, one function

Answer = tuple[Callable[[Tensor], Tensor], Tensor]
_GRAPHS = (("euler", 1), ("euler", 7), ("midpoint", 3), ("rk4", 5))


def _check_exact(answer: Answer) -> str:
    """Run the field under four graphs at scale 8, and see whether it bends anything."""
    try:
        field, x = answer
    except (TypeError, ValueError):
        raise WrongAnswer("Give a pair: a field and a batch of states.") from None
    x = tensor(x, None, "Give a pair: a field and a batch of states.")
    if x.ndim != 2 or not callable(field):
        raise WrongAnswer("Give a pair: a field and a batch of states of shape (batch, dim).")
    if isinstance(field, nn.Module):
        field = copy.deepcopy(field).double()  # as the states
    ends = [_end(field, x, *graph) for graph in _GRAPHS]
    worst = max(float((end - ends[0]).abs().max()) for end in ends)
    if not worst <= 1e-5:
        raise WrongAnswer(
            f"Two graphs differ by {worst:.2g}. Along a trajectory the field must not change: then "
            "it is a straight line, run through at constant speed, and one step is exact."
        )
    moved = float((ends[0] - x).norm(dim=1).min())
    if moved < 1:
        raise WrongAnswer(f"All graphs agree, but some state moves by {moved:.2g} only, not by 1.")
    bend = _bend(field, x)
    if bend < 0.1:
        raise WrongAnswer(
            f"All graphs agree, but the map is affine (its second difference is {bend:.2g}). The "
            "speed may depend on the state, as long as it stays the same on the way."
        )
    return f"Right: states move by {moved:.2g} or more, and all graphs agree to {worst:.0e}."


def _end(field: Callable[[Tensor], Tensor], x: Tensor, method: str, steps: int) -> Tensor:
    block = OdeBlock(_Wrapped(field), method=method, steps=steps, scale=8.0)
    with torch.no_grad():
        try:
            end: Tensor = block(x)
        except (TypeError, ValueError, RuntimeError) as error:
            raise WrongAnswer(
                f"The field cannot be run on these states (float64). {error}"
            ) from None
    return end


def _bend(field: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the largest second difference of the map over random directions of length 1."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    v = v / v.norm(dim=1, keepdim=True)
    before, here, after = (_end(field, y, "euler", 1) for y in (x - v, x, x + v))
    return float((before - 2 * here + after).norm(dim=1).max())


class _Wrapped(nn.Module):
    """Any function as a residual; a module's own parameters are left out of the block's weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = (function,)

    def forward(self, x: Tensor) -> Tensor:
        return self._function[0](x)


def _shear(x: Tensor) -> Tensor:
    speed = 1 + torch.tanh(x[:, :1]).square()
    return torch.cat([torch.zeros_like(speed), speed], dim=1)


def _states() -> Tensor:
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


EXACT = Exercise(
    id="graphs-ex-exact",
    check=_check_exact,
    solution=(_shear, _states()),
    wrong={
        "a constant field": (torch.ones_like, _states()),
        "a linear shear": (lambda x: torch.stack([0 * x[:, 0], 3 + x[:, 0]], 1), 0.1 * _states()),
        "a perceptron": (torch.tanh, _states()),
        "a small shear": (lambda x: 0.01 * _shear(x), _states()),
        "a rotation": (lambda x: torch.stack([-x[:, 1], x[:, 0]], 1), _states()),
        "both halves move": (lambda x: _shear(x) + _shear(x.flip(1)).flip(1), _states()),
        "no states": (_shear, 3),
        "a field of the wrong shape": (lambda x: x[:, :1], _states()),
        "the field alone": _shear,
    },
)


EXERCISES = (IDENTITY, GAUGE, TWO_GRAPHS, EXACT)
