r"""Q20-ERR: local error, global error and order, on the pendulum.

The pendulum's motion has a closed form (:mod:`companion.data.pendulum`), so errors are measured
against the solution itself (Queiruga et al. 2020, section 3).
"""

import numpy as np
from torch import Tensor

from companion.data import pendulum
from companion.experiments import Claim, Findings, Part, Run, experiment, grid
from companion.ode import odeint
from companion.schemes import get_scheme

TIME = 2.0


@experiment(
    "Q20-ERR",
    "Local and global errors of one-step schemes on the pendulum",
    paper="Queiruga et al. 2020, section 3.1",
    full={
        "schemes": ("euler", "midpoint", "heun", "kutta3", "rk4", "rk4_38"),
        "steps": (400, 800, 1600, 3200),
    },
    tiny={"steps": (50, 100, 200), "local_steps": (10, 20, 40)},
    claims=("CL24",),
)
def q20_err(
    run: Run, *, schemes: tuple[str, ...] = ("euler", "midpoint", "heun", "rk4"),
    steps: tuple[int, ...] = (400, 800, 1600), local_steps: tuple[int, ...] = (100, 200, 400),
) -> Findings:  # fmt: skip
    """Measure the global error at time 2 and the largest local error on the way.

    Curves: ``steps``, ``local_steps``, and for each scheme ``global_SCHEME`` and
    ``local_SCHEME``. Scalars: ``order_SCHEME``, the fitted slope of the global error against the
    step, and ``local_order_SCHEME``, that of the local error.
    """

    def global_error(part: Part, scheme: str, steps: int) -> float:
        start, exact = pendulum.exact([0.0, TIME]).to(run.device)
        end = odeint(_field, start, [0.0, TIME], method=scheme, steps=steps)[-1]
        return float((end - exact).norm())

    def local_error(part: Part, scheme: str, local_steps: int) -> float:
        """Return the largest error of one step from a point of the exact solution."""
        exact = pendulum.exact(np.linspace(0, TIME, local_steps + 1)).to(run.device)
        times = [0.0, TIME / local_steps]
        stepped = odeint(_field, exact[:-1], times, method=scheme, steps=1)[-1]
        return float((stepped - exact[1:]).norm(dim=-1).max())

    ends = grid(run, global_error, scheme=schemes, steps=steps)
    single = grid(run, local_error, scheme=schemes, local_steps=local_steps)
    scalars = ends.orders("steps").named("order", "scheme")
    scalars |= single.orders("local_steps").named("local_order", "scheme")
    claims = []
    for scheme in schemes:
        errors, order = ends.at(scheme=scheme).values, get_scheme(scheme).order
        between = -np.diff(np.log(errors)) / np.diff(np.log(steps))
        worst = float(max(between, key=lambda slope: abs(slope - order)))
        text = f"slope of the global error between two grids, farthest from order, {scheme}"
        claims.append(Claim("CL24", text, worst, low=order - 0.25, high=order + 0.25))
    curves = {**ends.named("global", "scheme"), **single.named("local", "scheme")}
    return Findings(scalars, {"steps": steps, "local_steps": local_steps, **curves}, claims)


def _field(t: Tensor, x: Tensor) -> Tensor:
    return pendulum.field(x)
