"""Draw the picture of a ContinuousNet: blocks made of cells, and the stitches between them.

Run `python book/figures/continuous_net/network.py` after a change; the SVG file is committed.
"""

from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TARGET = Path(__file__).parents[2] / "_static" / "continuous_net.svg"
INK, QUIET, BLUE, ORANGE = "#1f2933", "#6b7885", "#0072B2", "#D55E00"
CELLS = 4
ROWS = ((5.7, 3.6, 16, 32), (3.5, 2.7, 32, 16), (1.3, 1.9, 64, 8))
"""For every block its height on the page, its width there, its channels, its pixels a side."""
LEFT = 0.9


def block(ax: Axes, y: float, width: float, channels: int, pixels: int) -> None:
    """Draw a block: its cells in turn, with a dot for every stage of one RK4 step a cell."""
    side = width / CELLS
    for k in range(CELLS):
        ax.add_patch(mpl.patches.Rectangle(
            (LEFT + k * side, y), side, 0.55, fc=BLUE, alpha=0.12 if k % 2 else 0.3, lw=0
        ))  # fmt: skip
        ax.text(LEFT + (k + 0.5) * side, y + 0.27, rf"$\hat\theta^{k + 1}$", ha="center",
                va="center", color=INK, fontsize=12)  # fmt: skip
        stages = [LEFT + (k + c) * side for c in (0.06, 0.5, 0.94)]
        ax.plot(stages, [y - 0.13] * 3, "o", color=BLUE, ms=3)
    ax.add_patch(mpl.patches.Rectangle((LEFT, y), width, 0.55, fc="none", ec=BLUE, lw=1.5))
    ax.text(LEFT, y + 0.68, f"block: {channels} channels, {pixels} × {pixels} pixels", color=BLUE)
    ax.text(LEFT - 0.12, y + 0.27, "$t=0$", ha="right", va="center", color=QUIET)
    ax.text(LEFT + width + 0.1, y + 0.27, "$t=1$", va="center", color=QUIET)


def stitch(ax: Axes, y: float, wide: float, narrow: float) -> None:
    """Draw a stitch: a layer that gets narrower."""
    corners = [(LEFT, y + 0.42), (LEFT + wide, y + 0.42), (LEFT + narrow, y), (LEFT, y)]
    ax.add_patch(mpl.patches.Polygon(corners, fc=ORANGE, alpha=0.25, ec=ORANGE, lw=1.5))
    ax.text(LEFT + 0.12, y + 0.2, "stitch, one layer", va="center", color=INK)


def arrow(ax: Axes, top: float, bottom: float) -> None:
    """Draw the way of the state from one part to the next."""
    ends = {"xy": (LEFT + 0.45, bottom), "xytext": (LEFT + 0.45, top)}
    ax.annotate("", **ends, arrowprops={"arrowstyle": "-|>", "lw": 1.2, "color": QUIET})


def picture() -> Figure:
    """Return the figure."""
    figure = Figure(figsize=(4.3, 5.2), layout="constrained")
    ax = figure.add_subplot()
    ax.text(LEFT, 7.5, "image → stem", color=INK)
    arrow(ax, 7.4, 6.75)
    for row, below in pairwise(ROWS):
        stitch(ax, row[0] - 0.95, row[1], below[1])
    for row in ROWS:
        block(ax, *row)
        arrow(ax, row[0] - 0.25, row[0] - 0.5)
    for row in ROWS[:-1]:
        arrow(ax, row[0] - 0.97, row[0] - 1.3)
    ax.text(LEFT, 0.55, "mean over the pixels → head → scores", color=INK)
    ax.set(xlim=(0, 5.3), ylim=(0.35, 7.8))
    ax.axis("off")
    return figure


def main() -> None:
    """Write the file."""
    mpl.rcParams.update({"svg.hashsalt": "continuous net", "font.size": 10})
    picture().savefig(TARGET, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
