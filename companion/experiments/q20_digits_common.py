"""The perceptron of the digits studies that are continuous in depth, and how it is trained.

Queiruga et al. (2020, Table 1 and Figs. 7 to 11) train convolutional networks on CIFAR-10,
CIFAR-100 and Tiny-ImageNet for hours. The same questions are put here to a
:class:`~companion.models.ContinuousMLP` of 8 cells on scikit-learn's handwritten digits. It trains
in seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from companion.basis import Basis, PiecewiseConstant
from companion.data import Samples
from companion.experiments.running import Part
from companion.experiments.side_by_side_common import fit_side_by_side
from companion.models import ContinuousMLP
from companion.train import Refinement, seeded, step_decay

CELLS = 8
"""Cells and steps of a trained network."""

REFINEMENTS = 3
"""Doublings from one cell and one step to these."""


@dataclass(frozen=True)
class Variant:
    """One way to train the perceptron.

    Attributes:
        method: the scheme it is trained with.
        scale: the factor epsilon of the residual.
        refined: start from one cell and one step, and double both three times.
        skip_init: multiply the residual by a learnt scalar that starts at 0.
        weights: the basis at the end of training.
    """

    method: str
    scale: float = 1.0
    refined: bool = False
    skip_init: bool = False
    weights: Basis = field(default_factory=lambda: PiecewiseConstant(CELLS))

    @property
    def name(self) -> str:
        """A name for scalars and curves, such as ``euler_eps8`` or ``rk4_eps1_refined``."""
        marks = ("_refined" if self.refined else "") + ("_skip" if self.skip_init else "")
        return f"{self.method}_eps{self.scale:g}{marks}"


def digits_net(variant: Variant, seed: int) -> ContinuousMLP:
    """Return the network of a variant before its training, with weights drawn from ``seed``."""
    weights, steps = (PiecewiseConstant(1), 1) if variant.refined else (variant.weights, CELLS)
    with seeded(seed):
        return ContinuousMLP(
            64, 10, weights=weights, method=variant.method, steps=steps, scale=variant.scale,
            skip_init=variant.skip_init,
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
        >>> deviation(torch.tensor([[3.0, 5.0]]), torch.tensor([[3.0, 4.0]]))
        0.2
    """
    return float((scores - reference).norm() / reference.norm())
