"""The perceptron of the digits studies that are continuous in depth: training, other graphs.

Queiruga et al. (2020, Table 1 and Figs. 7 to 11) train convolutional networks on CIFAR-10,
CIFAR-100 and Tiny-ImageNet for hours. The same questions are put here to a
:class:`~companion.models.ContinuousMLP` of 8 cells on scikit-learn's handwritten digits. It trains
in seconds, and all seeds of a variant train side by side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.basis import Basis, PiecewiseConstant
from companion.data import Samples
from companion.experiments.running import Part, Run
from companion.experiments.side_by_side import fit_side_by_side
from companion.models import ContinuousMLP
from companion.train import Refinement, seeded, step_decay

CELLS = 8
"""Cells and steps of a trained network."""

REFINEMENTS = 3
"""Doublings from one cell and one step to these."""

SCHEMES = ("euler", "midpoint", "rk4", "rk4_38")
"""The schemes that trained networks are run with."""

LIMIT = ("rk4", 32)
"""The graph that stands for the differential equation itself."""

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Variant:
    """One way to train the perceptron.

    Attributes:
        method: the scheme it is trained with.
        scale: the factor epsilon of the residual.
        refined: start from one cell and one step, and double both three times.
        skip_init: multiply the residual by a learnt scalar that starts at 0.
        weights: the basis of a network that is not refined.
        steps: its steps.
        width: size of the state; half the size inside the residual.
    """

    method: str
    scale: float = 1.0
    refined: bool = False
    skip_init: bool = False
    weights: Basis = PiecewiseConstant(CELLS)  # noqa: RUF009 - frozen
    steps: int = CELLS
    width: int = 16

    @property
    def name(self) -> str:
        """A name for scalars and curves, such as ``euler_eps8`` or ``rk4_eps1_refined``."""
        marks = ("_refined" if self.refined else "") + ("_skip" if self.skip_init else "")
        deep = "" if self.steps == CELLS else f"_deep{self.steps}"
        return f"{self.method}_eps{self.scale:g}{marks}{deep}"


def digits_net(variant: Variant, seed: int) -> ContinuousMLP:
    """Return the network of a variant before its training, with weights drawn from ``seed``."""
    weights, steps = variant.weights, variant.steps
    if variant.refined:
        weights, steps = PiecewiseConstant(1), 1
    with seeded(seed):
        return ContinuousMLP(
            64, 10, width=variant.width, hidden=2 * variant.width, basis=weights,
            method=variant.method, steps=steps, scale=variant.scale, skip_init=variant.skip_init,
        )  # fmt: skip


def digits_options(
    variant: Variant, *, epochs: int = 30, rate: float = 0.05, decay: float = 5e-4
) -> dict[str, Any]:
    """Return the options of :func:`companion.train.fit`: all but data, generator and bookkeeping.

    Refinements come after 1/5, 2/5 and 3/5 of the epochs, the rate falls to a tenth after 2/3 and
    13/15: with 30 epochs, after 6, 12, 18, and after 20 and 26.
    """
    at = tuple(round(epochs * (k + 1) / 5) for k in range(REFINEMENTS))
    return {
        "optimiser": lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9, weight_decay=decay),
        "epochs": epochs,
        "batch_size": 64,
        "schedule": step_decay(2 / 3, 13 / 15),
        "clip": 2.0,
        "refinement": Refinement(at=at) if variant.refined else None,
    }


def train_digits(
    part: Part, variant: Variant, seeds: Sequence[int], data: Samples, **options: Any
) -> list[ContinuousMLP]:
    """Train a network of a variant from every seed, all side by side, and return them.

    Args:
        part: the part of the run that this is.
        variant: how to train.
        seeds: seeds of the initial weights and of the order of the samples.
        data: the digits.
        **options: of :func:`digits_options`.
    """
    nets = [digits_net(variant, seed).to(data.x_train) for seed in seeds]
    fit_side_by_side(
        nets, data.x_train, data.y_train, seeds,
        snapshot=part.snapshot, report=part.report, **digits_options(variant, **options),
    )  # fmt: skip
    return nets


def measure_digits(
    run: Run,
    variants: Sequence[Variant],
    seeds: int,
    data: Samples,
    measure: Callable[[ContinuousMLP], Any],
    **options: Any,
) -> dict[str, list[Any]]:
    """Train every variant from every seed; return what ``measure`` says, one entry a seed.

    Args:
        run: the run; a variant is one part of it.
        variants: what to train.
        seeds: number of seeds.
        data: the digits.
        measure: called with a trained network; returns numbers, in nested lists and dicts if need
            be.
        **options: of :func:`digits_options`.
    """

    def train(part: Part, variant: Variant) -> list[Any]:
        own = range(run.seed, run.seed + seeds)
        return [measure(net) for net in train_digits(part, variant, own, data, **options)]

    return run.map(train, {variant.name: (variant,) for variant in variants})


@dataclass(frozen=True)
class Swaps:
    """Trained networks run under other graphs than their own.

    Attributes:
        steps: numbers of steps.
        trained: for each variant the test errors under its own graph, shape ``(seeds,)``.
        errors: for each variant those under other graphs, shape ``(seeds, schemes, steps)``.
        deviations: the distance of their scores from those of the own graph; same shape.
        limit: the distance of the scores under :data:`LIMIT`, shape ``(seeds,)``.
    """

    steps: tuple[int, ...]
    trained: Mapping[str, Table]
    errors: Mapping[str, Table]
    deviations: Mapping[str, Table]
    limit: Mapping[str, Table]

    def change(self, variant: str, method: str, steps: int) -> Table:
        """Return by how much the error rises under a graph, for every seed."""
        place = (slice(None), SCHEMES.index(method), self.steps.index(steps))
        return self._changes(variant)[place]

    def largest_change(self, variant: str, least: int) -> float:
        """Return the largest change of the error over seeds, schemes and steps from ``least``."""
        finer = [k for k, steps in enumerate(self.steps) if steps >= least]
        return float(np.abs(self._changes(variant)[:, :, finer]).max())

    def _changes(self, variant: str) -> Table:
        # Errors count samples: unrounded, a change of three could exceed a bound of three.
        changes = self.errors[variant] - self.trained[variant][:, None, None]
        return np.round(changes, 12)

    def scalars(self) -> dict[str, float]:
        """Return ``mean_trained_VARIANT`` and ``mean_limit_VARIANT``, means over seeds."""
        tables = {"trained": self.trained, "limit": self.limit}
        return {
            f"mean_{key}_{name}": float(values.mean())
            for key, table in tables.items()
            for name, values in table.items()
        }

    def curves(self) -> dict[str, Any]:
        """Return ``steps``, and ``{trained, limit, error, deviation}_VARIANT``, the tables."""
        tables = {"trained": self.trained, "limit": self.limit}
        tables |= {"error": self.errors, "deviation": self.deviations}
        named = {f"{k}_{name}": v for k, table in tables.items() for name, v in table.items()}
        return {"steps": self.steps, **named}


def swap_graphs(
    run: Run,
    variants: Sequence[Variant],
    seeds: int,
    steps: tuple[int, ...],
    data: Samples,
    needed: Sequence[int] = (),
    **options: Any,
) -> Swaps:
    """Train every variant and run it with every scheme and number of steps.

    Args:
        run: the run.
        variants: what to train.
        seeds: number of seeds.
        steps: numbers of steps.
        data: the digits.
        needed: numbers of steps that the claims are about.
        **options: of :func:`digits_options`.

    Raises:
        ValueError: ``steps`` without one that is needed.
    """
    if missing := [n for n in needed if n not in steps]:
        raise ValueError(f"steps must include {missing}; got {steps}")
    found = measure_digits(
        run, variants, seeds, data, lambda net: swap_table(net, data, steps), **options
    )

    def table(key: str) -> dict[str, Table]:
        return {name: np.array([one[key] for one in rows]) for name, rows in found.items()}

    return Swaps(steps, table("trained"), table("error"), table("deviation"), table("limit"))


def swap_table(net: ContinuousMLP, data: Samples, steps: Sequence[int]) -> dict[str, Any]:
    """Return ``trained``, ``limit``, and the tables ``error`` and ``deviation`` of one network."""
    own = logits(net, data)
    graphs = [[logits(net, data, method, n) for n in steps] for method in SCHEMES]
    return {
        "trained": error_of(own, data),
        "limit": deviation(logits(net, data, *LIMIT), own),
        "error": [[error_of(scores, data) for scores in row] for row in graphs],
        "deviation": [[deviation(scores, own) for scores in row] for row in graphs],
    }


@torch.no_grad()
def logits(
    net: ContinuousMLP, data: Samples, method: str | None = None, steps: int | None = None
) -> Tensor:
    """Return the scores of the test samples, by default under the graph of the training."""
    scores: Tensor = net.with_graph(method=method, steps=steps)(data.x_test)
    return scores


def error_of(scores: Tensor, data: Samples) -> float:
    """Return the share of test samples whose class does not score highest."""
    return (scores.argmax(1) != data.y_test).double().mean().item()


def deviation(scores: Tensor, reference: Tensor) -> float:
    r"""Return $\lVert\ell - \ell_0\rVert / \lVert\ell_0\rVert$ over all samples and classes.

    Example:
        >>> round(deviation(torch.tensor([[3.0, 5.0]]), torch.tensor([[3.0, 4.0]])), 6)
        0.2
    """
    return float((scores - reference).norm() / reference.norm())
