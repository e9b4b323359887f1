"""Training several small perceptrons at once, each as if it were alone.

Networks this small spend their time on calls, not on arithmetic: four side by side cost little more
than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from companion.block import OdeBlock
from companion.models import ContinuousMLP, Members, SkipInit
from companion.models.residual_mlp import residual
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
    stack = SideBySide(nets)

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
    """Return the order in which the network of a seed finds the samples."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


class SideBySide(nn.Module):
    """Perceptrons that differ in their values only, as members of one.

    Their axis is the first, or in the parameters of the block the second, behind that of depth.
    """

    def __init__(self, nets: Sequence[ContinuousMLP]) -> None:
        super().__init__()
        block, made = nets[0].block, nets[0].arguments
        self.stem = Members([net.stem for net in nets])
        with torch.device("meta"):  # the values follow
            unit = residual(made["width"], made["hidden"])
            units = Members([SkipInit(unit) if made["skip_init"] else unit for _ in nets])
            basis, scale = block.weights.basis, block.scale
            self.block = OdeBlock(units, basis, block.method, block.steps, scale=scale)
        self.block.to_empty(device=nets[0].head.weight.device)
        self.head = Members([net.head for net in nets])
        for (axis, own), *theirs in self._pairs(nets):
            own.data = torch.stack([p.detach() for p in theirs], dim=axis)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of all members, shape ``(members, batch, classes)``."""
        scores: Tensor = self.head(self.block(self.stem(x)))
        return scores

    def clip_gradients(self, largest: float) -> None:
        """Scale the gradient of each member down to a norm of at most ``largest``."""
        grads = [(axis, p.grad) for axis, p in self._params() if p.grad is not None]
        norms = torch.cat([g.movedim(axis, 0).flatten(1) for axis, g in grads], dim=1).norm(dim=1)
        factors = (largest / (norms + 1e-6)).clamp(max=1.0)  # as in clip_grad_norm_
        for axis, grad in grads:
            grad.movedim(axis, -1).mul_(factors)

    def hand_back(self, nets: Sequence[ContinuousMLP]) -> None:
        """Give networks the values of the members, refined as often as the block has been."""
        for net in nets:
            while net.block.weights.basis.cells < self.block.weights.basis.cells:
                net.refine()
        for (axis, own), *theirs in self._pairs(nets):
            for member, param in enumerate(theirs):
                param.data = own.detach().select(axis, member).clone()

    def _params(self) -> Iterator[tuple[int, nn.Parameter]]:
        """Yield every parameter, behind the axis of its members."""
        for name, param in self.named_parameters():
            yield int(name.startswith("block.")), param

    def _pairs(self, nets: Sequence[ContinuousMLP]) -> Iterator[tuple[Any, ...]]:
        """Yield every parameter with those of the networks that it holds."""
        return zip(self._params(), *(net.parameters() for net in nets), strict=True)
