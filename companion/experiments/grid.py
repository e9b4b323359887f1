"""A function at every point of a grid: one part of a run each, one array with named axes."""

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from companion.experiments.running import Run
from companion.observe import fit_slope


class Grid(NamedTuple):
    """Numbers at every point of a grid: an array whose first axes have a name and their points.

    Attributes:
        axes: for each axis its points, in the order of the array's axes.
        values: the numbers; what a point returned may add further axes.

    Example:
        >>> table = Grid({"rule": ("a", "b"), "depth": (2, 4)}, np.array([[1.0, 3.0], [5.0, 7.0]]))
        >>> table["b"][4].values.item(), table.mean("depth").values.tolist()
        (7.0, [2.0, 6.0])
        >>> sorted(table.named("error", "rule"))
        ['error_a', 'error_b']
    """

    axes: dict[str, tuple[Any, ...]]
    values: NDArray[np.float64]

    def at(self, **points: Any) -> "Grid":
        """Return the part of the grid at these points of the axes named.

        Raises:
            KeyError: no such axis, or no such point on it.
        """
        for name, point in points.items():
            if name not in self.axes or point not in self.axes[name]:
                known = self.axes
                raise KeyError(f"{name}={point!r} is no point of the grid; its axes are {known}")
        index: list[Any] = [
            at.index(points[name]) if name in points else slice(None)
            for name, at in self.axes.items()
        ]
        rest = {name: at for name, at in self.axes.items() if name not in points}
        return Grid(rest, np.asarray(self.values[tuple(index)]))

    def __getitem__(self, point: Any) -> "Grid":  # type: ignore[override]
        """Return the part of the grid at one point of its first axis."""
        return self.at(**{next(iter(self.axes)): point})

    def pick(self, index: int) -> "Grid":
        """Return one of several numbers that every point returned, by its place among them."""
        return Grid(self.axes, np.asarray(self.values[..., index]))

    def mean(self, *names: str) -> "Grid":
        """Return the arithmetic mean over the axes named."""
        return self._over(np.mean, self.values, names)

    def geometric(self, *names: str) -> "Grid":
        """Return the geometric mean over the axes named."""
        logarithms = self._over(np.mean, np.log(self.values), names)
        return Grid(logarithms.axes, np.exp(logarithms.values))

    def slopes(self, axis: str) -> tuple["Grid", "Grid"]:
        """Fit slopes along an axis (:func:`~companion.observe.fit_slope`); also their errors.

        Example:
            >>> squares = Grid({"rule": ("a",), "depth": (2, 4, 8)}, np.array([[4.0, 16.0, 64.0]]))
            >>> squares.slopes("depth")[0].named("slope", "rule")["slope_a"].round(9)
            np.float64(2.0)
        """
        x, rows = self.axes[axis], np.moveaxis(self.values, list(self.axes).index(axis), -1)
        fitted = [fit_slope(x, row.tolist()) for row in rows.reshape(-1, len(x))]
        rest = {name: at for name, at in self.axes.items() if name != axis}
        table = np.array(fitted).reshape(*rows.shape[:-1], 2)
        return Grid(rest, table[..., 0]), Grid(rest, table[..., 1])

    def orders(self, axis: str) -> "Grid":
        """Return the slopes along an axis with their signs changed: orders in the step size."""
        slopes, _ = self.slopes(axis)
        return Grid(slopes.axes, -slopes.values)

    def max(self, *names: str) -> "Grid":
        """Return the largest number over the axes named."""
        return self._over(np.max, self.values, names)

    def named(self, name: str, *axes: str) -> dict[str, Any]:
        """Return one array for each point of the axes named, called ``NAME_POINT_...``."""
        if not axes:
            return {name: self.values}
        found: dict[str, Any] = {}
        for point in self.axes[axes[0]]:
            found |= self.at(**{axes[0]: point}).named(f"{name}_{point}", *axes[1:])
        return found

    def _over(self, mean: Callable[..., Any], values: Any, names: tuple[str, ...]) -> "Grid":
        places = tuple(list(self.axes).index(name) for name in names)
        rest = {name: at for name, at in self.axes.items() if name not in names}
        return Grid(rest, np.asarray(mean(values, axis=places)))


def grid(
    run: Run, compute: Callable[..., Any], *, together: bool = False, **axes: Iterable[Any]
) -> Grid:
    """Return ``compute(part, **point)`` at every point of a grid, one part of the run each.

    Args:
        run: the run whose parts these are.
        compute: gets a :class:`Part` and one point of every axis, by name; returns numbers, as
            many at every point.
        together: whether several processes compute each part together.
        **axes: the points of every axis, by its name; what is iterated over may be a mapping.

    Example:
        >>> import torch
        >>> run = Run(0, torch.device("cpu"), None, 30.0, lambda fraction, name: None, None)
        >>> found = grid(run, lambda part, base, power: base**power, base=(2, 3), power=(1, 2))
        >>> found.values.tolist()
        [[2.0, 4.0], [3.0, 9.0]]
    """
    points = {name: tuple(at) for name, at in axes.items()}
    return _table(points, _rows(run, compute, points, together))


def grids(
    run: Run, compute: Callable[..., Any], *, together: bool = False, **axes: Iterable[Any]
) -> dict[str, Grid]:
    """Return a grid for each name in the dictionaries that ``compute(part, **point)`` returns.

    The arguments are those of :func:`grid`.

    Example:
        >>> import torch
        >>> run = Run(0, torch.device("cpu"), None, 30.0, lambda fraction, name: None, None)
        >>> found = grids(run, lambda part, x: {"twice": 2 * x, "square": x * x}, x=(2, 3))
        >>> found["square"].values.tolist(), sorted(named(found, "x"))
        ([4.0, 9.0], ['square_2', 'square_3', 'twice_2', 'twice_3'])
    """
    points = {name: tuple(at) for name, at in axes.items()}
    rows = _rows(run, compute, points, together)
    return {name: _table(points, [row[name] for row in rows]) for name in rows[0]}


def named(tables: Mapping[str, Grid], *axes: str) -> dict[str, Any]:
    """Return one array for each table and point of the axes named, called ``NAME_POINT_...``."""
    return {
        name: values
        for title, table in tables.items()
        for name, values in table.named(title, *axes).items()
    }


def _rows(
    run: Run, compute: Callable[..., Any], axes: Mapping[str, tuple[Any, ...]], together: bool
) -> list[Any]:
    every = [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]
    parts = {", ".join(f"{name} {at}" for name, at in point.items()): (point,) for point in every}
    found = run.map(lambda part, point: compute(part, **point), parts, together=together)
    return [found[name] for name in parts]


def _table(axes: dict[str, tuple[Any, ...]], rows: list[Any]) -> Grid:
    values = np.array(rows, dtype=np.float64)
    return Grid(axes, values.reshape(*map(len, axes.values()), *values.shape[1:]))
