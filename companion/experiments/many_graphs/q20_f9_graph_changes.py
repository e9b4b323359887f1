"""Q20-F9: which trained networks can be run under another graph?

Queiruga et al. (2020, Fig. 9 and Table 1) train with one scheme and one number of steps, then run
the same weights with others. Euler-trained networks lose accuracy at every other graph; RK4-trained
ones do not. Here the networks are perceptrons on digits, with 8 cells and 8 steps. The paper's
Euler nets have the factor epsilon = M, its RK4 nets are refined and have epsilon = 1. Euler at
epsilon = 1 and RK4 at epsilon = M stand beside them here.
"""

from functools import partial
from typing import Any

import numpy as np
import torch

from companion.data import Samples, load_digits
from companion.experiments import Findings, Part, Run, experiment
from companion.experiments import continuous_digits as digits
from companion.experiments.continuous_digits import CELLS, MORE_STEPS, SCHEMES, STEPS, Variant
from companion.experiments.recipes import shortest
from companion.models import ContinuousMLP
from companion.observe import count_nfe, fit_line

EULER = Variant("euler", scale=CELLS)
EULER_UNIT = Variant("euler")
RK4 = Variant("rk4", scale=CELLS)
REFINED = Variant("rk4", refined=True)


@experiment(
    "Q20-F9",
    "Trained perceptrons run with other schemes and other numbers of steps",
    paper="Queiruga et al. 2020, Fig. 9 and Table 1",
    full={
        "seeds": 20, "steps": MORE_STEPS, "timed_steps": (2, 4, 8, 16, 32, 64), "repeats": 50,
    },
    tiny={"seeds": 2, "epochs": 2, "steps": (2, 8, 9), "timed_steps": (2, 4), "repeats": 1},
    machine_dependent=("seconds", "seconds_fixed", "seconds_per_evaluation", "r2"),
    claims=(
        ("CL38", "change_euler", None, 0.006,
         "largest change of test error over seeds, RK4-refined net under Euler, 8 steps"),
        ("CL38", "change_any", None, 0.006,
         "largest over seeds and all schemes with 2 or more steps"),
        ("CL39", "change_quarter", None, 0.01,
         "largest change of test error over seeds, RK4-refined net from 8 to 2 steps"),
        ("CL40", "r2", 0.95, None, "R^2 of the line through time against evaluations"),
        ("CL41", "least_limit_euler", 0.25, None,
         "smallest deviation of logits over seeds, Euler-trained with epsilon = 8"),
        ("CL41", "most_limit_rk4", None, 0.08,
         "largest over seeds, RK4-trained with epsilon = 8"),
        ("CL41", "most_limit_refined", None, 0.02,
         "largest over seeds, RK4-refined with epsilon = 1"),
        ("CL41", "ninth_step", 0.04, None,
         "mean rise of test error with a ninth step, Euler-trained with epsilon = 8"),
    ),
)  # fmt: skip
def q20_f9(
    run: Run, *, seeds: int = 5, epochs: int = 30, steps: tuple[int, ...] = STEPS,
    timed_steps: tuple[int, ...] = (2, 4, 8, 16, 32), repeats: int = 20,
) -> Findings:  # fmt: skip
    """Train four variants, run each under every graph, and time the graphs.

    Curves: those of :class:`~companion.experiments.continuous_digits.Swaps`; ``timed_steps``,
    ``nfe`` and ``seconds``, the last two of shape ``(schemes, timed_steps)``. Scalars: those of it,
    and the line through the times, ``seconds_fixed``, ``seconds_per_evaluation``, ``r2``.
    """
    data = load_digits(device=run.device, dtype=run.dtype)
    variants = (EULER, EULER_UNIT, RK4, REFINED)
    swaps = digits.swap_graphs(run, variants, seeds, steps, data, (2, 8, 9), epochs=epochs)
    # Times do not depend on the weights, so the network that is timed has not been trained.
    net = digits.digits_net(RK4, run.seed, data.x_test.dtype).to(run.device)
    times = run.map(_time_graphs, {"times": (net, data, timed_steps, repeats)})["times"]
    line = fit_line(times["nfe"], times["seconds"])
    scalars = {
        **swaps.scalars(),
        "seconds_fixed": line.start,
        "seconds_per_evaluation": line.slope,
        "r2": line.r_squared,
        **changes(swaps),
    }
    curves = swaps.curves() | {"timed_steps": timed_steps, **times}
    return Findings(scalars, curves, data=data.sha256)


def changes(swaps: digits.Swaps) -> dict[str, float]:
    """Return what the claims are about: the worst seed of most networks, the mean of the dip."""
    refined, euler = REFINED.name, EULER.name
    return {
        "change_euler": float(np.abs(swaps.change(refined, "euler", CELLS)).max()),
        "change_any": swaps.largest_change(refined, least=2),
        "change_quarter": float(np.abs(swaps.change(refined, "rk4", 2)).max()),
        "least_limit_euler": float(swaps.limit(euler).min()),
        "most_limit_rk4": float(swaps.limit(RK4.name).max()),
        "most_limit_refined": float(swaps.limit(refined).max()),
        "ninth_step": float(swaps.change(euler, "euler", CELLS + 1).mean()),
    }


@torch.no_grad()
def _time_graphs(
    part: Part, net: ContinuousMLP, data: Samples, steps: tuple[int, ...], repeats: int
) -> dict[str, Any]:
    """Return ``nfe`` and the least processor ``seconds`` for every scheme and number of steps."""
    graphs = [net.with_graph(method=method, steps=n) for method in SCHEMES for n in steps]
    nfe = []
    for graph in graphs:
        with count_nfe(graph) as counter:
            graph(data.x_test)
        nfe.append(counter.total)
    seconds = shortest(part, [partial(graph, data.x_test) for graph in graphs], repeats)
    shape = (len(SCHEMES), len(steps))
    return {
        name: np.reshape(row, shape).tolist() for name, row in (("nfe", nfe), ("seconds", seconds))
    }
