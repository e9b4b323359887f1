r"""Q20-F4b: one-step nets of the pendulum under the schemes of others.

If a field has learnt a differential equation, every scheme solves it. Queiruga et al. (2020, Fig.
4b) put fields trained inside one scheme into another. The nets are those of Q20-F3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from companion.analysis.convergence import convergence_test
from companion.data import pendulum
from companion.experiments.pendulum.q20_f3_other_steps import (
    DATA_TIME,
    HALF,
    OWN,
    RATIOS,
    SCHEMES,
    TEST_TIME,
    numerical_errors,
    step_counts,
)
from companion.experiments.pendulum.training import train_nets
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.results import Claim, Findings

QUARTER = RATIOS.index(0.25)


@experiment(
    "Q20-F4b",
    "One-step nets of the pendulum with their scheme swapped for another",
    paper="Queiruga et al. 2020, Fig. 4b",
    claims=("CL28",),
    full={"seeds": 8, "adam": 4000},
)
def q20_f4b(
    run: Run, *, step: float = 0.1, seeds: int = 3, adam: int = 2000, lbfgs: int = 200
) -> Findings:
    """Train a net of every scheme from every seed and run each under every scheme.

    Curves: ``ratios`` of the graphs' steps to that of the data, from fine to coarse;
    ``errors_TRAINED_in_RUN`` of shape (seeds, ratios), errors at time 3.2; ``numerical_SCHEME``,
    those of the scheme on the true field. Scalars: ``swapped_TRAINED_in_RUN``, geometric means over
    seeds of the error at the step of the data.
    """

    def train(part: Part, method: str) -> dict[str, Any]:
        now, later = pendulum.pairs(step, DATA_TIME)
        nets = train_nets(
            method,
            step,
            (now.to(run.device), later.to(run.device)),
            range(run.seed, run.seed + seeds),
            adam=adam,
            lbfgs=lbfgs,
        )
        start, end = pendulum.exact([0.0, TEST_TIME]).to(run.device)
        tests = [
            convergence_test(
                net, start, end, time=TEST_TIME, methods=SCHEMES, steps=step_counts(step)
            )
            for net in nets
        ]
        return {other: [test.errors[other][::-1] for test in tests] for other in SCHEMES}

    found = run.map(train, {method: (method,) for method in SCHEMES})
    errors = {
        f"{trained}_in_{other}": np.array(found[trained][other])
        for trained in SCHEMES
        for other in SCHEMES
    }
    curves: dict[str, Any] = {f"errors_{name}": table for name, table in errors.items()}
    curves |= {f"numerical_{m}": numerical_errors(run, m, step) for m in SCHEMES}
    scalars = {
        f"swapped_{name}": float(np.exp(np.log(table[:, OWN]).mean()))
        for name, table in errors.items()
    }
    return Findings(scalars, {"ratios": RATIOS, **curves}, _claims(errors))


def _claims(errors: dict[str, Any]) -> list[Claim]:
    """Decide the claim for each swap; finer steps are those up to half the step of the data."""
    own = errors["euler_in_euler"][:, OWN]
    euler = min(
        float((errors[f"euler_in_{other}"][:, OWN] / own).min()) for other in ("midpoint", "rk4")
    )
    plateau = errors["midpoint_in_midpoint"][:, 0]
    moved = np.abs(np.log2(errors["midpoint_in_rk4"][:, : HALF + 1] / plateau[:, None])).max()
    return [
        Claim("CL28", "smallest growth of an Euler net's error in midpoint or RK4", euler, low=1e3),
        Claim(
            "CL28",
            "largest error of an RK4 net in midpoint at a quarter of the step",
            float(errors["rk4_in_midpoint"][:, QUARTER].max()),
            high=0.02,
        ),
        Claim(
            "CL28",
            "a midpoint net in RK4 ends at the plateau it has under midpoint: largest |log2 ratio|",
            float(moved),
            high=1.0,
        ),
    ]
