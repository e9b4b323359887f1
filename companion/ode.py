"""``odeint``: an initial value problem for any function or module, with torchdiffeq's arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import accumulate, pairwise
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from companion.adaptive import Adaptive
from companion.arguments import check_choice, not_allowed
from companion.buffers import BufferLog, cloned, read_buffers
from companion.compiled import check_compile, compiled
from companion.counts import count_too, counting, current_stats
from companion.evaluation import CheckedField, check_params, replacing
from companion.events import Event
from companion.flat import LineFinder, check_flat, state_of
from companion.gradients import Backprop, Checkpoint, Gradient, get_gradient, solved
from companion.low_precision import is_half, widened
from companion.methods import ADAPTIVE, get_solver
from companion.per_sample import PerSample, RowTimes
from companion.solution import solve_to_event, solve_with_dense_output
from companion.solve import Problem, Solver, Stage, Stats, Times, stacked, time_like
from companion.transforms import beneath, followed

__all__ = ["odeint", "odeint_adjoint", "odeint_event"]

Func = Callable[[Tensor, Any], Any]
Shapes = Sequence[torch.Size]
Tensors = dict[str, Tensor]


def odeint(
    func: Func,
    y0: Tensor | tuple[Tensor, ...],
    t: Tensor | Iterable[float],
    *,
    method: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    steps: int | None = None,
    gradient: str | Gradient = "backprop",
    params: Sequence[Tensor] = (),
    max_steps: int | None = None,
    knots: Iterable[float] = (),
    event_fn: Func | None = None,
    dense: bool = False,
    per_sample: bool = False,
    flat: bool | None = None,
    compile: bool | str = False,
    **others: Any,
) -> Any:
    r"""Solve $\dot y = f(t, y)$, $y(t_0) = y_0$, and return $y$ at all times in ``t``.

    Inside torch.func's transforms (``vmap``, ``grad``, ``jacrev``, ``jacfwd``, ``hessian``) and
    under forward-mode derivatives, take a scheme on fixed steps and ``gradient="backprop"``.

    Args:
        func: ``func(t, y)`` returns the derivative, shaped like ``y``; ``t`` arrives as a 0-d
            tensor of the dtype and device of ``y``. A function or an ``nn.Module``.
        y0: the state at ``t[0]``: a floating-point tensor of any shape, or a tuple of such tensors
            of one dtype and device.
        t: times, strictly increasing or decreasing: a 1-D tensor or floats.
        method: one of :data:`companion.methods.METHODS`; ``None`` is ``"dopri5"``.
        rtol: relative tolerance, for methods that control their error; ``None`` is 1e-7. In
            adaptive pairs half a rounding unit of the state counts (6e-8 in single precision) if
            that is more.
        atol: absolute tolerance, likewise; ``None`` is 1e-9.
        steps: number of equal steps between consecutive entries of ``t``, for methods on a fixed
            grid; ``None`` is 1.
        gradient: a name from :data:`companion.gradients.GRADIENTS`, or one of
            :mod:`companion.gradients` configured.
        params: tensors to differentiate besides ``y0`` and a module's own parameters. All gradients
            but ``"backprop"`` must be told of them: a ``func`` that reads others is refused, as far
            as its first evaluation shows.
        max_steps: most steps between the first and the last time, rejected ones included, for
            methods that choose their own; ``None`` is 20,000.
        knots: times at which the field jumps, for adaptive methods. Steps end there, and the field
            is evaluated on the side of the step: a rounding unit away from the jump.
        event_fn: ``event_fn(t, y)`` returns a floating-point tensor. An adaptive solve stops where
            one of its values changes its sign, and at the last time at the latest. The place is
            found to rounding on the solution inside the step. A value that starts at zero has the
            sign that it takes next. Two changes within a tenth of a step may not be seen.
        dense: whether to return the solution at all times of the interval, for adaptive methods.
        per_sample: whether each row of ``y0`` (axis 0) takes adaptive steps of its own, as if it
            were alone. ``t`` may then have the shape ``(times, batch)``, and ``func`` gets its time
            with the shape ``(batch, 1, ..., 1)``; it must treat rows independently. For the
            gradients ``"backprop"`` and ``"checkpoint"``.
        flat: whether a module is evaluated as a straight line of operations, traced once for each
            kind of input (shapes, dtypes, mode, autocast), with the same results bit for bit.
            ``None``: if all its parts are of classes of torch.nn without hooks, after
            :data:`companion.flat.FLAT_AFTER` evaluations. ``True``: at once, whatever the class;
            what its Python code does besides computing a value (``self.nfe += 1``), and depends on
            besides its arguments and attributes, is lost. :func:`companion.flat.path` tells.
        compile: whether to solve by pieces compiled with :func:`torch.compile`; a string names its
            backend. For Runge-Kutta methods, by backprop, checkpoints or, on fixed steps,
            reconstruction. The first solve compiles (a minute or so); other times, numbers of
            steps, tolerances and weights compile nothing, other shapes do. As with ``flat=True``,
            of the field's Python code only the operations remain. Fields that draw random numbers
            are refused. See :mod:`companion.pieces`.
        others: none; torchdiffeq's arguments are refused with what to write instead.

    Returns:
        A tensor of shape ``(len(t), *y0.shape)`` whose first entry is ``y0``; a tuple of such
        tensors if ``y0`` is a tuple.

        With ``event_fn``, a pair: the time of the event, and the states at the times in ``t``
        before it and at the event itself. Without an event these are the last time, and the states
        at all times. The derivatives of both with respect to ``y0`` and the parameters are those of
        the implicit function theorem; gradients but backprop solve twice.

        With ``dense=True``, a :class:`companion.solution.Solution`.

    Raises:
        ValueError: for a bad value (unknown method or gradient, ``t`` not monotone, ``steps < 1``,
            steps or tolerances that the method would ignore, a derivative of another shape, dtype
            or device, a state that stops being finite, a parameter the gradient method cannot see,
            more steps than ``max_steps``).
        TypeError: for a bad type.

    Example:
        >>> y = odeint(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method="rk4", steps=20)
        >>> y[-1]
        tensor([0.3679])
    """
    for name in others:
        raise TypeError(f"{name}: odeint has no such argument; {INSTEAD.get(name, 'see its help')}")
    gradient = get_gradient(gradient)
    solver = get_solver(method, steps, rtol, atol, max_steps)
    state, shapes = _pack_state(y0)
    jumps = _knots(knots)
    extras = {"knots": jumps, "event_fn": event_fn, "dense": dense}
    times: Times
    if per_sample:
        _check_per_sample(per_sample, solver, y0, gradient, extras)
        solver, times = _row_solver(solver, t, state)
    else:
        times = _times(t, state)
        _check_adaptive(solver, times, extras)
    backend = check_compile(compile)
    if backend is not None and not torch.compiler.is_compiling():
        if event_fn is not None or dense:
            name = "dense" if dense else "event_fn"
            raise ValueError(f"compile: not with {name}=, whose solves have no compiled steps")
        solver, gradient = compiled(backend, solver, gradient)
    own = Stats()
    with counting(own) if dense else nullcontext():
        field = FuncField(func, shapes, check_params(params), gradient, check_flat(flat))
    field.knots = jumps

    def unpack(ys: Tensor) -> Any:
        ys = ys.to(state.dtype)
        return ys if shapes is None else _unpack(ys, shapes)

    if len(times) == 1:  # nothing to solve
        return unpack(state.unsqueeze(0).clone())
    parts = () if shapes is None else tuple(math.prod(shape) for shape in shapes)
    problem = Problem(field, state, times, solver, field.stats, parts)
    if event_fn is None and not dense:
        return unpack(stacked(solved(problem, gradient, "y0")))
    event = None
    if event_fn is not None:
        function = event_fn
        event = Event(lambda t, y: function(t.to(state.dtype), unpack(y)))
    problem = widened(problem) if is_half(state) else problem
    if event is not None and not dense:
        event_t, ys = solve_to_event(problem, gradient, event)
        return event_t.to(state.dtype), unpack(ys)
    solution = solve_with_dense_output(problem, gradient, event, unpack, own)
    count_too(own)
    return solution


def _knots(knots: Iterable[Any]) -> tuple[float, ...]:
    """Return the times at which a field jumps, as floats."""
    try:
        entries = list(knots)
        values = [float(x.detach() if isinstance(x, Tensor) else x) for x in entries]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(not_allowed("knots", knots, "pass a sequence of numbers")) from None
    if any(isinstance(x, Tensor) and x.requires_grad for x in entries):
        raise ValueError(
            "knots: times that need a gradient are not allowed, as a solve gives none; detach() "
            "them, or find the jump with event_fn="
        )
    if not all(math.isfinite(x) for x in values):
        raise ValueError(not_allowed("knots", values, "all must be finite"))
    return tuple(sorted(set(values)))


def _check_per_sample(
    per_sample: object, solver: Solver, y0: object, gradient: Gradient, extras: Mapping[str, Any]
) -> None:
    """Refuse what does not go with steps for each row, by name."""
    check_choice("per_sample", per_sample, (False, True))
    if not isinstance(solver, Adaptive):
        raise ValueError(
            not_allowed("per_sample", True, f"method={solver.method!r} has no steps of its own; "
                        f"use one of {', '.join(ADAPTIVE)}")
        )  # fmt: skip
    if not isinstance(y0, Tensor) or not y0.dim():
        raise ValueError("y0: with per_sample=True it must be a tensor with a row for each sample")
    if not isinstance(gradient, Backprop | Checkpoint):
        name = type(gradient).__name__.lower()
        raise ValueError(
            f"gradient: {name!r} knows no steps for each row; use 'backprop' or 'checkpoint' with "
            "per_sample=True"
        )
    for name, value in extras.items():
        if value is not None and value is not False and value != ():
            raise ValueError(not_allowed(name, value, "it does not go with per_sample=True"))


def _row_solver(solver: Solver, t: Any, y0: Tensor) -> tuple[Solver, list[float]]:
    """Return the solver of each row by itself, and the times of the first row."""
    assert isinstance(solver, Adaptive)
    if isinstance(t, Tensor) and t.requires_grad:
        raise ValueError("t: times that need a gradient are not allowed with per_sample=True")
    try:
        values = np.asarray(t.tolist() if isinstance(t, Tensor) else t, dtype=float)
    except (TypeError, ValueError):
        raise TypeError(not_allowed("t", t, "pass a tensor or numbers")) from None
    rows = len(y0)
    if values.ndim not in (1, 2) or values.shape[1:] not in ((), (rows,)):
        raise ValueError(
            f"t: shape {values.shape} is not allowed; with per_sample=True it must be (times,) or "
            f"(times, {rows})"
        )
    columns = np.broadcast_to(values.reshape(len(values), -1), (len(values), rows))
    for column in values.reshape(len(values), -1).T.tolist():
        _check_times(column)
    if not y0.numel():  # no row, no step of its own; what matters is the graph
        return solver, [float(k) for k in range(len(values))]
    times = RowTimes.of(columns.tolist(), y0.float() if is_half(y0) else y0)
    found = PerSample(solver.pair, solver.rtol, solver.atol, solver.max_steps, times)
    return found, columns[:, 0].tolist()


def _check_adaptive(solver: Solver, times: Times, extras: Mapping[str, Any]) -> None:
    """Refuse what only adaptive methods do, by name."""
    check_choice("dense", extras["dense"], (False, True))
    event_fn = extras["event_fn"]
    if event_fn is not None and not callable(event_fn):
        raise TypeError(not_allowed("event_fn", event_fn, "it must be callable as event_fn(t, y)"))
    for name, value in extras.items():
        if value is None or value is False or value == ():
            continue
        if not isinstance(solver, Adaptive):
            raise ValueError(
                not_allowed(
                    name, value, f"method={solver.method!r} has none; use one of "
                    f"{', '.join(ADAPTIVE)}" + (", or put them into t" if name == "knots" else "")
                )
            )  # fmt: skip
        if name != "knots" and (isinstance(times, Tensor) or len(times) == 1):
            raise ValueError(
                not_allowed("t", times, f"with {name}= it must be two or more times that need no "
                            "gradient")
            )  # fmt: skip


INSTEAD = {
    "options": "use steps= for fixed steps; knots=, max_steps=, per_sample= for adaptive ones",
    "adjoint_method": "use gradient=Adjoint(method=...)",
    "adjoint_rtol": "use gradient=Adjoint(rtol=...)",
    "adjoint_atol": "use gradient=Adjoint(atol=...)",
    "adjoint_options": "use gradient=Adjoint(steps=..., norm=...)",
    "adjoint_params": "use params=(...), which adds to a module's own",
    "reverse_time": "let the times in t decrease",
    "odeint_interface": "use gradient='adjoint'",
    "max_num_steps": "use max_steps=",
    "step_size": "use steps=, the number of steps between consecutive times in t",
}
"""What to write in the place of torchdiffeq's arguments and options."""


def odeint_adjoint(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuse torchdiffeq's name, and say what to write.

    Raises:
        TypeError: always.

    Example:
        >>> odeint_adjoint(lambda t, y: -y, torch.ones(1), [0.0, 1.0])
        Traceback (most recent call last):
        TypeError: odeint_adjoint: write odeint(func, y0, t, gradient='adjoint'); ...
    """
    raise TypeError(
        "odeint_adjoint: write odeint(func, y0, t, gradient='adjoint'); settings of the backward "
        "solve go into gradient=Adjoint(method=, steps=, rtol=, atol=, norm=), tensors besides a "
        "module's own parameters into params=(...)"
    )


def odeint_event(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuse torchdiffeq's name, and say what to write.

    Raises:
        TypeError: always.

    Example:
        >>> odeint_event(lambda t, y: -y, torch.ones(1), 0.0, event_fn=lambda t, y: y - 0.5)
        Traceback (most recent call last):
        TypeError: odeint_event: write odeint(func, y0, [t0, t1], event_fn=event_fn); ...
    """
    raise TypeError(
        "odeint_event: write odeint(func, y0, [t0, t1], event_fn=event_fn); it returns the event's "
        "time and the states, and needs a last time t1"
    )


class Others(NamedTuple):
    """What stands for the parameters that a function or module reads.

    Attributes:
        inside: what a module's parameters become, by name.
        outside: pairs of other tensors, and what stands for them.
        all: all of a module's parameters by name, filled in when they are asked for.
    """

    inside: Tensors
    outside: list[tuple[Tensor, Tensor]]
    all: Tensors


class FuncField(CheckedField):
    """A function or module of ``(t, y)`` as a field."""

    argument: ClassVar[str] = "func"

    def __init__(
        self,
        func: Func,
        shapes: Shapes | None,
        params: tuple[Tensor, ...],
        gradient: Gradient,
        flat: bool | None,
    ) -> None:
        """Bind ``func``; with ``shapes`` it is called with a tuple unpacked from a flat state."""
        if not callable(func):
            raise TypeError(not_allowed("func", func, "it must be callable as func(t, y)"))
        self.func, self.shapes = func, shapes
        module = func if isinstance(func, nn.Module) else None
        own = () if module is None else module.parameters()
        owned = {id(p): p for p in own}
        distinct = tuple((owned | {id(p): p for p in params}).values())
        self.others, self.uniform = range(len(owned), len(distinct)), True
        # By name: the module of an inner solve may be given other parameters from outside, which
        # are gone by the time of the backward pass.
        self.named: dict[str, Tensor] = {}
        self.containers: dict[str, dict[str, Tensor | None]] | None = None
        kind = None if shapes is None else tuple(shapes)
        self.lines = None if module is None else LineFinder(module, self._called, flat, kind)
        super().__init__(module, distinct, not gradient.records_graph, current_stats())
        if self.finds_params and module is not None:
            self.named = dict(module.named_parameters(remove_duplicate=False))

    @override
    def arranged(self, weights: Sequence[Tensor]) -> Others:
        """Return what stands for the module's parameters and for other tensors."""
        given = {id(p): new for p, new in zip(self.params, weights, strict=True)}
        inside: Tensors = {}
        if self.module is not None and self.named:
            now = dict(self.module.named_parameters(remove_duplicate=False))
            news = {name: given[id(p)] for name, p in self.named.items()}
            inside = {name: new for name, new in news.items() if now[name] is not new}
        known = {id(p) for p in self.named.values()}
        pairs = zip(self.params, weights, strict=True)
        outside = [(p, new) for p, new in pairs if p is not new and id(p) not in known]
        return Others(inside, outside, {})

    @override
    def evaluate(self, stage: Stage, y: Tensor, weights: Others, buffers: Tensors | None) -> Tensor:
        if weights.outside:
            with replacing(weights.outside):
                return self.evaluate(stage, y, weights._replace(outside=[]), buffers)
        lines = self.lines
        if lines is not None and lines.able:
            values = self._all(weights, buffers)
            line = lines.find(y, values, _time, stage, y)
            if line is not None:
                value = line(values, y, time_like(stage.t, y) if line.timed else None)
                if buffers is None and line.rebound:
                    self._rebind({name: values[name] for name in line.rebound})
                return value
        return self._called({**weights.inside, **(buffers or {})}, y, time_like(stage.t, y))

    @property
    @override
    def owner(self) -> object:
        return self.func

    @override
    def state(self) -> Hashable:
        shapes = None if self.shapes is None else tuple(self.shapes)
        return shapes, state_of(self.func) if self.module is None else state_of(self.module)

    @override
    def slot(self, stage: Stage) -> Hashable:
        return None

    @override
    def shares(self, stage: Stage) -> dict[str, Sequence[tuple[int, float]]]:
        places = {id(p): k for k, p in enumerate(self.params)}
        named = {} if self.module is None else self.named or dict(self._parameters())
        return {name: [(places[id(p)], 1.0)] for name, p in named.items()}

    @override
    def time(self, stage: Stage) -> float:
        return float(stage.t)

    @override
    def pure(self, values: Tensors, y: Tensor, t: Tensor, others: Sequence[Tensor]) -> Tensor:
        pairs = [(self.params[k], new) for k, new in zip(self.others, others, strict=True)]
        with replacing(pairs) if pairs else nullcontext():
            return self._called(values, y, t)

    def _called(self, values: Tensors, y: Tensor, t: Tensor) -> Tensor:
        """Call ``func``, a module with ``values`` in the place of its own."""
        arguments = (t, y if self.shapes is None else _unpack(y, self.shapes))
        if values:
            assert self.module is not None
            value = torch.func.functional_call(self.module, values, arguments, tie_weights=False)
        else:
            value = self.func(*arguments)
        if self.shapes is not None:
            _check_parts(value, self.shapes)
            value = _pack(value)
        found: Tensor = value
        return found

    def _all(self, weights: Others, buffers: Tensors | None) -> Tensors:
        """Return the values of all parameters and buffers of the module."""
        if not weights.all:
            named = dict(self._parameters())
            weights.all.update(named | weights.inside)
        if not self._holders():
            return weights.all
        return {**weights.all, **(self.live(None) if buffers is None else buffers)}

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        assert self.module is not None
        return self.module.named_parameters(remove_duplicate=False)

    def _rebind(self, buffers: Tensors) -> None:
        """Put buffers in the places of those that the module has replaced."""
        for name, holder in self._holders():
            if name in buffers:
                holder[name.rpartition(".")[2]] = buffers[name]

    @override
    def uses(self, stage: Stage) -> range:
        return range(len(self.params))  # every evaluation may read each of them

    @override
    def place(self, stage: Stage) -> Hashable:
        return None  # one set of buffers

    @override
    def live(self, place: Hashable) -> Mapping[str, Tensor]:
        found = ((name, holder[name.rpartition(".")[2]]) for name, holder in self._holders())
        return {name: buffer for name, buffer in found if buffer is not None}

    @override
    def _new_logs(self) -> dict[Hashable, BufferLog]:
        live = self.live(None)
        if self.module is None or not live:
            return {}
        return {None: BufferLog(cloned(live), live, read_buffers(self.module))}

    def _holders(self) -> Iterable[tuple[str, dict[str, Tensor | None]]]:
        """Return where each buffer is kept: a module may put another tensor there."""
        if self.containers is None:
            parts = [] if self.module is None else self.module.named_modules(remove_duplicate=False)
            self.containers = {
                f"{prefix}.{name}" if prefix else name: part._buffers
                for prefix, part in parts
                for name in part._buffers
            }
        return self.containers.items()


def _time(stage: Stage, y: Tensor) -> tuple[Tensor]:
    return (time_like(stage.t, y),)


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
    starts = accumulate(sizes, initial=0)
    # Not torch.split: autograd lets nobody change one of several views of one function.
    return tuple(
        flat.narrow(-1, start, size).reshape((*flat.shape[:-1], *shape))
        for start, size, shape in zip(starts, sizes, shapes, strict=False)
    )


def _computable(y: Tensor) -> bool:
    """Say whether there is arithmetic for such a tensor: none for floats of 8 bits."""
    dense = y.layout is torch.strided
    return dense and y.is_floating_point() and y.dtype.itemsize > 1


def _pack_state(y0: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, Shapes | None]:
    """Check the initial state; flatten a tuple into one vector."""
    if isinstance(y0, Tensor):
        if not _computable(y0):
            found = f"dtype {y0.dtype}" if y0.layout is torch.strided else f"layout {y0.layout}"
            raise ValueError(
                f"y0: {found} is not allowed; it must be dense and floating point, of 16 bits or "
                "more"
            )
        return y0, None
    if not isinstance(y0, tuple) or not y0 or not all(isinstance(part, Tensor) for part in y0):
        raise TypeError(f"y0: {type(y0).__name__} is not allowed; pass a tensor or a tuple of them")
    kinds = {(part.dtype, part.device) for part in y0}
    if len(kinds) > 1 or not all(map(_computable, y0)):
        found = ", ".join(f"{part.dtype} on {part.device}" for part in y0)
        raise ValueError(
            f"y0: parts of {found} are not allowed; all need one device and one floating-point "
            "dtype of 16 bits or more, and must be dense"
        )
    return _pack(y0), [part.shape for part in y0]


def _times(t: Tensor | Iterable[float], y0: Tensor) -> Times:
    """Check the times; return floats, or a tensor where they are traced or need a gradient."""
    if isinstance(t, Tensor):
        if t.dim() != 1 or not t.is_floating_point():
            raise ValueError(
                f"t: shape {tuple(t.shape)} and dtype {t.dtype} are not allowed; it must be a 1-D "
                "floating-point tensor"
            )
        if torch.compiler.is_compiling():
            return t.to(y0)
        for values in _each(t):
            _check_times(values)
        traced = (t.requires_grad and torch.is_grad_enabled()) or followed(t)
        return t.to(y0.device) if traced else values
    values = _floats(t)
    _check_times(values)
    return values


def _each(t: Tensor) -> list[list[float]]:
    """Return the values of a 1-D tensor; under vmap those of the whole batch, one by one."""
    entries = [beneath(x).reshape(-1) for x in t]
    rows: list[list[float]] = torch.stack(entries, 1).tolist() if entries else [[]]
    return rows


def _floats(t: object) -> list[float]:
    if not isinstance(t, Iterable) or isinstance(t, str):
        raise TypeError(not_allowed("t", t, "pass a 1-D tensor or floats"))
    entries = list(t)  # it may be a generator
    if any(isinstance(x, Tensor) and (x.requires_grad or followed(x)) for x in entries):
        raise TypeError("t: a list of tensors that need gradients is not allowed; stack them")
    if any(isinstance(x, str | bool | np.bool_) for x in entries) or isinstance(t, bytes):
        raise TypeError(not_allowed("t", t, "pass a 1-D tensor or floats"))
    try:
        return [float(x) for x in entries]
    except (TypeError, ValueError):
        raise TypeError(not_allowed("t", entries, "pass a 1-D tensor or floats")) from None


def _check_times(values: list[float]) -> None:
    if not values:
        raise ValueError(not_allowed("t", values, "it must hold at least one time"))
    if not all(math.isfinite(x) for x in values):
        raise ValueError(not_allowed("t", values, "all times must be finite"))
    gaps = [b - a for a, b in pairwise(values)]
    if not (all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)):
        raise ValueError(not_allowed("t", values, "it must strictly increase or decrease"))
