"""One plot style for all pages: readable in colour, in grey, on light and on dark pages.

Figures are opaque white cards. A transparent figure would need its text colour to follow the
page's theme, which an image cannot do; a card is legible on both. Lines differ in colour, dash
pattern and marker at once, so that they can be told apart in grey and with any colour vision.
The colours are those of Okabe and Ito (2008), darkest first, without the yellow that is too pale
for lines.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

PALETTE = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
"""Black, blue, vermilion, green, purple, sky blue."""

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P")


@contextmanager
def use_style() -> Iterator[None]:
    """Apply the plot style inside the block and restore matplotlib's settings after it.

    Create the figure inside the block; it keeps the style when shown later.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> with use_style():
        ...     figure, axes = plt.subplots()
        ...     line, = axes.plot([1, 2], [1, 4])
        >>> line.get_color(), line.get_marker()
        ('#000000', 'o')
        >>> plt.close(figure)
    """
    interactive = mpl.is_interactive()
    try:
        with mpl.rc_context(_settings()):
            yield
            interactive = mpl.is_interactive()
    finally:
        # A session's first figure loads the backend, and a notebook's turns interactive mode on.
        # Undoing that would hide all later figures.
        mpl.interactive(interactive)


def spread(axes: Axes, x: ArrayLike, runs: ArrayLike, **line: Any) -> None:
    """Plot the median over runs as a line and the range from smallest to largest as a band.

    Args:
        axes: where to draw.
        x: shape ``(n,)``.
        runs: one row per value of ``x`` and one column per run, shape ``(n, runs)``.
        **line: passed on to ``axes.plot``.

    Raises:
        ValueError: ``runs`` is not of that shape.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> figure, axes = plt.subplots()
        >>> spread(axes, [1, 2], [[3, 4, 8], [5, 6, 7]], label="error")
        >>> axes.lines[0].get_ydata()
        array([4., 6.])
        >>> plt.close(figure)
    """
    points, values = np.asarray(x, dtype=float), np.asarray(runs, dtype=float)
    if values.ndim != 2 or points.shape != values.shape[:1]:
        raise ValueError(
            f"runs must have shape (len(x), runs) = ({len(points)}, ...); got {values.shape}"
        )
    (median,) = axes.plot(points, np.median(values, axis=1), **line)
    low, high = values.min(axis=1), values.max(axis=1)
    axes.fill_between(points, low, high, color=median.get_color(), alpha=0.18, linewidth=0)


def _settings() -> Any:
    cycle = cycler(color=PALETTE) + cycler(linestyle=_DASHES) + cycler(marker=_MARKERS)
    return {
        "figure.figsize": (6.4, 3.8),
        "figure.dpi": 110,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "savefig.facecolor": "white",
        "axes.facecolor": "white",
        "axes.prop_cycle": cycle,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.labelsize": 11,
        "grid.color": "#d9d9d9",
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "legend.frameon": False,
        "legend.handlelength": 3.2,
        "font.size": 10,
    }
