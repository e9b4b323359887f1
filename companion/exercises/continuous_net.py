"""Exercises of the chapter "A residual network that is continuous in depth"."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion.basis import PiecewiseConstant
from companion.block import ode_blocks
from companion.data import load_digits
from companion.exercises.checking import Exercise, WrongAnswer, close, listed, tensor
from companion.models import ContinuousNet
from companion.models.graphs import with_graph
from companion.train import cosine, fit, misclassified, seeded, update_bn

__all__ = ["COUNT", "EXERCISES", "RECALIBRATE", "SHARES", "TRAIN"]


# Warm-up: the parameters of one cell


def _check_count(answer: Any) -> str:
    """Compare ``answer = (a, b, d)`` with the parameters a c^2 + b c + d of a cell."""
    found = listed(answer, 3, "Answer with three numbers, (a, b, d).")
    for k, (got, wanted) in enumerate(zip(found, (18, 4, 1), strict=True)):
        if got != wanted:
            raise WrongAnswer(_COUNT_HINTS[k](got))
    return "Right: 18 c^2 + 4 c + 1 parameters for every cell."


_COUNT_HINTS: tuple[Callable[[float], str], ...] = (
    lambda a: (
        "a: there are two convolutions, not one." if a == 9 else
        f"a: not {a:g}. A 3 by 3 convolution from c to c channels has 9 c^2 weights."
    ),
    lambda b: (
        "b: running means and variances are no parameters, nobody trains them." if b == 8 else
        "b: these convolutions have no bias, a norm follows or the next state needs none."
        if b == 6 else
        f"b: not {b:g}. A norm has a weight and a bias for every channel."
    ),
    lambda d: f"d: not {d:g}. One number sets how loud the cell is.",
)  # fmt: skip


COUNT = Exercise(
    id="continuous-net-ex-count",
    check=_check_count,
    solution=(18, 4, 1),
    wrong={
        "one convolution": (9, 2, 1),
        "biases": (18, 6, 1),
        "running statistics": (18, 8, 1),
        "one norm": (18, 2, 1),
        "no skip": (18, 4, 0),
        "a number": 97_219,
        "unfilled": (..., ..., ...),
    },
)


# Core: how much every call counts


def _check_shares(answer: Callable[[float, int], Any]) -> str:
    """Compare ``answer(momentum, calls)`` with the limit of the running mean."""
    for momentum, calls in ((0.1, 4), (0.5, 3), (1.0, 2), (0.1, 1)):
        hint = f"momentum {momentum:g}: return {calls} numbers, one for every call."
        got = tensor(answer(momentum, calls), (calls,), hint)
        wanted = torch.tensor(_shares(momentum, calls), dtype=torch.float64)
        if not close(got, wanted):
            raise WrongAnswer(_shares_hint(got, wanted, momentum, calls))
    return "Right: the last call counts most, and the shares add up to one."


def _shares_hint(got: Tensor, wanted: Tensor, momentum: float, calls: int) -> str:
    where = f"momentum {momentum:g}, {calls} calls:"
    if close(got, wanted.flip(0)):
        return f"{where} that is the wrong way round. Later calls overwrite earlier ones."
    if not math.isclose(float(got.sum()), 1.0, rel_tol=1e-5):
        return f"{where} the shares must add up to 1, since equal means stay what they are."
    return f"{where} call i is multiplied by 1 - momentum by each of the calls after it."


def _shares(momentum: float, calls: int) -> list[float]:
    raw = [momentum * (1 - momentum) ** (calls - i) for i in range(1, calls + 1)]
    return [share / sum(raw) for share in raw]


SHARES = Exercise(
    id="continuous-net-ex-shares",
    check=_check_shares,
    solution=_shares,
    wrong={
        "all alike": lambda momentum, calls: [1 / calls] * calls,
        "the wrong way round": lambda momentum, calls: _shares(momentum, calls)[::-1],
        "after one pass": lambda momentum, calls: [
            momentum * (1 - momentum) ** (calls - i) for i in range(1, calls + 1)],
        "the last one alone": lambda momentum, calls: [0.0] * (calls - 1) + [1.0],
        "one number": lambda momentum, calls: 1.0,
        "too many": lambda momentum, calls: _shares(momentum, calls + 1),
        "unfilled": lambda momentum, calls: ...,
    },
)  # fmt: skip


# Core: train a small network


def _check_train(answer: Callable[[Tensor, Tensor], Any]) -> str:
    """Let ``answer(x, y)`` train a network on 800 digits; test it on others."""
    data = load_digits(as_images=True)
    net = answer(data.x_train[:800].clone(), data.y_train[:800].clone())
    if not isinstance(net, nn.Module):
        raise WrongAnswer("Return the trained network, a module.")
    if not list(ode_blocks(net)):
        raise WrongAnswer("Your network has no block. Build it with ContinuousNet or OdeBlock.")
    size = sum(p.numel() for p in net.parameters())
    if size >= 5000:
        raise WrongAnswer(f"Your network has {size:,} parameters, and should have below 5,000.")
    net = copy.deepcopy(net).eval()
    with torch.no_grad():
        scores = net(data.x_test)
    if scores.shape != (len(data.y_test), 10):
        raise WrongAnswer("The network should return 10 scores for every image.")
    error = misclassified(scores, data.y_test).double().mean().item()
    if error > 0.25:
        raise WrongAnswer(
            f"{error:.0%} of other digits are wrong in evaluation mode. Train longer, or with a "
            "rate that falls to zero. If the loss is low already, look at the running statistics."
        )
    return f"Right: {size:,} parameters, and {error:.1%} of other digits are wrong."


def _small(**options: Any) -> ContinuousNet:
    given: dict[str, Any] = {"channels": (8,), "basis": PiecewiseConstant(2), "steps": 2}
    given |= {"scale": 2.0, **options}
    with seeded(0):
        return ContinuousNet(inputs=1, **given)


def _train(x: Tensor, y: Tensor) -> nn.Module:
    net = _small(skip_init=False)
    fit(
        net, lambda net, x, y: cross_entropy(net(x), y), (x, y),
        optimiser=lambda p: torch.optim.Adam(p, 2e-2), epochs=6, batch_size=32,
        schedule=cosine, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return net


TRAIN = Exercise(
    id="continuous-net-ex-train",
    check=_check_train,
    solution=_train,
    wrong={
        "untrained": lambda x, y: _small(),
        "too large": lambda x, y: _small(channels=(16, 32)),
        "no block": lambda x, y: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        "five classes": lambda x, y: _small(classes=5),
        "scores": lambda x, y: torch.zeros(len(x), 10),
        "unfilled": lambda x, y: ...,
    },
)


# Open: statistics for another graph


def _check_recalibrate(answer: Callable[[nn.Module, str, Tensor], Any]) -> str:
    """Ask ``answer(net, method, x)`` for the net under another graph, with its own statistics."""
    net, x = _settled()
    before = copy.deepcopy(net.state_dict())
    gap = _gap(with_graph(copy.deepcopy(net), method="euler"), x)
    given = answer(net, "euler", x.clone())
    if not isinstance(given, nn.Module):
        raise WrongAnswer("Return the network under the other graph, a module.")
    if any(not torch.equal(value, before[name]) for name, value in net.state_dict().items()):
        raise WrongAnswer(
            "That changed the network you were given: graphs share weights and statistics. Copy "
            "first."
        )
    methods = {block.method for block in ode_blocks(given)}
    if methods != {"euler"}:
        raise WrongAnswer("The blocks of what you return should run with euler: use with_graph.")
    if any(not torch.equal(p, before[name]) for name, p in given.named_parameters()):
        raise WrongAnswer("The weights have changed. Only the statistics should.")
    left = _gap(given, x)
    if not left < gap / 3:
        raise WrongAnswer(
            f"Evaluation is {left:.1%} off training mode, and was {gap:.1%} before. Send batches "
            "through the new graph in training mode, or call companion.train.update_bn."
        )
    return f"Right: evaluation is {left:.1%} off training mode, where it was {gap:.1%}."


def _settled() -> tuple[ContinuousNet, Tensor]:
    """Return a net whose norms have seen its images under RK4, and the images."""
    x = load_digits(as_images=True).x_train[:256]
    net = _small(skip_init=False, basis=PiecewiseConstant(4), method="rk4", steps=4, scale=4.0)
    update_bn([x], net)
    return net.eval(), x


@torch.no_grad()
def _gap(net: nn.Module, x: Tensor) -> float:
    """Return how far the scores in evaluation are from those in training mode."""
    net = copy.deepcopy(net)
    here, there = net.eval()(x), net.train()(x)
    return float((here - there).norm() / there.norm())


def _recalibrate(net: nn.Module, method: str, x: Tensor) -> nn.Module:
    other = with_graph(copy.deepcopy(net), method=method)
    update_bn([x], other)
    return other


def _in_place(net: nn.Module, method: str, x: Tensor) -> nn.Module:
    other = with_graph(net, method=method)
    update_bn([x], other)
    return other


@torch.no_grad()
def _halved(net: nn.Module, method: str, x: Tensor) -> nn.Module:
    other = _recalibrate(net, method, x)
    for p in other.parameters():
        p.mul_(0.5)
    return other


RECALIBRATE = Exercise(
    id="continuous-net-ex-recalibrate",
    check=_check_recalibrate,
    solution=_recalibrate,
    wrong={
        "the statistics of the other graph": lambda net, method, x: with_graph(
            copy.deepcopy(net), method=method),
        "in place": _in_place,
        "the old graph": lambda net, method, x: copy.deepcopy(net),
        "other weights": _halved,
        "scores": lambda net, method, x: net(x),
        "unfilled": lambda net, method, x: ...,
    },
)  # fmt: skip

EXERCISES = (COUNT, SHARES, TRAIN, RECALIBRATE)
