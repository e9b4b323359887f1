r"""Q20-X2: what a well-trained one-step net learns, and when it dips.

A net that fits exact data at the step h learns $f + h^p e_p + \dots$ (the inverse modified
equation), not f. Here the field of trained nets is compared with both. One trajectory leaves the
field beside it unknown, so the data fill a region. Then the prediction: a net dips if its error at
its own step lies well below the error that a perfect fit has at vanishing steps, and that error is
known without any training.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.analysis.convergence import DIP_LIMIT
from companion.analysis.modified_equation import learnt_field, perfect_field
from companion.data import pendulum
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.pendulum.rollouts import TEST_TIME, compared
from companion.experiments.pendulum.training import fit_closely
from companion.models import OneStepNet
from companion.ode import odeint

SCHEMES = ("euler", "midpoint")

AMPLITUDE, INNER = 2.0, 1.5
"""Largest angle of the data, and of the states where fields are compared: away from the edge."""


@experiment(
    "Q20-X2",
    "The inverse modified equation: what one-step nets learn, and when they dip",
    paper="none; explains Queiruga et al. 2020, Fig. 4",
    full={"seeds": 5, "points": 600, "hidden": 60, "fits": (10, 20, 40, 80, 400)},
    tiny={"steps": (0.8, 0.4), "seeds": 1, "points": 20, "hidden": 5, "fits": (1, 3), "fine": 16},
    claims=(
        ("Q20-X2", "slope_plain_euler", 0.75, 1.25,
         "slope of the distance from f against the step, Euler nets"),
        ("Q20-X2", "slope_corrected_euler", 1.75, 2.25,
         "slope of the distance from f + h f'f/2, Euler nets"),
        ("Q20-X2", "slope_plain_midpoint", 1.75, 2.25,
         "slope of the distance from f, midpoint nets"),
        ("Q20-X2", "slope_corrected_midpoint", 2.5, None,
         "slope of the distance from f + h^2 e_2, midpoint nets"),
        ("Q20-X2", "predicted_right", 0.9, None,
         "share of midpoint nets whose verdict was predicted"),
    ),
)  # fmt: skip
def q20_x2(
    run: Run, *, steps: tuple[float, ...] = (0.2, 0.1, 0.05), seeds: int = 3, points: int = 300,
    hidden: int = 50, fits: tuple[int, ...] = (10, 40, 150), fine: int = 64,
) -> Findings:  # fmt: skip
    """Fit nets for several lengths of training; compare their fields, and their errors.

    Curves: ``steps``, ``fits``; for each scheme ``plain_SCHEME`` and ``corrected_SCHEME`` of shape
    (steps, seeds), mean distances of the longest trained fields from f and from $f + h^p e_p$ over
    the mean norm of f; ``own_SCHEME`` and ``dip_SCHEME`` of shape (steps, seeds, fits), errors at
    time 3.2 at the own step, and dip ratios; ``plateau_SCHEME``, the predicted error of a perfect
    fit at vanishing steps, by ``fine`` steps of RK4. A net dips if the ratio is above 10.
    """

    def measure(part: Part, method: str, step: float, seed: int) -> dict[str, Any]:
        """Fit one net for each length of training, from the same start."""
        draw = torch.Generator().manual_seed(seed)
        now, later = pendulum.region(points, step, amplitude=AMPLITUDE, generator=draw)
        inside, _ = pendulum.region(points, step, amplitude=INNER, generator=draw)
        own, tests = round(TEST_TIME / step), []
        for length in fits:
            draw = torch.Generator().manual_seed(seed)
            net = OneStepNet(method, step=step, hidden=hidden, generator=draw).to(run.device)
            fit_closely(net, (now.to(run.device), later.to(run.device)), length)
            part.keep(net, f"fit {length}")
            tests.append(compared(net, (2 * own, 16 * own), angle=INNER))
        plain, corrected = _distances(net, inside)
        errors, dips = [test.errors[method][0] for test in tests], [test.dip for test in tests]
        return {"plain": plain, "corrected": corrected, "own": errors, "dip": dips}

    found = grids(run, measure, method=SCHEMES, step=steps, seed=run.seeds(seeds))
    curves: dict[str, Any] = {"steps": steps, "fits": fits, **named(found, "method")}
    for method in SCHEMES:
        curves[f"plateau_{method}"] = [predicted_plateau(method, step, fine) for step in steps]
    scalars: dict[str, Any] = {}
    for name in ("plain", "corrected"):
        slopes, _ = found[name].geometric("seed").slopes("step")
        scalars |= slopes.named(f"slope_{name}", "method")
    scalars["predicted_right"] = _predicted_right(
        curves["plateau_midpoint"], curves["own_midpoint"], curves["dip_midpoint"]
    )
    return Findings(scalars, curves)


def predicted_plateau(method: str, step: float, fine: int = 64) -> float:
    """Return the error at time 3.2 of a perfect net of this scheme, run at vanishing steps.

    No net is trained: the field is that of :func:`perfect_field`, solved by ``fine`` RK4 steps.
    """

    def solved(field: Callable[[Tensor], Tensor], x: Tensor, time: float, steps: int) -> Tensor:
        end: Tensor = odeint(lambda t, x: field(x), x, [0.0, time], method="rk4", steps=steps)[-1]
        return end

    flow = partial(solved, pendulum.field, time=step, steps=8)
    learnt = perfect_field(pendulum.field, flow, method, step)
    start, end = pendulum.exact([0.0, TEST_TIME], INNER)
    return float((solved(learnt, start, TEST_TIME, fine) - end).norm())


@torch.no_grad()
def _distances(net: OneStepNet, inside: Tensor) -> list[float]:
    """Return the mean distances of the field from f and from its expansion, over f's mean norm."""
    truth = pendulum.field(inside)
    series = learnt_field(pendulum.field, net.method, net.step)(inside)
    field = net.field(inside.to(net.field.inner)).cpu()
    norm = truth.norm(dim=-1).mean()
    return [float((field - target).norm(dim=-1).mean() / norm) for target in (truth, series)]


def _predicted_right(
    plateau: list[float], own: NDArray[np.float64], dip: NDArray[np.float64]
) -> float:
    """Return the share of nets with the predicted verdict: their plateau is far above their own."""
    predicted = np.array(plateau)[:, None, None] / own > DIP_LIMIT
    return float((predicted == (dip > DIP_LIMIT)).mean())
