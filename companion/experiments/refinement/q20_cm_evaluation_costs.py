r"""Q20-CM: do training and inference times follow the number of evaluations?

Queiruga et al. (2020, section 5 and Table 1) give the time of an epoch at one step and at 32. A
line $a + b N_t$ through those two numbers is the whole model: it has to tell the time of their
schedule of refinements, and that of training at full depth. Their inference times are compared with
the evaluations of each graph, and so are CPU times of a perceptron.
"""

from functools import partial

import torch

from companion.basis import PiecewiseConstant
from companion.experiments import Findings, Part, Run, experiment
from companion.experiments.recipes import shortest
from companion.models import ContinuousMLP
from companion.observe import fit_line
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
    full={
        "methods": ("euler", "midpoint", "rk4", "rk4_38"),
        "steps": (2, 3, 4, 6, 8, 11, 16, 24, 32, 64), "repeats": 200,
    },
    tiny={"steps": (2, 3, 6), "repeats": 1},
    machine_dependent=("r_squared", "overhead", "seconds"),
    claims=(
        ("CL34", "away_refined", None, 0.005,
         "minutes of the paper's training, refined: relative difference of the model"),
        ("CL34", "away_full", None, 0.005,
         "minutes of the paper's training, full depth from the start: relative difference of the "
         "model"),
        ("CL40", "away_inference", None, 0.1,
         "the paper's inference times over those of full depth, against the evaluations, largest "
         "relative difference"),
        ("CL40", "r_squared", 0.95, None, "CPU time against evaluations, R^2 of a line"),
    ),
)  # fmt: skip
def q20_cm(
    run: Run, *, methods: tuple[str, ...] = ("euler", "rk4", "rk4_38"),
    steps: tuple[int, ...] = (2, 3, 6, 8, 11, 16, 32), repeats: int = 20,
) -> Findings:  # fmt: skip
    """Compare the model with the paper's minutes, and measure CPU seconds of a forward pass.

    Scalars: ``fixed`` and ``per_step``, the model's seconds an epoch; ``minutes_refined``,
    ``minutes_full``; ``overhead``, what the line through the measured times says of no evaluation,
    over that of the most. Curves: ``evaluations`` and ``seconds``, one entry a graph.
    """
    fixed, per_step, _ = fit_line(list(EPOCH_SECONDS), list(EPOCH_SECONDS.values()))
    epochs = sum(SCHEDULE.values())
    minutes = {
        "refined": sum(n * (fixed + per_step * steps) for steps, n in SCHEDULE.items()) / 60,
        "full": epochs * (fixed + per_step * max(SCHEDULE)) / 60,
    }
    ratios = [(own / whole) / (few / many) for few, many, own, whole in INFERENCE]
    curves = run.map(_measure, {"forward passes": (methods, steps, repeats)})["forward passes"]
    line = fit_line(curves["evaluations"], curves["seconds"])
    scalars = {
        "fixed": fixed,
        "per_step": per_step,
        **{f"minutes_{name}": value for name, value in minutes.items()},
        **{f"away_{name}": abs(value / MINUTES[name] - 1) for name, value in minutes.items()},
        "away_inference": max(abs(ratio - 1) for ratio in ratios),
        "r_squared": line.r_squared,
        "overhead": line.start / (line.start + line.slope * max(curves["evaluations"])),
    }
    return Findings(scalars, curves)


@torch.no_grad()
def _measure(
    part: Part, methods: tuple[str, ...], steps: tuple[int, ...], repeats: int
) -> dict[str, list[float]]:
    """Return evaluations and the shortest CPU time of every graph."""
    with seeded(0):
        net = ContinuousMLP(64, 10, basis=PiecewiseConstant(8))
        x = torch.randn(500, 64)
    graphs = [(method, n) for method in methods for n in steps]
    views = [net.with_graph(method=method, steps=n) for method, n in graphs]
    seconds = shortest(part, [partial(view, x) for view in views], repeats)
    evaluations = [float(n * SCHEMES[method].stages) for method, n in graphs]
    return {"evaluations": evaluations, "seconds": seconds}
