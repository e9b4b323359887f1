"""Exercises of the chapter "Replace the layers by an equation"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion import counting, odeint
from companion.exercises.checking import Exercise, WrongAnswer, close, listed, number, tensor

__all__ = ["BATCH", "CHANNEL", "COUNT", "EXERCISES", "FIT", "LABELS", "POINTS", "SHARE", "SPRING"]

Count = Callable[[int, int], Any]


# Warm-up: what the layers hold


def _check_count(answer: Count) -> str:
    """Compare ``answer(channels, layers)`` with the parameters of residual layers and a field."""
    for channels, layers in ((64, 6), (16, 6), (10, 3)):
        got = listed(
            answer(channels, layers), 2, "Return two numbers, of the layers and the field."
        )
        hints = (
            "a layer has two norms, each with a weight and a bias a channel, and two convolutions "
            "without bias of 3 by 3 weights for every pair of channels.",
            "the field has three norms and two convolutions. These have a bias, and one input "
            "channel more, for the time.",
        )
        for value, right, hint in zip(got, _count(channels, layers), hints, strict=True):
            if not close(value, right):
                raise WrongAnswer(f"With {channels} channels and {layers} layers: {hint}")
    return "Right: the layers grow with their number, the field knows nothing of it."


def _count(channels: int, layers: int) -> tuple[int, int]:
    c = channels
    return layers * (2 * 2 * c + 2 * 9 * c * c), 3 * 2 * c + 2 * (9 * (c + 1) * c + c)


COUNT = Exercise(
    id="ode-nets-ex-count",
    check=_check_count,
    solution=_count,
    wrong={
        "one convolution a layer": lambda c, n: (n * (4 * c + 9 * c * c), _count(c, n)[1]),
        "no norms": lambda c, n: (n * 18 * c * c, 18 * c * (c + 1) + 2 * c),
        "the time is forgotten": lambda c, n: (_count(c, n)[0], 6 * c + 18 * c * c + 2 * c),
        "no bias in the field": lambda c, n: (_count(c, n)[0], 6 * c + 18 * (c + 1) * c),
        "a field for every layer": lambda c, n: (_count(c, n)[0], n * _count(c, n)[1]),
        "one number": lambda c, n: _count(c, n)[0],
    },
)


# Core: the time as a channel


def _check_channel(answer: Callable[[Tensor, Tensor], Any]) -> str:
    """Compare ``answer(t, x)`` with one time for all, and with one for each sample."""
    x = torch.arange(24, dtype=torch.float64).reshape(2, 3, 2, 2)
    for t in (torch.tensor(0.25).double(), torch.tensor([0.25, 0.75]).double().view(2, 1, 1, 1)):
        each = "one time for all" if t.dim() == 0 else "one time for each sample"
        hint = f"With {each}: return a state of shape (2, 4, 2, 2), one channel more than before."
        got = tensor(answer(t, x.clone()), (2, 4, 2, 2), hint)
        if not close(got[:, 1:], x):
            if close(got[:, :-1], x):
                raise WrongAnswer("Put the time in front: it is to be the first channel.")
            raise WrongAnswer(f"With {each}: the channels behind the first must be the state's.")
        if not close(got[:, :1], t.expand(2, 1, 2, 2)):
            raise WrongAnswer(
                f"With {each}: all pixels of the first channel must hold the sample's time."
            )
    return "Right: and it works for samples that are solved with steps of their own."


def _channel(t: Tensor, x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x[:, :1]) * t, x], dim=1)


CHANNEL = Exercise(
    id="ode-nets-ex-channel",
    check=_check_channel,
    solution=_channel,
    wrong={
        "behind the state": lambda t, x: torch.cat([x, torch.ones_like(x[:, :1]) * t], dim=1),
        "added to the state": lambda t, x: x + t,
        "the first time for all": lambda t, x: _channel(t.flatten()[0], x),
        "a state scaled by the time": lambda t, x: torch.cat([torch.ones_like(x[:, :1]) * t, x * t],
                                                             dim=1),
        "ones": lambda t, x: torch.cat([torch.ones_like(x[:, :1]), x], dim=1),
        "as many channels as before": lambda t, x: x,
    },
)  # fmt: skip


# Core: what sharing costs


def _check_share(answer: Callable[[Sequence[float], int], Any]) -> str:
    """Compare with the power mean, for samples of steady difficulty."""
    for steps, q in (([4.0, 4.0, 4.0], 4), ([2.0, 8.0], 4), ([3.0, 5.0, 20.0, 6.0], 2)):
        value = number(answer(list(steps), q), "Return one number: the steps of the batch.")
        if close(value, _share(steps, q)):
            continue
        told = f"Steps {steps} with q = {q}: "
        if value != _share(steps, q) and close(value, math.ceil(_share(steps, q))):
            raise WrongAnswer(
                told + "leave the number as it is, without rounding it to whole steps."
            )
        if close(value, max(steps)):
            raise WrongAnswer(told + "the hardest sample is only one of those that are averaged.")
        if close(value, sum(steps) / len(steps)):
            raise WrongAnswer(told + "errors are averaged, not steps. How does one make the other?")
        if value < min(steps) or value > max(steps):
            raise WrongAnswer(told + "a mean of any kind lies between the least and the most.")
        raise WrongAnswer(
            told + "a sample's error grows like its steps to the power q + 1, at any common step. "
            "The controller takes the root of the mean square of these errors."
        )
    return "Right: nearly what the hardest sample takes."


def _share(steps: Sequence[float], q: int) -> float:
    power = 2 * (q + 1)
    mean = sum(n**power for n in steps) / len(steps)
    return float(mean ** (1 / power))


SHARE = Exercise(
    id="ode-nets-ex-share",
    check=_check_share,
    solution=_share,
    wrong={
        "the most": lambda n, q: max(n),
        "the mean": lambda n, q: sum(n) / len(n),
        "the sum": lambda n, q: sum(n),
        "whole steps": lambda n, q: math.ceil(_share(n, q)),
        "no square": lambda n, q: (sum(k ** (q + 1) for k in n) / len(n)) ** (1 / (q + 1)),
        "the order, not one more": lambda n, q: (
            (sum(k ** (2 * q) for k in n) / len(n)) ** (1 / (2 * q))
        ),
        "the root of the sum": lambda n, q: sum(k ** (2 * q + 2) for k in n) ** (1 / (2 * q + 2)),
    },
)


# Core: a block of second order

Field = Callable[[Tensor, Tensor], Any]


def _check_spring(answer: Field) -> str:
    """Solve the reader's field, and compare with the motion of the damped spring."""
    start = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, -1.0]], dtype=torch.float64)
    hint = (
        "Return a tensor of the state's shape: how position and velocity change, in two columns. "
        "torch.stack with dim=1 puts columns side by side."
    )
    first = tensor(answer(torch.tensor(0.0).double(), start.clone()), start.shape, hint)
    if not close(first[:, 0], start[:, 1]):
        raise WrongAnswer("The position, in the first column, changes by the velocity.")
    if not close(first[:1, 1], torch.tensor([-4.0]).double()):
        raise WrongAnswer("At rest at 1, the spring pulls back with 4: which sign, which size?")

    def field(t: Tensor, x: Tensor) -> Tensor:
        return tensor(answer(t, x), x.shape, hint).to(x)

    end = odeint(field, start, [0.0, 1.5], method="rk4", steps=100)[-1]
    if not torch.allclose(end, _swung(start, 1.5), rtol=1e-4, atol=1e-4):
        raise WrongAnswer(
            "The start is right, the motion is not. Friction takes 0.4 times the velocity, and "
            "nothing depends on the time."
        )
    return "Right: a position that may pass itself, because the state has a velocity too."


def _swung(start: Tensor, t: float) -> Tensor:
    """Return the closed form of q'' = -4 q - 0.4 q'."""
    w = math.sqrt(4 - 0.04)
    fade, cos, sin = math.exp(-0.2 * t), math.cos(w * t), math.sin(w * t)
    q, v = start.unbind(1)
    rest = (v + 0.2 * q) / w
    place = fade * (q * cos + rest * sin)
    speed = -0.2 * place + fade * w * (rest * cos - q * sin)
    return torch.stack([place, speed], dim=1)


def _spring(t: Tensor, x: Tensor) -> Tensor:
    return torch.stack([x[:, 1], -4 * x[:, 0] - 0.4 * x[:, 1]], dim=1)


SPRING = Exercise(
    id="ode-nets-ex-spring",
    check=_check_spring,
    solution=_spring,
    wrong={
        "pushes away": lambda t, x: torch.stack([x[:, 1], 4 * x[:, 0] - 0.4 * x[:, 1]], dim=1),
        "no friction": lambda t, x: torch.stack([x[:, 1], -4 * x[:, 0]], dim=1),
        "friction drives": lambda t, x: torch.stack([x[:, 1], -4 * x[:, 0] + 0.4 * x[:, 1]], dim=1),
        "rows for columns": lambda t, x: (x[:, 1], -4 * x[:, 0] - 0.4 * x[:, 1]),
        "the columns exchanged": lambda t, x: _spring(t, x).flip(1),
        "the acceleration alone": lambda t, x: -4 * x[:, 0] - 0.4 * x[:, 1],
        "of first order": lambda t, x: -4 * x,
    },
)


# Core: train one with few parameters


def _rings(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points of a disc, a ring around it and one around that, and their classes 0, 1, 0."""
    generator = torch.Generator().manual_seed(seed)
    share, turn = torch.rand(2, count, generator=generator)
    ring = torch.arange(count) % 3
    radius = ring + 0.6 * share
    angle = 2 * math.pi * turn
    x = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1)
    return x, ring % 2


POINTS, LABELS = _rings(600, 0)
"""The points of the exercise ``FIT``, shape ``(600, 2)``, and their classes, 0 and 1."""

MOST = 400
"""Parameters that the network may have."""


def _check_fit(net: Any) -> str:
    """Classify points that the network has not seen."""
    if not isinstance(net, nn.Module):
        raise WrongAnswer("Answer with a network, an nn.Module called as net(x).")
    size = sum(p.numel() for p in net.parameters())
    if size > MOST:
        raise WrongAnswer(f"The network has {size} parameters; {MOST} are allowed.")
    x, y = _rings(1500, 1)
    x = x.to(next((p.dtype for p in net.parameters()), x.dtype))
    with torch.no_grad():
        scores = tensor(net(x), (1500, 2), "The network must return two scores for each point.")
    wrong = (scores.argmax(1) != y).double().mean().item()
    if not wrong <= 0.05:
        where = x.norm(dim=1)[scores.argmax(1) != y]
        raise WrongAnswer(
            f"{wrong:.0%} of new points are in the wrong class, 5% are allowed; most of them lie "
            f"around radius {where.median().item():.1f}. A further dimension gives points room."
        )
    return f"Right: {wrong:.1%} of new points are wrong, with {size} parameters."


class Lifted(nn.Module):
    """Rings told apart by how high a flow lifts them: the class is a wave of the radius."""

    def __init__(self, waves: float = 1.0, shift: float = 0.3) -> None:
        super().__init__()
        self.waves, self.shift = waves, shift

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of points, shape ``(n, 2)``."""
        height = torch.cos(math.pi * self.waves * (x.norm(dim=1) - self.shift))
        return torch.stack([height, -height], dim=1)


class _Tall(nn.Module):
    """One score a point."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


FIT = Exercise(
    id="ode-nets-ex-fit",
    check=_check_fit,
    solution=Lifted(),
    wrong={
        "a linear classifier": nn.Linear(2, 2),
        "two rings of three": Lifted(waves=0.5),
        "the classes exchanged": Lifted(shift=1.3),
        "too many parameters": nn.Sequential(nn.Linear(2, 200), nn.Tanh(), nn.Linear(200, 2)),
        "one score": _Tall(),
        "scores, not a network": torch.zeros(1500, 2),
    },
)


# Explore: dearer together

_PARTS = "Answer with three things: a field, states with a row for each sample, and a tolerance."


def _check_batch(answer: tuple[Field, Tensor, float]) -> str:
    """Compare the evaluations of the batch with those of the dearest sample."""
    try:
        field, x0, tolerance = answer
    except (TypeError, ValueError):
        raise WrongAnswer(_PARTS) from None
    tolerance = number(tolerance, _PARTS)
    states = tensor(x0, None, _PARTS)
    if not callable(field) or states.dim() != 2 or len(states) < 2:
        raise WrongAnswer(_PARTS)
    if not 1e-9 <= tolerance <= 1e-1:
        raise WrongAnswer(f"A tolerance of {tolerance:g} is not allowed; take 1e-9 to 1e-1.")

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        hint = "The field must return a velocity of the states' shape, for any number of rows."
        return tensor(field(t, x), x.shape, hint)

    try:
        shared = _evaluations(velocity, states, tolerance)
        own = [_evaluations(velocity, row.unsqueeze(0), tolerance) for row in states]
    except ValueError as error:
        raise WrongAnswer(f"The field could not be solved: {error}") from None
    if not shared > 1.2 * max(own):
        if max(own) == min(own):
            raise WrongAnswer(
                f"The batch takes {shared} evaluations, and each sample by itself {own[0]}. Find "
                "samples that are hard at different times."
            )
        raise WrongAnswer(
            f"The batch takes {shared} evaluations, its dearest sample {max(own)} by itself; a "
            "fifth more are asked for. When is each sample hard?"
        )
    return f"Right: {shared} evaluations together, at most {max(own)} alone."


def _evaluations(field: Field, x: Tensor, tolerance: float) -> int:
    with counting() as stats, torch.no_grad():
        odeint(field, x, [0.0, 1.0], rtol=tolerance, atol=tolerance, max_steps=5000)
    return stats.nfe


def _pulse(t: Tensor, x: Tensor, width: float = 0.02) -> Tensor:
    """Push the first column for a moment, at the time in the second."""
    push = torch.exp(-(((t - x[:, 1]) / width) ** 2)) / width
    return torch.stack([push, torch.zeros_like(push)], dim=1)


_TIMES = torch.tensor([[0.0, 0.2], [0.0, 0.4], [0.0, 0.6], [0.0, 0.8]], dtype=torch.float64)

BATCH = Exercise(
    id="ode-nets-ex-batch",
    check=_check_batch,
    solution=(_pulse, _TIMES, 1e-4),
    wrong={
        "all the same": (_pulse, _TIMES[:1].expand(4, 2), 1e-4),
        "hard at the same time": (lambda t, x: -x[:, :1] * x,
                                  torch.tensor([[1.0, 0.0], [9.0, 1.0]]), 1e-4),
        "one sample": (_pulse, _TIMES[:1], 1e-4),
        "no tolerance": (_pulse, _TIMES),
        "a tolerance that is none": (_pulse, _TIMES, 2.0),
        "a field of numbers": (lambda t, x: torch.zeros(3), _TIMES, 1e-4),
    },
)  # fmt: skip


EXERCISES = (COUNT, CHANNEL, SHARE, SPRING, FIT, BATCH)
