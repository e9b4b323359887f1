"""Training one network by every gradient rule: what the training experiments share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from companion.data import Samples
from companion.experiments.running import Part, Run
from companion.gradients import NAMED_RULES, Rule
from companion.models import ResidualMLP
from companion.solve import NonFiniteError
from companion.train import Rows, error_rate, fit, seeded, step_decay

CHANCE = 0.9
"""Error of guessing one of ten classes."""

Split = tuple[Tensor, Tensor] | Rows
"""Samples with their classes, in memory or read when they are needed."""


RULES: Mapping[str, Rule] = {
    name: NAMED_RULES[name]
    for name in (
        "backprop", "reverse", "sweeps", "corrected", "predicted", "predicted_2",
        "heun_backprop", "heun_reverse", "heun_corrected", "reversible",
    )
}  # fmt: skip
"""The rules that networks are trained by."""


def at_depth(rule: str, depth: int) -> str:
    """Name a rule at a depth, by another name than that of a rule whose number is its order.

    Example:
        >>> at_depth("predicted", 16), at_depth("predicted", 2)
        ('predicted_16', 'predicted_depth_2')
    """
    name = f"{rule}_{depth}"
    return f"{rule}_depth_{depth}" if name in RULES else name


class Study:
    """Test errors of networks trained by several rules, at several depths, from several seeds.

    Attributes:
        depths: numbers of layers.
        errors: for each rule the test errors, of shape ``(depths, seeds)``.
        diverged: for each rule 1 where the state stopped being finite, else 0; same shape.
    """

    def __init__(
        self, rules: Sequence[str], depths: Sequence[int], table: NDArray[np.float64]
    ) -> None:
        """Take a table of shape ``(rules, depths, seeds, 2)``: errors, and what diverged."""
        self.depths = tuple(depths)
        self.errors = dict(zip(rules, table[..., 0], strict=True))
        self.diverged = dict(zip(rules, table[..., 1], strict=True))

    def mean(self, rule: str, depth: int) -> float:
        """Return the mean test error over seeds."""
        return float(self.errors[rule][self.depths.index(depth)].mean())

    def excess(self, rule: str, depth: int) -> float:
        """Return the mean test error minus that of the rule's reference."""
        return self.mean(rule, depth) - self.mean(RULES[rule].reference, depth)

    def nearest(self, depth: int) -> int:
        """Return the depth of the study nearest to ``depth``, the smaller of two."""
        return min(self.depths, key=lambda own: (abs(own - depth), own))

    def scalars(self) -> dict[str, float]:
        """Return ``error_RULE_DEPTH``, the means over seeds."""
        pairs = [(rule, depth) for rule in self.errors for depth in self.depths]
        return {f"error_{at_depth(rule, depth)}": self.mean(rule, depth) for rule, depth in pairs}

    def curves(self) -> dict[str, Any]:
        """Return ``depths``, ``error_RULE`` and ``diverged_RULE``."""
        errors = {f"error_{rule}": values for rule, values in self.errors.items()}
        diverged = {f"diverged_{rule}": values for rule, values in self.diverged.items()}
        return {"depths": self.depths, **errors, **diverged}


def train_all(
    run: Run,
    train: Callable[[Part, str, int, int], list[float]],
    *,
    rules: Sequence[str],
    depths: Sequence[int],
    seeds: int,
    needed: Sequence[str],
    together: bool = False,
) -> Study:
    """Train a network by every rule, at every depth, from every seed.

    Args:
        run: the run.
        train: called as ``train(part, rule, depth, seed)``; returns what :func:`trained_error`
            does.
        rules: names in :data:`RULES`.
        depths: numbers of layers.
        seeds: number of seeds.
        needed: rules that the claims are about.
        together: whether several processes share each training, not the list of them.

    Raises:
        ValueError: an unknown rule, or one missing that is needed as it is or to compare with.
    """
    if unknown := [rule for rule in rules if rule not in RULES]:
        raise ValueError(f"rules must be some of {', '.join(RULES)}; got {', '.join(unknown)}")
    wanted = [*needed, *(RULES[rule].reference for rule in rules)]
    if missing := [rule for rule in dict.fromkeys(wanted) if rule not in rules]:
        raise ValueError(f"rules must include {', '.join(missing)}; got {', '.join(rules)}")
    parts = {
        f"{rule}, {depth} layers, seed {seed}": (rule, depth, run.seed + seed)
        for rule in rules
        for depth in depths
        for seed in range(seeds)
    }
    table = np.array(list(run.map(train, parts, together=together).values()))
    return Study(rules, depths, table.reshape(len(rules), len(depths), seeds, 2))


def digits_net(rule: str, depth: int, seed: int, gain: float) -> ResidualMLP:
    """Return the perceptron of ``depth`` layers that is trained on digits."""
    with seeded(seed):
        return ResidualMLP(
            64, 10, width=16, hidden=32, layers=depth, tied=False, scaled=True, gain=gain,
            method=RULES[rule].method, gradient=RULES[rule].gradient,
        )  # fmt: skip


def digits_error(
    part: Part, data: Samples, net: ResidualMLP, seed: int, *, epochs: int, rate: float
) -> list[float]:
    """Train a perceptron on digits; return what :func:`trained_error` does.

    The gradients of a layer's parameters are of size $1/N$, so their learning rate is ``rate``
    times $N$.
    """
    layers = net.block.steps

    def optimiser(parameters: Iterable[nn.Parameter]) -> Optimizer:
        ends = [*net.stem.parameters(), *net.head.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": ends},
            {"params": net.block.parameters(), "lr": rate * layers},
        ]
        return SGD(groups, lr=rate, momentum=0.9)

    return trained_error(
        part, net.to(data.x_train.device), *splits(data), seed,
        optimiser=optimiser, epochs=epochs, batch_size=64, schedule=step_decay(0.7), clip=1.0,
    )  # fmt: skip


def splits(data: Samples) -> tuple[Split, Split]:
    """Return training samples and test samples, each with their classes."""
    return (data.x_train, data.y_train), (data.x_test, data.y_test)


def trained_error(
    part: Part,
    net: nn.Module,
    train: Split,
    test: Split,
    seed: int,
    *,
    workers: int = 0,
    guessing: float = CHANCE,
    **options: Any,
) -> list[float]:
    """Train a classifier; return its test error, and 1 if its state stopped being finite, else 0.

    Args:
        part: the part of the run that this is.
        net: the classifier.
        train: what to train on.
        test: what to test on.
        seed: seed of the order of the samples.
        workers: processes that read samples.
        guessing: the error of a network whose state stopped being finite.
        **options: further ones of :func:`companion.train.fit`.
    """
    try:
        fit(
            net, classification_loss, train,
            generator=torch.Generator().manual_seed(seed),
            workers=workers,
            parallel=part.parallel,
            snapshot=part.snapshot,
            report=part.report,
            **options,
        )  # fmt: skip
        return [error_rate(net, test, workers=workers), 0.0]
    except NonFiniteError:
        return [guessing, 1.0]


def classification_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of the scores."""
    return cross_entropy(net(x), y)
