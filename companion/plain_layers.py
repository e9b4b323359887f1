"""The layers of a block as ordinary modules, for recipes that were written for those.

A block keeps the parameters of all its layers in stacks with a leading axis, and the code of a
layer in a template without values. What loops over a network's modules or looks at a parameter's
rank therefore does something else than in a stack of layers: ``net.apply(init)`` does not come to
the layers, and ``nn.init.xavier_uniform_`` of a stack takes the number of layers for a fan.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from companion.basis import Basis
from companion.depth_weights import DepthWeights, constants

__all__ = ["all_modules", "apply_to_layers", "own_rank", "stacks_by_name"]


def apply_to_layers(net: nn.Module, fn: Callable[[nn.Module], object]) -> None:
    """Call a function with every layer of every block as an ordinary module; keep what it changes.

    There is a layer for each of the basis's nodes. For cells and for nodes that is every set of
    parameters; for the coefficients of polynomials and waves, it is the residual with the weight
    functions' values at the nodes. As when a block is made, what changed is interpolated, and a
    cell takes its buffers, and its batch norm's weight and bias, from the layer about where it is.
    A coefficient on its own would be no layer.

    Blocks that share their weights are one. Everything else in the net, stems and heads too, is
    left alone: ``net.apply(init)`` comes to those, and to nothing in a block. A block inside a
    residual stays a block.

    Args:
        net: a model with blocks.
        fn: called with a copy of the residual, outside autograd. It may change values of
            parameters and buffers, and ``requires_grad``, the same in all layers of a block.

    Raises:
        ValueError: no block in the net; or a function that changes more than values (other names,
            shapes, types or options of a layer).

    Example:
        >>> from companion import OdeBlock, PiecewiseConstant
        >>> net = OdeBlock(nn.Linear(64, 64), PiecewiseConstant(cells=16))
        >>> def init(layer):
        ...     nn.init.xavier_uniform_(layer.weight)
        ...     nn.init.zeros_(layer.bias)
        >>> apply_to_layers(net, init)
        >>> weight, bias = net.parameters()
        >>> round(weight.std().item(), 3)  # (2 / (64 + 64)) ** 0.5
        0.125
    """
    stacks = [module for module in net.modules() if isinstance(module, DepthWeights)]
    if not stacks:
        raise ValueError(
            f"net: {type(net).__name__} without an OdeBlock is not allowed; use net.apply(fn)"
        )
    with torch.no_grad():
        for weights in stacks:
            _apply(weights, fn)


def all_modules(net: nn.Module) -> Iterator[nn.Module]:
    """Yield all modules of a net, and those of the residuals inside blocks, which hide theirs.

    The last in the example holds the stacks.

    Example:
        >>> from companion import OdeBlock
        >>> [type(m).__name__ for m in all_modules(OdeBlock(nn.Linear(2, 2)))]
        ['OdeBlock', 'DepthWeights', 'Linear', 'Module']
    """
    for module in net.modules():
        yield module
        if isinstance(module, DepthWeights):
            yield from all_modules(module.template)


def own_rank(net: nn.Module) -> dict[nn.Parameter, int]:
    """Return the rank that every parameter has in its layer: without the axes of stacks.

    Example:
        >>> from companion import OdeBlock
        >>> net = nn.Sequential(nn.Linear(2, 3), OdeBlock(nn.Linear(3, 3)))
        >>> list(own_rank(net).values())
        [2, 1, 2, 1]
    """
    ranks = {param: param.dim() for param in net.parameters()}
    for module in net.modules():
        if isinstance(module, DepthWeights):
            inside = own_rank(module.template)
            stacks = stacks_by_name(module, "named_parameters")
            for name, stack in stacks.items():
                ranks[stack] = inside[module.template.get_parameter(name)]  # type: ignore[index]
    return ranks


def stacks_by_name(weights: DepthWeights, named: str) -> dict[str, Tensor]:
    """Return stacks by the residual's own names; both sides list them in one order.

    Args:
        weights: of a block.
        named: ``"named_parameters"`` or ``"named_buffers"``.

    Example:
        >>> from companion import OdeBlock
        >>> list(stacks_by_name(OdeBlock(nn.Linear(2, 2)).weights, "named_parameters"))
        ['weight', 'bias']
    """
    own, stacked = (
        getattr(module, named)(remove_duplicate=False) for module in (weights.template, weights)
    )
    return {name: stack for (name, _), (_, stack) in zip(own, stacked, strict=True)}


def _apply(weights: DepthWeights, fn: Callable[[nn.Module], object]) -> None:
    basis, template = weights.basis, weights.template
    params = stacks_by_name(weights, "named_parameters")
    buffers = stacks_by_name(weights, "named_buffers")
    bases = weights.bases()
    of_nodes = {n: p for n, p in params.items() if bases[p] == basis}  # type: ignore[index]
    shown = {n: _at_nodes(basis, p) for n, p in of_nodes.items()}
    # What is kept one a cell: a layer shows the entry of the cell about where its node is.
    of_cells = {n: p for n, p in params.items() if n not in of_nodes} | buffers
    near = [((k + 1) * basis.cells - 1) // basis.size for k in range(basis.size)]
    shown |= {n: stack[near] for n, stack in of_cells.items()}
    layers = [_layer(template, params, shown, k) for k in range(basis.size)]
    for layer in layers:
        _change(layer, template, fn)
    for name, stack in (params | buffers).items():
        values = torch.stack([_get(layer, name) for layer in layers])
        if isinstance(stack, nn.Parameter):
            _copy_flag(name, stack, layers)
        if name in of_nodes and not torch.equal(values, shown[name]):
            stack.copy_(basis.interpolate(values))
        elif name in of_cells:
            for cell in range(basis.cells):
                k = cell * basis.size // basis.cells  # as when the block was made
                if not torch.equal(values[k], shown[name][k]):
                    stack[cell] = values[k]


def _at_nodes(basis: Basis, coefficients: Tensor) -> Tensor:
    """Return the values at the nodes: the coefficients, where interpolating leaves values alone."""
    eye = torch.eye(basis.size, dtype=torch.float64)
    matrix = basis.interpolate(eye)
    if torch.equal(matrix, eye):
        return coefficients.detach().clone()
    flat = coefficients.detach().reshape(basis.size, -1)
    wide = torch.complex128 if flat.is_complex() else torch.float64
    values = torch.linalg.solve(matrix.to(flat.device, wide), flat.to(wide))
    nodes: Tensor = values.to(flat.dtype).reshape(coefficients.shape)
    return nodes


def _layer(
    template: nn.Module, params: Mapping[str, Tensor], shown: Mapping[str, Tensor], k: int
) -> nn.Module:
    """Return the residual with the values of one node; what is tied stays tied."""
    layer = copy.deepcopy(template)
    made: dict[int, Tensor] = {}
    for name, values in shown.items():
        holder, leaf = layer.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        value = values[k].clone()
        if name in params:
            stack = params[name]
            value = made.setdefault(id(stack), nn.Parameter(value, stack.requires_grad))
            holder._parameters[leaf] = value  # type: ignore[assignment]
        else:
            holder._buffers[leaf] = value
    return layer


def _get(layer: nn.Module, name: str) -> Tensor:
    holder, leaf = layer.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    found = holder._parameters.get(leaf)
    return (holder._buffers[leaf] if found is None else found).detach()  # type: ignore[union-attr]


def _change(layer: nn.Module, template: nn.Module, fn: Callable[[nn.Module], object]) -> None:
    fn(layer)
    if (found := _described(layer)) != (wanted := _described(template)):
        changed = [entry for entry in found if entry not in wanted] or "fewer parts"
        raise ValueError(
            f"fn: a function that makes {changed} of a layer is not allowed; it must change values "
            "only. Change the residual itself before the block is made"
        )


def _described(module: nn.Module) -> list[tuple[object, ...]]:
    """Return what of a layer a function must leave as it is."""
    named = (module.named_parameters, module.named_buffers)
    tensors = [pair for function in named for pair in function(remove_duplicate=False)]
    parts = [(name, type(m).__name__, m.extra_repr()) for name, m in module.named_modules()]
    kinds = ((name, tuple(t.shape), t.dtype) for name, t in tensors)
    return [*kinds, *parts, *constants(module)]


def _copy_flag(name: str, stack: nn.Parameter, layers: Sequence[nn.Module]) -> None:
    flags = {layer.get_parameter(name).requires_grad for layer in layers}
    if len(flags) > 1:
        raise ValueError(
            f"fn: freezing {name} in some layers is not allowed; they are one stack, so it must be "
            "frozen in all or in none"
        )
    stack.requires_grad_(flags.pop())
