r"""Q20-F8: are weights smooth in depth because of the integrator, or because of refinement?

Queiruga et al. (2020, Fig. 8) compare the weights of a network trained with RK4 and refinement with
those of one trained with Euler and without. Here both choices vary, on perceptrons of eight cells
that read scikit-learn's digits, in both tiers: ``full`` has more seeds. Whether weights are smooth
also shows when neighbouring cells are merged: only smooth weights survive their mean.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.analysis.smoothness import total_variation
from companion.basis import PiecewiseConstant
from companion.data import Samples, load_digits
from companion.experiments.continuous_digits import (
    CELLS,
    Variant,
    error_of,
    logits,
    train_digits,
)
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import ContinuousMLP
from companion.results import Claim, Findings

VARIANTS = (
    Variant("euler", scale=8.0),
    Variant("euler"),
    Variant("rk4", scale=8.0),
    Variant("rk4", refined=True),
    Variant("euler", refined=True),
)


@experiment(
    "Q20-F8",
    "How much trained weights vary with depth, with and without refinement, on digits",
    paper="Queiruga et al. 2020, Fig. 8",
    claims=("CL42",),
    full={"seeds": 24},
)
def q20_f8(run: Run, *, seeds: int = 4, epochs: int = 30, rate: float = 0.05) -> Findings:
    """Train every variant from every seed, and merge pairs of cells afterwards.

    Curves, for each variant: ``variation_VARIANT``, ``error_VARIANT`` and ``merged_VARIANT`` of
    shape ``(seeds,)``, the total variation over depth, the test error and that with four cells;
    ``weights_VARIANT`` of shape ``(cells, 8)``, some weights of the first network. Scalars:
    ``mean_variation_VARIANT``, ``mean_error_VARIANT``, ``mean_merged_VARIANT``.
    """
    data = load_digits(device=run.device)
    numbers = [run.seed + seed for seed in range(seeds)]

    def train(part: Part, variant: Variant) -> dict[str, list[Any]]:
        nets = train_digits(part, variant, numbers, data, epochs=epochs, rate=rate)
        return {
            "variation": [total_variation(net.block) for net in nets],
            "error": [error_of(logits(net, data), data) for net in nets],
            "merged": [error_of(_merged(net, data), data) for net in nets],
            "weights": some_weights(nets[0]).tolist(),
        }

    found = run.map(train, {variant.name: (variant,) for variant in VARIANTS})
    curves = {f"{what}_{name}": row[what] for name, row in found.items() for what in row}
    scalars = {
        f"mean_{what}_{name}": np.mean(row[what])
        for name, row in found.items()
        for what in ("variation", "error", "merged")
    }
    return Findings(scalars, curves, _claims(found), data.provenance)


def some_weights(net: ContinuousMLP) -> Tensor:
    """Return eight entries of the block's last matrix at every cell, shape ``(cells, 8)``."""
    *_, matrix = (p for p in net.block.parameters() if p.ndim == 3)
    return matrix.detach().flatten(1)[:, :: matrix[0].numel() // 8]


@torch.no_grad()
def _merged(net: ContinuousMLP, data: Samples) -> Tensor:
    """Return the scores with the mean of every two cells in their place, under the same graph."""
    block = net.block.project(PiecewiseConstant(CELLS // 2))
    scores: Tensor = net.head(block(net.stem(data.x_test)))
    return scores


def _claims(found: dict[str, dict[str, list[Any]]]) -> list[Claim]:
    """Decide that refinement makes weights smooth, whatever the integrator."""
    free = [row["variation"] for name, row in found.items() if not name.endswith("refined")]
    grown = [row["variation"] for name, row in found.items() if name.endswith("refined")]
    scaled = [np.mean(row["merged"]) for name, row in found.items() if name.endswith("eps8")]
    return [
        Claim(
            "CL42",
            "total variation of weights without refinement over that with it, smallest over "
            "seeds and integrators",
            float(np.min(free) / np.max(grown)),
            low=10.0,
            note="smoothness comes from refinement, with either integrator; RK4 alone does not "
            "make weights smooth",
        ),
        Claim(
            "CL42",
            "test error after pairs of cells are merged, scale 8 without refinement, mean over "
            "seeds, smaller of two integrators",
            float(min(scaled)),
            low=0.25,
        ),
    ]
