r"""Q20-ERR: local error, global error and order, on the pendulum.

:math:`\ddot\rho = -\gamma\sin\rho` has a closed form in Jacobi's elliptic functions, so errors are
measured against the solution itself (Queiruga et al. 2020, section 3 and Eq. 13; that equation has
misprints, the form used here is checked in the tests).
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ellipj, ellipk
from torch import Tensor

from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.observe import fit_slope
from companion.ode import odeint
from companion.results import Claim, Findings
from companion.schemes import get_scheme

GRAVITY = 9.81
START = 3 * math.pi / 4
TIME = 2.0


@experiment(
    id="Q20-ERR",
    title="Local and global errors of one-step schemes on the pendulum",
    paper="Queiruga et al. 2020, section 3.1",
    claims=("CL24",),
    tiers={
        "smoke": {
            "schemes": ("euler", "midpoint", "heun", "rk4"),
            "steps": (400, 800, 1600),
            "local_steps": (100, 200, 400),
        },
        "full": {
            "schemes": ("euler", "midpoint", "heun", "kutta3", "rk4", "rk4_38"),
            "steps": (400, 800, 1600, 3200),
            "local_steps": (100, 200, 400),
        },
    },
)
def q20_err(
    run: Run, *, schemes: tuple[str, ...], steps: tuple[int, ...], local_steps: tuple[int, ...]
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


def pendulum(t: float | Tensor, x: Tensor) -> Tensor:
    """Return the velocity of the pendulum's state: angle and angular velocity.

    Shapes:
        ``(..., 2)`` to the same.

    Example:
        >>> pendulum(0.0, torch.tensor([0.0, 1.0]))
        tensor([1., -0.])
    """
    return torch.stack([x[..., 1], -GRAVITY * torch.sin(x[..., 0])], dim=-1)


def pendulum_solution(t: NDArray[np.float64] | float) -> NDArray[np.float64]:
    r"""Return the pendulum's state at the times ``t``, released at rest from the angle 135 degrees.

    .. math:: \rho(t) = 2 \arcsin\bigl(k\,\mathrm{sn}(K - \omega t)\bigr), \qquad
       \dot\rho(t) = -2 k \omega\,\mathrm{cn}(K - \omega t), \qquad
       k = \sin\tfrac{\rho(0)}2, \quad \omega = \sqrt\gamma

    Shapes:
        ``(...)`` to ``(..., 2)``.

    Example:
        >>> pendulum_solution(0.0).round(12) + 0.0
        array([2.35619449, 0.        ])
    """
    k, omega = math.sin(START / 2), math.sqrt(GRAVITY)
    sn, cn, _, _ = ellipj(ellipk(k**2) - omega * np.asarray(t), k**2)
    return np.stack([2 * np.arcsin(k * sn), -2 * k * omega * cn], axis=-1)


def _states(t: NDArray[np.float64] | float, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(pendulum_solution(t))).to(device)


def _global_error(scheme: str, steps: int, device: torch.device) -> float:
    start = _states(0.0, device)
    end = odeint(pendulum, start, [0.0, TIME], method=scheme, steps=steps)[-1]
    return float((end - _states(TIME, device)).norm())


def _local_error(scheme: str, steps: int, device: torch.device) -> float:
    """Return the largest error of one step from a point of the exact solution."""
    exact = _states(np.linspace(0, TIME, steps + 1), device)
    stepped = odeint(pendulum, exact[:-1], [0.0, TIME / steps], method=scheme, steps=1)[-1]
    return float((stepped - exact[1:]).norm(dim=-1).max())


def _slopes(steps: tuple[int, ...], errors: list[float]) -> list[float]:
    """Return the slope of the error against the step between each two neighbouring grids."""
    return [float(slope) for slope in -np.diff(np.log(errors)) / np.diff(np.log(steps))]
