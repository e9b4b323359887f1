"""``odeint``: an initial value problem for any function or module, with torchdiffeq's arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from companion.checks import first_evaluation
from companion.gradients import Gradient, get_gradient
from companion.methods import get_solver
from companion.solve import (
    Problem,
    Stage,
    Stats,
    Times,
    check_finite,
    stacked,
    time_like,
)

__all__ = ["odeint"]

Func = Callable[[Tensor, Any], Any]
Shapes = Sequence[torch.Size]


def odeint(
    func: Func,
    y0: Tensor | tuple[Tensor, ...],
    t: Tensor | Sequence[float],
    *,
    method: str | None = None,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    steps: int = 1,
    gradient: str | Gradient = "backprop",
    stats: Stats | None = None,
) -> Any:
    r"""Solve $\dot y = f(t, y)$, $y(t_0) = y_0$, and return $y$ at all times in ``t``.

    Args:
        func: ``func(t, y)`` returns the derivative, shaped like ``y``; ``t`` arrives as a 0-d
            tensor of the dtype and device of ``y``. A function or an ``nn.Module``.
        y0: the state at ``t[0]``: a floating-point tensor of any shape, or a tuple of such tensors
            of one dtype and device.
        t: at least two times, strictly increasing or decreasing: a 1-D tensor or floats.
        method: one of :data:`companion.methods.METHODS`; ``None`` is ``"dopri5"``.
        rtol: relative tolerance of adaptive methods.
        atol: absolute tolerance of adaptive methods.
        steps: number of equal steps between consecutive entries of ``t``, for methods on a fixed
            grid; others ignore it.
        gradient: a name from :data:`companion.gradients.GRADIENTS`, or one of
            :mod:`companion.gradients` configured. All but ``"backprop"`` find the parameters of a
            module only; for other tensors that ``func`` reads, pass ``params=`` to the configured
            method.
        stats: a :class:`companion.Stats` to count evaluations and steps in.

    Returns:
        A tensor of shape ``(len(t), *y0.shape)`` whose first entry is ``y0``; a tuple of such
        tensors if ``y0`` is a tuple.

    Raises:
        ValueError: for a bad value (unknown method or gradient, ``t`` not monotone, ``steps < 1``,
            a derivative of another shape, dtype or device, a state that stops being finite, a
            parameter the gradient method cannot see).
        TypeError: for a bad type.

    Example:
        >>> y = odeint(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method="rk4", steps=20)
        >>> y[-1]
        tensor([0.3679])
    """
    if stats is not None and not isinstance(stats, Stats):
        raise TypeError(f"stats: {stats!r} is not allowed; pass a companion.Stats or None")
    gradient = get_gradient(gradient)
    solver = get_solver(method, steps, rtol, atol)
    state, shapes = _pack_state(y0)
    times = _times(t, state)
    field = FuncField(func, shapes, gradient, stats)
    problem = Problem(field, state, times, solver, stats=stats)
    ys = stacked(gradient.solve(problem))
    if not torch.compiler.is_compiling():
        check_finite(ys, problem)
    return ys if shapes is None else _unpack(ys, shapes)


class FuncField:
    """A function or module of ``(t, y)`` as a field, checked on its first evaluation."""

    def __init__(
        self,
        func: Func,
        shapes: Shapes | None,
        gradient: Gradient,
        stats: Stats | None,
    ) -> None:
        """Bind ``func``; with ``shapes`` it is called with a tuple unpacked from a flat state."""
        if not callable(func):
            raise TypeError(f"func: {func!r} is not allowed; it must be callable as func(t, y)")
        self.func = func
        self.module = func if isinstance(func, nn.Module) else None
        self.shapes = shapes
        self.params = _parameters(func, gradient)
        self.finds_params = not gradient.records_graph and torch.is_grad_enabled()
        self.stats = stats
        self.backward = False
        self.checked = torch.compiler.is_compiling()
        self.kept = _cloned_buffers(self.module) if self.finds_params else None

    def __call__(self, stage: Stage, y: Tensor) -> Tensor:
        """Evaluate the field."""
        if self.stats is not None:
            if self.backward:
                self.stats.nfe_backward += 1
            else:
                self.stats.nfe += 1
        t = time_like(stage.t, y)
        if not self.checked:
            self.checked = True
            return self._first(t, y)
        return self._evaluate(t, y)

    def uses(self, stage: Stage) -> range:
        """Return the indices of all parameters: every evaluation may read each of them."""
        return range(len(self.params))

    def recomputation(self) -> FuncField:
        """Return the same field for a backward pass: it leaves the module's buffers alone.

        Every evaluation finds the buffers as they were when the forward solve began.
        """
        again = FuncField.__new__(FuncField)
        again.__dict__.update(self.__dict__, backward=True, checked=True)
        kept = _cloned_buffers(self.module) if self.kept is None else self.kept
        if self.module is not None and kept:
            module = self.module

            def func(t: Tensor, y: Any) -> Any:
                buffers = {name: buffer.clone() for name, buffer in kept.items()}
                return torch.func.functional_call(module, buffers, (t, y))

            again.func = func
        return again

    def _evaluate(self, t: Tensor, y: Tensor) -> Tensor:
        if self.shapes is None:
            value: Tensor = self.func(t, y)
            return value
        parts = self.func(t, _unpack(y, self.shapes))
        _check_parts(parts, self.shapes)
        return _pack(parts)

    def _first(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate once with checks: the value's shape, and that every parameter is known."""
        known = self.params if self.finds_params else None
        return first_evaluation(lambda y: self._evaluate(t, y), y, "func", known)


def _cloned_buffers(module: nn.Module | None) -> dict[str, Tensor]:
    return {} if module is None else {name: b.clone() for name, b in module.named_buffers()}


def _parameters(func: Func, gradient: Gradient) -> tuple[Tensor, ...]:
    own = func.parameters() if isinstance(func, nn.Module) else ()
    return tuple({id(p): p for p in (*own, *(gradient.params or ()))}.values())  # each once


def _check_parts(value: object, shapes: Shapes) -> None:
    """Check that a field of a tuple returned a tuple of the same shapes."""
    if not isinstance(value, tuple | list) or not all(isinstance(v, Tensor) for v in value):
        raise TypeError(
            f"func: returned {type(value).__name__}; with a tuple y0 it must return a tuple of "
            "tensors"
        )
    found = [part.shape for part in value]
    if found != list(shapes):
        raise ValueError(
            f"func: returned shapes {[tuple(s) for s in found]} for a state of shapes "
            f"{[tuple(s) for s in shapes]}; they must be equal"
        )


def _pack(state: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in state])


def _unpack(flat: Tensor, shapes: Shapes) -> tuple[Tensor, ...]:
    """Split the last axis of ``flat`` into tensors of the given shapes."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = torch.split(flat, sizes, dim=-1)
    return tuple(
        part.reshape((*flat.shape[:-1], *shape)) for part, shape in zip(parts, shapes, strict=True)
    )


def _pack_state(y0: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, Shapes | None]:
    """Check the initial state; flatten a tuple into one vector."""
    if isinstance(y0, Tensor):
        if not y0.is_floating_point():
            raise ValueError(f"y0: dtype {y0.dtype} is not allowed; it must be floating point")
        return y0, None
    if not isinstance(y0, tuple) or not y0 or not all(isinstance(part, Tensor) for part in y0):
        raise TypeError(f"y0: {type(y0).__name__} is not allowed; pass a tensor or a tuple of them")
    kinds = {(part.dtype, part.device) for part in y0}
    if len(kinds) > 1 or not y0[0].is_floating_point():
        found = ", ".join(f"{part.dtype} on {part.device}" for part in y0)
        raise ValueError(
            f"y0: parts of {found} are not allowed; all need one floating-point dtype and device"
        )
    return _pack(y0), [part.shape for part in y0]


def _times(t: Tensor | Sequence[float], y0: Tensor) -> Times:
    """Check the times; return floats, or a tensor where they are traced or need a gradient."""
    if isinstance(t, Tensor):
        if t.dim() != 1 or not t.is_floating_point():
            raise ValueError(
                f"t: shape {tuple(t.shape)} and dtype {t.dtype} are not allowed; it must be a 1-D "
                "floating-point tensor"
            )
        if torch.compiler.is_compiling():
            return t.to(y0)
        values = t.tolist()
    else:
        values = _floats(t)
    if not torch.compiler.is_compiling():
        _check_times(values)
    traced = isinstance(t, Tensor) and t.requires_grad and torch.is_grad_enabled()
    return t.to(y0.device) if isinstance(t, Tensor) and traced else values


def _floats(t: object) -> list[float]:
    if not isinstance(t, Iterable) or isinstance(t, str):
        raise TypeError(f"t: {t!r} is not allowed; pass a 1-D tensor or floats")
    if any(isinstance(x, Tensor) and x.requires_grad for x in t):
        raise TypeError("t: a list of tensors that need gradients is not allowed; stack them")
    try:
        return [float(x) for x in t]
    except (TypeError, ValueError):
        raise TypeError(f"t: {t!r} is not allowed; pass a 1-D tensor or floats") from None


def _check_times(values: list[float]) -> None:
    if len(values) < 2:
        raise ValueError(f"t: {values!r} is not allowed; it must hold at least two times")
    if not all(math.isfinite(x) for x in values):
        raise ValueError(f"t: {values!r} is not allowed; all times must be finite")
    gaps = [b - a for a, b in pairwise(values)]
    if not (all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)):
        raise ValueError(f"t: {values!r} is not allowed; it must strictly increase or decrease")
