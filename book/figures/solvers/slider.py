"""Compute what the slider of chapter 2 shows, and draw its picture for paper.

Run `python -m figures.solvers.slider` in `book` after a change; the two files it writes are
committed. The slider's script takes the steps itself.
"""

import math
from typing import Any

import torch
from figures.writing import write_slider
from matplotlib.figure import Figure
from torch import Tensor

from companion import odeint
from companion.data import pendulum
from companion.figures import PALETTE, use_style
from companion.schemes import get_scheme

METHODS = {"euler": "Euler", "midpoint": "midpoint", "heun": "Heun", "rk4": "RK4"}
EQUATIONS = {"swing": "a pendulum", "follow": "a follower of rate 20"}
TIMES = {"swing": 6.4, "follow": 3.0}
COUNTS = (512, 384, 256, 192, 128, 96, 80, 64, 56, 48, 40, 36, 32, 30, 28, 26, 24, 20, 16, 12)
RATE = 20.0
SHOWN = 32
POINTS = 129


def field(equation: str, t: Tensor, x: Tensor) -> Tensor:
    """Evaluate one of the two equations."""
    return pendulum.field(x) if equation == "swing" else RATE * (torch.cos(t) - x)


def truth(equation: str) -> Tensor:
    """Return the solution at equal times, shape ``(POINTS, variables)``."""
    t = torch.linspace(0, TIMES[equation], POINTS, dtype=torch.float64)
    if equation == "swing":
        return pendulum.exact(t)
    smooth = RATE * (RATE * torch.cos(t) + torch.sin(t)) / (1 + RATE**2)
    return (smooth - RATE**2 / (1 + RATE**2) * torch.exp(-RATE * t)).unsqueeze(1)


def path(equation: str, method: str, steps: int) -> Tensor:
    """Return the computed states after every step."""
    t = torch.linspace(0, TIMES[equation], steps + 1, dtype=torch.float64)
    found: Tensor = odeint(
        lambda t, x: field(equation, t, x), truth(equation)[0], t, method=method, steps=1
    )
    return found


def error(equation: str, method: str, steps: int) -> float:
    """Return the distance from the solution at the end."""
    return float((path(equation, method, steps)[-1] - truth(equation)[-1]).norm())


def data() -> dict[str, Any]:
    """Return all that the slider needs."""
    schemes = {name: get_scheme(name) for name in METHODS}
    return {
        "counts": list(COUNTS),
        "gravity": pendulum.GRAVITY,
        "rate": RATE,
        "methods": METHODS,
        "equations": EQUATIONS,
        "times": TIMES,
        "schemes": {
            n: {"rows": s.rows, "weights": s.weights, "fractions": s.fractions}
            for n, s in schemes.items()
        },
        "starts": {name: truth(name)[0].tolist() for name in EQUATIONS},
        "ends": {name: truth(name)[-1].tolist() for name in EQUATIONS},
        "truths": {
            name: [float(f"{float(x):.5g}") for x in truth(name)[:, 0]] for name in EQUATIONS
        },
    }


def picture(found: dict[str, Any]) -> Figure:
    """Return the pendulum's motion under three methods with equal steps."""
    with use_style():
        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        axes = figure.subplots()
        times = torch.linspace(0, TIMES["swing"], POINTS)
        axes.plot(times, found["truths"]["swing"], "-", color="#999999", lw=7, alpha=0.6, marker="")
        h = TIMES["swing"] / SHOWN
        for colour, name in zip(PALETTE[1:], ("euler", "midpoint", "rk4"), strict=False):
            angles = path("swing", name, SHOWN)[:, 0]
            axes.plot(h * torch.arange(SHOWN + 1), angles, color=colour, label=METHODS[name], ms=3)
        axes.set(xlabel="time", ylabel="angle (rad)", ylim=(-math.pi, 4.6))
        axes.legend(loc="upper center", ncols=3, columnspacing=1.0, handlelength=2.0)
    return figure


def main() -> None:
    """Write both files."""
    found = data()
    write_slider("solvers", found, picture(found))


if __name__ == "__main__":
    main()
