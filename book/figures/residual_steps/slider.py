"""Draw the network above its Euler polygon, and write what the slider of chapter 1 needs.

Run `python -m figures.residual_steps.slider` in `book` after a change; the two files it writes are
committed. The slider's script takes the steps itself.
"""

from typing import Any

import torch
from figures.writing import write_slider
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from companion import odeint
from companion.figures import use_style

GAIN = 1.6
MATRIX = ((-0.5, -2.0), (2.0, 0.4))
START = (0.8, 0.0)
COUNTS = (1, 2, 4, 8, 16, 32)
SHOWN = 8  # layers of the picture
WINDOW = {"x": (-2.4, 2.0), "y": (-1.4, 1.8)}


def swirl(t: Tensor | float, x: Tensor) -> Tensor:
    """Return the velocity in the plane: it turns, and is bounded far out."""
    return GAIN * torch.tanh(x @ torch.tensor(MATRIX, dtype=x.dtype).T)


def network(layers: int, factor: float) -> Tensor:
    """Return the states before, between and after the layers ``x + factor * swirl(x)``."""
    states = [torch.tensor(START, dtype=torch.float64)]
    for _ in range(layers):
        states.append(states[-1] + factor * swirl(0.0, states[-1]))
    return torch.stack(states)


def solution() -> Tensor:
    """Return the solution of the differential equation at 65 depths from 0 to 1."""
    start, depths = torch.tensor(START, dtype=torch.float64), torch.linspace(0, 1, 65).double()
    return odeint(swirl, start, depths, rtol=1e-10, atol=1e-10)


def data() -> dict[str, Any]:
    """Return all that the slider needs."""
    return {
        "gain": GAIN,
        "matrix": MATRIX,
        "start": START,
        "counts": COUNTS,
        "shown": SHOWN,
        "window": WINDOW,
        "solution": [[round(v, 4) for v in point] for point in solution().tolist()],
    }


def hue(layer: int, layers: int) -> float:
    """Return the hue of a layer in degrees, from blue by way of purple to red."""
    return 210 + 160 * layer / max(layers - 1, 1)


def picture() -> Figure:
    """Return the network of ``SHOWN`` layers with the factor 1/N above its polygon."""
    with use_style():
        figure = Figure(figsize=(5.2, 5.2), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=(1, 3.4))
        colours = [hsv_to_rgb((hue(n, SHOWN) % 360 / 360, 0.85, 0.75)) for n in range(SHOWN)]
        _draw_layers(above, colours)
        _draw_plane(below, colours)
    return figure


def _draw_layers(axes: Axes, colours: list[Any]) -> None:
    axes.plot([0, len(colours)], [0, 0], "-", color="#555555", marker="", lw=1.2)
    for n, colour in enumerate(colours):
        left, right = n + 0.15, n + 0.85
        axes.plot([left, left, right, right], [0, 0.75, 0.75, 0], "-", color=colour, marker="")
        box = FancyBboxPatch((n + 0.3, 0.5), 0.4, 0.5, "round,pad=0.02", fc="white", ec=colour)
        axes.add_patch(box)
        axes.text(n + 0.5, 0.74, "$f$", ha="center", va="center", color=colour)
        axes.plot(right, 0, "o", color=colour, markersize=4)
    axes.text(-0.15, 0, "$x_0$", ha="right", va="center")
    axes.text(len(colours) + 0.15, 0, f"$x_{len(colours)}$", va="center")
    axes.set(xlim=(-0.6, len(colours) + 0.6), ylim=(-0.3, 1.2))
    axes.axis("off")


def _draw_plane(axes: Axes, colours: list[Any]) -> None:
    axes.plot(*solution().T, "-", color="#bbbbbb", lw=6, marker="", label="solution")
    states = network(len(colours), 1 / len(colours))
    for n, colour in enumerate(colours):
        axes.plot(*states[n : n + 2].T, "-", color=colour, marker="o", ms=4)
    axes.annotate("$x_0$", START, (8, -4), textcoords="offset points")
    axes.set(xlim=(-1.5, 1.5), ylim=(-0.4, 1.3), xlabel="first coordinate")
    axes.set(ylabel="second coordinate", aspect="equal")
    axes.legend(loc="lower left")


def main() -> None:
    """Write both files."""
    write_slider("residual_steps", data(), picture())


if __name__ == "__main__":
    main()
