r"""Q20-CM: do training and inference times follow the number of evaluations?

Queiruga et al. (2020, section 5 and Table 1) give the time of an epoch at one step and at 32. A
line $a + b N_t$ through those two numbers is the whole model: it has to tell the time of their
schedule of refinements, and that of training at full depth. Their inference times are compared with
the evaluations of each graph. Beside them the CPU times of a perceptron under many graphs are
fitted with such a line. Both tiers do the same; ``full`` repeats the measurement more often.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from companion.basis import PiecewiseConstant
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import ContinuousMLP
from companion.results import Claim, Findings
from companion.schemes import SCHEMES
from companion.train import seeded

EPOCH_SECONDS = {1: 16.0, 32: 394.0}
"""Seconds an epoch at a number of steps, for RK4 (Queiruga et al. 2020, section 5)."""

SCHEDULE = {1: 20, 2: 20, 4: 20, 8: 10, 16: 10, 32: 80}
"""Epochs at a number of steps, refined after 20, 40, 60, 70 and 80 of 160 epochs."""

MINUTES = {"refined": 608.0, "full": 1053.0}
"""Training times that the paper reports, with refinement and at full depth."""

INFERENCE = ((11, 32, 11.06, 32.55), (6, 32, 6.25, 32.55), (4, 8, 7.74, 14.56))
"""Steps of two four-stage graphs of the same weights, and their seconds (Table 1)."""


@experiment(
    "Q20-CM",
    "A cost model of two numbers, and inference time against evaluations",
    paper="Queiruga et al. 2020, section 5 and Table 1",
    claims=("CL34", "CL40"),
    full={
        "methods": ("euler", "midpoint", "rk4", "rk4_38"),
        "steps": (2, 3, 4, 6, 8, 11, 16, 24, 32, 64),
        "repeats": 200,
    },
)
def q20_cm(
    run: Run,
    *,
    methods: tuple[str, ...] = ("euler", "rk4", "rk4_38"),
    steps: tuple[int, ...] = (2, 3, 6, 8, 11, 16, 32),
    repeats: int = 20,
) -> Findings:
    """Compare the model with the paper's minutes, and measure CPU seconds of a forward pass.

    Scalars: ``fixed`` and ``per_step``, the model's seconds an epoch; ``minutes_refined``,
    ``minutes_full``; ``r_squared`` of the line through the measured times, ``overhead``, its value
    at no evaluation over that at the most. Curves: ``evaluations`` and ``seconds``, one entry a
    graph.
    """
    fixed, per_step = line(list(EPOCH_SECONDS), list(EPOCH_SECONDS.values()))
    epochs = sum(SCHEDULE.values())
    minutes = {
        "refined": sum(n * (fixed + per_step * steps) for steps, n in SCHEDULE.items()) / 60,
        "full": epochs * (fixed + per_step * max(SCHEDULE)) / 60,
    }
    found = run.map(_measure, {"forward passes": (methods, steps, repeats)})["forward passes"]
    evaluations, seconds = found["evaluations"], found["seconds"]
    start, slope = line(evaluations, seconds)
    scalars = {
        "fixed": fixed,
        "per_step": per_step,
        **{f"minutes_{name}": value for name, value in minutes.items()},
        "r_squared": r_squared(evaluations, seconds),
        "overhead": start / (start + slope * max(evaluations)),
    }
    curves = {"evaluations": evaluations, "seconds": seconds}
    return Findings(scalars, curves, _claims(minutes, scalars["r_squared"]))


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return the least-squares line through points: its value at 0 and its slope.

    Example:
        >>> line([1.0, 3.0], [5.0, 9.0])
        (3.0, 2.0)
    """
    u, v = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    slope = float((u - u.mean()) @ (v - v.mean()) / ((u - u.mean()) @ (u - u.mean())))
    return float(v.mean()) - slope * float(u.mean()), slope


def r_squared(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the share of the variance of ``y`` that the least-squares line explains.

    Example:
        >>> r_squared([0.0, 1.0, 2.0], [0.0, 1.0, 0.0])
        0.0
    """
    start, slope = line(x, y)
    v: NDArray[np.float64] = np.asarray(y, dtype=float)
    rest = v - start - slope * np.asarray(x, dtype=float)
    return float(1 - rest @ rest / ((v - v.mean()) @ (v - v.mean())))


@torch.no_grad()
def _measure(
    part: Part, methods: tuple[str, ...], steps: tuple[int, ...], repeats: int
) -> dict[str, list[float]]:
    """Return evaluations and the shortest CPU time of every graph, measured in turn."""
    with seeded(0):
        net = ContinuousMLP(64, 10, basis=PiecewiseConstant(8))
        x = torch.randn(500, 64)
    graphs = [(method, n) for method in methods for n in steps]
    nets = [net.with_graph(method=method, steps=n) for method, n in graphs]
    seconds = [float("inf")] * len(nets)
    for repeat in range(repeats):
        for k, graph in enumerate(nets):
            start = time.process_time()
            graph(x)
            seconds[k] = min(seconds[k], time.process_time() - start)
        part.report((repeat + 1) / repeats)
    evaluations = [float(n * SCHEMES[method].stages) for method, n in graphs]
    return {"evaluations": evaluations, "seconds": seconds}


def _claims(minutes: dict[str, float], fit: float) -> list[Claim]:
    away = {name: abs(value / MINUTES[name] - 1) for name, value in minutes.items()}
    text = "minutes of the paper's training, {}: relative difference of the model"
    ratios = [(own / whole) / (few / many) for few, many, own, whole in INFERENCE]
    return [
        Claim("CL34", text.format("refined"), away["refined"], high=0.005),
        Claim("CL34", text.format("full depth from the start"), away["full"], high=0.005),
        Claim(
            "CL40",
            "the paper's inference times over those of full depth, against the evaluations, "
            "largest relative difference",
            max(abs(ratio - 1) for ratio in ratios),
            high=0.1,
        ),
        Claim("CL40", "CPU time against evaluations, R^2 of a line", fit, low=0.95),
    ]
