r"""FW11: how many evaluations does an error cost, and does the implementation matter?

Pairs of embedded Runge-Kutta methods solve four problems of DETEST at one tolerance after another.
SciPy's RK45 is the pair ``dopri5`` written by somebody else.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from companion import counting, odeint
from companion.experiments import Grid, Part, Run, experiment, grid, named
from companion.experiments.solvers.detest import PROBLEMS, TIME
from companion.observe import fit_line, fit_slope
from companion.results import Findings

THEIRS = "RK45"
"""SciPy's name for the pair of Dormand and Prince."""


@experiment(
    "FW11",
    "Evaluations and errors of embedded pairs on four problems of DETEST",
    paper="not in the papers",
    full={
        "tolerances": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11),
    },
    tiny={"problems": ("B1", "E2"), "tolerances": (1e-3, 1e-4)},
    claims=(
        ("FW11", "difference", None, 0.02,
         "largest relative difference of dopri5's evaluations from SciPy's RK45"),
        ("CL10", "slope_least", -0.26, None,
         "steepest slope of dopri5's evaluations against the tolerance"),
        ("CL10", "slope_most", None, -0.14,
         "flattest slope of dopri5's evaluations against the tolerance"),
    ),
)  # fmt: skip
def fw11(
    run: Run, *, problems: tuple[str, ...] = ("A3", "B1", "D3", "E2"),
    methods: tuple[str, ...] = ("bosh3", "dopri5", "tsit5"),
    tolerances: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
) -> Findings:  # fmt: skip
    """Solve every problem with every method, the relative and the absolute tolerance being equal.

    Curves: ``tolerances``; for every problem and method, and for SciPy's, ``nfe_PROBLEM_METHOD``,
    ``steps_PROBLEM_METHOD``, the accepted ones, and ``error_PROBLEM_METHOD``, the distance of the
    end from a far more accurate one, relative to its norm. Scalars: ``difference``, the largest
    over problems and tolerances; of dopri5 ``slope_PROBLEM``, of evaluations against the tolerance,
    with ``slope_least`` and ``slope_most``, the same between the two tightest tolerances, ``tight``
    in place of ``slope``, and the largest part of its attempts that was rejected, at any tolerance
    and at the tightest, ``rejected_most`` and ``rejected_tight``;
    ``gain_PROBLEM_METHOD``, the evaluations of dopri5 over those of another method at one error,
    the middle of those that both reach, read off lines fitted on logarithmic axes.
    """
    exact = {problem: _theirs(problem, "DOP853", 1e-13)[0] for problem in problems}

    def solve(part: Part, problem: str, method: str, tolerance: float) -> list[float]:
        count = _theirs if method == THEIRS else _ours
        end, nfe, steps = count(problem, method, tolerance)
        wanted = exact[problem]
        return [nfe, steps, float(np.linalg.norm(end - wanted) / np.linalg.norm(wanted))]

    found = grid(run, solve, problem=problems, method=(*methods, THEIRS), tolerance=tolerances)
    nfe, steps, error = (found.pick(k) for k in range(3))
    ours, theirs = (nfe.at(method=method).values for method in ("dopri5", THEIRS))
    # Six evaluations an attempt, and two before the first.
    rejected = 1 - steps.at(method="dopri5").values / ((ours - 2) / 6)
    slopes, tight = (
        {
            problem: fit_slope(tolerances[-last:], row[-last:]).value
            for problem, row in zip(problems, ours.tolist(), strict=True)
        }
        for last in (len(tolerances), 2)
    )
    scalars = {
        "difference": float(np.abs(ours / theirs - 1).max()),
        "rejected_most": rejected.max(),
        "rejected_tight": rejected[:, -1].max(),
        "slope_least": min(slopes.values()),
        "slope_most": max(slopes.values()),
        "tight_least": min(tight.values()),
        "tight_most": max(tight.values()),
        **{f"slope_{problem}": slope for problem, slope in slopes.items()},
        **{
            f"gain_{problem}_{method}": _gain(
                found.at(problem=problem, method="dopri5"), found.at(problem=problem, method=method)
            )
            for problem in problems
            for method in methods
            if method != "dopri5"
        },
    }
    axes = ("problem", "method")
    curves = named({"nfe": nfe, "steps": steps, "error": error}, *axes)
    return Findings(scalars, {"tolerances": tolerances, **curves})


def _ours(problem: str, method: str, tolerance: float) -> tuple[NDArray[np.float64], int, int]:
    """Return the end of the companion's solve, its evaluations and accepted steps."""
    asked = PROBLEMS[problem]
    start = torch.tensor(asked.start, dtype=torch.float64)
    with counting() as stats:
        ys = odeint(
            asked.field, start, [0.0, TIME], method=method, rtol=tolerance, atol=tolerance,
            max_steps=100_000,
        )  # fmt: skip
    end: NDArray[np.float64] = ys[-1].numpy()
    return end, stats.nfe, stats.steps


def _theirs(problem: str, method: str, tolerance: float) -> tuple[NDArray[np.float64], int, int]:
    """Return the end of SciPy's solve, its evaluations and accepted steps."""
    asked = PROBLEMS[problem]

    def field(t: float, y: NDArray[np.float64]) -> Any:
        return asked.field(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy()

    solved = solve_ivp(field, (0, TIME), asked.start, method=method, rtol=tolerance, atol=tolerance)
    end: NDArray[np.float64] = solved.y[:, -1]
    return end, int(solved.nfev), len(solved.t) - 1


def _gain(one: Grid, other: Grid) -> float:
    """Return the evaluations of one method over those of another at the same error."""
    nfe, error = (np.log([found.pick(k).values for found in (one, other)]) for k in (0, 2))
    middle = (error.min(axis=1).max() + error.max(axis=1).min()) / 2
    lines = [fit_line(error[k], nfe[k]) for k in (0, 1)]
    at = [line.start + line.slope * middle for line in lines]
    return float(np.exp(at[0] - at[1]))
