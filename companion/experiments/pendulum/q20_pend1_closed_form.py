r"""Q20-PEND1: the pendulum's closed form, against a numerical solution and against its energy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.special import ellipj, ellipk

from companion.data import pendulum
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.results import Claim, Findings


@experiment(
    "Q20-PEND1",
    "The pendulum's motion in closed form, with the misprints of the paper corrected",
    paper="Queiruga et al. 2020, Eq. 13",
    claims=("CL23",),
    full={"angles": (pendulum.START, -1.0, 0.3, 1.5, 2.9, 3.0, 3.1), "points": 4001},
)
def q20_pend1(
    run: Run,
    *,
    angles: tuple[float, ...] = (pendulum.START, -1.0, 0.3, 3.0),
    time: float = 20.0,
    points: int = 401,
) -> Findings:
    """Compare the closed form with a Runge-Kutta solution of order 8 at its tightest tolerance.

    Curves: ``angles``, ``angle_error`` and ``velocity_error`` (largest distances from the numerical
    solution, which has errors of its own), ``drift`` (range of the energy over ``time``),
    ``residual`` (largest distance from a numerical solution that starts anew from the closed form
    at each point), ``modulus_error`` (largest error in the angle if the functions got the modulus
    k in place of the parameter m). Scalars: ``period``, that of the first angle.
    """

    def compare(part: Part, angle: float) -> list[float]:
        t = np.linspace(0, time, points)
        found = pendulum.exact(t, angle).numpy()
        error = np.abs(found - _solved(found[0], t)).max(axis=0)
        energy = found[:, 1] ** 2 / 2 - pendulum.GRAVITY * np.cos(found[:, 0])
        short = [abs(_solved(found[n], t[n : n + 2])[-1] - found[n + 1]) for n in range(_STARTS)]
        wrong = np.abs(_with_modulus(t, angle) - found[:, 0]).max()
        return [*error, np.ptp(energy), np.max(short), wrong]

    names = ("angle_error", "velocity_error", "drift", "residual", "modulus_error")
    table = np.array(list(run.map(compare, {f"from {a:.3g}": (a,) for a in angles}).values()))
    curves = {"angles": angles, **dict(zip(names, table.T, strict=True))}
    claims = [
        Claim("CL23", "largest distance from a numerical solution", table[0, :2].max(), high=1e-10),
        Claim("CL23", "the same, restarted at each point", table[:, 3].max(), high=1e-11),
        Claim("CL23", "largest range of the energy", table[:, 2].max(), high=1e-11),
    ]
    return Findings({"period": pendulum.period(angles[0])}, curves, claims)


_STARTS = 40
"""Points from which a numerical solution starts anew."""


def _solved(start: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the states at the times ``t``, from an explicit Runge-Kutta pair of order 8."""

    def rate(t: float, x: NDArray[np.float64]) -> list[float]:
        return [x[1], -pendulum.GRAVITY * math.sin(x[0])]

    solution = solve_ivp(rate, (t[0], t[-1]), start, "DOP853", t, rtol=1e-13, atol=1e-13)
    states: NDArray[np.float64] = solution.y.T
    return states


def _with_modulus(t: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Return the angle by the closed form with the modulus where the parameter belongs."""
    k = math.sin(angle / 2)
    sn = ellipj(ellipk(abs(k)) - math.sqrt(pendulum.GRAVITY) * t, abs(k))[0]
    wrong: NDArray[np.float64] = 2 * np.arcsin(k * sn)
    return wrong
