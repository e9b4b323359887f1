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
from companion.experiments.recipes import deviation, digits_recipe, error_of
from companion.experiments.running import Part, Run
from companion.experiments.side_by_side import fit_side_by_side
from companion.models import ContinuousMLP
from companion.train import Refinement, seeded

CELLS = 8
"""Cells and steps of a trained network."""

REFINEMENTS = 3
"""Doublings from one cell and one step to these."""

SCHEMES = ("euler", "midpoint", "rk4", "rk4_38")
"""The schemes that trained networks are run with."""

LIMIT = ("rk4", 32)
"""The graph that stands for the differential equation itself."""

STEPS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 24, 32)
"""The numbers of steps that trained networks are run with."""

MORE_STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20, 24, 28, 32, 48, 64)
"""Those of the tier ``full``."""

Table = NDArray[np.float64]

Tables = dict[str, dict[str, Table]]
"""For each variant its numbers by name, each with one row a seed."""


@dataclass(frozen=True)
class Variant:
    """One way to train the perceptron.

    ``scale`` is the factor epsilon of the residual. A ``refined`` network starts from one cell and
    one step and doubles both three times; another has the basis ``weights`` and ``steps``. With
    ``skip_init`` a learnt scalar that starts at 0 multiplies the residual, which is inside twice as
    wide as the state.
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


def digits_net(variant: Variant, seed: int, dtype: torch.dtype = torch.float32) -> ContinuousMLP:
    """Return the network of a variant before its training, with weights drawn from ``seed``."""
    weights, steps = variant.weights, variant.steps
    if variant.refined:
        weights, steps = PiecewiseConstant(1), 1
    with seeded(seed, dtype=dtype):
        return ContinuousMLP(
            64, 10, width=variant.width, hidden=2 * variant.width, basis=weights,
            method=variant.method, steps=steps, scale=variant.scale, skip_init=variant.skip_init,
        )  # fmt: skip


def digits_options(
    variant: Variant, *, epochs: int = 30, rate: float = 0.05, decay: float = 5e-4
) -> dict[str, Any]:
    """Return the recipe of a variant, an option of :func:`companion.train.fit` each.

    Refinements come after 1/5, 2/5 and 3/5 of the epochs, the rate falls to a tenth after 2/3 and
    13/15: with 30 epochs, after 6, 12, 18, and after 20 and 26. Fewer epochs than 5 refine after
    each, and end with fewer cells if they are fewer than 4.
    """
    at = tuple(max(k, round(epochs * k / 5)) for k in range(1, REFINEMENTS + 1))
    refinement = Refinement(at=at) if variant.refined else None
    return digits_recipe(epochs, rate, decay) | {"refinement": refinement}


def train_digits(
    part: Part, variant: Variant, seeds: Sequence[int], data: Samples, **options: Any
) -> list[ContinuousMLP]:
    """Train a network of a variant from every seed, all side by side, and return them.

    The ``options`` are those of :func:`digits_options`.
    """
    x = data.x_train
    nets = [digits_net(variant, seed, x.dtype).to(x.device) for seed in seeds]
    fit_side_by_side(
        nets, x, data.y_train, seeds,
        snapshot=part.snapshot, report=part.report, **digits_options(variant, **options),
    )  # fmt: skip
    for net, seed in zip(nets, seeds, strict=True):
        part.keep(net, f"seed {seed}")
    return nets


def measure_digits(
    run: Run,
    variants: Sequence[Variant],
    count: int,
    data: Samples,
    measure: Callable[[ContinuousMLP], Mapping[str, Any]],
    **options: Any,
) -> Tables:
    """Train every variant from every seed, one variant a part; return what ``measure`` says.

    It is called with a trained network, and returns numbers or nested lists of them by name.
    """

    def train(part: Part, variant: Variant) -> list[Any]:
        nets = train_digits(part, variant, run.seeds(count), data, **options)
        return [measure(net) for net in nets]

    found = run.map(train, {variant.name: (variant,) for variant in variants})
    return {name: by_seed(rows) for name, rows in found.items()}


def by_seed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Table]:
    """Return what was found from every seed, each number in an array with one row a seed.

    Example:
        >>> by_seed([{"error": 0.1}, {"error": 0.2}])
        {'error': array([0.1, 0.2])}
    """
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def named(tables: Tables) -> dict[str, Table]:
    """Return every table of every variant, called ``NAME_VARIANT``.

    Example:
        >>> sorted(named({"euler": {"error": np.zeros(2), "limit": np.ones(2)}}))
        ['error_euler', 'limit_euler']
    """
    return {f"{what}_{name}": table for name, row in tables.items() for what, table in row.items()}


@dataclass(frozen=True)
class Swaps:
    """Trained networks run under other graphs than their own.

    The tables of a variant: ``trained``, the test errors under its own graph, and ``limit``, the
    distance of the scores under :data:`LIMIT` from those, both of shape ``(seeds,)``; ``error`` and
    ``deviation``, both under other graphs, of shape ``(seeds, schemes, steps)``.
    """

    steps: tuple[int, ...]
    tables: Tables

    def change(self, variant: str, method: str, steps: int) -> Table:
        """Return by how much the error rises under a graph, for every seed."""
        return self._changes(variant)[:, SCHEMES.index(method), self.steps.index(steps)]

    def largest_change(self, variant: str, least: int) -> float:
        """Return the largest change of the error over seeds, schemes and steps from ``least``."""
        finer = [k for k, steps in enumerate(self.steps) if steps >= least]
        return float(np.abs(self._changes(variant)[:, :, finer]).max())

    def limit(self, variant: str) -> Table:
        """Return the distance of the scores under :data:`LIMIT` from the own, for every seed."""
        return self.tables[variant]["limit"]

    def _changes(self, variant: str) -> Table:
        # Errors count samples: unrounded, a change of three could exceed a bound of three.
        own = self.tables[variant]
        return np.round(own["error"] - own["trained"][:, None, None], 12)

    def scalars(self) -> dict[str, float]:
        """Return ``mean_trained_VARIANT`` and ``mean_limit_VARIANT``, means over seeds."""
        return {
            f"mean_{what}_{name}": float(table[what].mean())
            for name, table in self.tables.items()
            for what in ("trained", "limit")
        }

    def curves(self) -> dict[str, Any]:
        """Return ``steps``, and ``{trained, limit, error, deviation}_VARIANT``, the tables."""
        return {"steps": self.steps, **named(self.tables)}


def swap_graphs(
    run: Run,
    variants: Sequence[Variant],
    count: int,
    steps: tuple[int, ...],
    data: Samples,
    needed: Sequence[int] = (),
    **options: Any,
) -> Swaps:
    """Train every variant and run it with every scheme and number of steps.

    A ``ValueError`` names the numbers that are ``needed`` for claims and missing in ``steps``.
    """
    if missing := [n for n in needed if n not in steps]:
        raise ValueError(f"steps: {steps} is not allowed; it must include {missing}")
    tables = measure_digits(
        run, variants, count, data, lambda net: swap_table(net, data, steps), **options
    )
    return Swaps(steps, tables)


def swap_table(net: ContinuousMLP, data: Samples, steps: Sequence[int]) -> dict[str, Any]:
    """Return ``trained``, ``limit``, and the tables ``error`` and ``deviation`` of one network."""
    own = logits(net, data)
    graphs = [[logits(net, data, method, n) for n in steps] for method in SCHEMES]
    return {
        "trained": error_of(own, data.y_test),
        "limit": deviation(logits(net, data, *LIMIT), own),
        "error": [[error_of(scores, data.y_test) for scores in row] for row in graphs],
        "deviation": [[deviation(scores, own) for scores in row] for row in graphs],
    }


@torch.no_grad()
def logits(
    net: ContinuousMLP, data: Samples, method: str | None = None, steps: int | None = None
) -> Tensor:
    """Return the scores of the test samples, by default under the graph of the training."""
    scores: Tensor = net.with_graph(method=method, steps=steps)(data.x_test)
    return scores


def net_error(net: ContinuousMLP, data: Samples) -> float:
    """Return the share of test samples that a network gets wrong, under its own graph."""
    return error_of(logits(net, data), data.y_test)
