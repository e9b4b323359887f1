"""How well a network's inputs and gradients come back from its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from companion.block import OdeBlock
from companion.gradients import Reconstruct
from companion.gradients.segments import fixed_step
from companion.solve import Problem

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
    problem, interval = _prepared(block, x)
    solver = fixed_step(problem)
    states = [x]
    for n in range(solver.steps):
        states.append(solver.step(problem.field, states[-1], interval, n, problem.scale))
    return torch.stack(states)


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
    problem, interval = _prepared(block, output)
    sweep = gradient.sweep(problem)
    points, end = [output.detach()], output.detach()
    with torch.no_grad():
        for n in reversed(range(fixed_step(problem).steps)):
            layer = sweep.back(interval, n, end)
            points.append(layer.start.detach())
            end = layer.state
    return torch.stack(points[::-1])


def gradient_error(
    block: OdeBlock, x: Tensor, loss: Callable[[Tensor], Tensor], gradient: Reconstruct
) -> GradientError:
    r"""Compare the parameter gradients of ``gradient`` with those of backprop.

    Args:
        block: a block with a fixed-step scheme; it is evaluated twice.
        x: the input.
        loss: a function of the block's output.
        gradient: the method to judge.

    Returns:
        $\max_n \lVert\tilde\nabla_{\theta_n} - \nabla_{\theta_n}\rVert$ and
        $\lVert\tilde\nabla - \nabla\rVert / \lVert\nabla\rVert$.

    Example:
        >>> from torch import nn
        >>> block = OdeBlock(nn.Linear(2, 2), method="heun", steps=4)
        >>> gradient_error(block, torch.ones(1, 2), torch.sum, Reconstruct()).relative < 0.02
        True
    """
    params = [p for p in block.parameters() if p.requires_grad]
    true, found = (
        torch.autograd.grad(loss(block.with_graph(gradient=method)(x)), params)
        for method in ("backprop", gradient)
    )
    layers = torch.stack(
        [(a - b).reshape(len(a), -1).norm(dim=1).square() for a, b in zip(found, true, strict=True)]
    ).sum(0)
    size = torch.stack([b.norm().square() for b in true]).sum()
    return GradientError(layers.max().sqrt().item(), (layers.sum() / size).sqrt().item())


def _prepared(block: OdeBlock, x: Tensor) -> tuple[Problem, tuple[float, float]]:
    problem = block.problem(x)
    return replace(problem, field=problem.field.recomputation()), (0.0, 1.0)
