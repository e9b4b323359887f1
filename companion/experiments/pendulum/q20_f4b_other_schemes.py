r"""Q20-F4b: one-step nets of the pendulum under the schemes of others.

If a field has learnt a differential equation, every scheme solves it. Queiruga et al. (2020, Fig.
4b) put fields trained inside one scheme into another. The nets are those of Q20-F3.
"""

from itertools import product

import numpy as np

from companion.experiments import Findings, Grid, Part, Run, experiment, grid
from companion.experiments.pendulum import rollouts
from companion.experiments.pendulum.rollouts import HALF, RATIOS, SCHEMES


@experiment(
    "Q20-F4b",
    "One-step nets of the pendulum with their scheme swapped for another",
    paper="Queiruga et al. 2020, Fig. 4b",
    full={"seeds": 8, "adam": 4000},
    tiny={"step": 0.8, "seeds": 2, "adam": 10, "lbfgs": 2},
    claims=(
        ("CL28", "growth", 1e3, None, "smallest growth of an Euler net's error in midpoint or RK4"),
        ("CL28", "quarter", None, 0.02,
         "largest error of an RK4 net in midpoint at a quarter of the step"),
        ("CL28", "moved", None, 1.0,
         "a midpoint net in RK4 ends at the plateau it has under midpoint: largest |log2 ratio|"),
    ),
)  # fmt: skip
def q20_f4b(
    run: Run, *, step: float = 0.1, seeds: int = 3, adam: int = 2000, lbfgs: int = 200
) -> Findings:
    """Train a net of every scheme from every seed and run each under every scheme.

    Curves: ``ratios`` of the graphs' steps to that of the data, from fine to coarse;
    ``errors_TRAINED_in_RUN`` of shape (seeds, ratios), errors at time 3.2; ``numerical_SCHEME``,
    those of the scheme on the true field. Scalars: ``swapped_TRAINED_in_RUN``, geometric means over
    seeds of the error at the step of the data.
    """

    def measure(part: Part, trained: str) -> list[list[tuple[float, ...]]]:
        nets, _ = rollouts.motion_nets(run, part, trained, step, seeds, adam=adam, lbfgs=lbfgs)
        counts = rollouts.step_counts(step)
        tests = [rollouts.compared(net, counts, *SCHEMES) for net in nets]
        return [[test.errors[other][::-1] for test in tests] for other in SCHEMES]

    found = grid(run, measure, trained=SCHEMES).values
    axes = {"trained": SCHEMES, "run": SCHEMES, "seed": tuple(range(seeds)), "ratio": RATIOS}
    errors, pairs = Grid(axes, found), list(product(SCHEMES, SCHEMES))
    euler = errors.at(trained="euler", ratio=1.0)
    growth = euler.values / euler.at(run="euler").values
    midpoint = errors.at(trained="midpoint")
    plateau = midpoint.at(run="midpoint", ratio=RATIOS[0]).values
    # Finer steps are those up to half the step of the data.
    moved = np.log2(midpoint.at(run="rk4").values[:, : HALF + 1] / plateau[:, None])
    swapped = errors.at(ratio=1.0).geometric("seed")
    scalars = {
        **{f"swapped_{a}_in_{b}": swapped.at(trained=a, run=b).values.item() for a, b in pairs},
        "growth": growth[1:].min(),
        "quarter": errors.at(trained="rk4", run="midpoint", ratio=0.25).values.max(),
        "moved": np.abs(moved).max(),
    }
    curves = {
        "ratios": RATIOS,
        **{f"errors_{a}_in_{b}": errors.at(trained=a, run=b).values for a, b in pairs},
        **{f"numerical_{m}": rollouts.numerical_errors(m, step, run.device) for m in SCHEMES},
    }
    return Findings(scalars, curves)
