r"""Q20-F3 and Q20-F4a: one-step nets at the step of their data, and at other steps.

Queiruga et al. (2020, Fig. 3 and 4a) train a small field inside one step of Euler's method, of the
midpoint method and of RK4, on states of a pendulum one step apart. Then they change the step. The
number of points, the rates and the initial values are not in the paper; those here are ours. The
paper gives the step of the data as 0.01 in one place and as 1 in another; here it is 0.1, and
smaller ones in the full tier.
"""

from typing import Any

import numpy as np
import torch

from companion.data import pendulum
from companion.experiments import Claim, Findings, Grid, Part, Run, experiment, named
from companion.experiments.pendulum import rollouts
from companion.experiments.pendulum.rollouts import DATA_TIME, HALF, OWN, RATIOS, SCHEMES
from companion.experiments.pendulum.training import rms_error
from companion.observe import geometric_mean


@experiment(
    "Q20-F3",
    "One-step nets of the pendulum at their own step, at half of it, and at others",
    paper="Queiruga et al. 2020, Fig. 3 and 4a",
    full={"steps": (0.1, 0.05, 0.01), "seeds": 4, "adam": 4000},
    tiny={"steps": (0.8, 0.04), "seeds": 1, "adam": 10, "lbfgs": 2},
    claims=(
        ("CL25", "gain", 100, None, "smallest gain of Euler nets over Euler's method"),
        "CL26",
        ("CL27", "deepest_rk4", None, 10, "largest dip ratio of RK4 nets"),
        ("CL29", "floor", 1e-4, 1e-3,
         "error of RK4 nets at the finest step, geometric mean over seeds"),
    ),
)  # fmt: skip
def q20_f3(
    run: Run, *, steps: tuple[float, ...] = (0.1,), seeds: int = 3, adam: int = 2000,
    lbfgs: int = 200,
) -> Findings:  # fmt: skip
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

    def measure(part: Part, method: str, step: float) -> dict[str, Any]:
        nets, data = rollouts.motion_nets(run, part, method, step, seeds, adam=adam, lbfgs=lbfgs)
        tests = [rollouts.compared(net, rollouts.step_counts(step)) for net in nets]
        count, start = round(DATA_TIME / step), pendulum.exact(0.0).to(run.device)
        return {
            "errors": [test.errors[method][::-1] for test in tests],  # from fine to coarse
            "dip": [test.dip for test in tests],
            "one_step": [rms_error(net, data) for net in nets],
            "own": nets[0].rollout(start, count).tolist(),
            "half": nets[0].rollout(start, 2 * count, step=step / 2).tolist(),
        }

    found = run.map(measure, {f"{m}, step {h:g}": (m, h) for m in SCHEMES for h in steps})
    axes = {"method": SCHEMES, "step": steps, "seed": tuple(range(seeds))}
    tables = {
        name: Grid(
            axes, np.array([[found[f"{m}, step {h:g}"][name] for h in steps] for m in SCHEMES])
        )
        for name in ("errors", "dip", "one_step")
    }
    errors, dips = tables["errors"], tables["dip"]
    curves: dict[str, Any] = {"steps": steps, "ratios": RATIOS}
    for method in SCHEMES:
        plain = [rollouts.numerical_errors(method, step, run.device) for step in steps]
        curves[f"numerical_{method}"] = plain
    for name in ("own", "half"):
        curves |= {f"path_{m}_{name}": found[f"{m}, step {steps[0]:g}"][name] for m in SCHEMES}
        curves |= _true_paths(name, steps[0], run.device)
    curves |= named(tables, "method")
    gain = (
        np.array(curves["numerical_euler"])[:, None, OWN]
        / errors.at(method="euler").values[..., OWN]
    )
    scalars = {
        **dips.geometric("seed").named("dip", "method", "step"),
        "gain": gain.min(),
        "deepest_rk4": dips.at(method="rk4").values.max(),
        "floor": errors.at(method="rk4", step=max(steps)).geometric("seed").values[0],
    }
    return Findings(scalars, curves, _claims(errors, dips))


def _true_paths(name: str, step: float, device: torch.device) -> dict[str, Any]:
    """Return the true trajectory and that of Euler's method, at a step or at half of it."""
    refined = 2 if name == "half" else 1
    count = refined * round(DATA_TIME / step)
    times = [n * step / refined for n in range(count + 1)]
    path = rollouts.numerical("euler", DATA_TIME, count, device)
    return {f"times_{name}": times, f"truth_{name}": pendulum.exact(times),
            f"numerical_path_{name}": path}  # fmt: skip


def _claims(errors: Grid, dips: Grid) -> list[Claim]:
    """Decide the claims on dips at the coarse steps, where optimisation is not the limit."""
    steps = dips.axes["step"]
    coarse = [k for k, step in enumerate(steps) if step >= min(0.05, max(steps))]
    where = f"data steps from {min(steps[k] for k in coarse):g}"
    euler, dip = errors.at(method="euler").values, dips.at(method="midpoint").values
    halved = euler[coarse][..., HALF] / euler[coarse][..., OWN]
    deep = float(geometric_mean(dip[coarse], axis=None))
    text = f"smallest growth of an Euler net's error at half the step, {where}"
    claims = [
        Claim("CL26", text, halved.min(), low=1e3),
        Claim("CL27", f"dip ratio of midpoint nets, {where}: they dip too", deep, low=10),
    ]
    if len(coarse) < len(steps):
        fine = float(geometric_mean(dip[np.argmin(steps)]))
        text = f"dip ratio of midpoint nets, data step {min(steps):g}"
        claims.append(Claim("CL27", text, fine, high=10))
    return claims
