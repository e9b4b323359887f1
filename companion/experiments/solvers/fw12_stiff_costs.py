r"""FW12: what does a problem cost whose rates differ more and more?

An oscillation of rate 1 is followed by a variable that relaxes to it at the rate $r$:

$$\dot u = v, \qquad \dot v = -u, \qquad \dot w = -r\,(w - u) .$$

From $(1, 0, 0)$ the solution is $u = \cos t$, and after a time of the size $1/r$ the third variable
is as smooth as the other two. An explicit pair must take steps of the size $1/r$ all the same.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from companion import counting, odeint
from companion.experiments import Part, Run, experiment, grid
from companion.observe import fit_slope
from companion.results import Findings

IMPLICIT = ("LSODA", "Radau")
"""Two of SciPy's methods for stiff problems."""


@experiment(
    "FW12",
    "Evaluations against the ratio of two rates, for explicit and implicit methods",
    paper="Chen et al. 2018, section 6",
    full={"ratios": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)},
    tiny={"ratios": (1.0, 30.0), "time": 2.0},
    claims=(
        ("CL20", "growth_dopri5", 30.0, None,
         "dopri5's evaluations at the ratio {ratios[-1]:g} over those at {ratios[0]:g}"),
        ("FW12", "slope_dopri5", 0.9, 1.1,
         "slope of dopri5's evaluations against the ratio, {ratios[-2]:g} to {ratios[-1]:g}"),
        ("FW12", "growth_LSODA", None, 3.0,
         "LSODA's evaluations at the ratio {ratios[-1]:g} over those at {ratios[0]:g}"),
        ("FW12", "growth_Radau", None, 3.0,
         "Radau's evaluations at the ratio {ratios[-1]:g} over those at {ratios[0]:g}"),
    ),
)  # fmt: skip
def fw12(
    run: Run, *, ratios: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    tolerance: float = 1e-5, time: float = 10.0,
) -> Findings:  # fmt: skip
    """Count every call of the field, those for a difference quotient of its Jacobian included.

    Curves: ``ratios``, and for each method ``nfe_METHOD`` and ``error_METHOD``, the distance from
    the solution at the end. Scalars: ``growth_METHOD``, the evaluations at the last ratio over
    those at the first; ``slope_dopri5``; ``break_even_METHOD``, the ratio from which on an implicit
    method takes fewer evaluations than dopri5, the smallest ratio if it always does.
    """

    def solve(part: Part, method: str, ratio: float) -> list[float]:
        field, end = Follower(ratio), exact(ratio, time)
        if method in IMPLICIT:
            found = _implicit(field, method, tolerance, time)
        else:
            with counting() as stats:
                ys = odeint(
                    field, torch.tensor(START, dtype=torch.float64), [0.0, time], method=method,
                    rtol=tolerance, atol=tolerance,
                )  # fmt: skip
            found = ys[-1].numpy(), stats.nfe
        return [found[1], float(np.linalg.norm(found[0] - end))]

    found = grid(run, solve, method=("dopri5", *IMPLICIT), ratio=ratios)
    nfe, error = found.pick(0), found.pick(1)
    counts = {method: nfe.at(method=method).values for method in nfe.axes["method"]}
    explicit = counts["dopri5"]
    scalars = {f"growth_{method}": float(n[-1] / n[0]) for method, n in counts.items()}
    scalars["slope_dopri5"] = fit_slope(ratios[-2:], explicit[-2:].tolist()).value
    for method in IMPLICIT:
        scalars[f"break_even_{method}"] = break_even(ratios, explicit, counts[method])
    curves = {"ratios": ratios, **nfe.named("nfe", "method"), **error.named("error", "method")}
    return Findings(scalars, curves)


START = (1.0, 0.0, 0.0)


class Follower:
    """The field; ``ratio`` is the rate of the third variable."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it."""
        u, v, w = y.unbind()
        return torch.stack([v, -u, self.ratio * (u - w)])


def exact(ratio: float, t: float) -> NDArray[np.float64]:
    """Return the solution at the time ``t``.

    Example:
        >>> bool(np.allclose(exact(3.0, 0.0), [1.0, 0.0, 0.0], atol=1e-15))
        True
    """
    smooth = ratio * (ratio * math.cos(t) + math.sin(t)) / (1 + ratio**2)
    gone = ratio**2 / (1 + ratio**2) * math.exp(-ratio * t)
    return np.array([math.cos(t), -math.sin(t), smooth - gone])


def break_even(
    ratios: tuple[float, ...], explicit: NDArray[np.float64], implicit: NDArray[np.float64]
) -> float:
    """Return where two curves of counts cross for the last time, on logarithmic axes.

    Example:
        >>> round(break_even((1.0, 100.0), np.array([10.0, 1000.0]), np.array([100.0, 100.0])), 9)
        10.0
        >>> break_even((1.0, 100.0), np.array([10.0, 1000.0]), np.array([5.0, 5.0]))
        1.0
    """
    above = np.log(explicit / implicit)
    below = np.flatnonzero(above <= 0)
    if not len(below):
        return ratios[0]
    last = int(below[-1])
    if last == len(ratios) - 1:
        return math.inf
    share = -above[last] / (above[last + 1] - above[last])
    return float(ratios[last] * (ratios[last + 1] / ratios[last]) ** share)


def _implicit(
    field: Callable[[Tensor, Tensor], Tensor], method: str, tolerance: float, time: float
) -> tuple[NDArray[np.float64], int]:
    """Return the end of SciPy's solve, and how often the field was called."""
    calls = 0

    def called(t: float, y: NDArray[np.float64]) -> Any:
        nonlocal calls
        calls += 1
        return field(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy()

    solved = solve_ivp(called, (0, time), START, method=method, rtol=tolerance, atol=tolerance)
    end: NDArray[np.float64] = solved.y[:, -1]
    return end, calls
