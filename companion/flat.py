"""A module as a straight line: the operations that it runs, traced once, without its modules.

What a module computes for one kind of input is a fixed list of operations on tensors. Calling the
modules that lead to them takes as long as the operations themselves where those are small. A line
is that list as a Python function of the module's parameters, buffers and arguments. It is ordinary
PyTorch: autograd, autocast and hooks of tensors see every operation, and results are the same bit
for bit, gradients included. Each line is compared with the module before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules import module as nn_module

from companion.arguments import check_choice
from companion.transforms import transforming

__all__ = [
    "FLAT_AFTER",
    "MOST_LINES",
    "Line",
    "LineFinder",
    "check_flat",
    "path",
    "state_of",
    "value_of",
]

FLAT_AFTER = 20_000
"""Evaluations of a module after which it is traced without being told to.

Tracing takes seconds the first time in a process, and then some 25 ms; a line saves about 50
microseconds an evaluation.
"""

MOST_LINES = 32
"""Lines that are kept for one module; what would need more is evaluated through its modules."""

Tensors = dict[str, Tensor]
Call = Callable[..., Tensor]

_FASTER: dict[str, Any] = {
    # Bindings of the same operations, which take fewer steps to call.
    "linear.default": torch._C._nn.linear,
    "conv1d.default": torch.conv1d,
    "conv2d.default": torch.conv2d,
    "conv3d.default": torch.conv3d,
    "batch_norm.default": torch.batch_norm,
    "group_norm.default": torch.group_norm,
    "layer_norm.default": torch.layer_norm,
    "matmul.default": torch.matmul,
    "add.Tensor": torch.add,
    "sub.Tensor": torch.sub,
    "mul.Tensor": torch.mul,
    "neg.default": torch.neg,
    "cat.default": torch.cat,
    "sin.default": torch.sin,
    "cos.default": torch.cos,
    "exp.default": torch.exp,
    "tanh.default": torch.tanh,
    "relu.default": torch.relu,
    "relu_.default": torch.relu_,
    "sigmoid.default": torch.sigmoid,
    "silu.default": torch._C._nn.silu,
    "gelu.default": torch._C._nn.gelu,
    "elu.default": torch._C._nn.elu,
    "softplus.default": torch._C._nn.softplus,
    "leaky_relu.default": torch._C._nn.leaky_relu,
}


class Line:
    """A module's operations for one kind of input, as a function.

    Attributes:
        function: takes the values of parameters and buffers in order, then the arguments; returns
            the value, then the buffers that the module puts others in the place of.
        rebound: the names of those.
        timed: whether it reads the argument after the state.
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], rebound: Sequence[str], timed: bool
    ) -> None:
        """Keep what a trace found."""
        self.function, self.rebound, self.timed = function, tuple(rebound), timed

    def __call__(self, values: Tensors, *arguments: Any) -> Tensor:
        """Evaluate; as ``functional_call`` does, leave buffers that were replaced in ``values``."""
        found = self.function(*values.values(), *arguments)
        if self.rebound:
            values.update(zip(self.rebound, found[1:], strict=True))
        return found[0]


class _Lines:
    """What is known of one module: how often it was evaluated, and its lines."""

    def __init__(self) -> None:
        self.evaluations = 0
        self.found: dict[Hashable, Line | None] = {}


_known: WeakKeyDictionary[nn.Module, _Lines] = WeakKeyDictionary()


class LineFinder:
    """Finds the line for each evaluation of one pass through a module, if there is to be one.

    Lines are kept by module and key: everything that the operations may depend on. That is the
    module's own state (its parts' classes, modes and attributes), shapes, strides, dtypes and
    devices of all tensors, which of them need gradients, and autocast.
    """

    def __init__(
        self, module: nn.Module, call: Call, flat: bool | None, kind: Hashable = None
    ) -> None:
        """Prepare a pass.

        Args:
            module: the module.
            call: ``call(values, y, *others)`` evaluates it with these parameters and buffers.
            flat: as for :func:`companion.odeint`.
            kind: what else ``call`` depends on.
        """
        self.module, self.call, self.flat, self.kind = module, call, flat, kind
        # A compiler that traces this has no use for lines, and cannot look into weak references.
        compiling = torch.compiler.is_compiling()
        self.known = _Lines() if compiling else _known.setdefault(module, _Lines())
        self.begin()

    def begin(self) -> None:
        """Look at the module anew, before a forward or a backward pass."""
        self.able = _may_trace(self.module, self.flat)
        self.state: Hashable = None
        self.found: dict[Hashable, Line | None] = {}

    def find(
        self, y: Tensor, values: Tensors, others: Callable[..., tuple[Any, ...]], *given: Any
    ) -> Line | None:
        """Return the line for an evaluation at ``y``, traced now if it is new and worth it.

        Args:
            y: the state.
            values: the parameters and buffers.
            others: makes the other arguments.
            given: what it takes to do so.

        Raises:
            ValueError: with ``flat=True``, for a module that cannot be traced.
        """
        known = self.known
        known.evaluations += 1
        if known.evaluations <= FLAT_AFTER and not self.flat:
            return None
        # What may change within a pass; short, for it is made for every evaluation.
        key = (y.shape, y.stride(), y.requires_grad, torch.is_grad_enabled())
        if key in self.found:
            return self.found[key]
        self.found[key] = line = self._kept(key, values, (y, *others(*given)))
        return line

    def _kept(self, key: Hashable, values: Tensors, arguments: Sequence[Any]) -> Line | None:
        if self.state is None:
            device = arguments[0].device.type
            cast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
            self.state = (state_of(self.module), self.kind, device, cast)
        tensors = tuple((name, _shown(x)) for name, x in values.items())
        whole = (key, self.state, tensors, tuple(map(_shown, arguments)))
        lines = self.known.found
        if whole not in lines:
            if len(lines) >= MOST_LINES or arguments[0].is_meta or _watched():
                return None
            lines[whole] = self._new(values, arguments)
        return lines[whole]

    def _new(self, values: Tensors, arguments: Sequence[Any]) -> Line | None:
        reason = "it is called with something else than tensors"
        if all(isinstance(x, Tensor) for x in arguments):
            try:
                return _checked_line(self.module, self.call, values, arguments, bool(self.flat))
            except _UntraceableError as error:
                reason = str(error)
        if self.flat:
            raise ValueError(
                f"flat: {type(self.module).__name__} cannot be traced: {reason}; use flat=False"
            )
        return None


class _UntraceableError(Exception):
    """A module whose operations are no fixed list."""


def check_flat(flat: object) -> bool | None:
    """Return the ``flat`` of a solve.

    Raises:
        ValueError: for anything but ``None``, ``True`` and ``False``.
    """
    check_choice("flat", flat, (None, True, False))
    return None if flat is None else bool(flat)


def path(module: nn.Module, flat: bool | None = None) -> str:
    """Say how a module is evaluated by now: ``"flat"`` if it has a line and may use it.

    Args:
        module: a block's residual, or a module used as ``func`` of ``odeint``.
        flat: as it is given to the solve.

    Returns:
        ``"flat"`` or ``"modules"``.

    Example:
        >>> from companion import odeint
        >>> class Field(nn.Linear):
        ...     def forward(self, t, y):
        ...         return super().forward(y)
        >>> field = Field(2, 2)
        >>> path(field, flat=True)
        'modules'
        >>> y = odeint(field, torch.ones(1, 2), [0.0, 1.0], method="rk4", steps=5, flat=True)
        >>> path(field, flat=True)
        'flat'
    """
    known = _known.get(module)
    lines = known is not None and any(line is not None for line in known.found.values())
    return "flat" if lines and _may_trace(module, flat) else "modules"


def _may_trace(module: nn.Module, flat: bool | None) -> bool:
    """Say whether a module is one that may be traced.

    Hooks are there to be called. Of the classes of torch.nn alone it is known that they do nothing
    else in Python but lead to operations.
    """
    if flat is False or torch.compiler.is_compiling() or _hooked_everywhere():
        return False
    if transforming():
        return False
    return all(
        (flat or _plain(part))
        and not (part._forward_hooks or part._forward_pre_hooks)
        and not (part._backward_hooks or part._backward_pre_hooks)
        for part in module.modules()
    )


def _plain(part: nn.Module) -> bool:
    own = vars(part)
    return (
        getattr(nn, type(part).__name__, None) is type(part)
        and "forward" not in own
        and "_compiled_call_impl" not in own
    )


def _hooked_everywhere() -> bool:
    hooks = nn_module
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )


def _watched() -> bool:
    """Say whether somebody watches operations, who would see those of a trace too."""
    return torch._C._len_torch_dispatch_stack() > 0


def state_of(func: Callable[..., Any]) -> Hashable:
    """Return what a module's or function's operations depend on besides tensors, if it shows."""
    if isinstance(func, nn.Module):
        return tuple(
            (type(part), tuple((k, value_of(v)) for k, v in vars(part).items() if k[0] != "_"))
            for part in func.modules()
        )
    own = getattr(func, "__func__", func)
    code = getattr(own, "__code__", None)
    if code is None:
        return id(func)
    inside = tuple(value_of(cell.cell_contents) for cell in own.__closure__ or ())
    outside = tuple(value_of(own.__globals__.get(name)) for name in code.co_names)
    return code, value_of(own.__defaults__), inside, outside


def value_of(value: Any, depth: int = 4) -> Hashable:
    """Return numbers, words and what containers hold of them, anything else by its identity.

    Containers are opened ``depth`` times: they may hold themselves.
    """
    if isinstance(value, bool | int | float | complex | str):
        return type(value).__name__, value
    if isinstance(value, SimpleNamespace):
        value = vars(value)
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, tuple | list | set | frozenset) and depth:
        return tuple(value_of(x, depth - 1) for x in value)
    return id(value)


def _shown(x: object) -> Hashable:
    if isinstance(x, Tensor):
        records = x.requires_grad and torch.is_grad_enabled()
        return x.shape, x.stride(), x.dtype, x.device, records
    return type(x).__name__


def _checked_line(
    module: nn.Module, call: Call, values: Tensors, arguments: Sequence[Tensor], flat: bool
) -> Line:
    """Trace a module in the first way whose line agrees with it, on other numbers too.

    Before autograd is the way that leads to the shortest line. A field that differentiates inside
    needs one below autograd; there, autograd's own copies of results appear detached.
    """
    reason = "its values are not those of the operations it was seen to run"
    before = state_of(module)
    buffers = frozenset(name for name, _ in module.named_buffers(remove_duplicate=False))
    with torch.random.fork_rng(_cuda(arguments)), torch.inference_mode(False), _unseen():
        expected = _outcome(call, _other(values, arguments), buffers)
        if not flat and state_of(module) != before:
            raise _UntraceableError("an evaluation changes its attributes")
        for way in WAYS if flat else WAYS[:1]:
            try:
                line = _traced(call, *_copied(values, arguments), way, buffers)
                found = _outcome(line, _other(values, arguments), buffers)
            except Exception as error:  # whatever tracing meets
                reason = str(error).strip().partition("\n")[0]
                continue
            if _same(found, expected):
                return line
    raise _UntraceableError(reason)


class _Way(NamedTuple):
    """How to trace: above autograd or below it, and whether to leave out detaching."""

    above: bool
    attached: bool


WAYS = (_Way(True, False), _Way(False, False), _Way(False, True))


def _traced(
    call: Call, values: Tensors, arguments: Sequence[Tensor], way: _Way, buffers: frozenset[str]
) -> Line:
    from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds: not at import
    from torch.fx.graph import CodeGen

    names, count = list(values), len(values)
    rebound: list[str] = []

    def function(*tensors: Tensor) -> list[Tensor]:
        given = dict(zip(names, tensors[:count], strict=True))
        own = dict(given)
        value = call(own, *tensors[count:])
        rebound[:] = [x for x in names if x in buffers and own[x] is not given[x]]
        return [value, *(own[name] for name in rebound)]

    graph = make_fx(function, pre_dispatch=way.above)(*values.values(), *arguments)
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if way.attached and node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif str(node.target).startswith("aten."):
            node.target = _FASTER.get(str(node.target).removeprefix("aten."), node.target)
    graph.graph.set_codegen(CodeGen())
    graph.recompile()
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    timed = any(node.users for node in inputs[count + 1 : count + 2])
    return Line(graph.forward, rebound, timed)


Inputs = tuple[Tensors, list[Tensor]]


def _copied(values: Tensors, arguments: Sequence[Tensor]) -> Inputs:
    """Return leaves that look like some tensors; buffers may be changed."""
    return {k: _leaf(x, x.detach().clone()) for k, x in values.items()}, [
        _leaf(x, x.detach().clone()) for x in arguments
    ]


def _other(values: Tensors, arguments: Sequence[Tensor]) -> Inputs:
    """Return leaves like some tensors, with other numbers."""
    return {k: _leaf(x, _moved(x)) for k, x in values.items()}, [
        _leaf(x, _moved(x)) for x in arguments
    ]


def _moved(x: Tensor) -> Tensor:
    x = x.detach()
    return x * 0.9375 + 0.0078125 if x.is_floating_point() or x.is_complex() else x.clone()


def _leaf(like: Tensor, x: Tensor) -> Tensor:
    if x.stride() != like.stride():
        raise _UntraceableError("its tensors overlap or have gaps")
    return x.requires_grad_(like.requires_grad and torch.is_grad_enabled())


def _outcome(call: Call, inputs: Inputs, buffers: frozenset[str]) -> list[Tensor]:
    """Evaluate; return the value, the buffers afterwards and, if recorded, the gradients."""
    values, arguments = inputs
    leaves = [x for x in (*values.values(), *arguments) if x.requires_grad]
    torch.default_generator.manual_seed(0)
    for device in _cuda(arguments):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)
    value = call(values, *arguments)
    result = [value.detach(), *(x.detach() for k, x in values.items() if k in buffers)]
    if leaves and value.requires_grad:
        weights = torch.linspace(-1.0, 1.0, value.numel(), dtype=value.dtype, device=value.device)
        result += torch.autograd.grad(
            value, leaves, weights.view(value.shape), allow_unused=True, materialize_grads=True
        )
    return result


def _same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        for a, b in zip(found, expected, strict=True)
    )


def _cuda(arguments: Sequence[Tensor]) -> list[torch.device]:
    return list({x.device for x in arguments if x.device.type == "cuda"})


def _unseen() -> AbstractContextManager[object]:
    """Return a context whose graphs no hooks for saved tensors see: they are dropped at once."""
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
        return nullcontext()  # nobody looks, and torch.func's transforms refuse hooks
    return saved_tensors_hooks(lambda x: x.detach(), lambda x: x)
