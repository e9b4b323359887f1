r"""FW2b: implicit schemes, on a stiff equation and inside one-step nets.

Explicit schemes need steps below the fastest time scale of a stiff equation; the implicit midpoint
rule and backward Euler don't. The implicit midpoint rule is symmetric, so a net built on it can be
run back exactly. Does symmetry also keep it from fitting its own step? It has order 2, as the
midpoint method has, and the convergence test of Q20-F4a is repeated with it.
"""

from typing import Any

import torch
from torch import Tensor

from companion.analysis.convergence import fitted_order, graph_errors
from companion.data import pendulum
from companion.experiments import Findings, Part, Run, experiment
from companion.experiments.pendulum.rollouts import TEST_TIME, compared, motion_nets
from companion.experiments.pendulum.training import Pairs, rms_error
from companion.models import OneStepNet
from companion.models.implicit_step import IMPLICIT, implicit_step
from companion.observe import geometric_mean
from companion.ode import odeint

MIDPOINT = "implicit_midpoint"

RATES = (1.0, 1e3)
"""Decay rates of the stiff equation."""

STIFF_STEP, STIFF_STEPS = 0.1, 20

RATIOS = (1 / 4, 1 / 2, 1.0, 2.0, 4.0)


@experiment(
    "FW2b",
    "Implicit midpoint and backward Euler: a stiff equation, and one-step nets",
    paper="none; Queiruga et al. 2020, section 6, names implicit schemes as future work",
    full={"seeds": 8, "adam": 4000, "lbfgs": 200, "order_steps": (80, 160, 320)},
    tiny={"step": 0.8, "seeds": 2, "adam": 5, "lbfgs": 2, "order_steps": (10, 20)},
    machine_dependent=("round_trip", "longest_trip"),  # rounding, which no two processors share
    claims=(
        ("FW2b", "implicit_growth", None, 1,
         "largest growth of implicit schemes on the stiff equation"),
        ("FW2b", "growth_rk4", 1e6, None, "growth of RK4 on it"),
        ("FW2b", "order_implicit_midpoint", 1.9, 2.1, "order of implicit midpoint, true pendulum"),
        ("FW2b", "own_order", 1.75, 2.25, "the same on trained fields, farthest from 2"),
        ("FW2b", "longest_trip", None, 1e-11, "largest distance after a step and a step back"),
        ("FW2b", "mean_dip", 10, None, "dip ratio of implicit midpoint nets: they dip too"),
    ),
)  # fmt: skip
def fw2b(
    run: Run, *, step: float = 0.1, seeds: int = 3, adam: int = 400, lbfgs: int = 100,
    order_steps: tuple[int, ...] = (40, 80, 160),
) -> Findings:  # fmt: skip
    """Solve a stiff linear equation and the pendulum; train nets on the implicit midpoint rule.

    Curves: ``ratios`` of the graphs' steps to that of the data; ``errors`` of shape (seeds,
    ratios), at time 3.2; ``dip``, ``order``, ``round_trip`` and ``one_step``, one value a seed:
    dip ratio, order at which finer graphs approach the net's own differential equation, largest
    distance after a step and a step back, and root mean squared error of one step. Scalars:
    ``growth_SCHEME``, largest norm on the stiff equation over that at the start; ``order_SCHEME``
    on the pendulum, from the errors at time 1 after ``order_steps``.
    """

    def train(part: Part) -> list[dict[str, Any]]:
        nets, data = motion_nets(run, part, MIDPOINT, step, seeds, adam=adam, lbfgs=lbfgs)
        return [_measured(net, data) for net in nets]

    rows = run.map(train, {"nets": ()})["nets"]
    curves = {key: [row[key] for row in rows] for key in rows[0]}
    growth = {method: stiff_growth(method) for method in (*IMPLICIT, "rk4")}
    scalars = {
        **{f"order_{method}": _order(method, order_steps) for method in IMPLICIT},
        **{f"growth_{method}": value for method, value in growth.items()},
        "implicit_growth": max(growth[method] for method in IMPLICIT),
        "own_order": max(curves["order"], key=lambda order: abs(order - 2)),
        "longest_trip": max(curves["round_trip"]),
        "mean_dip": geometric_mean(curves["dip"]),
    }
    return Findings(scalars, {"ratios": RATIOS, **curves})


def stiff_growth(method: str) -> float:
    """Return the largest norm of 20 steps of 0.1 on the stiff equation, over that at the start."""
    rates, x = torch.tensor([RATES, (1.0, 1.0)], dtype=torch.float64)

    def decay(x: Tensor) -> Tensor:
        change: Tensor = -rates * x
        return change

    norms = [float(x.norm())]
    for _ in range(STIFF_STEPS):
        if method in IMPLICIT:
            x = implicit_step(decay, x, STIFF_STEP, method)
        else:
            x = odeint(lambda t, x: decay(x), x, [0.0, STIFF_STEP], method=method)[-1]
        norms.append(float(x.norm()))
    return max(norms) / norms[0]


def _order(method: str, steps: tuple[int, ...]) -> float:
    """Return the order of a scheme on the true pendulum, from the errors at time 1."""
    start, end = pendulum.exact(0.0), pendulum.exact(1.0)

    def evaluate(method: str, n: int) -> Tensor:
        x = start
        for _ in range(n):
            x = implicit_step(pendulum.field, x, 1.0 / n, method)
        return x

    return fitted_order(steps, graph_errors(evaluate, end, [method], steps)[method])


@torch.no_grad()
def _measured(net: OneStepNet, data: Pairs) -> dict[str, Any]:
    """Return what the experiment measures of one trained net."""
    start = pendulum.exact(0.0).to(data[0])
    counts = [round(TEST_TIME / (ratio * net.step)) for ratio in RATIOS]
    test = compared(net, counts)
    limit = net.rollout(start, 8 * counts[0], method="rk4", step=TEST_TIME / (8 * counts[0]))[-1]

    def evaluate(method: str, n: int) -> Tensor:
        return net.rollout(start, n, step=TEST_TIME / n)[-1]

    fine = counts[:3]
    back = implicit_step(net.field, net(data[0]), -net.step, MIDPOINT)
    return {
        "errors": test.errors[MIDPOINT][::-1],
        "dip": test.dip,
        "order": fitted_order(fine, graph_errors(evaluate, limit, [MIDPOINT], fine)[MIDPOINT]),
        "round_trip": float((back - data[0]).norm(dim=-1).max()),
        "one_step": rms_error(net, data),
    }
