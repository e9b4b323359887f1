r"""FW6: do the weights of trained *nonlinear* residual networks have a limit in depth?

Sander et al. (2022) prove it for linear networks. Here the layers are
$x_{n+1} = x_n + \frac1N V_n \sigma(W_n x_n + b_n)$, trained by the same rescaled descent,
$\theta_n \leftarrow \theta_n - \eta N \nabla_n$. Four variants:

- ``smooth``: tanh layers, weights smooth in depth at the start;
- ``large``: the same with targets five times as large, which this network cannot fit;
- ``rough``: the part of the weights that varies with depth changes sign from layer to layer;
- ``relu``: the smooth start with ReLU layers.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.experiments import Findings, Part, Run, experiment
from companion.experiments.recipes import normal

VARIANTS = ("smooth", "large", "rough", "relu")

_WIDTH, _HIDDEN, _POINTS = 2, 6, 40


@experiment(
    "FW6",
    "Trained nonlinear residual networks of growing depth: is there a limit?",
    paper="Sander et al. 2022, future work",
    claims=(
        ("FW6", "ratio_smooth", 1.7, 2.3, "ratio of the last two distances, smooth start"),
        ("FW6", "most_growth_smooth", None, 1.1, "growth of the roughness, smooth start"),
        ("FW6", "early_large", 1.7, 2.3, "ratio of the last two distances, large loss, early"),
        ("FW6", "ratio_rough", 0.9, 1.1, "ratio of the last two distances, rough start"),
        ("FW6", "least_growth_rough", 1.9, 2.1, "growth of the roughness, rough start"),
        ("FW6", "parity_rough_ratio", 1.7, 2.3, "the same by parity, rough start"),
        ("FW6", "growth_relu", 1.5, None, "median growth of the roughness, ReLU"),
    ),
    full={"depths": (8, 16, 32, 64, 128, 256, 512), "starts": 8, "steps": 150},
    tiny={"depths": (8, 16, 32), "starts": 2, "steps": 5, "early": 3},
)
def fw6(
    run: Run, *, depths: tuple[int, ...] = (8, 16, 32, 64, 128), starts: int = 3,
    step: float = 0.1, steps: int = 100, early: int = 20,
) -> Findings:  # fmt: skip
    r"""Train networks of all depths side by side; ``starts`` random starts of every variant.

    A distance is the largest Euclidean one over layers: ``doubling`` compares
    $\theta^N_n$ with $\theta^{2N}_{2n}$, ``parity`` with
    $\theta^{2N}_{2n - n \bmod 2}$, so that even layers meet even ones and odd ones odd ones.
    ``roughness`` is $\max_n N \lVert\theta_{n+1} - \theta_n\rVert$.

    Curves: ``depths``; for each variant ``doubling_VARIANT``, ``parity_VARIANT``,
    ``roughness_VARIANT`` and ``loss_VARIANT``, of shape ``(iterations, depths, starts)``, where the
    last depth has no distance: NaN; ``before_VARIANT`` and ``after_VARIANT``, one weight along
    depth in the deepest network, first start: the one with the largest jump after training.

    Scalars: for each variant the last distance but one over the last, both the largest over time,
    farthest from 2 among the starts: ``ratio_VARIANT``, ``early_VARIANT`` over the first ``early``
    iterations, ``parity_VARIANT_ratio``; ``growth_VARIANT``, the largest roughness over time of the
    deepest network over that of the second deepest, median over the starts, with
    ``least_growth_VARIANT`` and ``most_growth_VARIANT``.
    """
    doubles = all(deep == 2 * shallow for shallow, deep in pairwise(depths))
    if len(depths) < 3 or not doubles:
        raise ValueError(f"depths must be at least three and double; got {depths}")
    if not 1 <= early <= steps:
        raise ValueError(f"early must lie between 1 and steps = {steps}; got {early}")

    def train(part: Part, activation: str) -> dict[str, Any]:
        problem = _problem(starts, run.seed, run.device, activation)
        return _train(part, problem, depths, step, steps)

    def farthest(distances: NDArray[np.float64]) -> float:
        ratios = 1 / _last_pair(distances[:, :-1])
        return float(ratios[np.abs(ratios - 2).argmax()])

    parts = run.map(train, {activation: (activation,) for activation in ("tanh", "relu")})
    scalars: dict[str, float] = {}
    curves: dict[str, Any] = {"depths": depths}
    for part in parts.values():
        for row, variant in enumerate(part["variants"]):
            found = {name: np.array(part[name][row]) for name in part if name != "variants"}
            curves |= {f"{name}_{variant}": values for name, values in found.items()}
            growth = _last_pair(found["roughness"])
            scalars |= {
                f"ratio_{variant}": farthest(found["doubling"]),
                f"early_{variant}": farthest(found["doubling"][: early + 1]),
                f"parity_{variant}_ratio": farthest(found["parity"]),
                f"growth_{variant}": float(np.median(growth)),
                f"least_growth_{variant}": growth.min(),
                f"most_growth_{variant}": growth.max(),
            }
    return Findings(scalars, curves)


class _Problem(NamedTuple):
    """Starts, ``base`` and ``wave`` of shape ``(starts, numbers)``, data, and variants of both."""

    variants: tuple[str, ...]
    activation: str
    base: Tensor
    wave: Tensor
    inputs: Tensor
    targets: Tensor

    def start(self, layers: int) -> Tensor:
        """Return the weights at the start, shape ``(variants, starts, layers, numbers)``."""
        n = torch.arange(layers, dtype=self.base.dtype, device=self.base.device)
        kinds = {"smooth": torch.sin(2 * math.pi * n / layers), "rough": 1 - 2 * (n % 2)}
        along = torch.stack([kinds["rough" if v == "rough" else "smooth"] for v in self.variants])
        return self.base[:, None] + along[:, None, :, None] * self.wave[:, None]

    def loss(self, weights: Tensor) -> Tensor:
        """Return half the mean squared error of every network."""
        errors = self.output(weights) - self.targets
        return errors.square().sum(-1).mean(-1) / 2

    def output(self, weights: Tensor) -> Tensor:
        """Return the outputs, shape ``(variants, starts, points, width)``."""
        variants, starts, layers, _ = weights.shape
        size = _HIDDEN * _WIDTH
        inner = weights[..., :size].reshape(-1, layers, _WIDTH, _HIDDEN).unbind(1)
        outer = weights[..., size : 2 * size].reshape(-1, layers, _HIDDEN, _WIDTH).unbind(1)
        shift = weights[..., 2 * size :].reshape(-1, layers, 1, _HIDDEN).unbind(1)
        activation = torch.relu if self.activation == "relu" else torch.tanh
        x = self.inputs.expand(variants * starts, -1, -1)
        for w, b, v in zip(inner, shift, outer, strict=True):
            x = torch.baddbmm(x, activation(torch.baddbmm(b, x, w)), v, alpha=1 / layers)
        return x.view(variants, starts, _POINTS, _WIDTH)


def _problem(starts: int, seed: int, device: torch.device, activation: str) -> _Problem:
    draw = normal(seed)
    variants = VARIANTS[:3] if activation == "tanh" else VARIANTS[3:]
    x = draw(_POINTS, _WIDTH)
    y = torch.stack([torch.sin(x[:, 0]), 0.3 * x[:, 0] * x[:, 1]], dim=1)
    sizes = torch.tensor([5.0 if v == "large" else 1.0 for v in variants], dtype=x.dtype)
    base, wave = draw(starts, 2, _HIDDEN * (2 * _WIDTH + 1)).unbind(1)
    tensors = (0.5 * base, 0.3 * wave, x, sizes[:, None, None, None] * y)
    return _Problem(variants, activation, *(tensor.to(device) for tensor in tensors))


def _descend(
    problem: _Problem, layers: int, step: float, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the weights and their loss, ``steps + 1`` times."""
    weights = problem.start(layers)
    for _ in range(steps):
        leaf = weights.requires_grad_()
        loss = problem.loss(leaf)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        yield leaf.detach(), loss.detach()
        weights = leaf.detach() - step * layers * gradient
    yield weights, problem.loss(weights)


def _train(
    part: Part, problem: _Problem, depths: tuple[int, ...], step: float, steps: int
) -> dict[str, Any]:
    """Return, by name, numbers of shape (variants, iterations, depths, starts); and profiles."""
    nets = [_descend(problem, depth, step, steps) for depth in depths]
    seen: list[dict[str, Tensor]] = []
    for stages in zip(*nets, strict=True):
        weights, losses = zip(*stages, strict=True)
        pairs = list(pairwise(weights))
        gaps = [weight.diff(dim=2).norm(dim=-1).amax(2) * weight.shape[2] for weight in weights]
        seen.append({
            "loss": torch.stack(losses, 1), "roughness": torch.stack(gaps, 1),
            "doubling": _distances(pairs, parity=False), "parity": _distances(pairs, parity=True),
        })  # fmt: skip
        part.report(len(seen) / (steps + 1))
    found: dict[str, Any] = {
        name: torch.stack([row[name] for row in seen], 1).tolist() for name in seen[0]
    }
    start, end = problem.start(depths[-1])[:, 0], weights[-1][:, 0]
    chosen = end.diff(dim=1).abs().amax(1).argmax(-1)
    rows = torch.arange(len(chosen))
    found["before"] = start[rows, :, chosen].tolist()
    found["after"] = end[rows, :, chosen].tolist()
    return found | {"variants": list(problem.variants)}


def _distances(pairs: list[tuple[Tensor, Tensor]], *, parity: bool) -> Tensor:
    """Return the distances of neighbouring depths and NaN, shape (variants, depths, starts)."""
    rows = []
    for shallow, deep in pairs:
        n = torch.arange(shallow.shape[2], device=shallow.device)
        partner = deep[:, :, 2 * n - n % 2 if parity else 2 * n]
        rows.append((shallow - partner).norm(dim=-1).amax(2))
    return torch.stack([*rows, torch.full_like(rows[0], math.nan)], 1)


def _last_pair(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the last depth's largest value over time over that of the depth before, per start."""
    largest = values.max(0)
    ratio: NDArray[np.float64] = largest[-1] / largest[-2]
    return ratio
