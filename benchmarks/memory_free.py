"""What does training without stored activations cost in time?"""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import nn

from benchmarks.harness import Row, agree, compare
from benchmarks.problems import forward, forward_backward, normal, seeded
from companion import OdeBlock, PiecewiseConstant, PiecewiseLinear
from companion.basis import Basis
from companion.gradients import Reconstruct
from companion.observe import count_nfe

QUESTION = "What do gradients that store no activations cost in time, beside backprop?"
EXCLUDED = (
    "The optimiser. A unit is batch norm, ReLU and a convolution, twice. Its weights are smooth in "
    "depth (they vary linearly) or rough (drawn anew for every unit). Whatever the gradient, the "
    "output is the same bit for bit. In double precision, checkpoints, the reversible scheme and "
    "reconstruction with 20 sweeps have the gradients of backprop to 1e-9. The reversible scheme "
    "is another network of the same weights. Evaluations are counted forward and backward."
)
FULL = {"units": 64, "channels": 16, "batch": 64, "size": 10}
TINY = {"units": 4, "channels": 2, "batch": 3, "size": 4}

GRADIENTS = {
    "backprop": "backprop",
    "checkpoint": "checkpoint",
    "reverse": Reconstruct(),
    "corrected": Reconstruct("corrected"),
    "predicted, order 1": Reconstruct("predicted"),
    "predicted, order 2": Reconstruct("predicted", order=2),
}
BARS = {"reverse": 1.40, "corrected": 1.42, "predicted, order 1": 1.15, "predicted, order 2": 1.15}


def run(rounds: int, units: int, channels: int, batch: int, size: int) -> list[Row]:
    shape, few = (batch, channels, size, size), ("predicted, order 1", "predicted, order 2")
    euler, heun = PiecewiseConstant(units), PiecewiseLinear(units // 2)
    check(conv_block(euler, channels), shape)
    check(conv_block(heun, channels, "heun"), shape)
    smooth = graphs(conv_block(euler, channels), GRADIENTS)
    rough = graphs(conv_block(euler, channels, smooth=False), ("backprop", "corrected", *few))
    second = graphs(conv_block(heun, channels, "heun"), ("backprop", "reverse", *few))
    rows = []
    for work, solves, bars in (
        (f"{units} conv units, smooth", smooth | reversible(smooth["backprop"]), BARS),
        (f"{units} conv units, rough", rough, BARS),
        (f"Heun, {units // 2} steps, smooth", second, {}),
    ):
        rows += [*times(work, solves, shape, rounds, bars), *evaluations(work, solves, shape)]
    return rows


def conv_block(
    weights: Basis, channels: int, method: str = "euler", smooth: bool = True
) -> OdeBlock:
    """Conv units with weights that vary linearly with depth, or are drawn anew for every unit."""
    make = partial(OdeBlock, partial(unit, channels), weights, method, weights.cells)
    block = seeded(make, torch.float32)
    if smooth:
        with torch.no_grad():
            for param in block.parameters():
                depth = torch.linspace(0, 1, len(param)).view(-1, *[1] * (param.dim() - 1))
                param.copy_(torch.lerp(param[0].clone(), param[-1].clone(), depth))
    return block


def unit(channels: int) -> nn.Module:
    def half() -> Iterable[nn.Module]:
        yield nn.BatchNorm2d(channels)
        yield nn.ReLU()
        yield nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    return nn.Sequential(*half(), *half())


def graphs(block: OdeBlock, names: Iterable[str]) -> dict[str, OdeBlock]:
    """The same weights with several gradients."""
    return {name: block.with_graph(gradient=GRADIENTS[name]) for name in names}


def reversible(block: OdeBlock) -> dict[str, OdeBlock]:
    """The same weights under the reversible scheme."""
    return {"reversible": block.with_graph(method="async_leapfrog", gradient="reversible")}


def check(block: OdeBlock, shape: tuple[int, ...]) -> None:
    """Compare outputs, and the gradients of what is exact, in double precision."""
    block = block.double()
    exact = graphs(block, ("backprop", "checkpoint"))
    exact["20 sweeps"] = block.with_graph(gradient=Reconstruct(sweeps=20))
    leapfrog = {"backprop": block.with_graph(method="async_leapfrog"), **reversible(block)}
    x, params = normal(*shape, dtype=torch.float64), list(block.parameters())
    for solves in (exact, leapfrog):
        agree({k: partial(forward_backward, f, x, params) for k, f in solves.items()}, rtol=1e-9)
    agree({k: partial(forward, f, x) for k, f in graphs(block, GRADIENTS).items()}, rtol=0)


def times(
    work: str,
    solves: Mapping[str, OdeBlock],
    shape: tuple[int, ...],
    rounds: int,
    bars: Mapping[str, float],
) -> list[Row]:
    """Time training steps, and the forward solve alone."""
    block, x = solves["backprop"], normal(*shape, dtype=torch.float32)
    params = list(block.parameters())
    works = {k: partial(forward_backward, solve, x, params) for k, solve in solves.items()}
    works["forward alone"] = partial(forward, block, x)
    return compare(work, works, rounds, bars)


def evaluations(work: str, solves: Mapping[str, OdeBlock], shape: tuple[int, ...]) -> list[Row]:
    """Count the evaluations of units in one training step."""
    x, counts = normal(*shape, dtype=torch.float32), {}
    for name, solve in solves.items():
        with count_nfe(solve) as nfe:
            forward_backward(solve, x, list(solve.parameters()))
        counts[name] = nfe.total
    few = counts.pop("backprop")
    return [Row(work, name, "backprop", "evaluations", n / few) for name, n in counts.items()]
