r"""FW5: can hyper-parameters be searched on a coarse net and used on a fine one?

A net that is continuous in depth solves the same equation at one step and at eight, so a learning
rate that suits one should suit the other. A classic residual network gets another size of residual
with every depth. Both are trained on a grid of rates and weight decays at several depths, and the
ranks of the test losses are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch.nn.functional import cross_entropy

from companion.basis import PiecewiseConstant
from companion.data import Samples, load_digits
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.experiments.side_by_side import fit_side_by_side
from companion.models import ContinuousMLP
from companion.results import Claim, Findings
from companion.solve import NonFiniteError
from companion.train import seeded

FAMILIES = ("continuous", "resnet")
"""RK4 with the residual times 1, and Euler with the residual times the number of layers."""

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)

Table = NDArray[np.float64]


@experiment(
    "FW5",
    "Learning rates and weight decays, ranked on coarse nets and on fine ones",
    paper="none; Queiruga et al. 2020, section 6, names coarse nets for the search",
    claims=("FW5",),
    full={"depths": (1, 2, 4, 8, 16), "decays": (0.0, 5e-4, 5e-3), "seeds": 6, "epochs": 10},
)
def fw5(
    run: Run,
    *,
    depths: tuple[int, ...] = (1, 2, 8),
    decays: tuple[float, ...] = (0.0, 5e-3),
    seeds: int = 3,
    epochs: int = 5,
) -> Findings:
    """Train both families at every depth on the whole grid, all seeds of a cell side by side.

    Curves: ``depths``, ``rates``, ``decays``; for each family ``loss_FAMILY``, test losses of shape
    (depths, rates, decays, seeds), infinite where training diverged, and ``rank_FAMILY`` of shape
    (depths, seeds), Spearman's correlation of each depth's losses over the grid with those of the
    deepest net. Scalars: ``rank_FAMILY_DEPTH``, means over seeds; ``same_best_FAMILY``, the number
    of seeds whose best cell of the grid is the same at all depths.
    """
    data = load_digits(device=run.device)

    def train(part: Part, family: str, depth: int, rate: float, decay: float) -> list[float]:
        own = range(run.seed, run.seed + seeds)
        return _losses(part, family, depth, rate, decay, own, epochs, data)

    parts = {
        f"{family}, {depth} layers, rate {rate:g}, decay {decay:g}": (family, depth, rate, decay)
        for family in FAMILIES
        for depth in depths
        for rate in RATES
        for decay in decays
    }
    table = np.array(list(run.map(train, parts).values()))
    table = table.reshape(len(FAMILIES), len(depths), len(RATES), len(decays), seeds)
    curves: dict[str, Any] = {"depths": depths, "rates": RATES, "decays": decays}
    scalars: dict[str, float] = {}
    for family, losses in zip(FAMILIES, table, strict=True):
        ranks = rank_correlations(losses)
        curves |= {f"loss_{family}": losses, f"rank_{family}": ranks}
        for depth, row in zip(depths, ranks, strict=True):
            scalars[f"rank_{family}_{depth}"] = float(row.mean())
        best = losses.reshape(len(depths), -1, seeds).argmin(axis=1)
        scalars[f"same_best_{family}"] = int((best == best[0]).all(axis=0).sum())
    return Findings(scalars, curves, _claims(scalars, depths), data.sha256)


def rank_correlations(losses: Table) -> Table:
    """Return Spearman's correlation of each depth's losses with the deepest net's, by seed.

    Shapes:
        ``(depths, rates, decays, seeds)`` to ``(depths, seeds)``.
    """
    flat = losses.reshape(len(losses), -1, losses.shape[-1])
    return np.array(
        [
            [spearmanr(row[:, seed], flat[-1][:, seed])[0] for seed in range(losses.shape[-1])]
            for row in flat
        ]
    )


def _losses(
    part: Part,
    family: str,
    depth: int,
    rate: float,
    decay: float,
    seeds: range,
    epochs: int,
    data: Samples,
) -> list[float]:
    """Train one net from each seed and return the test losses."""
    nets = [_net(family, depth, seed).to(data.x_train) for seed in seeds]
    try:
        fit_side_by_side(
            nets, data.x_train, data.y_train, seeds,
            optimiser=lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9, weight_decay=decay),
            clip=2.0, epochs=epochs, batch_size=64, snapshot=part.snapshot, report=part.report,
        )  # fmt: skip
        with torch.no_grad():
            return [float(cross_entropy(net(data.x_test), data.y_test)) for net in nets]
    except NonFiniteError:
        return [float("inf")] * len(nets)


def _net(family: str, depth: int, seed: int) -> ContinuousMLP:
    method, scale = ("rk4", 1.0) if family == "continuous" else ("euler", float(depth))
    weights = PiecewiseConstant(depth)
    with seeded(seed):
        return ContinuousMLP(64, 10, basis=weights, method=method, steps=depth, scale=scale)


def _claims(scalars: dict[str, float], depths: tuple[int, ...]) -> list[Claim]:
    shallow, deep = depths[0], depths[-1]
    text = f"rank correlation of test losses, {shallow} and {deep} layers"
    return [
        Claim("FW5", f"{text}, RK4 net", scalars[f"rank_continuous_{shallow}"], low=0.7),
        Claim("FW5", f"{text}, classic ResNet", scalars[f"rank_resnet_{shallow}"], high=0.5),
    ]
