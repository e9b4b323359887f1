r"""FW2b: implicit schemes, on a stiff equation and inside one-step nets.

Explicit schemes need steps below the fastest time scale of a stiff equation; the implicit midpoint
rule and backward Euler don't. The implicit midpoint rule is symmetric, so a net built on it can be
run back exactly. Does symmetry also keep it from fitting its own step? It has order 2, as the
midpoint method has, and the convergence test of Q20-F4a is repeated with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.analysis.convergence import convergence_test, fitted_order, graph_errors
from companion.data import pendulum
from companion.experiments.pendulum.training import one_step_errors, train_nets
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import OneStepNet
from companion.models.implicit_step import IMPLICIT, implicit_step
from companion.ode import odeint
from companion.results import Claim, Findings

MIDPOINT = "implicit_midpoint"

RATES = (1.0, 1e3)
"""Decay rates of the stiff equation."""

STIFF_STEP, STIFF_STEPS = 0.1, 20

TEST_TIME = 3.2

RATIOS = (1 / 4, 1 / 2, 1.0, 2.0, 4.0)

ORDER_GRID = (80, 160, 320)
"""Numbers of steps to time 1 on the true pendulum."""


@experiment(
    "FW2b",
    "Implicit midpoint and backward Euler: a stiff equation, and one-step nets",
    paper="none; Queiruga et al. 2020, section 6, names implicit schemes as future work",
    claims=("FW2b",),
    full={"seeds": 8, "adam": 4000},
)
def fw2b(
    run: Run, *, step: float = 0.1, seeds: int = 3, adam: int = 1000, lbfgs: int = 200
) -> Findings:
    """Solve a stiff linear equation and the pendulum; train nets on the implicit midpoint rule.

    Curves: ``ratios`` of the graphs' steps to that of the data; ``errors`` of shape (seeds,
    ratios), at time 3.2; ``dip``, ``order``, ``round_trip`` and ``one_step``, one value a seed:
    dip ratio, order at which finer graphs approach the net's own differential equation, largest
    distance after a step and a step back, and root mean squared error of one step. Scalars:
    ``growth_SCHEME``, largest norm on the stiff equation over that at the start;
    ``order_SCHEME`` on the pendulum.
    """

    def numerical(part: Part) -> dict[str, float]:
        orders = {f"order_{m}": _order(m) for m in IMPLICIT}
        return orders | {f"growth_{m}": stiff_growth(m) for m in (*IMPLICIT, "rk4")}

    def train(part: Part) -> list[dict[str, Any]]:
        now, later = pendulum.pairs(step, 6.4)
        data = (now.to(run.device), later.to(run.device))
        own = range(run.seed, run.seed + seeds)
        nets = train_nets(MIDPOINT, step, data, own, adam=adam, lbfgs=lbfgs)
        return [_measured(net, data) for net in nets]

    scalars = run.map(numerical, {"numerical": ()})["numerical"]
    rows = run.map(train, {"nets": ()})["nets"]
    curves = {key: [row[key] for row in rows] for key in rows[0]}
    return Findings(scalars, {"ratios": RATIOS, **curves}, _claims(scalars, curves))


def stiff_growth(method: str) -> float:
    """Return the largest norm of 20 steps of 0.1 on the stiff equation, over that at the start.

    Example:
        >>> stiff_growth("backward_euler"), stiff_growth("rk4") > 1e100
        (1.0, True)
    """
    rates = torch.tensor(RATES, dtype=torch.float64)

    def decay(x: Tensor) -> Tensor:
        change: Tensor = -rates * x
        return change

    x = torch.ones(2, dtype=torch.float64)
    norms = [float(x.norm())]
    for _ in range(STIFF_STEPS):
        x = _step(decay, x, STIFF_STEP, method)
        norms.append(float(x.norm()))
    return max(norms) / norms[0]


def _step(f: Callable[[Tensor], Tensor], x: Tensor, h: float, method: str) -> Tensor:
    if method in IMPLICIT:
        return implicit_step(f, x, h, method)
    end: Tensor = odeint(lambda t, x: f(x), x, [0.0, h], method=method)[-1]
    return end


def _order(method: str) -> float:
    """Return the order of a scheme on the true pendulum, from the errors at time 1."""
    states = pendulum.exact([0.0, 1.0])

    def evaluate(method: str, n: int) -> Tensor:
        x = states[0]
        for _ in range(n):
            x = implicit_step(pendulum.field, x, 1.0 / n, method)
        return x

    return fitted_order(ORDER_GRID, graph_errors(evaluate, states[1], [method], ORDER_GRID)[method])


@torch.no_grad()
def _measured(net: OneStepNet, data: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Return what the experiment measures of one trained net."""
    start, end = pendulum.exact([0.0, TEST_TIME]).to(data[0])
    counts = [round(TEST_TIME / (ratio * net.step)) for ratio in RATIOS]
    test = convergence_test(net, start, end, time=TEST_TIME, methods=(), steps=counts)
    limit = net.rollout(start, 8 * counts[0], method="rk4", step=TEST_TIME / (8 * counts[0]))[-1]

    def evaluate(method: str, n: int) -> Tensor:
        return net.rollout(start, n, step=TEST_TIME / n)[-1]

    fine = counts[:3]
    forth = net(data[0])
    back = implicit_step(net.field, forth, -net.step, MIDPOINT)
    return {
        "errors": test.errors[MIDPOINT][::-1],
        "dip": test.dip,
        "order": fitted_order(fine, graph_errors(evaluate, limit, [MIDPOINT], fine)[MIDPOINT]),
        "round_trip": float((back - data[0]).norm(dim=-1).max()),
        "one_step": float(one_step_errors(net, data).mean().sqrt()),
    }


def _claims(scalars: dict[str, float], curves: dict[str, Any]) -> list[Claim]:
    implicit = max(scalars[f"growth_{method}"] for method in IMPLICIT)
    order = scalars[f"order_{MIDPOINT}"]
    own = max(curves["order"], key=lambda value: abs(value - 2))
    dip = float(np.exp(np.log(curves["dip"]).mean()))
    trip = max(curves["round_trip"])
    return [
        Claim("FW2b", "largest growth of implicit schemes on the stiff equation", implicit, high=1),
        Claim("FW2b", "growth of RK4 on it", scalars["growth_rk4"], low=1e6),
        Claim("FW2b", "order of implicit midpoint, true pendulum", order, low=1.9, high=2.1),
        Claim("FW2b", "the same on trained fields, farthest from 2", own, low=1.75, high=2.25),
        Claim("FW2b", "largest distance after a step and a step back", trip, high=1e-11),
        Claim("FW2b", "dip ratio of implicit midpoint nets: they dip too", dip, low=10),
    ]
