"""What a trained network costs with fewer cells, fewer bits and a shorter graph, and what it loses.

None of this trains anything. Weights that are a function of depth can be projected onto fewer
cells, rounded to few bits, and read by a scheme with fewer evaluations.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from companion.arguments import check_count, is_count
from companion.depth_weights import DepthWeights
from companion.models import ode_blocks, with_graph
from companion.observe import count_nfe
from companion.train import error_rate, evaluating

__all__ = [
    "Report",
    "compress",
    "merge_cells",
    "processor_seconds",
    "quantise",
    "quantise_blocks",
    "report",
    "size",
]

Model = TypeVar("Model", bound=nn.Module)


class Report(NamedTuple):
    """What a network costs and what it loses.

    Attributes:
        bytes: size of all parameters and buffers.
        nfe: evaluations of the residuals of all blocks in one forward pass.
        seconds: least processor time of a forward pass over all samples.
        error: share of samples whose class does not score highest.
        deviation: distance of the scores from those of the network it was made from, relative to
            their norm.
    """

    bytes: int
    nfe: int
    seconds: float
    error: float
    deviation: float


def report(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    cells: int | None = None,
    bits: int | None = None,
    method: str | None = None,
    steps: int | None = None,
    repeats: int = 3,
) -> Report:
    r"""Compress a copy of a classifier and say what it costs and what it loses.

    The deviation is $\lVert\ell - \ell_0\rVert / \lVert\ell_0\rVert$ with the scores $\ell_0$ of
    ``model`` and $\ell$ of the copy, over all samples and classes.

    Args:
        model: a classifier with blocks.
        x: samples.
        y: their classes.
        cells: as for :func:`compress`.
        bits: as for :func:`compress`.
        method: as for :func:`compress`.
        steps: as for :func:`compress`.
        repeats: forward passes to time.

    Raises:
        ValueError: for ``repeats`` below 1, or a value that :func:`compress` refuses.

    Example:
        >>> from companion.models import ContinuousMLP
        >>> net = ContinuousMLP(4, 2, method="rk4")
        >>> found = report(net, torch.ones(3, 4), torch.zeros(3, dtype=torch.int64), steps=2)
        >>> found.nfe, found.bytes == size(net)
        (8, True)
    """
    check_count("repeats", repeats)
    small = compress(model, cells=cells, bits=bits, method=method, steps=steps)
    before, after = _scores(model, x), _scores(small, x)
    with count_nfe(small) as nfe:
        _scores(small, x)
    seconds = min(processor_seconds(small, x) for _ in range(repeats))
    moved, norm = float((after - before).norm()), float(before.norm())
    deviation = moved / norm if norm > 0 else (math.inf if moved > 0 else 0.0)
    return Report(size(small, bits), nfe.total, seconds, error_rate(small, (x, y)), deviation)


def compress(
    model: Model,
    *,
    cells: int | None = None,
    bits: int | None = None,
    method: str | None = None,
    steps: int | None = None,
) -> Model:
    """Return a copy on fewer cells, then rounded, under another graph; ``None`` leaves a knob.

    Args:
        model: a model with blocks.
        cells: cells of every block, as for :func:`merge_cells`.
        bits: bits of a weight, as for :func:`quantise_blocks`.
        method: the scheme of every block.
        steps: the steps of every block.

    Raises:
        TypeError: for ``cells`` of a block whose basis has none.
        ValueError: for a model without blocks, or a value out of range.

    Source:
        Queiruga et al. 2020, section 5.3 (fewer steps); cells and bits are ours.

    Example:
        >>> from companion.models import ContinuousMLP
        >>> compress(ContinuousMLP(4, 2), cells=2, bits=4, method="rk4", steps=2).block
        OdeBlock(PiecewiseConstant(cells=2), method='rk4', steps=2, gradient=Backprop(), scale=1)
    """
    small = copy.deepcopy(model)
    if cells is not None:
        small = merge_cells(small, cells)
    if bits is not None:
        small = quantise_blocks(small, bits)
    return with_graph(small, method=method, steps=steps)


def merge_cells(model: Model, cells: int) -> Model:
    r"""Return a copy whose weight functions are the nearest in $L^2$ on ``cells`` cells.

    For piecewise-constant weights a new cell takes the mean of the old ones, weighted by how much
    of it they fill. Steps stay.

    Args:
        model: a model with blocks.
        cells: cells of every block.

    Raises:
        TypeError: for a block whose basis has no cells to choose.
        ValueError: for ``cells`` that is no integer of at least 1.

    Example:
        >>> from companion import OdeBlock, PiecewiseConstant
        >>> block = OdeBlock(lambda: nn.Linear(1, 1), PiecewiseConstant(4))
        >>> w, merged = block.weights.stacks.weight, merge_cells(block, 2).weights.stacks.weight
        >>> bool(torch.allclose(merged[0], (w[0] + w[1]) / 2))
        True
    """
    check_count("cells", cells)
    small = copy.deepcopy(model)
    for weights in _block_weights(small):
        if "cells" not in {field.name for field in dataclasses.fields(weights.basis)}:  # type: ignore[arg-type]
            raise TypeError(f"model: {weights.basis!r} has no cells to merge")
        weights.project(dataclasses.replace(weights.basis, cells=cells))  # type: ignore[type-var]
    return small


def quantise(values: Tensor, bits: int) -> Tensor:
    r"""Round a tensor to $2^b - 1$ equally spaced levels from $-m$ to $m$, $m = \max|w|$.

    $$w \mapsto q\,\mathrm{round}(w/q), \qquad q = \frac{m}{2^{b-1} - 1}.$$

    So the error is at most $q/2$. Zero and the largest entry stay as they are. Halves go to the
    even level.

    Args:
        values: a floating-point tensor.
        bits: $b$, from 2 to 16.

    Raises:
        ValueError: for ``bits`` out of this range, or values that are not finite.
        TypeError: for a tensor that is not floating-point.

    Example:
        >>> quantise(torch.tensor([-3.0, 0.4, 0.6, 1.2]), bits=3)
        tensor([-3.,  0.,  1.,  1.])
    """
    _check_bits(bits)
    if not values.is_floating_point():
        raise TypeError(f"values: {values.dtype} is not allowed; pass a floating-point tensor")
    wide = values.detach().double()
    if not torch.isfinite(wide).all():
        raise ValueError("values: entries that are not finite cannot be quantised")
    largest = wide.abs().max() if wide.numel() else wide.new_zeros(())
    if largest == 0:
        return values.detach().clone()
    levels = float(2 ** (bits - 1) - 1)
    # Whole levels first: dividing by m / levels would round twice, and might miss a half.
    rounded: Tensor = torch.round(wide * levels / largest) * largest / levels
    return rounded.to(values.dtype)


def quantise_blocks(model: Model, bits: int) -> Model:
    """Return a copy whose blocks' matrices and kernels are quantised, each tensor with all depths.

    Biases, norms, the scalars of skip initialisation, stem and head stay as they are.

    Raises:
        ValueError: for ``bits`` that :func:`quantise` refuses, or weights that are not finite.

    Example:
        >>> from companion.models import ContinuousMLP
        >>> net = quantise_blocks(ContinuousMLP(4, 2), bits=3)
        >>> len(net.block.weights.stacks.get_parameter("0.weight").unique()) <= 7
        True
    """
    small = copy.deepcopy(model)
    for param in _kernels(small):
        param.data = quantise(param, bits)
    return small


def size(model: nn.Module, bits: int | None = None) -> int:
    """Return the bytes of a model whose blocks' matrices and kernels have ``bits`` bits an entry.

    Each of these tensors needs its largest entry besides, in the tensor's own precision.

    Args:
        model: a model with blocks.
        bits: bits of an entry, from 2 to 16; ``None`` is that of its dtype.

    Raises:
        ValueError: for ``bits`` out of this range.

    Example:
        >>> from companion import OdeBlock, PiecewiseConstant
        >>> block = OdeBlock(nn.Linear(4, 4), PiecewiseConstant(8))
        >>> size(block), size(block, bits=4)
        (640, 196)
    """
    if bits is not None:
        _check_bits(bits)
    tensors = [*model.parameters(), *model.buffers()]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if bits is None:
        return total
    kernels = _kernels(model)
    full = sum(param.numel() * param.element_size() for param in kernels)
    packed = sum(-(-param.numel() * bits // 8) + param.element_size() for param in kernels)
    return total - full + packed


def _check_bits(bits: int) -> None:
    if not is_count(bits, least=2) or bits > 16:
        raise ValueError(f"bits: {bits!r} is not allowed; it must be an integer from 2 to 16")


def _block_weights(model: nn.Module) -> list[DepthWeights]:
    """Return the weights of all blocks, each once."""
    return list(dict.fromkeys(block.weights for block in ode_blocks(model)))


def _kernels(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of blocks with two axes or more besides that of depth, each once."""
    stacks = [param for weights in _block_weights(model) for param in weights.parameters()]
    return [param for param in dict.fromkeys(stacks) if param.ndim >= 3]


def processor_seconds(model: nn.Module, x: Tensor) -> float:
    """Return the processor time of one forward pass in evaluation mode, without gradients."""
    start = time.process_time()
    _scores(model, x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.process_time() - start


@torch.no_grad()
def _scores(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model):
        scores: Tensor = model(x)
    return scores
