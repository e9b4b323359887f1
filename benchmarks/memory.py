"""What do the gradient methods keep for their backward pass?"""

import torch

from benchmarks.harness import Row
from benchmarks.memory_free import GRADIENTS, conv_block
from benchmarks.problems import TanhField, normal, seeded
from companion import OdeBlock, PiecewiseConstant, odeint
from companion.observe import saved_bytes

QUESTION = "How many bytes does a gradient method keep between the forward and backward pass?"
EXCLUDED = (
    "Parameters and the initial state, which exist anyway. Bytes are counted, not estimated: they "
    "are the same on every machine. The output itself counts."
)
FULL = {"steps": 10, "outputs": 100, "units": (4, 256), "channels": 16, "batch": 64, "size": 10}
TINY = {"steps": 2, "outputs": 5, "units": (2, 6), "channels": 2, "batch": 2, "size": 3}


def run(
    rounds: int,
    steps: int,
    outputs: int,
    units: tuple[int, int],
    channels: int,
    batch: int,
    size: int,
) -> list[Row]:
    return [*solves(steps, outputs), *networks(units, channels, (batch, channels, size, size))]


def networks(units: tuple[int, int], channels: int, shape: tuple[int, ...]) -> list[Row]:
    """Count for residual networks of two depths, then for the deeper one beside backprop."""
    blocks = [conv_block(PiecewiseConstant(n), channels) for n in units]
    knobs = {name: {"gradient": gradient} for name, gradient in GRADIENTS.items()}
    knobs["reversible"] = {"method": "async_leapfrog", "gradient": "reversible"}
    counts = {
        name: [held(block.with_graph(**chosen), shape) for block in blocks]
        for name, chosen in knobs.items()
    }
    work, fewer = f"{units[1]} conv units", f"{units[0]} units"
    rows = []
    for name, (few, many) in counts.items():
        bar = None if name in ("backprop", "checkpoint") else 1.0  # these keep every layer's state
        rows.append(Row(work, name, fewer, "bytes", many / few, bar=bar))
    rest = (name for name in counts if name != "backprop")
    most = counts["backprop"][1]
    return rows + [Row(work, name, "backprop", "bytes", counts[name][1] / most) for name in rest]


def held(block: OdeBlock, shape: tuple[int, ...]) -> int:
    """Return the bytes kept by a block, besides parameters and its input."""
    x = normal(*shape, dtype=torch.float32)
    with saved_bytes(exclude=[x, *block.parameters()]) as saved:
        block(x)
    return saved.total


def solves(steps: int, outputs: int) -> list[Row]:
    """Count for a field's solve with several numbers of steps and outputs."""
    ends = torch.tensor([0.0, 1.0])
    few = kept("adjoint", steps, ends)
    rows = []
    for factor in (10, 100):
        ratio = kept("adjoint", factor * steps, ends) / few
        work = f"adjoint, {factor * steps} steps"
        rows.append(Row(work, "adjoint", f"{steps} steps", "bytes", ratio, bar=1.0))
    many = torch.linspace(0, 1, outputs)
    more = kept("adjoint", steps, many) - few
    output = outputs * normal(64, 2, dtype=torch.float32).nbytes
    work = f"adjoint, {outputs} output times instead of 2: what is added"
    rows.append(Row(work, "adjoint", "the output", "bytes", more / output, bar=1.0))
    all_steps = kept("backprop", 10 * steps, ends)
    for gradient in ("checkpoint", "adjoint"):
        ratio = kept(gradient, 10 * steps, ends) / all_steps
        rows.append(Row(f"rk4, {10 * steps} steps", gradient, "backprop", "bytes", ratio))
    return rows


def kept(gradient: str, steps: int, t: torch.Tensor) -> int:
    """Return the bytes kept by a solve, besides parameters and the initial state."""
    field = seeded(TanhField, torch.float32)
    y0 = normal(64, 2, dtype=torch.float32).requires_grad_()
    with saved_bytes(exclude=[y0, *field.parameters()]) as saved:
        odeint(field, y0, t, method="rk4", steps=steps, gradient=gradient)
    return saved.total
