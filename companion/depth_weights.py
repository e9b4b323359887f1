"""Depth-dependent weights: the parameters and buffers of a module as functions of depth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from typing_extensions import override

from companion.basis import Basis, Constant, PiecewiseConstant, Place, project
from companion.buffers import running_statistics
from companion.transforms import transforming

__all__ = [
    "DepthWeights",
    "check_alike",
    "constants",
    "first_difference",
    "rows_of",
    "split_into",
]

Tensors = dict[str, Tensor]


class DepthWeights(nn.Module):
    """The parameters and buffers of a residual module as functions of depth.

    Every parameter of the module is registered with a leading axis of ``basis.size`` coefficients,
    every buffer with a leading axis of ``basis.cells`` cells, under the module's own names, in
    ``stacks``. The module itself is kept aside as a template without values: only its code and its
    mode are used.

    A batch norm's weight and bias are kept one a cell too, in any basis: they belong to the
    running statistics that they scale (Queiruga et al. 2020, equation 30).

    Attributes:
        stacks: the stacked parameters and buffers, a tree of modules of their own: no name of a
            layer can clash with one of this class.
        basis: how parameters vary with depth.
    """

    def __init__(self, modules: Sequence[nn.Module], basis: Basis) -> None:
        """Stack ``modules``, the values at the nodes of ``basis``."""
        super().__init__()
        first = modules[0]
        check_stackable(first)
        self._template = _Template(first)
        self._norms = _norm_parameters(first)  # here: on the meta device nothing is tied
        self.basis = basis
        self.stacks = nn.Module()
        # The module of the node that is about where the cell is.
        of_cells = [modules[k * basis.size // basis.cells] for k in range(basis.cells)]
        per_cell = self.per_cell
        stacked: dict[int, nn.Parameter] = {}  # by identity: what is tied stays tied
        for name, param in first.named_parameters(remove_duplicate=False):
            if id(param) not in stacked:
                own = of_cells if name in per_cell else modules
                values = torch.stack([m.get_parameter(name).detach() for m in own])
                values = values if name in per_cell else basis.interpolate(values)
                stacked[id(param)] = nn.Parameter(values, requires_grad=param.requires_grad)
            _holder(self.stacks, name).register_parameter(_leaf(name), stacked[id(param)])
        buffers: dict[int, Tensor] = {}
        for name, buffer in first.named_buffers(remove_duplicate=False):
            if id(buffer) not in buffers:
                buffers[id(buffer)] = torch.stack([m.get_buffer(name) for m in of_cells])
            holder, leaf = first.get_submodule(name.rpartition(".")[0]), _leaf(name)
            persistent = leaf not in holder._non_persistent_buffers_set
            _holder(self.stacks, name).register_buffer(
                leaf, buffers[id(buffer)], persistent=persistent
            )

    @property
    def template(self) -> nn.Module:
        """The residual module that every evaluation runs, with values on the meta device."""
        return self._template.module

    def named(self) -> dict[str, nn.Parameter]:
        """Return the stacks under the names of the residual's parameters.

        Raises:
            ValueError: if they have other names by now.
        """
        stacks = dict(self.stacks.named_parameters(remove_duplicate=False))
        if stacks.keys() != self._template.names:
            found = sorted(stacks.keys() ^ self._template.names)
            raise ValueError(
                f"block: its stacks and its residual do not share the parameters {found}; prune, "
                "parametrise or change the residual before the block is made"
            )
        return stacks

    @override
    def train(self, mode: bool = True) -> Self:
        # In the template too: batch norm and dropout read it there.
        self.template.train(mode)
        return super().train(mode)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A function that looks at a tensor's rank, such as a memory format, sees that of a layer.
        axes = self._axes()
        named = (*self.stacks.named_parameters(), *self.stacks.named_buffers())
        known = [(x, axes[name]) for name, stack in named for x in (stack, stack.grad)]
        ranks = {id(x): n for x, n in known}  # which are alive as long as the list is
        super()._apply(lambda x: _as_layer(fn, x, ranks.get(id(x), 1)), recurse)  # type: ignore[no-untyped-call]
        return self

    def _axes(self) -> dict[str, int]:
        """Return how many axes of every stack are those of stacks: a block may hold blocks."""
        inside = {
            f"{path}.stacks.{name}": axes
            for path, part in self.template.named_modules(remove_duplicate=False)
            if isinstance(part, DepthWeights)
            for name, axes in part._axes().items()
        }
        stacks = self.stacks
        named = (
            *stacks.named_parameters(remove_duplicate=False),
            *stacks.named_buffers(remove_duplicate=False),
        )
        return {name: 1 + inside.get(name, 0) for name, _ in named}

    def in_format(self, x: Tensor) -> Tensor:
        """Return a state in the memory format of the kernels, once instead of in every layer.

        Example:
            >>> weights = DepthWeights([nn.Conv2d(2, 2, 3)], Constant())
            >>> weights = weights.to(memory_format=torch.channels_last)
            >>> weights.in_format(torch.zeros(1, 2, 4, 4)).stride()
            (32, 1, 8, 2)
        """
        if x.dim() != 4 or transforming():
            return x
        last = torch.channels_last
        kernels = (p[0] for p in self.stacks.parameters() if p.dim() == 5)
        if any(k.is_contiguous(memory_format=last) and not k.is_contiguous() for k in kernels):
            return x.contiguous(memory_format=last)
        return x

    @property
    def per_cell(self) -> tuple[str, ...]:
        """Names of the parameters that are constant in every cell though the basis is not."""
        if isinstance(self.basis, Constant | PiecewiseConstant):
            return ()
        return self._norms

    def bases(self) -> dict[nn.Parameter, Basis]:
        """Return the basis of every parameter: the block's, or one constant a cell.

        Example:
            >>> from companion import PiecewiseLinear
            >>> unit = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
            >>> weights = DepthWeights([unit, unit, unit], PiecewiseLinear(cells=2))
            >>> [str(basis) for basis in weights.bases().values()][1:3]
            ['PiecewiseLinear(cells=2)', 'PiecewiseConstant(cells=2)']
        """
        per_cell, cells = self.per_cell, PiecewiseConstant(self.basis.cells)
        named = self.stacks.named_parameters()
        return {param: cells if name in per_cell else self.basis for name, param in named}

    def at(self, place: Place) -> Tensors:
        """Return the parameters and buffers at a depth, under the residual's names."""
        bases, found = self.bases(), {}
        for name, param in self.stacks.named_parameters(remove_duplicate=False):
            terms = [weight * param[k] for k, weight in bases[param].at(place)]
            found[name] = sum(terms[1:], terms[0])
        buffers = self.stacks.named_buffers(remove_duplicate=False)
        return found | {name: buffer[place.cell] for name, buffer in buffers}

    @torch.no_grad()
    def refine(self) -> None:
        """Split every cell in two in place; the weight functions do not change.

        Raises:
            TypeError: if the basis has no cells to split.
        """
        finer = self.basis.refined()
        for param, basis in self.bases().items():
            _resize(param, basis.refine(param.data))
        self._map_buffers(lambda buffer: buffer.repeat_interleave(2, dim=0))
        self.basis = finer

    @torch.no_grad()
    def project(self, basis: Basis) -> None:
        """Take the nearest weight functions of another basis, in place; see OdeBlock.project."""
        cells, old = PiecewiseConstant(basis.cells), PiecewiseConstant(self.basis.cells)
        for name, param in self.stacks.named_parameters():
            own, new = (old, cells) if name in self._norms else (self.basis, basis)
            _resize(param, project(param.data, own, new))
        self._map_buffers(
            lambda b: project(b, old, cells) if b.is_floating_point() else _sampled(b, basis.cells)
        )
        self.basis = basis

    def _map_buffers(self, function: Callable[[Tensor], Tensor]) -> None:
        mapped: dict[int, Tensor] = {}
        for module in self.stacks.modules():
            for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
                if id(buffer) not in mapped:
                    mapped[id(buffer)] = function(buffer)
                setattr(module, name, mapped[id(buffer)])


class _Template:
    """A module without values: the code of a residual. No ``nn.Module``, so nobody's child."""

    def __init__(self, module: nn.Module) -> None:
        self.names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        self.module = _without_graph(module, {}).to("meta")
        for part in self.module.modules():
            for name, param in part._parameters.items():
                if param is not None:
                    part._parameters[name] = _Placeholder(param.detach(), param.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Template:
        other = copy.copy(self)
        other.module = _without_graph(self.module, memo)
        return other


class _Placeholder(nn.Parameter):
    """A parameter of a template. Whoever computes with it looks for weights that are not there."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            real = any(isinstance(x, Tensor) and not x.is_meta for x in args)
        if real:
            raise ValueError(
                "residual: a layer was evaluated outside the block's own evaluation, where it has "
                "no weights (torch.utils.checkpoint in a residual evaluates it again like that); "
                "store less with the block's gradient='checkpoint' instead"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _without_graph(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module, also one that holds a computed tensor, as ``weight_norm`` leaves behind."""
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


@contextmanager
def split_into(rows: Mapping[nn.Parameter, Sequence[Tensor]]) -> Iterator[None]:
    """Let blocks read given tensors in the place of the rows of their stacks.

    Autograd hands a stack its gradient when those of all rows are there. Rows that are leaves get
    theirs one by one, as soon as the layers that read them have been passed.
    """
    for stack, own in rows.items():
        stack.rows = own  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for stack in rows:
            del stack.rows  # type: ignore[attr-defined]


def rows_of(stack: Tensor) -> Sequence[Tensor]:
    """Return what a block reads as the rows of a stack: its own, or those of :func:`split_into`.

    Example:
        >>> stack = nn.Parameter(torch.zeros(2, 3))
        >>> leaves = [nn.Parameter(row) for row in stack.detach()]
        >>> with split_into({stack: leaves}):
        ...     [row.is_leaf for row in rows_of(stack)]
        [True, True]
        >>> [row.is_leaf for row in rows_of(stack)]
        [False, False]
    """
    rows: Sequence[Tensor] | None = getattr(stack, "rows", None)
    return stack.unbind(0) if rows is None else rows


def _as_layer(fn: Callable[[Tensor], Tensor], stack: Tensor, axes: int) -> Tensor:
    """Apply a function to a stack as if to a layer's tensor, which has fewer axes."""
    leading = stack.shape[: axes + 1]
    if stack.ndim <= axes or 0 in leading:
        return fn(stack)
    layers = stack.flatten(0, axes)
    found = fn(layers)
    return stack if found is layers else found.view(*leading, *found.shape[1:])


def check_stackable(module: nn.Module) -> None:
    """Refuse modules whose tensors cannot be stacked, or whose code cannot be given others.

    Raises:
        ValueError: naming the cause and the way out.
    """
    for name, part in module.named_modules():
        where = f"residual: {name or type(part).__name__}"
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(
                f"{where} is a torch.jit.ScriptModule, whose parameters cannot be given from "
                "outside; pass the module that it was made from"
            )
        if any(map(is_lazy, (*part._parameters.values(), *part._buffers.values()))):
            raise ValueError(
                f"{where} has parameters without a shape yet; evaluate the module once on an "
                "example, or give its sizes"
            )


def _norm_parameters(residual: nn.Module) -> tuple[str, ...]:
    """Return the names of the weights and biases of norms that keep running statistics."""
    norms = {
        id(param)
        for norm in running_statistics(residual)
        for param in norm.parameters(recurse=False)
    }
    named = residual.named_parameters(remove_duplicate=False)
    return tuple(name for name, param in named if id(param) in norms)


def _sampled(buffer: Tensor, cells: int) -> Tensor:
    """Return what cannot be averaged, such as a count, at the left ends of ``cells`` cells."""
    return buffer[[k * len(buffer) // cells for k in range(cells)]]


def _resize(param: nn.Parameter, values: Tensor) -> None:
    """Give a parameter values of another shape, even while an older graph is alive.

    Autograd remembers a leaf's shape for as long as a graph that uses it lives. It forgets only
    when the dtype changes: hence the detour through an empty tensor of another one. The older graph
    itself must not run backward any more; an operation in place makes autograd say so. The axes
    keep their order in memory, such as channels last.
    """
    strides = param.stride()
    order = sorted(range(param.ndim), key=lambda axis: -strides[axis])  # in memory
    values = values.permute(order).contiguous().permute([order.index(k) for k in range(len(order))])
    param.mul_(1.0)
    param.grad = None
    other = torch.float32 if values.dtype == torch.float64 else torch.float64
    param.data = torch.empty(0, dtype=other, device=values.device)
    param.data = values


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _holder(root: nn.Module, name: str) -> nn.Module:
    """Return the container for ``name`` below ``root``, made like the residual's own tree."""
    module = root
    for part in name.split(".")[:-1]:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module


def check_alike(modules: Sequence[nn.Module]) -> None:
    """Check that modules can be stacked."""
    if not modules or not all(isinstance(m, nn.Module) for m in modules):
        raise ValueError("modules: at least one nn.Module is needed, and nothing else is allowed")
    for k, module in enumerate(modules):
        if difference := first_difference(modules[0], module):
            raise ValueError(f"modules: number {k} differs from number 0 in {difference}")


def first_difference(one: nn.Module, other: nn.Module) -> str:
    """Say in what two modules differ besides the values of parameters and buffers, if in anything.

    Example:
        >>> first_difference(nn.SiLU(), nn.ReLU())
        "its structure: ('', 'ReLU', '', True) against ('', 'SiLU', '', True)"
    """
    descriptions = {
        "parameters and buffers": _signature, "structure": _structure, "attributes": constants,
    }  # fmt: skip
    for what, describe in descriptions.items():
        first, second = describe(one), describe(other)
        if first != second:
            pairs = zip_longest(second, first)
            found, wanted = next((a, b) for a, b in pairs if a != b)
            return f"its {what}: {found} against {wanted}"
    return ""


def _signature(module: nn.Module) -> list[tuple[object, ...]]:
    """Return what has to agree for tensors to be stacked."""
    params = [(n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in module.named_parameters()]
    return [*params, *((n, tuple(b.shape), b.dtype) for n, b in module.named_buffers())]


def _structure(module: nn.Module) -> list[tuple[object, ...]]:
    """Return what the template's code depends on, as far as modules show it."""
    # Classes by name: a parametrised module has a class of its own.
    return [
        (n, type(m).__qualname__, m.extra_repr(), m.training) for n, m in module.named_modules()
    ]


def constants(module: nn.Module) -> list[tuple[object, ...]]:
    """Return the numbers and words that modules keep as plain attributes: one template has one."""
    return [
        (f"{name}.{key}" if name else key, value)
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if not key.startswith("_") and isinstance(value, bool | int | float | complex | str)
    ]
