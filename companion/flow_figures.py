"""The flow of a field in the plane, drawn: arrows, trajectories, and a grid carried along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.cbook import normalize_kwargs
from matplotlib.lines import Line2D
from torch import Tensor

from companion.figures import PALETTE

__all__ = ["draw_arrows", "draw_grid", "draw_trajectories"]

_GREY = "#767676"


@torch.no_grad()
def draw_arrows(
    axes: Axes,
    field: Callable[[Any, Any], Any],
    t: float,
    side: float,
    count: int = 15,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Draw a field of the plane as arrows on a square grid at one time.

    Args:
        axes: where to draw.
        field: ``field(t, x)`` for states of shape ``(points, 2)``.
        t: the time.
        side: the square reaches from ``-side`` to ``side``.
        count: arrows along a side.
        dtype: of the states that the field gets, ``torch.float64`` for one in double precision.

    Raises:
        ValueError: for velocities of another shape.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> figure, axes = plt.subplots()
        >>> draw_arrows(axes, lambda t, x: -x, 0.0, side=1.0, count=3)
        >>> len(axes.collections[0].get_offsets())
        9
        >>> plt.close(figure)
    """
    line = torch.linspace(-side, side, count, dtype=dtype)
    points = torch.cartesian_prod(line, line)
    velocity = _plane("field", field(torch.as_tensor(t, dtype=dtype), points), points)
    axes.quiver(*points.T.tolist(), *velocity.T.tolist(), color=_GREY, alpha=0.6, width=0.004)


def draw_trajectories(axes: Axes, path: Tensor, groups: Tensor | Sequence[int]) -> None:
    """Draw the ways of points in the plane, and their ends; each group has a colour and a marker.

    Args:
        axes: where to draw.
        path: the states, shape ``(times, points, 2)``.
        groups: a whole number for each point, from 0 to 4.

    Raises:
        ValueError: a path of another shape, or groups that do not fit it.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> figure, axes = plt.subplots()
        >>> draw_trajectories(axes, torch.rand(5, 3, 2), torch.tensor([0, 1, 1]))
        >>> len(axes.lines)  # three ways, two groups of ends
        5
        >>> plt.close(figure)
    """
    groups = torch.as_tensor(groups)
    if path.ndim != 3 or path.shape[2] != 2 or len(groups) != path.shape[1]:
        raise ValueError(
            f"path, groups: shapes {tuple(path.shape)} and {tuple(groups.shape)} are not allowed; "
            "they must be (times, points, 2) and (points,)"
        )
    ways, kinds = path.detach().cpu(), sorted(set(groups.tolist()))
    if not set(kinds) <= set(range(len(PALETTE) - 1)):
        raise ValueError(
            f"groups: {kinds} are not allowed; they must be whole numbers from 0 to "
            f"{len(PALETTE) - 2}, one for each colour"
        )
    for kind in kinds:
        colour, marker = PALETTE[1 + kind], "osD^"[kind % 4]
        own = ways[:, groups == kind]
        for way in own.unbind(1):
            axes.plot(*way.T.tolist(), "-", color=colour, lw=0.7, alpha=0.6, marker="")
        axes.plot(*own[-1].T.tolist(), marker, color=colour, markersize=3.5)


@torch.no_grad()
def draw_grid(
    axes: Axes,
    flow: Callable[[Tensor], Tensor],
    side: float,
    lines: int = 13,
    dtype: torch.dtype = torch.float32,
    **look: Any,
) -> None:
    """Draw where a map of the plane takes the lines of a square grid.

    Args:
        axes: where to draw.
        flow: takes points of shape ``(points, 2)`` to their images.
        side: the square reaches from ``-side`` to ``side``.
        lines: number of lines in each direction.
        dtype: of the points that the map gets, ``torch.float64`` for one in double precision.
        **look: passed on to ``axes.plot``.

    Raises:
        ValueError: for images that are not in the plane.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> figure, axes = plt.subplots()
        >>> draw_grid(axes, lambda x: 2 * x, side=1.0, lines=5)
        >>> len(axes.lines), float(axes.lines[0].get_xdata()[0])
        (10, -2.0)
        >>> plt.close(figure)
    """
    fine, coarse = (torch.linspace(-side, side, n, dtype=dtype) for n in (201, lines))
    style: dict[str, Any] = {"color": _GREY, "linewidth": 0.8, "linestyle": "-", "marker": ""}
    style |= normalize_kwargs(look, Line2D)  # lw is linewidth
    for place in coarse:
        fixed = torch.full_like(fine, float(place))
        for points in (torch.stack([fixed, fine], 1), torch.stack([fine, fixed], 1)):
            axes.plot(*_plane("flow", flow(points), points).T.tolist(), **style)


def _plane(name: str, found: Tensor, points: Tensor) -> Tensor:
    """Return what a function made of points, or say that it is not in the plane."""
    if found.shape != points.shape:
        raise ValueError(
            f"{name}: it returned shape {tuple(found.shape)}; it must be {tuple(points.shape)}, a "
            "place or velocity in the plane for each point"
        )
    return found
