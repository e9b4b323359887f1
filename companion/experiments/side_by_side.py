"""Training several small perceptrons at once, each as if it were alone.

Networks this small spend their time on calls, not on arithmetic: four side by side cost little more
than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from companion.block import OdeBlock
from companion.models import ContinuousMLP
from companion.models.skip_init import SkipInit
from companion.train import fit


def fit_side_by_side(
    nets: Sequence[ContinuousMLP],
    x: Tensor,
    y: Tensor,
    seeds: Sequence[int],
    *,
    optimiser: Callable[[Iterable[nn.Parameter]], Optimizer],
    clip: float,
    **options: Any,
) -> None:
    """Train classifiers of one variant in place, each on its own order of the samples.

    Every network ends where :func:`companion.train.fit` would take it alone, up to rounding.

    Args:
        nets: classifiers that differ in their values only.
        x: the samples.
        y: their classes.
        seeds: one for each network, which permutes its samples. Then ``seeds[0]`` orders the rows
            of all of them in every epoch.
        optimiser: makes the optimiser; it must treat every entry of a tensor on its own.
        clip: largest norm of the gradient of one network.
        **options: further ones of :func:`companion.train.fit`.
    """
    orders = torch.stack([permutation(len(x), seed) for seed in seeds]).to(x.device)
    stack = SideBySide(nets).to(x)

    def clipped(params: Iterable[nn.Parameter]) -> Optimizer:
        made = optimiser(params)
        made.register_step_pre_hook(lambda *_: stack.clip_gradients(clip))
        return made

    def loss(net: nn.Module, rows: Tensor) -> Tensor:
        chosen = orders[:, rows]
        return len(nets) * cross_entropy(net(x[chosen]).flatten(0, 1), y[chosen].flatten())

    fit(
        stack, loss, (torch.arange(len(x), device=x.device),),
        optimiser=clipped, generator=torch.Generator().manual_seed(seeds[0]), **options,
    )  # fmt: skip
    stack.hand_back(nets)


def permutation(size: int, seed: int) -> Tensor:
    """Return the order in which the network of a seed finds the samples.

    Example:
        >>> permutation(5, seed=0)
        tensor([4, 0, 1, 3, 2])
    """
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


class SideBySide(nn.Module):
    """Copies of perceptrons that differ in their values only, stacked.

    Parameters keep their names. They have an axis of members: the first, or in the block the
    second, behind that of depth.

    Args:
        nets: the perceptrons.

    Shapes:
        ``(members, batch, inputs)`` to ``(members, batch, classes)``.
    """

    def __init__(self, nets: Sequence[ContinuousMLP]) -> None:
        super().__init__()
        first, members = nets[0], len(nets)
        block = first.block
        self.stem = _stackable(first.stem, members)
        self.block = OdeBlock(
            _stackable(block.weights.template, members),
            block.weights.basis, block.method, block.steps, scale=block.scale,
        )  # fmt: skip
        self.head = _stackable(first.head, members)
        for name, param in self.named_parameters():
            values = [net.get_parameter(name).detach() for net in nets]
            param.data = torch.stack(values, dim=_axis(name)).reshape(param.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of all members."""
        scores: Tensor = self.head(self.block(self.stem(x)))
        return scores

    def clip_gradients(self, largest: float) -> None:
        """Scale the gradient of each member down to a norm of at most ``largest``."""
        gradients = [
            param.grad.movedim(_axis(name), 0).flatten(1)
            for name, param in self.named_parameters()
            if param.grad is not None
        ]
        norms = torch.cat(gradients, dim=1).norm(dim=1)
        factors = (largest / (norms + 1e-6)).clamp(max=1.0)  # as in clip_grad_norm_
        for name, param in self.named_parameters():
            if param.grad is not None:
                param.grad.movedim(_axis(name), -1).mul_(factors)

    def hand_back(self, nets: Sequence[ContinuousMLP]) -> None:
        """Give networks the values of the members, refined as often as the block has been."""
        for member, net in enumerate(nets):
            while net.block.weights.basis.cells < self.block.weights.basis.cells:
                net.refine()
            for name, param in net.named_parameters():
                values = self.get_parameter(name).detach().select(_axis(name), member)
                param.data = values.reshape(param.shape).clone()


class _Linears(nn.Module):
    """A linear map of its own for every member."""

    def __init__(self, members: int, like: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, like.out_features, like.in_features))
        self.bias = nn.Parameter(torch.empty(members, like.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)


def _stackable(module: nn.Module, members: int) -> nn.Module:
    """Return a part of a perceptron with room for the values of all members."""
    if isinstance(module, nn.Linear):
        return _Linears(members, module)
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*(_stackable(part, members) for part in module))
    if isinstance(module, SkipInit):
        skipped = SkipInit(_stackable(module.residual, members))
        skipped.skip = nn.Parameter(torch.empty(members, 1, 1))
        return skipped
    return nn.ReLU()


def _axis(name: str) -> int:
    """Return the axis of members of a parameter."""
    return 1 if name.startswith("block.") else 0
