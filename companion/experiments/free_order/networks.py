"""Networks whose weights vary with depth in three ways, and what a gradient through them costs."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from companion.analysis.reconstruction import reconstruction, trajectory
from companion.block import OdeBlock
from companion.gradients import NAMED_RULES, Backprop, Gradient, Reconstruct, Rule, get_gradient
from companion.models import layer_weights
from companion.observe import count_nfe
from companion.train import seeded

KINDS = ("smooth", "zigzag", "iid")
r"""How weights vary with depth $s$: $A + Bs + C\sin 2\pi s$, $A \pm B$ in turn, or independent."""


RULES: Mapping[str, Rule] = {
    name: rule for name, rule in NAMED_RULES.items() if not isinstance(rule.gradient, Backprop)
}
"""The memory-free rules, by name."""


def perceptron() -> nn.Sequential:
    r"""Return $V\tanh(Wx)$ in 8 dimensions, with 16 hidden units."""
    return nn.Sequential(nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 8, bias=False))


def convolution(activation: type[nn.Module]) -> nn.Module:
    """Return a pre-activation unit of two convolutions and two batch norms, 4 channels."""
    halves = (
        (nn.BatchNorm2d(4), activation(), nn.Conv2d(4, 4, 3, padding=1, bias=False))
        for _ in range(2)
    )
    return nn.Sequential(*(part for half in halves for part in half))


def dropping_perceptron() -> nn.Module:
    """Return the perceptron with a tenth of its hidden units dropped: rough in depth by chance."""
    first, activation, second = perceptron()
    return nn.Sequential(first, activation, nn.Dropout(0.1), second)


def token_mlp() -> nn.Module:
    """Return the perceptron of a transformer: layer norm, two linear maps, GELU between them."""
    return nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (perceptron, (32, 8)),
    "conv": (lambda: convolution(nn.SiLU), (8, 4, 5, 5)),
    "tokens": (token_mlp, (8, 4, 16)),
    "relu": (lambda: convolution(nn.ReLU), (8, 4, 5, 5)),
    "dropout": (dropping_perceptron, (32, 8)),
}
"""For each kind of network its residual and the shape of a batch of states."""


@dataclass(frozen=True)
class Task:
    """A network, its inputs and the targets: the loss is half the squared distance to them."""

    block: OdeBlock
    x: Tensor
    target: Tensor

    def loss(self, y: Tensor) -> Tensor:
        """Return the loss of outputs."""
        return (y - self.target).square().sum() / 2

    def gradients(self, gradient: str | Gradient) -> tuple[Tensor, ...]:
        """Return the gradients of all parameters, each with a leading axis of layers."""
        y = self.block.with_graph(gradient=gradient)(self.x)
        return torch.autograd.grad(self.loss(y), tuple(self.block.parameters()))


def draw_task(
    network: str, kind: str, depth: int, method: str, seed: int, device: torch.device
) -> Task:
    """Draw a network in double precision; only ``iid`` ones differ between depths."""
    make, shape = NETWORKS[network]
    with seeded(seed):
        block = OdeBlock(make().double(), layer_weights(depth, method), method=method, steps=depth)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in block.weights.parameters():
            parameter.copy_(_over_depth(parameter, kind, depth, generator))
    x, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return Task(block.to(device), x.to(device), target.to(device))


def _over_depth(stack: Tensor, kind: str, depth: int, generator: torch.Generator) -> Tensor:
    """Return new values for a stack of one parameter over depth."""
    size = stack[0].numel()

    def draw(count: int) -> Tensor:
        drawn = torch.randn(count, *stack.shape[1:], generator=generator, dtype=stack.dtype)
        return drawn * (0.3 if stack.ndim == 2 else math.sqrt(len(stack[0]) / size))

    a, b, c = draw(3)
    base: Tensor = stack[0] * (stack.ndim == 2)  # vectors: the gains of norms stay near 1
    if kind == "iid":
        return base + draw(len(stack))
    n = torch.arange(len(stack), dtype=stack.dtype).view(-1, *[1] * a.ndim)
    wave = torch.sin(2 * math.pi * n / depth)
    moved = b * (1 - 2 * (n % 2)) if kind == "zigzag" else b * n / depth + c * wave
    result: Tensor = base + a + moved
    return result


def state_error(task: Task, gradient: Reconstruct) -> float:
    """Return the largest error of a state on the way back."""
    states = trajectory(task.block, task.x)
    seen = reconstruction(task.block, states[-1], gradient)
    return float((seen - states).flatten(1).norm(dim=1).max())


class Cost(NamedTuple):
    """What a gradient costs: evaluations, units (an evaluation 1, a VJP 2), processor seconds."""

    evaluations: int
    units: int
    seconds: float


def measure_cost(task: Task, gradient: str | Gradient, repeats: int = 1) -> Cost:
    """Count the evaluations of a loss and its gradients, and take the least processor time."""
    stages = {"heun": 2}.get(task.block.method, 1)
    products = stages * task.block.steps + (get_gradient(gradient) == get_gradient("reversible"))
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        with count_nfe(task.block) as evaluations:
            task.gradients(gradient)
        seconds.append(time.process_time() - start)
    return Cost(evaluations.total, evaluations.total + 2 * products, min(seconds))
