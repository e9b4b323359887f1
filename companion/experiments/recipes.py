"""How experiments train classifiers and measure them: what many of them share, once.

A recipe is a dictionary of options of :func:`companion.train.fit`. What an experiment changes it
says: ``digits_recipe(epochs) | {"schedule": None}``.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from companion.data import Samples
from companion.experiments.running import Part
from companion.solve import NonFiniteError
from companion.train import History, Rows, error_rate, evaluating, fit, step_decay

SIX_SCHEMES = ("euler", "midpoint", "heun", "kutta3", "rk4", "rk4_38")
"""The schemes of experiments that try them all: one that is added later moves no record."""

Split = tuple[Tensor, Tensor] | Rows
"""Samples with their classes, in memory or read when they are needed."""


def normal(seed: int, device: torch.device | str = "cpu") -> Callable[..., Tensor]:
    """Return what draws standard normal tensors of given shapes in turn, in double precision.

    Example:
        >>> draw = normal(0)
        >>> draw(2, 3).shape, draw(4).dtype
        (torch.Size([2, 3]), torch.float64)
    """
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)


def guessing(classes: int = 10) -> float:
    """Return the error of guessing: that of a network whose state stopped being finite.

    Example:
        >>> guessing()
        0.9
    """
    return 1 - 1 / classes


def splits(data: Samples) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return training samples and test samples, each with their classes."""
    return (data.x_train, data.y_train), (data.x_test, data.y_test)


def readers(data: Split) -> int:
    """Return how many processes read samples: none for tensors or few files.

    The processes that ``torchrun`` starts on a machine share its cores.
    """
    if isinstance(data, tuple):
        return 0
    own = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(16, (os.cpu_count() or 1) // own, len(data) // 1000)


def sgd(rate: float, decay: float = 0.0) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return what makes the optimiser of nearly all experiments: SGD with a momentum of 0.9."""
    return lambda parameters: SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)


def digits_recipe(epochs: int, rate: float = 0.05, decay: float = 5e-4) -> dict[str, Any]:
    """Return the recipe of networks with jumps in depth on digits.

    The rate falls to a tenth after 2/3 and 13/15 of the epochs.

    Example:
        >>> recipe = digits_recipe(30)
        >>> recipe["batch_size"], recipe["clip"], round(recipe["schedule"](0.7), 6)
        (64, 2.0, 0.1)
    """
    return {
        "optimiser": sgd(rate, decay),
        "epochs": epochs,
        "batch_size": 64,
        "schedule": step_decay(2 / 3, 13 / 15),
        "clip": 2.0,
    }


def classification_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of the scores."""
    return cross_entropy(net(x), y)


def bfloat16_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of the scores, with convolutions in bfloat16."""
    x = x.contiguous(memory_format=torch.channels_last)  # a pixel's channels are read together
    with torch.autocast(x.device.type, torch.bfloat16):
        scores = net(x)
    return cross_entropy(scores.float(), y)


def train(
    part: Part,
    net: nn.Module,
    data: Split,
    seed: int,
    *,
    loss: Callable[..., Tensor] = classification_loss,
    **options: Any,
) -> History | None:
    """Train a classifier in place and keep it; return ``None`` where its state became infinite.

    The seed orders the samples; ``options`` are those of :func:`companion.train.fit`.
    """
    generator = torch.Generator().manual_seed(seed)
    try:
        history = fit(
            net, loss, data, generator=generator, workers=readers(data), parallel=part.parallel,
            snapshot=part.snapshot, report=part.report, **options,
        )  # fmt: skip
    except NonFiniteError:
        return None
    part.keep(net)
    return history


def trained_error(
    part: Part,
    net: nn.Module,
    data: Split,
    test: Split,
    seed: int,
    *,
    chance: float = guessing(),
    **options: Any,
) -> list[float]:
    """Train a classifier; return its test error, and 1 if its state stopped being finite, else 0.

    Args:
        part: the part of the run that this is.
        net: the classifier.
        data: what to train on.
        test: what to test on.
        seed: seed of the order of the samples.
        chance: the error of a network whose state stopped being finite.
        **options: of :func:`train`.
    """
    if train(part, net, data, seed, **options) is None:
        return [chance, 1.0]
    try:
        return [error_rate(net, test, workers=readers(test)), 0.0]
    except NonFiniteError:
        return [chance, 1.0]


@torch.no_grad()
def scores(net: nn.Module, x: Tensor, batch_size: int = 1000) -> Tensor:
    """Return the scores of all samples in evaluation mode; NaN if the state stops being finite.

    Example:
        >>> scores(nn.Dropout(), torch.ones(2, 3)).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    with evaluating(net):
        try:
            return torch.cat([net(batch) for batch in torch.split(x, batch_size)])
        except NonFiniteError:
            return torch.full((len(x), 1), math.nan, device=x.device)


def shortest(part: Part, works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the least processor seconds of each work.

    All take turns, so that a slow moment of the machine does not fall on one of them alone.
    """
    least = [math.inf] * len(works)
    for repeat in range(repeats):
        for k, work in enumerate(works):
            start = time.process_time()
            work()
            least[k] = min(least[k], time.process_time() - start)
        part.report((repeat + 1) / repeats)
    return least


def error_of(scores: Tensor, y: Tensor) -> float:
    """Return the share of samples whose class does not score highest.

    Example:
        >>> error_of(torch.eye(4), torch.tensor([0, 1, 2, 2]))
        0.25
    """
    return (scores.argmax(1) != y).double().mean().item()


def deviation(scores: Tensor, reference: Tensor) -> float:
    r"""Return $\lVert\ell - \ell_0\rVert / \lVert\ell_0\rVert$ over all samples and classes.

    Example:
        >>> round(deviation(torch.tensor([[3.0, 5.0]]), torch.tensor([[3.0, 4.0]])), 6)
        0.2
    """
    return float((scores - reference).norm() / reference.norm())
