r"""Starts and targets for the experiments on linear residual networks.

A start is $\theta_n = A_0 + A_1 w_n$ with operator norms $\lVert A_0\rVert = 0.2$ and
$\lVert A_1\rVert = 0.05$, so that $\lVert\theta_n\rVert \le \frac14$.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.experiments.recipes import normal
from companion.models.linear_resnet import LinearTask, end_map

_DEEP = 1024
"""Depth that stands for the limit where a target is made; any fixed target would do."""


@dataclass(frozen=True)
class LinearProblem:
    """Several random starts of linear networks, one a row, with one covariance ``(d, d)``.

    Of shape ``(starts, d, d)``: ``base`` and ``wave``, the part of the weights that is constant and
    that varies with depth; ``direction``, where the target lies, seen from the start.
    """

    base: Tensor
    wave: Tensor
    direction: Tensor
    covariance: Tensor

    def start(self, kind: str, layers: int) -> Tensor:
        r"""Return the weights at the start, shape ``(starts, layers, d, d)``.

        They are ``"smooth"``, $w_n = \sin 2\pi n/N$, or ``"rough"``, $w_n = (-1)^n$.
        """
        n = torch.arange(layers, dtype=self.base.dtype, device=self.base.device)
        wave = {"smooth": torch.sin(2 * math.pi * n / layers), "rough": 1 - 2 * (n % 2)}[kind]
        return self.base.unsqueeze(1) + wave[:, None, None] * self.wave.unsqueeze(1)

    def task(self, kind: str, factor: float, step: float) -> LinearTask:
        """Return a task on which deep networks start ``factor`` times above the loss threshold."""
        start = self.start(kind, _DEEP)
        centre = end_map(start)
        unit = LinearTask(centre + self.direction, self.covariance)
        scale = (factor * unit.loss_threshold(step) / unit.loss(start)).sqrt()
        return LinearTask(centre + scale[:, None, None] * self.direction, self.covariance)


def linear_problem(starts: int, width: int, seed: int, device: torch.device) -> LinearProblem:
    """Draw the starts; the first few are the same however many are drawn."""
    draw = normal(seed)
    inputs = draw(width, 200)
    draws = torch.stack([draw(3, width, width) for _ in range(starts)])
    base, wave, direction = (draws / torch.linalg.matrix_norm(draws, 2)[..., None, None]).unbind(1)
    tensors = (0.2 * base, 0.05 * wave, direction, inputs @ inputs.T / inputs.shape[1])
    return LinearProblem(*(tensor.to(device) for tensor in tensors))
