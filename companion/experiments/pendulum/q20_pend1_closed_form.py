r"""Q20-PEND1: the pendulum's closed form, against a numerical solution and against its energy."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.special import ellipj, ellipk

from companion.data import pendulum
from companion.experiments import Findings, Part, Run, experiment, grids, named

STARTS = 40
"""Points from which a numerical solution starts anew."""

ERRORS = ("angle_error", "velocity_error", "drift", "residual", "modulus_error")


@experiment(
    "Q20-PEND1",
    "The pendulum's motion in closed form, with the misprints of the paper corrected",
    paper="Queiruga et al. 2020, Eq. 13",
    full={"angles": (pendulum.START, -1.0, 0.3, 1.5, 2.9, 3.0, 3.1), "points": 4001},
    tiny={"angles": (pendulum.START, 0.3), "time": 4.0, "points": 81},
    # What is left of the others is rounding, which no two processors share.
    machine_dependent=(*ERRORS[:4], "distance", "restarted", "range"),
    claims=(
        ("CL23", "distance", None, 1e-10, "largest distance from a numerical solution"),
        ("CL23", "restarted", None, 1e-11, "the same, restarted at each point"),
        ("CL23", "range", None, 1e-11, "largest range of the energy"),
    ),
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
    k in place of the parameter m). Scalars: ``period``, that of the first angle; ``distance``, of
    the first angle, ``restarted`` and ``range``, the largest of these errors.
    """

    def compare(part: Part, angle: float) -> dict[str, float]:
        t = np.linspace(0, time, points)
        found = pendulum.exact(t, angle).numpy()
        error = np.abs(found - _solved(found[0], t)).max(axis=0)
        energy = found[:, 1] ** 2 / 2 - pendulum.GRAVITY * np.cos(found[:, 0])
        short = [abs(_solved(found[n], t[n : n + 2])[-1] - found[n + 1]) for n in range(STARTS)]
        wrong = np.abs(_with_modulus(t, angle) - found[:, 0]).max()
        numbers = (*error, np.ptp(energy), np.max(short), wrong)
        return dict(zip(ERRORS, map(float, numbers), strict=True))

    curves = named(grids(run, compare, angle=angles))
    scalars = {
        "period": pendulum.period(angles[0]),
        "distance": max(curves["angle_error"][0], curves["velocity_error"][0]),
        "restarted": curves["residual"].max(),
        "range": curves["drift"].max(),
    }
    return Findings(scalars, {"angles": angles, **curves})


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
