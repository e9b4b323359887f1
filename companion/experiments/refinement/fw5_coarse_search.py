r"""FW5: can hyper-parameters be searched on a coarse net and used on a fine one?

A net that is continuous in depth solves the same equation at one step and at eight, so a learning
rate that suits one should suit the other. A classic residual network gets another size of residual
with every depth. The ranks of test losses over rates and weight decays are compared.
"""

from typing import Any

import numpy as np
from scipy.stats import spearmanr
from torch.nn.functional import cross_entropy

from companion.basis import PiecewiseConstant
from companion.data import load_digits
from companion.experiments import Findings, Part, Run, experiment, grid
from companion.experiments.continuous_digits import Table, Variant, digits_net
from companion.experiments.recipes import digits_recipe, scores
from companion.experiments.side_by_side import fit_side_by_side
from companion.solve import NonFiniteError

FAMILIES = ("continuous", "resnet")
"""RK4 with the residual times 1, and Euler with the residual times the number of layers."""

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


@experiment(
    "FW5",
    "Learning rates and weight decays, ranked on coarse nets and on fine ones",
    paper="none; Queiruga et al. 2020, section 6, names coarse nets for the search",
    full={"depths": (1, 2, 4, 8, 16), "decays": (0.0, 5e-4, 5e-3), "seeds": 16, "epochs": 10},
    tiny={"depths": (1, 2), "decays": (0.0,), "seeds": 2, "epochs": 1},
    claims=tuple(
        ("FW5", f"rank_{family}_{{depths[0]}}", low, high,
         f"rank correlation of test losses, {{depths[0]}} and {{depths[-1]}} layers, {net}")
        for family, low, high, net in (
            ("continuous", 0.7, None, "RK4 net"), ("resnet", None, 0.5, "classic ResNet"),
        )
    ),
)  # fmt: skip
def fw5(
    run: Run, *, depths: tuple[int, ...] = (1, 2, 8), decays: tuple[float, ...] = (0.0, 5e-3),
    seeds: int = 8, epochs: int = 5,
) -> Findings:  # fmt: skip
    """Train both families at every depth on the whole grid, all seeds of a cell side by side.

    Curves: ``depths``, ``rates``, ``decays``; for each family ``loss_FAMILY``, test losses of shape
    (depths, rates, decays, seeds), infinite where training diverged, and ``rank_FAMILY`` of shape
    (depths, seeds), Spearman's correlation of each depth's losses over the grid with those of the
    deepest net. Scalars: ``rank_FAMILY_DEPTH``, means over seeds; ``same_best_FAMILY``, the number
    of seeds whose best cell of the grid is the same at all depths.
    """
    data = load_digits(device=run.device, dtype=run.dtype)
    own = run.seeds(seeds)

    def losses(part: Part, family: str, layers: int, rate: float, decay: float) -> list[float]:
        nets = [digits_net(variant(family, layers), k, run.dtype).to(run.device) for k in own]
        recipe = digits_recipe(epochs, rate, decay) | {"schedule": None}
        try:
            fit_side_by_side(
                nets, data.x_train, data.y_train, own,
                snapshot=part.snapshot, report=part.report, **recipe,
            )  # fmt: skip
        except NonFiniteError:
            return [float("inf")] * seeds
        for net, seed in zip(nets, own, strict=True):
            part.keep(net, f"seed {seed}")
        found = [float(cross_entropy(scores(net, data.x_test), data.y_test)) for net in nets]
        return found if np.isfinite(found).all() else [float("inf")] * seeds

    table = grid(run, losses, family=FAMILIES, layers=depths, rate=RATES, decay=decays)
    curves: dict[str, Any] = {"depths": depths, "rates": RATES, "decays": decays}
    scalars: dict[str, float] = {}
    for family in FAMILIES:
        values = table.at(family=family).values
        ranks = rank_correlations(values)
        curves |= {f"loss_{family}": values, f"rank_{family}": ranks}
        for depth, row in zip(depths, ranks, strict=True):
            scalars[f"rank_{family}_{depth}"] = float(row.mean())
        best = values.reshape(len(depths), -1, seeds).argmin(axis=1)
        scalars[f"same_best_{family}"] = int((best == best[0]).all(axis=0).sum())
    return Findings(scalars, curves, data=data.sha256)


def rank_correlations(losses: Table) -> Table:
    """Return Spearman's correlation of each depth's losses with the deepest net's, by seed."""
    flat = losses.reshape(len(losses), -1, losses.shape[-1])
    pairs = [[(row[:, k], flat[-1][:, k]) for k in range(flat.shape[-1])] for row in flat]
    return np.array([[spearmanr(one, deepest)[0] for one, deepest in row] for row in pairs])


def variant(family: str, depth: int) -> Variant:
    """Return how a net of a family and a depth is made."""
    method, scale = ("rk4", 1.0) if family == "continuous" else ("euler", float(depth))
    return Variant(method, scale, weights=PiecewiseConstant(depth), steps=depth)
