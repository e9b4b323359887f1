r"""Q20-F8: are weights smooth in depth because of the integrator, or because of refinement?

Queiruga et al. (2020, Fig. 8) compare the weights of a network trained with RK4 and refinement with
those of one trained with Euler and without. Here both choices vary, on perceptrons of eight cells
that read digits. When neighbouring cells are merged, only smooth weights survive their mean.
"""

from typing import Any

import torch
from torch import Tensor

from companion.analysis.smoothness import total_variation
from companion.basis import PiecewiseConstant
from companion.data import Samples, load_digits
from companion.experiments import Findings, Run, experiment
from companion.experiments import continuous_digits as digits
from companion.experiments.continuous_digits import CELLS, Tables, Variant
from companion.experiments.recipes import error_of
from companion.models import ContinuousMLP
from companion.observe import geometric_mean

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
    full={"seeds": 24},
    tiny={"seeds": 1, "epochs": 3},
    claims=(
        ("CL42", "variation_ratio", 50.0, None,
         "total variation of weights without refinement over that with it, smallest over seeds "
         "and integrators"),
        ("CL42", "grown_over_rk4", 0.5, 2.0,
         "total variation, Euler over RK4, both grown, geometric mean over {seeds} seeds"),
        ("CL42", "free_over_rk4", 0.9, 1.1,
         "total variation, Euler over RK4, full depth and epsilon = 8, geometric mean over {seeds} "
         "seeds"),
        ("CL42", "merged_free", 0.25, None,
         "test error after pairs of cells are merged, scale 8 without refinement, mean over "
         "seeds, smaller of two integrators"),
    ),
)  # fmt: skip
def q20_f8(run: Run, *, seeds: int = 8, epochs: int = 30, rate: float = 0.05) -> Findings:
    """Train every variant from every seed, and merge pairs of cells afterwards.

    Curves, for each variant: ``variation_VARIANT``, ``error_VARIANT`` and ``merged_VARIANT`` of
    shape ``(seeds,)``, the total variation over depth, the test error and that with four cells;
    ``weights_VARIANT`` of shape ``(cells, 8)``, some weights of the first network. Scalars:
    ``mean_variation_VARIANT``, ``mean_error_VARIANT`` and ``mean_merged_VARIANT``.
    """
    data = load_digits(device=run.device, dtype=run.dtype)

    def measure(net: ContinuousMLP) -> dict[str, Any]:
        return {
            "variation": total_variation(net.block),
            "error": digits.net_error(net, data),
            "merged": error_of(_merged(net, data), data.y_test),
            "weights": some_weights(net).tolist(),
        }

    tables = digits.measure_digits(run, VARIANTS, seeds, data, measure, epochs=epochs, rate=rate)
    for row in tables.values():
        row["weights"] = row["weights"][0]
    return Findings(smoothness(tables), digits.named(tables), data=data.provenance)


def smoothness(tables: Tables) -> dict[str, float]:
    """Return means over seeds, and what tells that refinement makes weights smooth."""
    scalars = {
        f"mean_{what}_{name}": float(row[what].mean())
        for name, row in tables.items()
        for what in ("variation", "error", "merged")
    }
    grown = [row["variation"].max() for name, row in tables.items() if name.endswith("refined")]
    free = [row["variation"].min() for name, row in tables.items() if not name.endswith("refined")]
    scalars["variation_ratio"] = float(min(free) / max(grown))
    for what, kind in (("grown", "eps1_refined"), ("free", "eps8")):
        euler, rk4 = (tables[f"{method}_{kind}"]["variation"] for method in ("euler", "rk4"))
        scalars[f"{what}_over_rk4"] = float(geometric_mean(euler / rk4))
    scalars["merged_free"] = min(
        scalars[f"mean_merged_{name}"] for name in tables if name.endswith("eps8")
    )
    return scalars


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
