"""How well a network's inputs and gradients come back from its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from companion.block import OdeBlock
from companion.gradients import Gradient, Reconstruct
from companion.gradients.randomness import replaying
from companion.solve import FixedStep, Problem

__all__ = ["GradientError", "gradient_error", "reconstruction", "trajectory"]


class GradientError(NamedTuple):
    """How far parameter gradients are from backprop's.

    Attributes:
        absolute: the largest norm of the difference over the coefficients (the layers).
        relative: the norm of the whole difference over the norm of the whole gradient.
    """

    absolute: float
    relative: float


@torch.no_grad()
def trajectory(block: OdeBlock, x: Tensor) -> Tensor:
    """Return the states of ``block`` from its input to its output.

    Args:
        block: a block with a fixed-step scheme of ``N`` steps; its buffers are left alone.
        x: the input.

    Returns:
        A tensor of shape ``(N + 1, *x.shape)``.

    Example:
        >>> from torch import nn
        >>> trajectory(OdeBlock(nn.Identity(), steps=2), torch.ones(1))
        tensor([[1.0000],
                [1.5000],
                [2.2500]])
    """
    problem, solver = _prepared(block, x)
    return torch.stack([x, *(carried[0] for _, _, carried in solver.walk(problem))])


def reconstruction(block: OdeBlock, output: Tensor, gradient: Reconstruct) -> Tensor:
    r"""Return the states at which a reverse sweep differentiates the layers of ``block``.

    Args:
        block: a block with a fixed-step scheme of ``N`` steps; its buffers are left alone.
        output: the block's output $x_N$.
        gradient: the rule; nothing is stored in between (``every`` plays no part).

    Returns:
        The points $\tilde x_0, \dots, \tilde x_N$, of shape ``(N + 1, *output.shape)``; the last
        is ``output``. The output of step $n$ is reconstructed at index $n + 1$, its input at $n$.

    Example:
        >>> from torch import nn
        >>> block = OdeBlock(nn.Identity(), steps=2)
        >>> reconstruction(block, torch.tensor([2.25]), Reconstruct())
        tensor([[0.5625],
                [1.1250],
                [2.2500]])
    """
    problem, solver = _prepared(block, output)
    if not isinstance(gradient, Reconstruct):
        raise TypeError(f"gradient: {gradient!r} is not allowed; pass a configured Reconstruct")
    sweep = gradient.sweep(problem)
    points, end = [output.detach()], output.detach()
    with torch.no_grad():
        for step in reversed(list(solver.grid(problem.t))):
            layer = sweep.back(step, end)
            points.append(layer.tape.start.detach())
            end = layer.state
    return torch.stack(points[::-1])


def gradient_error(
    block: OdeBlock,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    gradient: str | Gradient,
) -> GradientError:
    r"""Compare the parameter gradients of ``gradient`` with the exact ones of the same network.

    Args:
        block: a block with a fixed-step scheme; it is evaluated twice, with the same dropout masks,
            and its buffers are left alone.
        x: the input.
        loss: a function of the block's output.
        gradient: the method to judge.

    Returns:
        $\max_n \lVert\tilde\nabla_{\theta_n} - \nabla_{\theta_n}\rVert$ and
        $\lVert\tilde\nabla - \nabla\rVert / \lVert\nabla\rVert$, which is ``nan`` for a zero
        gradient.

    Raises:
        ValueError: if no parameter needs a gradient, or the method has no fixed grid.

    Example:
        >>> from torch import nn
        >>> block = OdeBlock(nn.Linear(2, 2), method="heun", steps=4)
        >>> gradient_error(block, torch.ones(1, 2), torch.sum, Reconstruct()).relative < 0.02
        True
    """
    _prepared(block, x)
    params = [p for p in block.parameters() if p.requires_grad]
    if not params:
        raise ValueError("block: none of its parameters needs a gradient")
    exact = Reconstruct(every=1)  # not backprop: dropout masks must be the same
    true, found = (_gradients(block, x, loss, method, params) for method in (exact, gradient))
    layers = torch.stack(
        [(a - b).reshape(len(a), -1).norm(dim=1).square() for a, b in zip(found, true, strict=True)]
    ).sum(0)
    size = torch.stack([b.norm().square() for b in true]).sum()
    return GradientError(layers.max().sqrt().item(), (layers.sum() / size).sqrt().item())


def _gradients(
    block: OdeBlock,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    gradient: str | Gradient,
    params: list[nn.Parameter],
) -> tuple[Tensor, ...]:
    """Differentiate a block, and leave its buffers and the generators as they were."""
    before = {name: buffer.clone() for name, buffer in block.named_buffers()}
    with replaying(x.device):
        value = loss(block.with_graph(gradient=gradient)(x))
    for name, buffer in block.named_buffers():
        buffer.copy_(before[name])
    return torch.autograd.grad(value, params, allow_unused=True, materialize_grads=True)


def _prepared(block: OdeBlock, x: Tensor) -> tuple[Problem, FixedStep]:
    problem = block.problem(x)
    if not isinstance(problem.solver, FixedStep):
        raise ValueError(
            f"block: method={block.method!r} is not allowed; it needs an explicit fixed-step scheme"
        )
    return replace(problem, field=problem.field.recomputation()), problem.solver
