r"""Q20-ERR: local error, global error and order, on the pendulum.

The pendulum's motion has a closed form (:mod:`companion.data.pendulum`), so errors are measured
against the solution itself (Queiruga et al. 2020, section 3).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.data import pendulum
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.observe import fit_slope
from companion.ode import odeint
from companion.results import Claim, Findings
from companion.schemes import get_scheme

TIME = 2.0


@experiment(
    "Q20-ERR",
    "Local and global errors of one-step schemes on the pendulum",
    paper="Queiruga et al. 2020, section 3.1",
    claims=("CL24",),
    full={
        "schemes": ("euler", "midpoint", "heun", "kutta3", "rk4", "rk4_38"),
        "steps": (400, 800, 1600, 3200),
    },
)
def q20_err(
    run: Run,
    *,
    schemes: tuple[str, ...] = ("euler", "midpoint", "heun", "rk4"),
    steps: tuple[int, ...] = (400, 800, 1600),
    local_steps: tuple[int, ...] = (100, 200, 400),
) -> Findings:
    """Measure the global error at time 2 and the largest local error on the way.

    Curves: ``steps``, ``local_steps``, and for each scheme ``global_SCHEME`` and
    ``local_SCHEME``. Scalars: ``order_SCHEME``, the fitted slope of the global error against the
    step, and ``local_order_SCHEME``, that of the local error.
    """

    def measure(part: Part, scheme: str) -> dict[str, list[float]]:
        return {
            "global": [_global_error(scheme, n, run.device) for n in steps],
            "local": [_local_error(scheme, n, run.device) for n in local_steps],
        }

    found = run.map(measure, {scheme: (scheme,) for scheme in schemes})
    curves: dict[str, Any] = {"steps": steps, "local_steps": local_steps}
    scalars, claims = {}, []
    for scheme, errors in found.items():
        curves |= {f"{kind}_{scheme}": values for kind, values in errors.items()}
        scalars[f"order_{scheme}"] = -fit_slope(steps, errors["global"]).value
        scalars[f"local_order_{scheme}"] = -fit_slope(local_steps, errors["local"]).value
        order = get_scheme(scheme).order
        worst = max(_slopes(steps, errors["global"]), key=lambda slope: abs(slope - order))
        text = f"slope of the global error between two grids, farthest from order, {scheme}"
        claims.append(Claim("CL24", text, worst, low=order - 0.25, high=order + 0.25))
    return Findings(scalars, curves, claims)


def _field(t: Tensor, x: Tensor) -> Tensor:
    return pendulum.field(x)


def _global_error(scheme: str, steps: int, device: torch.device) -> float:
    start, exact = pendulum.exact([0.0, TIME]).to(device)
    end = odeint(_field, start, [0.0, TIME], method=scheme, steps=steps)[-1]
    return float((end - exact).norm())


def _local_error(scheme: str, steps: int, device: torch.device) -> float:
    """Return the largest error of one step from a point of the exact solution."""
    exact = pendulum.exact(np.linspace(0, TIME, steps + 1)).to(device)
    stepped = odeint(_field, exact[:-1], [0.0, TIME / steps], method=scheme, steps=1)[-1]
    return float((stepped - exact[1:]).norm(dim=-1).max())


def _slopes(steps: tuple[int, ...], errors: list[float]) -> list[float]:
    """Return the slope of the error against the step between each two neighbouring grids."""
    return [float(slope) for slope in -np.diff(np.log(errors)) / np.diff(np.log(steps))]
