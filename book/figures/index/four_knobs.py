"""Draw the picture of the four knobs, once for light and once for dark pages.

Run `python book/figures/index/four_knobs.py` after a change; the SVG files are committed.
"""

from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp

STATIC = Path(__file__).parents[2] / "_static"
# Text and lines, quiet lines, and the accent; the accents differ in grey too.
COLOURS = {
    "light": {"ink": "#1f2933", "quiet": "#6b7885", "method": "#0b5d85", "back": "#a04000"},
    "dark": {"ink": "#e6eaee", "quiet": "#909daa", "method": "#6cc4f0", "back": "#ffb067"},
}
WEIGHTS = np.array([2.6, -1.6, 3.0, -2.2])
STEPS = 8
STARTS = np.linspace(-2.2, 1.6, 9)
FOLLOWED = 5


def field(t: float, x: np.ndarray) -> np.ndarray:
    """Return the velocity: smooth in the state, with weights constant on four cells of depth."""
    cell = min(int(t * len(WEIGHTS)), len(WEIGHTS) - 1)
    return WEIGHTS[cell] * (0.6 + np.sin(2.0 * x))


def trajectories() -> tuple[np.ndarray, np.ndarray]:
    """Return a fine grid of depth and the exact trajectories on it, cell by cell."""
    times, states, x = [], [], STARTS
    edges = np.linspace(0, 1, len(WEIGHTS) + 1)
    for left, right in pairwise(edges):
        grid = np.linspace(left, right, 41)
        middle = (left + right) / 2
        solution = solve_ivp(
            lambda t, x, m=middle: field(m, x), (left, right), x, t_eval=grid, rtol=1e-8, atol=1e-8
        )
        times.append(grid)
        states.append(solution.y)
        x = solution.y[:, -1]
    return np.concatenate(times), np.concatenate(states, axis=1)


def euler(x: float) -> np.ndarray:
    """Return the states of Euler's method from ``x``."""
    states = [x]
    for n in range(STEPS):
        states.append(states[-1] + field(n / STEPS, states[-1]) / STEPS)
    return np.array(states)


def draw_state(ax: Axes, colours: dict[str, str]) -> None:
    """Draw the field as short segments, the trajectories, and one solution in steps."""
    t, x = np.meshgrid(np.linspace(0.03, 0.97, 15), np.linspace(-2.2, 2.2, 11))
    slope = np.vectorize(field)(t, x)
    style = {"angles": "xy", "scale": 28, "width": 0.0025, "headwidth": 0, "headlength": 0}
    ax.quiver(
        t,
        x,
        np.ones_like(slope),
        slope,
        color=colours["quiet"],
        pivot="mid",
        headaxislength=0,
        **style,
    )
    times, states = trajectories()
    ax.plot(times, states.T, color=colours["quiet"], lw=1.3)
    ax.plot(times, states[FOLLOWED], color=colours["method"], lw=1.3)
    path = euler(STARTS[FOLLOWED])
    ax.plot(np.linspace(0, 1, STEPS + 1), path, "o--", color=colours["method"], lw=1.8, ms=5)
    ax.set(xlim=(-0.01, 1.01), ylim=(-2.4, 2.4), xticks=[], yticks=[], ylabel="state $x$")


def draw_gradient(ax: Axes, colours: dict[str, str]) -> None:
    """Draw the arrow that runs back from the loss."""
    ax.annotate(
        "", xy=(0.0, 0.5), xytext=(1.0, 0.5),
        arrowprops={"arrowstyle": "-|>", "lw": 2, "ls": "-", "color": colours["back"]},
    )  # fmt: skip
    ax.set(xlim=(-0.01, 1.01), ylim=(0, 1), xticks=[], yticks=[])


def draw_weights(ax: Axes, colours: dict[str, str]) -> None:
    """Draw the staircase of weights."""
    edges = np.linspace(0, 1, len(WEIGHTS) + 1)
    ax.stairs(WEIGHTS, edges, baseline=None, color=colours["ink"], lw=2)
    ax.set(xlim=(-0.01, 1.01), ylim=(-3, 3.6), xticks=[0, 1], yticks=[], xlabel="depth $t$")


def label(ax: Axes, text: str, colour: str) -> None:
    """Write the knob's name to the right of its panel."""
    ax.text(1.03, 0.5, text, transform=ax.transAxes, va="center", color=colour, weight="bold")


def picture(colours: dict[str, str]) -> Figure:
    """Return the figure in one set of colours."""
    figure = Figure(figsize=(5.4, 4.4), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, height_ratios=[0.5, 5, 1.4])
    draw_gradient(top, colours)
    draw_state(middle, colours)
    draw_weights(bottom, colours)
    label(top, "gradient", colours["back"])
    middle.text(
        1.03, 0.24, "field", transform=middle.transAxes, color=colours["quiet"], weight="bold"
    )
    middle.text(
        1.03, 0.65, "method", transform=middle.transAxes, color=colours["method"], weight="bold"
    )
    label(bottom, "weights", colours["ink"])
    for ax in (top, middle, bottom):
        ax.set_facecolor("none")
        ax.spines[:].set_visible(False)
        ax.tick_params(colors=colours["ink"], length=0)
        ax.xaxis.label.set_color(colours["ink"])
        ax.yaxis.label.set_color(colours["ink"])
    return figure


def main() -> None:
    """Write both files."""
    mpl.rcParams.update({"svg.hashsalt": "four knobs", "font.size": 13})
    for name, colours in COLOURS.items():
        target = STATIC / f"four_knobs_{name}.svg"
        picture(colours).savefig(target, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
