r"""S22-F2: the weights of trained linear residual networks have a limit in depth.

$\psi_N(s, t)$ is the weight of the layer at depth $s$ after the time $t$ of
training, constant on each of the $N$ cells. Sander et al. (2022, Theorem 1) show that it
converges at the rate $1/N$. A very deep network stands for the limit.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.experiments import Findings, Part, Run, experiment
from companion.experiments.is_it_an_ode.linear_tasks import LinearProblem, linear_problem
from companion.models.linear_resnet import descend, end_map, time_one_map
from companion.observe import fit_slope

FACTORS = {"small": 0.9, "large": 50.0}
"""Initial loss over the threshold of the theory."""

DISTANCES = {
    "weights": "distance to the limit",
    "doubling": "distance between N and 2N layers",
    "map": "distance to the time-1 map",
}


@experiment(
    "S22-F2",
    "Trained linear networks of growing depth approach one limit, at the rate 1/N",
    paper="Sander et al. 2022, Fig. 2, Theorem 1, Lemmas 2 and 3",
    claims=tuple(
        ("CL51", f"slope_{name}_{size}", -1.05, -0.95,
         f"slope of the {text} against N, {size} loss")
        for size in FACTORS
        for name, text in DISTANCES.items()
    ),
    full={
        "depths": (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192), "reference": 65536,
        "steps": 60,
    },
    tiny={"depths": (8, 16, 32), "reference": 256, "starts": 2, "steps": 5},
)  # fmt: skip
def s22_f2(
    run: Run, *, depths: tuple[int, ...] = (8, 16, 32, 64, 128, 256), reference: int = 4096,
    starts: int = 3, step: float = 0.25, steps: int = 40,
) -> Findings:  # fmt: skip
    r"""Train networks of all depths side by side with a reference and compare them on the way.

    Two sizes of the initial loss: ``small``, 0.9 times the threshold of the theory, and ``large``,
    50 times. Distances are Frobenius norms:

    - ``weights``: $\sup_s \lVert\psi_N(s, t) - \psi(s, t)\rVert_F$;
    - ``doubling``: $\max_n \lVert\theta^N_n - \theta^{2N}_{2n}\rVert_F$;
    - ``map``: $\lVert\Pi^N - U(1, 0)\rVert_F$, where $U$ is the flow of
      $\dot x = \psi(s, t) x$.

    Curves: ``depths``; for each size ``weights_SIZE``, ``doubling_SIZE`` and ``map_SIZE`` of shape
    ``(iterations, depths)``, the largest over starts, from iteration 0 on; and ``loss_SIZE``, the
    loss of the reference, of shape ``(iterations, starts)``. The last depth has no ``doubling``:
    NaN. Scalars: ``slope_DISTANCE_SIZE``, of the distance's supremum over time, farthest from -1
    among the starts; ``norm_SIZE``, the largest $\lVert\theta_n\rVert$, the reference apart.
    """
    doubles = all(deep == 2 * shallow for shallow, deep in pairwise(depths))
    if len(depths) < 3 or not doubles or reference % depths[-1]:
        raise ValueError(
            "depths must be at least three, double, and divide the reference; "
            f"got {depths} and {reference}"
        )
    problem = linear_problem(starts, 3, run.seed, run.device)

    def compare(part: Part, factor: float) -> dict[str, Any]:
        return _compare(part, problem, factor, (*depths, reference), step, steps)

    found = run.map(compare, {size: (factor,) for size, factor in FACTORS.items()})
    scalars: dict[str, float] = {}
    curves: dict[str, Any] = {"depths": depths}
    for size, part in found.items():
        scalars[f"norm_{size}"] = part["norm"]
        curves[f"loss_{size}"] = part["loss"]
        for name in DISTANCES:
            values = np.array(part[name])
            curves[f"{name}_{size}"] = values.max(-1)
            known = len(depths) - (name == "doubling")
            worst = values.max(0)[:known].T
            slopes = [fit_slope(depths[:known], row).value for row in worst]
            scalars[f"slope_{name}_{size}"] = max(slopes, key=lambda slope: abs(slope + 1))
    return Findings(scalars, curves)


def _compare(
    part: Part, problem: LinearProblem, factor: float, depths: tuple[int, ...], step: float,
    steps: int,
) -> dict[str, Any]:  # fmt: skip
    """Train all depths at once; the last is the reference. Distances are (time, depths, starts)."""
    task = problem.task("smooth", factor, step)
    nets = [descend(task, problem.start("smooth", depth), step, steps) for depth in depths]
    found: dict[str, Any] = {name: [] for name in (*DISTANCES, "loss")}
    norm = 0.0
    for k, stages in enumerate(zip(*nets, strict=True)):
        weights = [stage.weights for stage in stages]
        flow = time_one_map(weights[-1])
        found["weights"].append([_cell_distance(w, weights[-1]) for w in weights[:-1]])
        gaps = [
            (shallow - deep[:, ::2]).norm(dim=(-2, -1)).amax(-1).tolist()
            for shallow, deep in pairwise(weights[:-1])
        ]
        found["doubling"].append([*gaps, [float("nan")] * len(flow)])
        found["map"].append([(end_map(w) - flow).norm(dim=(-2, -1)).tolist() for w in weights[:-1]])
        found["loss"].append(stages[-1].loss.tolist())
        norms = [float(torch.linalg.matrix_norm(w, 2).max()) for w in weights[:-1]]
        norm = max(norm, *norms)
        part.report((k + 1) / (steps + 1))
    return found | {"norm": norm}


def _cell_distance(weights: Tensor, reference: Tensor) -> list[float]:
    """Return the supremum over depth of the distance of two piecewise constants, per start."""
    starts, cells, width, _ = weights.shape
    fine = reference.view(starts, cells, -1, width, width)
    distance: list[float] = (fine - weights.unsqueeze(2)).norm(dim=(-2, -1)).amax((1, 2)).tolist()
    return distance
