"""Perceptrons on digits, trained in one company: as many seeds as wanted at little more cost."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion.block import OdeBlock
from companion.data import Samples
from companion.experiments.gradient_rules import (
    RULES,
    Study,
    check_rules,
    digits_error,
    layer_rates,
)
from companion.experiments.grid import Grid, grid
from companion.experiments.recipes import guessing, splits
from companion.experiments.running import Part, Run
from companion.gradients import Reconstruct
from companion.models import Members, ResidualMLP
from companion.models.residual_mlp import residual
from companion.solve import NonFiniteError
from companion.train import error_rate, fit_members, step_decay

Make = Callable[..., ResidualMLP]
"""Makes a net, given the rule, a seed and a point of every other axis by name."""


def train_together(
    run: Run, make: Make, data: Samples, *, rules: Sequence[str], seeds: int,
    needed: Sequence[str], epochs: int, rate: float, **axes: Sequence[Any],
) -> tuple[Grid, Grid]:  # fmt: skip
    """Train a perceptron by every rule, at every point of the axes, from every seed.

    Returns test errors and whether a state diverged, both over the axes ``rule``, those given, and
    ``seed``. A ``ValueError`` names rules as :func:`~gradient_rules.train_all` does.
    """
    check_rules(rules, needed)
    own = run.seeds(seeds)

    def train(part: Part, rule: str, **point: Any) -> list[list[float]]:
        nets = [make(rule=rule, seed=k, **point).to(run.device, run.dtype) for k in own]
        return company_errors(part, data, nets, own, epochs=epochs, rate=rate)

    points: dict[str, Any] = {"rule": rules, **axes}
    found = grid(run, train, **points)
    every = {**found.axes, "seed": tuple(own)}
    return Grid(every, found.values[..., 0]), Grid(every, found.values[..., 1])


def study_together(
    run: Run, make: Make, data: Samples, *, depths: Sequence[int], **options: Any
) -> Study:
    """Return the study of ``train_together`` over rules, depths and seeds."""
    return Study(*train_together(run, make, data, depth=depths, **options))


def company_errors(
    part: Part,
    data: Samples,
    nets: Sequence[ResidualMLP],
    seeds: Sequence[int],
    *,
    epochs: int,
    rate: float,
) -> list[list[float]]:
    """Train perceptrons of one shape and one rule; return for each what ``digits_error`` does.

    The switch of a prediction looks at the norm of all that it is given, which would be that of all
    members: nets that are trained by a prediction go one after another.
    """
    gradient = nets[0].block.gradient
    if isinstance(gradient, Reconstruct) and gradient.rule == "predicted":
        alone = replace(part, snapshot=None)  # one snapshot would not do for several trainings
        each = zip(nets, seeds, strict=True)
        return [digits_error(alone, data, net, k, epochs=epochs, rate=rate) for net, k in each]
    company = DigitsCompany(nets)
    (x, y), test = splits(data)
    history = fit_members(
        company, mean_losses, [values.expand(len(nets), *values.shape) for values in (x, y)],
        optimiser=layer_rates(company, rate, company.block.steps), epochs=epochs, batch_size=64,
        generators=[torch.Generator().manual_seed(k) for k in seeds], schedule=step_decay(0.7),
        clip=1.0,
    )  # fmt: skip
    company.give_back(nets)
    part.keep(company)
    return [
        [guessing(), 1.0] if step is not None else _tested(net, test)
        for net, step in zip(nets, history.stopped, strict=True)
    ]


class DigitsCompany(nn.Module):
    """The perceptrons with the axis of the members first, in stem, block and head.

    Shapes: ``(members, batch, inputs)`` to ``(members, batch, classes)``.
    """

    def __init__(self, nets: Sequence[ResidualMLP]) -> None:
        super().__init__()
        first = nets[0]
        hidden, width = next(first.block.parameters()).shape[1:]
        block = first.block
        self.stem, self.head = Members([n.stem for n in nets]), Members([n.head for n in nets])
        self.block = OdeBlock(
            lambda: Members([residual(width, hidden) for _ in nets]), block.weights.basis,
            method=block.method, steps=block.steps, gradient=block.gradient, scale=block.scale,
        ).to(next(first.parameters()))  # fmt: skip
        with torch.no_grad():
            for own, theirs in self._blocks(nets):
                own.copy_(torch.stack(theirs, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return every member's scores."""
        scores: Tensor = self.head(self.block(self.stem(x)))
        return scores

    @torch.no_grad()
    def give_back(self, nets: Sequence[ResidualMLP]) -> None:
        """Write the members' values into the nets they were made of."""
        for own, theirs in self._blocks(nets):
            for k, value in enumerate(theirs):
                value.copy_(own[:, k])
        for k, net in enumerate(nets):
            net.stem.load_state_dict(self.stem.member(k).state_dict())
            net.head.load_state_dict(self.head.member(k).state_dict())

    def _blocks(self, nets: Sequence[ResidualMLP]) -> Any:
        every = zip(*(net.block.parameters() for net in nets), strict=True)
        return zip(self.block.parameters(), every, strict=True)


def mean_losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return every member's mean cross-entropy."""
    return cross_entropy(model(x).mT, y, reduction="none").mean(1)


def _tested(net: ResidualMLP, test: tuple[Tensor, Tensor]) -> list[float]:
    try:
        return [error_rate(net, test), 0.0]
    except NonFiniteError:
        return [guessing(), 1.0]


def mean_excess(errors: Grid, rule: str, **point: Any) -> float:
    """Return the mean over seeds of the test error minus that of the rule's reference."""
    return float(np.mean(paired_excess(errors, rule, RULES[rule].reference, **point)))


def paired_excess(errors: Grid, rule: str, reference: str, **point: Any) -> Any:
    """Return for every seed the test error by one rule minus that by another."""
    return errors.at(rule=rule, **point).values - errors.at(rule=reference, **point).values
