"""Counters that do not depend on the clock: evaluations, bytes kept for backward, fitted orders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from companion.depth_weights import DepthWeights

__all__ = [
    "Bytes",
    "Counter",
    "Line",
    "Slope",
    "count_nfe",
    "fit_line",
    "fit_slope",
    "geometric_mean",
    "peak_memory",
    "saved_bytes",
]


class Slope(NamedTuple):
    """A fitted slope and its standard error."""

    value: float
    error: float


def fit_slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    r"""Fit $\log y = p \log x + c$ by least squares and return $p$ with its standard error.

    With step sizes and errors this is the order of convergence; with numbers of steps, minus the
    order. Two points give a slope without an error (``nan``).

    Args:
        x: at least two positive numbers, not all equal.
        y: as many positive numbers.

    Raises:
        ValueError: if the lengths differ, there are fewer than two points, or one is not positive.

    Example:
        >>> round(fit_slope([1.0, 2.0, 4.0], [3.0, 12.0, 48.0]).value, 6)
        2.0
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"x, y: {len(x)} and {len(y)} points are not allowed; pass two or more")
    points = np.array([x, y], dtype=float)
    if not (np.isfinite(points) & (points > 0)).all() or np.ptp(points[0]) == 0:
        raise ValueError("x, y: all points must be positive and finite, and x must vary")
    logs = np.log(points)
    u, v = logs - logs.mean(axis=1, keepdims=True)
    slope = float(u @ v / (u @ u))
    freedom = len(x) - 2
    if freedom == 0:
        return Slope(slope, float("nan"))
    residual = v - slope * u
    return Slope(slope, float(np.sqrt(residual @ residual / freedom / (u @ u))))


class Line(NamedTuple):
    """A fitted line: its value at 0, its slope, and the share of the variance that it explains."""

    start: float
    slope: float
    r_squared: float


def fit_line(x: ArrayLike, y: ArrayLike) -> Line:
    """Fit ``y = start + slope x`` by least squares.

    Args:
        x: at least two numbers, not all equal.
        y: as many numbers, not all equal.

    Example:
        >>> fit_line([1.0, 3.0], [5.0, 9.0])
        Line(start=3.0, slope=2.0, r_squared=1.0)
        >>> fit_line([0.0, 1.0, 2.0], [0.0, 1.0, 0.0]).r_squared
        0.0
    """
    u, v = (np.asarray(values, dtype=float).ravel() for values in (x, y))
    slope = float((u - u.mean()) @ (v - v.mean()) / ((u - u.mean()) @ (u - u.mean())))
    start = float(v.mean()) - slope * float(u.mean())
    rest = v - start - slope * u
    return Line(start, slope, float(1 - rest @ rest / ((v - v.mean()) @ (v - v.mean()))))


def geometric_mean(values: ArrayLike, axis: int | None = 0) -> NDArray[np.float64]:
    """Return the geometric mean of positive numbers over an axis, or with ``None`` over all.

    Example:
        >>> geometric_mean([[1.0, 8.0], [4.0, 2.0]]).round(12).tolist()
        [2.0, 4.0]
    """
    means: NDArray[np.float64] = np.exp(np.log(np.asarray(values, dtype=float)).mean(axis))
    return means


@dataclass
class Counter:
    """A running count of evaluations.

    Attributes:
        total: evaluations since counting began.
    """

    total: int = 0
    _mark: int = 0

    def lap(self) -> int:
        """Return the evaluations since the last call of ``lap``."""
        count, self._mark = self.total - self._mark, self.total
        return count


@contextmanager
def count_nfe(module: nn.Module) -> Iterator[Counter]:
    """Count the evaluations of a field: of every block's residual, else of the module itself.

    Args:
        module: a model that contains blocks, or a module used as ``func`` of ``odeint``.

    Example:
        >>> from companion import OdeBlock
        >>> block = OdeBlock(nn.Linear(2, 2), method="rk4", steps=5, gradient="adjoint")
        >>> with count_nfe(block) as nfe:
        ...     y = block(torch.zeros(1, 2))
        ...     forward = nfe.lap()
        ...     y.sum().backward()
        >>> forward, nfe.lap()
        (20, 20)
    """
    counter = Counter()

    def count(module: nn.Module, args: object) -> None:
        counter.total += 1

    targets = _templates(module) or [module]
    hooks = [target.register_forward_pre_hook(count) for target in targets]
    try:
        yield counter
    finally:
        for hook in hooks:
            hook.remove()


def _templates(module: nn.Module) -> list[nn.Module]:
    """Return the residuals of all blocks in a module, blocks inside residuals included."""
    found = [m.template for m in module.modules() if isinstance(m, DepthWeights)]
    return [inner for template in found for inner in (template, *_templates(template))]


@dataclass
class Bytes:
    """A number of bytes, known once the context that measures it ends.

    Attributes:
        total: the bytes.
    """

    total: int = 0


@contextmanager
def saved_bytes(exclude: Iterable[Tensor] = ()) -> Iterator[Bytes]:
    """Count the bytes that autograd keeps for the backward pass of what runs inside.

    Every storage counts once, with its full size.

    Args:
        exclude: tensors whose storages do not count, such as parameters and the input.

    Example:
        >>> x = torch.ones(100, requires_grad=True)
        >>> with saved_bytes() as saved:
        ...     y = x.sin().exp()
        >>> saved.total
        800
    """
    result = Bytes()
    known = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    kept: list[Tensor] = []  # keeps storages alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        detached = tensor.detach()
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            kept.append(detached)
            result.total += storage.nbytes()
        return detached

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield result


@contextmanager
def peak_memory(device: torch.device | str) -> Iterator[Bytes]:
    """Measure the most memory allocated on a CUDA device, above what was there before.

    Raises:
        ValueError: for a device that keeps no such count.
    """
    device = torch.device(device)
    if device.type != "cuda":
        raise ValueError(f"device: {device} is not allowed; only CUDA devices count their memory")
    result = Bytes()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield result
    torch.cuda.synchronize(device)
    result.total = torch.cuda.max_memory_allocated(device) - before
