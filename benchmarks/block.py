"""What do stacked weights cost over a stack of modules?"""

import copy
import time
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import Candidate, Row, agree, compare, operations
from benchmarks.problems import forward_backward, normal, seeded
from companion import OdeBlock

QUESTION = "What does an Euler block with stacked weights cost over the plain stack of its units?"
EXCLUDED = (
    "Building the block and, for the compiled one, compilation and the first calls; the note says "
    "how long they took. The block and the plain stack agree bit for bit, running statistics "
    "included; the compiled block to single precision. Operations are those that reach a kernel."
)
FULL = {"units": 32, "channels": 16, "batch": 32}
TINY = {"units": 2, "channels": 2, "batch": 2, "backend": "aot_eager"}


class Stack(nn.Module):
    """x + unit(x) / N for each of N units: the loop one would write by hand."""

    def __init__(self, units: list[nn.Module]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 / len(self.units)
        for unit in self.units:
            x = x + scale * unit(x)
        return x


def run(rounds: int, units: int, channels: int, batch: int, backend: str = "inductor") -> list[Row]:
    work = f"{units} conv units, forward + backward"
    agree(candidates(units, channels, batch), rtol=0)
    works = candidates(units, channels, batch)
    plain, block = (operations(run_one) for run_one in works.values())
    eager = compare(work, works, rounds, {"block": 0.97})
    counted = Row(work, "block", "plain stack", "operations", block / plain)
    return [*eager, counted, *compiled(work, rounds, candidates(units, channels, batch, backend))]


def compiled(work: str, rounds: int, works: dict[str, Candidate]) -> list[Row]:
    start = time.perf_counter()
    agree(works, rtol=1e-3)
    note = f"compiled in {time.perf_counter() - start:.0f} s"
    return compare(work, works, rounds, notes={"compiled block": note})


def candidates(
    units: int, channels: int, batch: int, backend: str | None = None
) -> dict[str, Candidate]:
    """The plain stack and a block of the same units, compiled if ``backend`` is given."""
    stack = seeded(partial(make_stack, units, channels), torch.float32)
    block = OdeBlock.from_modules(copy.deepcopy(stack).units, flat=True)
    x = normal(batch, channels, 16, 16, dtype=torch.float32)
    solve = block
    if backend is not None:
        torch._dynamo.reset()
        solve = torch.compile(block, fullgraph=True, backend=backend)

    # Both return: output, gradient of the input, then unit by unit each parameter's gradient and
    # the running statistics. The block's are views of its stacks.
    first = stack.units[0]
    params = [
        unit.get_parameter(name) for name, _ in first.named_parameters() for unit in stack.units
    ]
    stacks = [block.weights.stacks.get_parameter(name) for name, _ in first.named_parameters()]
    norms = [unit[1] for unit in stack.units]
    norm = block.weights.stacks.get_submodule("1")

    def plain() -> tuple[Tensor, ...]:
        values = forward_backward(stack, x, params)
        return (*values, *(n.running_mean for n in norms), *(n.running_var for n in norms))

    def stacked() -> tuple[Tensor, ...]:
        y, grad_x, *grads = forward_backward(solve, x, stacks)
        rows = (row for grad in grads for row in grad.unbind())
        return (y, grad_x, *rows, *norm.running_mean.unbind(), *norm.running_var.unbind())

    return {"plain stack": plain, "block" if backend is None else "compiled block": stacked}


def make_stack(units: int, channels: int) -> Stack:
    return Stack([conv_unit(channels) for _ in range(units)])


def conv_unit(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
