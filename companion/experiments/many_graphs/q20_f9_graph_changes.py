"""Q20-F9: which trained networks can be run under another graph?

Queiruga et al. (2020, Fig. 9 and Table 1) train with one scheme and one number of steps, then run
the same weights with others. Euler-trained networks lose accuracy at every other graph; RK4-trained
ones do not. Here the networks are perceptrons on digits, with 8 cells and 8 steps, in both tiers;
``full`` has more seeds. The paper's Euler nets have the factor epsilon = M, its RK4 nets are
refined and have epsilon = 1. Euler at epsilon = 1 and RK4 at
epsilon = M stand beside them here.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from companion.analysis.compression import processor_seconds
from companion.data import Samples, load_digits
from companion.experiments.continuous_digits import (
    CELLS,
    SCHEMES,
    Swaps,
    Table,
    Variant,
    digits_net,
    swap_graphs,
)
from companion.experiments.registry import experiment
from companion.experiments.running import Run
from companion.models import ContinuousMLP
from companion.observe import count_nfe
from companion.results import Claim, Findings

EULER = Variant("euler", scale=CELLS)
EULER_UNIT = Variant("euler")
RK4 = Variant("rk4", scale=CELLS)
REFINED = Variant("rk4", refined=True)

_NEEDED = (2, 8, 9)


@experiment(
    "Q20-F9",
    "Trained perceptrons run with other schemes and other numbers of steps",
    paper="Queiruga et al. 2020, Fig. 9 and Table 1",
    claims=("CL38", "CL39", "CL40", "CL41"),
    full={
        "seeds": 20,
        "steps": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20, 24, 28, 32, 48, 64),
        "timed_steps": (2, 4, 8, 16, 32, 64),
        "repeats": 50,
    },
)
def q20_f9(
    run: Run,
    *,
    seeds: int = 4,
    epochs: int = 30,
    steps: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 24, 32),
    timed_steps: tuple[int, ...] = (2, 4, 8, 16, 32),
    repeats: int = 20,
) -> Findings:
    """Train four variants, run each under every graph, and time the graphs.

    Curves: those of :class:`Swaps` for ``euler_eps8``, ``euler_eps1``, ``rk4_eps8`` and
    ``rk4_eps1_refined``, schemes in the order of ``SCHEMES``; ``timed_steps``, ``nfe`` and
    ``seconds``, the last two of shape ``(schemes, timed_steps)``. Scalars:
    ``mean_trained_VARIANT``, ``mean_limit_VARIANT``, and the line through the times,
    ``seconds_fixed``, ``seconds_per_evaluation``, ``r2``.
    """
    data = load_digits(device=run.device)
    swaps = swap_graphs(
        run, (EULER, EULER_UNIT, RK4, REFINED), seeds, steps, data, _NEEDED, epochs=epochs
    )

    # Times do not depend on the weights, so the network that is timed has not been trained.
    net = digits_net(RK4, run.seed).to(data.x_test)
    times = run.map(lambda part: time_graphs(net, data, timed_steps, repeats), {"times": ()})[
        "times"
    ]
    nfe, seconds = np.array(times["nfe"]), np.array(times["seconds"])
    line = fit_line(nfe.ravel(), seconds.ravel())
    scalars = {**swaps.scalars(), **line}
    curves = {**swaps.curves(), "timed_steps": timed_steps, "nfe": nfe, "seconds": seconds}
    return Findings(scalars, curves, swap_claims(swaps, line["r2"]), data.sha256)


@torch.no_grad()
def time_graphs(
    net: ContinuousMLP, data: Samples, steps: tuple[int, ...], repeats: int
) -> dict[str, Any]:
    """Return ``nfe`` and the least processor ``seconds`` for every scheme and number of steps.

    All graphs take turns, so that a slow moment of the machine does not fall on one of them alone.
    """
    graphs = [[net.with_graph(method=method, steps=n) for n in steps] for method in SCHEMES]
    nfe = [[evaluations(graph, data) for graph in row] for row in graphs]
    rounds = [
        [[processor_seconds(graph, data.x_test) for graph in row] for row in graphs]
        for _ in range(repeats)
    ]
    return {"nfe": nfe, "seconds": np.min(rounds, axis=0).tolist()}


def evaluations(net: nn.Module, data: Samples) -> int:
    """Return the evaluations of the residual in one forward pass over the test samples."""
    with count_nfe(net) as counter:
        net(data.x_test)
    return counter.total


def fit_line(x: Table, y: Table) -> dict[str, float]:
    """Return intercept, slope and share of explained variance of the least-squares line.

    Example:
        >>> line = fit_line(np.array([1.0, 2.0, 3.0]), np.array([3.0, 5.0, 7.0]))
        >>> {name: round(value, 6) for name, value in line.items()}
        {'seconds_fixed': 1.0, 'seconds_per_evaluation': 2.0, 'r2': 1.0}
    """
    slope, intercept = np.polyfit(x, y, 1)
    left = ((y - intercept - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return {
        "seconds_fixed": float(intercept),
        "seconds_per_evaluation": float(slope),
        "r2": float(1 - left),
    }


def swap_claims(swaps: Swaps, r2: float) -> list[Claim]:
    """Decide the claims: deviations and refined nets by the worst seed, the dip by the mean."""
    refined, euler = REFINED.name, EULER.name
    return [
        Claim(
            "CL38",
            "largest change of test error over seeds, RK4-refined net under Euler, 8 steps",
            float(np.abs(swaps.change(refined, "euler", CELLS)).max()),
            high=0.006,
        ),
        Claim(
            "CL38",
            "largest over seeds and all schemes with 2 or more steps",
            swaps.largest_change(refined, least=2),
            high=0.006,
            note="One seed loses 4 of 500 samples under Euler with 3 or 4 steps.",
        ),
        Claim(
            "CL39",
            "largest change of test error over seeds, RK4-refined net from 8 to 2 steps",
            float(np.abs(swaps.change(refined, "rk4", 2)).max()),
            high=0.01,
        ),
        Claim("CL40", "R^2 of the line through time against evaluations", r2, low=0.95),
        Claim(
            "CL41",
            "smallest deviation of logits over seeds, Euler-trained with epsilon = 8",
            float(swaps.limit[euler].min()),
            low=0.25,
        ),
        Claim(
            "CL41",
            "largest over seeds, RK4-trained with epsilon = 8",
            float(swaps.limit[RK4.name].max()),
            high=0.08,
        ),
        Claim(
            "CL41",
            "largest over seeds, RK4-refined with epsilon = 1",
            float(swaps.limit[refined].max()),
            high=0.02,
        ),
        Claim(
            "CL41",
            "mean rise of test error with a ninth step, Euler-trained with epsilon = 8",
            float(swaps.change(euler, "euler", CELLS + 1).mean()),
            low=0.04,
        ),
    ]
