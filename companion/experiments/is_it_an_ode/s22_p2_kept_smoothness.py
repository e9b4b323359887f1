r"""S22-P2: training a linear residual network keeps its smoothness in depth, and creates none.

The bounds are proved in the book for the gradient flow and for the explicit steps taken here.
"""

from typing import Any

import numpy as np
import torch

from companion.experiments import Findings, Part, Run, experiment
from companion.experiments.is_it_an_ode.linear_tasks import LinearProblem, linear_problem
from companion.models.linear_resnet import descend, roughness

KINDS = ("smooth", "rough")
_EXTREMES = {"upper": max, "norm": max, "travel": max, "drift": max, "lower": min}
"""What is measured of all layers at an iteration, and which of all these numbers counts."""


@experiment(
    "S22-P2",
    "Linear networks from smooth and from alternating weights: smoothness is kept, not made",
    paper="Sander et al. 2022, Proposition 2",
    claims=(
        *(
            ("CL50", f"{name}_{kind}", low, high, f"{text}, {kind} start")
            for kind in KINDS
            for name, low, high, text in (
                ("threshold", None, 1.0, "initial loss over the threshold"),
                ("lower", 1.0, None, "smallest gradient over its bound"),
                ("upper", None, 1.0, "largest gradient over its bound"),
                ("rate", 1.0, None, "slowest decay of the loss over its bound"),
                ("norm", None, 0.5, "largest norm of a layer's weights"),
                ("travel", None, 0.25, "longest path of a layer's weights"),
                ("drift", None, 0.25, "largest change of N times a difference"),
                ("excess", None, 0.25, "largest N times a difference, minus C_0"),
            )
        ),
        ("CL50", "left_rough", 0.95, None,
         "roughness after training over roughness before, rough start"),
    ),
    full={"depths": (16, 64, 256, 1024, 4096), "starts": 8, "width": 4},
    tiny={"depths": (8, 32), "starts": 2, "steps": 5},
)  # fmt: skip
def s22_p2(
    run: Run, *, depths: tuple[int, ...] = (16, 64, 256), starts: int = 5, width: int = 3,
    step: float = 0.1, steps: int = 150,
) -> Findings:  # fmt: skip
    r"""Train networks of every depth from smooth and from alternating weights.

    The initial loss is 0.9 times the threshold of the theory. Every bound is taken over all
    layers, iterations and starts; a ratio is the measured number over its bound.

    Curves: ``depths``; ``time``, the iterations times the step; for each kind of start (``smooth``
    or ``rough``) ``loss_KIND`` and ``roughness_KIND``, the discrete slope
    $\max_n N\lVert\theta_{n+1} - \theta_n\rVert_F$, both of shape ``(depths, iterations,
    starts)``; ``before_KIND`` and ``after_KIND``, one entry of the weights along depth, at the
    depth ``shown``, first start.

    Scalars: what decides the claim, where a gradient is $N^2\lVert\nabla_n\rVert_F^2/\ell$; for
    each kind and depth ``first_KIND_DEPTH`` and ``largest_KIND_DEPTH``, the roughness at the start
    and its maximum over the iterations, both the largest over starts; ``slowest``, the bound of the
    rate, $2m/e$.
    """
    problem = linear_problem(starts, width, run.seed, run.device)
    threshold = problem.task("smooth", 0.9, step).loss_threshold(step)
    slowest = problem.task("smooth", 0.9, step).gradient_bounds()[0]

    def train(part: Part, kind: str, depth: int) -> dict[str, Any]:
        return _train(part, problem, kind, depth, step, steps)

    parts = run.map(train, {f"{kind}, {n} layers": (kind, n) for kind in KINDS for n in depths})
    shown = min(1, len(depths) - 1)
    scalars = {"shown": float(depths[shown]), "slowest": slowest}
    curves: dict[str, Any] = {"depths": depths, "time": step * np.arange(steps + 1)}
    for kind in KINDS:
        rows = [parts[f"{kind}, {depth} layers"] for depth in depths]
        series = {name: np.array([row[name] for row in rows]) for name in ("loss", "roughness")}
        curves |= {f"{name}_{kind}": values for name, values in series.items()}
        curves |= {f"{name}_{kind}": rows[shown][name] for name in ("before", "after")}
        for name, extreme in _EXTREMES.items():
            scalars[f"{name}_{kind}"] = extreme(extreme(row[name]) for row in rows)
        loss, rough = series["loss"], series["roughness"]
        scalars[f"threshold_{kind}"] = loss[:, 0].max() / threshold
        scalars[f"rate_{kind}"] = -np.diff(np.log(loss), axis=1).max() / step / slowest
        scalars[f"excess_{kind}"] = (rough - rough[:, :1]).max()
        for depth, values in zip(depths, rough, strict=True):
            scalars[f"first_{kind}_{depth}"] = values[0].max()
            scalars[f"largest_{kind}_{depth}"] = values.max()
    scalars["left_rough"] = (rough[:, -1] / rough[:, 0]).min()
    return Findings(scalars, curves)


def _train(
    part: Part, problem: LinearProblem, kind: str, depth: int, step: float, steps: int
) -> dict[str, Any]:
    """Return the loss and the roughness, (iterations, starts), and of all else the extremes."""
    start, task = problem.start(kind, depth), problem.task(kind, 0.9, step)
    low, high = task.gradient_bounds()
    seen: list[dict[str, Any]] = []
    path = torch.zeros_like(start[..., 0, 0])
    for stage in descend(task, start, step, steps):
        lengths = stage.gradients.norm(dim=(-2, -1))
        ratios = lengths.square() / stage.loss.unsqueeze(-1)
        seen.append({
            "loss": stage.loss.tolist(),
            "roughness": roughness(stage.weights).tolist(),
            "lower": float(ratios.min()) / low,
            "upper": float(ratios.max()) / high,
            "norm": float(torch.linalg.matrix_norm(stage.weights, 2).max()),
            "travel": float(path.max()),
            "drift": float(roughness(stage.weights - start).max()),
        })  # fmt: skip
        path = path + step * lengths
        part.report(len(seen) / (steps + 1))
    found: dict[str, Any] = {name: [row[name] for row in seen] for name in seen[0]}
    shown = {"before": start[0, :, 0, -1], "after": stage.weights[0, :, 0, -1]}
    return found | {name: values.tolist() for name, values in shown.items()}
