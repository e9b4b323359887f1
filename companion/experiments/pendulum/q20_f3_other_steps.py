r"""Q20-F3 and Q20-F4a: one-step nets at the step of their data, and at other steps.

Queiruga et al. (2020, Fig. 3 and 4a) train a small field inside one step of Euler's method, of the
midpoint method and of RK4, on states of a pendulum one step apart. Then they change the step. The
number of points, the rates and the initial values are not in the paper; those here are ours. The
paper gives the step of the data as 0.01 in one place and as 1 in another; here it is 0.1, and
smaller ones in the full tier.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.analysis.convergence import convergence_test, graph_errors
from companion.data import pendulum
from companion.experiments.pendulum.training import one_step_errors, train_nets
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.ode import odeint
from companion.results import Claim, Findings

DATA_TIME = 6.4
"""The data cover a little more than two periods."""

TEST_TIME = 3.2
"""Errors are measured at this time."""

SCHEMES = ("euler", "midpoint", "rk4")

RATIOS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)
"""Steps of the graphs over the step of the data."""

OWN, HALF = RATIOS.index(1.0), RATIOS.index(0.5)


@experiment(
    "Q20-F3",
    "One-step nets of the pendulum at their own step, at half of it, and at others",
    paper="Queiruga et al. 2020, Fig. 3 and 4a",
    claims=("CL25", "CL26", "CL27", "CL29"),
    full={"steps": (0.1, 0.05, 0.01), "seeds": 4, "adam": 4000},
)
def q20_f3(
    run: Run,
    *,
    steps: tuple[float, ...] = (0.1,),
    seeds: int = 3,
    adam: int = 2000,
    lbfgs: int = 200,
) -> Findings:
    """Train a net of every scheme at every step of the data from every seed; run it at other steps.

    Curves: ``steps`` of the data; ``ratios`` of the graphs' steps to them, from fine to coarse; for
    each scheme ``errors_SCHEME`` of shape (steps, seeds, ratios) and ``numerical_SCHEME`` of shape
    (steps, ratios), errors at time 3.2 of the nets and of the scheme on the true field;
    ``dip_SCHEME`` of shape (steps, seeds), the largest error at a finer step over that at the own;
    ``one_step_SCHEME``, the root mean squared errors of one step. For the first step and seed, at
    the own step and at half of it: ``times_own``, ``truth_own``, ``path_SCHEME_own``, and
    ``numerical_path_own`` of Euler's method; likewise ``_half``. Scalars: ``dip_SCHEME_STEP``,
    geometric means over seeds.
    """
    parts = {f"{m}, step {h:g}": (m, h) for m in SCHEMES for h in steps}

    def train(part: Part, method: str, step: float) -> dict[str, Any]:
        return _trained(run, method, step, seeds, adam, lbfgs)

    found = run.map(train, parts)
    curves: dict[str, Any] = {"steps": steps, "ratios": RATIOS}
    scalars = {}
    for method in SCHEMES:
        rows = [found[f"{method}, step {step:g}"] for step in steps]
        curves[f"numerical_{method}"] = [numerical_errors(run, method, step) for step in steps]
        for name in ("errors", "dip", "one_step"):
            curves[f"{name}_{method}"] = [row[name] for row in rows]
        for name in ("own", "half"):
            curves[f"path_{method}_{name}"] = rows[0][name]
        for step, row in zip(steps, rows, strict=True):
            scalars[f"dip_{method}_{step:g}"] = _geometric_mean(row["dip"])
    curves |= _true_paths(run, steps[0])
    return Findings(scalars, curves, _claims(curves))


def step_counts(step: float) -> list[int]:
    """Return the numbers of steps from 0 to the time of the test, from fine to coarse.

    Example:
        >>> step_counts(0.1)
        [512, 256, 128, 64, 32, 16, 8]
    """
    return [round(TEST_TIME / (ratio * step)) for ratio in RATIOS]


def numerical_errors(run: Run, method: str, step: float) -> list[float]:
    """Return the errors of a scheme on the true field, with the steps that the nets take."""

    def evaluate(method: str, n: int) -> Tensor:
        return _numerical(run, method, TEST_TIME, n)[-1]

    truth = _states(run, [TEST_TIME])[0]
    return list(graph_errors(evaluate, truth, [method], step_counts(step))[method])


def _trained(
    run: Run, method: str, step: float, seeds: int, adam: int, lbfgs: int
) -> dict[str, Any]:
    """Train the nets of one scheme and step; return their errors, and the paths of the first."""
    now, later = pendulum.pairs(step, DATA_TIME)
    data = (now.to(run.device), later.to(run.device))
    own_seeds = range(run.seed, run.seed + seeds)
    nets = train_nets(method, step, data, own_seeds, adam=adam, lbfgs=lbfgs)
    start, end = _states(run, [0.0, TEST_TIME])
    tests = [
        convergence_test(net, start, end, time=TEST_TIME, methods=(), steps=step_counts(step))
        for net in nets
    ]
    with torch.no_grad():
        fit = [float(one_step_errors(net, data).mean().sqrt()) for net in nets]
        count = round(DATA_TIME / step)
        own = nets[0].rollout(start, count)
        half = nets[0].rollout(start, 2 * count, step=step / 2)
    return {
        "errors": [test.errors[method][::-1] for test in tests],  # from fine to coarse
        "dip": [test.dip for test in tests],
        "one_step": fit,
        "own": own.tolist(),
        "half": half.tolist(),
    }


def _true_paths(run: Run, step: float) -> dict[str, Any]:
    """Return the true trajectory and that of Euler's method, at a step and at half of it."""
    paths: dict[str, Any] = {}
    for name, refined in (("own", 1), ("half", 2)):
        count = refined * round(DATA_TIME / step)
        times = [n * step / refined for n in range(count + 1)]
        paths[f"times_{name}"] = times
        paths[f"truth_{name}"] = _states(run, times)
        paths[f"numerical_path_{name}"] = _numerical(run, "euler", DATA_TIME, count)
    return paths


def _numerical(run: Run, method: str, time: float, steps: int) -> Tensor:
    """Return the states of a scheme on the true field."""
    times = [n * time / steps for n in range(steps + 1)]
    start = _states(run, [0.0])[0]
    states: Tensor = odeint(lambda t, x: pendulum.field(x), start, times, method=method)
    return states


def _states(run: Run, times: list[float]) -> Tensor:
    return pendulum.exact(times).to(run.device)


def _claims(curves: Mapping[str, Any]) -> list[Claim]:
    """Decide the claims; those on dips at the coarse steps, where optimisation is not the limit."""
    errors = {method: np.array(curves[f"errors_{method}"]) for method in SCHEMES}
    dips = {method: np.array(curves[f"dip_{method}"]) for method in SCHEMES}
    steps = np.array(curves["steps"])
    coarse = steps >= min(0.05, steps.max())
    numerical = np.array(curves["numerical_euler"])[:, None, OWN]
    gain = numerical / errors["euler"][..., OWN]
    halved = errors["euler"][..., HALF] / errors["euler"][..., OWN]
    where = f"data steps from {steps[coarse].min():g}"
    claims = [
        Claim("CL25", "smallest gain of Euler nets over Euler's method", gain.min(), low=100),
        Claim(
            "CL26",
            f"smallest growth of an Euler net's error at half the step, {where}",
            halved[coarse].min(),
            low=1e3,
        ),
        Claim("CL27", "largest dip ratio of RK4 nets", dips["rk4"].max(), high=10),
        Claim(
            "CL27",
            f"dip ratio of midpoint nets, {where}: they dip too",
            _geometric_mean(dips["midpoint"][coarse]),
            low=10,
        ),
        Claim(
            "CL29",
            "error of RK4 nets at the finest step, geometric mean over seeds",
            _geometric_mean(errors["rk4"][steps.argmax(), :, 0]),
            low=1e-4,
            high=1e-3,
        ),
    ]
    if not coarse.all():
        fine = f"dip ratio of midpoint nets, data step {steps.min():g}"
        value = _geometric_mean(dips["midpoint"][steps.argmin()])
        claims.append(Claim("CL27", fine, value, high=10))
    return claims


def _geometric_mean(values: NDArray[np.float64] | list[float]) -> float:
    return float(np.exp(np.log(values).mean()))
