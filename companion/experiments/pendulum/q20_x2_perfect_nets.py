r"""Q20-X2: what a well-trained one-step net learns, and when it dips.

A net that fits exact data at the step h learns $f + h^p e_p + \dots$ (the inverse modified
equation), not f. Here the field of trained nets is compared with both. One trajectory leaves the
field beside it unknown, so the data fill a region. Then the prediction: a net dips if its error at
its own step lies well below the error that a perfect fit has at vanishing steps, and that error is
known without any training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.analysis.convergence import DIP_LIMIT, convergence_test
from companion.analysis.modified_equation import learnt_field, perfect_field
from companion.data import pendulum
from companion.experiments.pendulum.training import fit_closely
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import OneStepNet
from companion.observe import fit_slope
from companion.ode import odeint
from companion.results import Claim, Findings

SCHEMES = ("euler", "midpoint")

AMPLITUDE, INNER = 2.0, 1.5
"""Largest angle of the data, and of the states where fields are compared: away from the edge."""

TEST_TIME = 3.2


@experiment(
    "Q20-X2",
    "The inverse modified equation: what one-step nets learn, and when they dip",
    paper="none; explains Queiruga et al. 2020, Fig. 4",
    claims=("Q20-X2",),
    full={"seeds": 5, "points": 600, "hidden": 60, "fits": (10, 20, 40, 80, 400)},
)
def q20_x2(
    run: Run,
    *,
    steps: tuple[float, ...] = (0.2, 0.1, 0.05),
    seeds: int = 3,
    points: int = 300,
    hidden: int = 50,
    fits: tuple[int, ...] = (10, 40, 250),
) -> Findings:
    """Fit nets for several lengths of training; compare their fields, and their errors.

    Curves: ``steps``, ``fits``; for each scheme ``plain_SCHEME`` and ``corrected_SCHEME`` of shape
    (steps, seeds), mean distances of the longest trained fields from f and from $f + h^p e_p$ over
    the mean norm of f; ``own_SCHEME`` and ``dip_SCHEME`` of shape (steps, seeds, fits), errors at
    time 3.2 at the own step, and dip ratios; ``plateau_SCHEME``, the predicted error of a perfect
    fit at vanishing steps. Scalars: ``slope_plain_SCHEME`` and ``slope_corrected_SCHEME`` against
    the step; ``predicted_right``, the share of midpoint nets whose dip (a ratio above 10) was
    predicted.
    """
    names = {f"{m}, step {h:g}, seed {s}": (m, h, s) for m in SCHEMES for h in steps
             for s in range(run.seed, run.seed + seeds)}  # fmt: skip

    def fit(part: Part, method: str, step: float, seed: int) -> dict[str, Any]:
        return _fitted(method, step, seed, points, hidden, fits, run.device)

    found = run.map(fit, names)
    curves: dict[str, Any] = {"steps": steps, "fits": fits}
    scalars: dict[str, float] = {}
    for method in SCHEMES:
        rows = [found[name] for name, (m, _, _) in names.items() if m == method]
        for key in ("plain", "corrected", "own", "dip"):
            values = np.array([row[key] for row in rows])
            curves[f"{key}_{method}"] = values.reshape(len(steps), seeds, *values.shape[1:])
        curves[f"plateau_{method}"] = [predicted_plateau(method, step) for step in steps]
        for key in ("plain", "corrected"):
            means = np.exp(np.log(curves[f"{key}_{method}"]).mean(axis=1))
            scalars[f"slope_{key}_{method}"] = fit_slope(steps, means.tolist()).value
    scalars["predicted_right"] = _predicted_right(
        curves["plateau_midpoint"], curves["own_midpoint"], curves["dip_midpoint"]
    )
    return Findings(scalars, curves, _claims(scalars))


def predicted_plateau(method: str, step: float) -> float:
    """Return the error at time 3.2 of a perfect net of this scheme, run at vanishing steps.

    No net is trained: the field is that of :func:`perfect_field`, solved by RK4 with small steps.
    """

    def flow(x: Tensor) -> Tensor:
        end: Tensor = odeint(_pendulum, x, [0.0, step], method="rk4", steps=8)[-1]
        return end

    learnt = perfect_field(pendulum.field, flow, method, step)
    start, end = pendulum.exact([0.0, TEST_TIME], INNER)
    found = odeint(lambda t, x: learnt(x), start, [0.0, TEST_TIME], method="rk4", steps=64)[-1]
    return float((found - end).norm())


def _fitted(
    method: str,
    step: float,
    seed: int,
    points: int,
    hidden: int,
    fits: tuple[int, ...],
    device: torch.device,
) -> dict[str, Any]:
    """Fit one net for each length of training, from the same start; measure them."""
    draw = torch.Generator().manual_seed(seed)
    now, later = pendulum.region(points, step, amplitude=AMPLITUDE, generator=draw)
    inside, _ = pendulum.region(points, step, amplitude=INNER, generator=draw)
    start, end = pendulum.exact([0.0, TEST_TIME], INNER).to(device)
    own = round(TEST_TIME / step)
    measured: dict[str, Any] = {"own": [], "dip": []}
    for length in fits:
        generator = torch.Generator().manual_seed(seed)
        net = OneStepNet(method, step=step, hidden=hidden, generator=generator).to(device)
        fit_closely(net, (now.to(device), later.to(device)), length)
        test = convergence_test(
            net, start, end, time=TEST_TIME, methods=(), steps=(2 * own, 16 * own)
        )
        measured["own"].append(test.errors[method][0])
        measured["dip"].append(test.dip)
    truth, series = pendulum.field(inside), learnt_field(pendulum.field, method, step)(inside)
    with torch.no_grad():
        field = net.field(inside.to(device)).cpu()
    for key, target in (("plain", truth), ("corrected", series)):
        distance = (field - target).norm(dim=-1).mean() / truth.norm(dim=-1).mean()
        measured[key] = float(distance)
    return measured


def _pendulum(t: Tensor, x: Tensor) -> Tensor:
    return pendulum.field(x)


def _predicted_right(
    plateau: list[float], own: NDArray[np.float64], dip: NDArray[np.float64]
) -> float:
    """Return the share of nets with the predicted verdict: their plateau is far above their own."""
    predicted = np.array(plateau)[:, None, None] / own > DIP_LIMIT
    return float((predicted == (dip > DIP_LIMIT)).mean())


def _claims(scalars: dict[str, float]) -> list[Claim]:
    ranges = {
        "slope_plain_euler": ("distance from f against the step, Euler nets", 0.75, 1.25),
        "slope_corrected_euler": ("distance from f + h f'f/2, Euler nets", 1.75, 2.25),
        "slope_plain_midpoint": ("distance from f, midpoint nets", 1.75, 2.25),
        "slope_corrected_midpoint": ("distance from f + h^2 e_2, midpoint nets", 2.5, None),
        "predicted_right": ("share of midpoint nets whose verdict was predicted", 0.9, None),
    }
    return [
        Claim("Q20-X2", text if key == "predicted_right" else f"slope of the {text}", scalars[key],
              low=low, high=high)
        for key, (text, low, high) in ranges.items()
    ]  # fmt: skip
