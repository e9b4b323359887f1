"""What do schemes of higher order cost, and what does training by refinement save?"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.block import conv_unit
from benchmarks.harness import Candidate, Row, compare
from benchmarks.problems import forward_backward, normal, seeded
from companion import OdeBlock, PiecewiseConstant
from companion.data import load_digits
from companion.models import ContinuousMLP
from companion.observe import count_nfe
from companion.train import Refinement, fit

QUESTION = "What do schemes of higher order cost, and what does training by refinement save?"
EXCLUDED = (
    "Building the blocks; reading the digits. Other schemes are other functions of the same "
    "weights, and a refined network is another one than a deep one: here no results are compared, "
    "but the evaluations are. Training is all of it: batches, loss, optimiser. A network of the "
    "digits has 8 cells and 8 steps of the classic Runge-Kutta scheme from the start, or after "
    "three refinements, at equal epochs."
)
FULL = {"units": 8, "channels": 16, "batch": 32, "epochs": 10, "samples": 1297}
TINY = {"units": 2, "channels": 2, "batch": 2, "epochs": 5, "samples": 32}
CELLS = 8


def run(rounds: int, units: int, channels: int, batch: int, epochs: int, samples: int) -> list[Row]:
    return [*schemes(rounds, units, channels, batch), *refinement(rounds, epochs, samples)]


def schemes(rounds: int, units: int, channels: int, batch: int) -> list[Row]:
    """One block under several schemes at equal steps."""
    work = f"{units} steps of conv units, forward + backward"
    make = partial(OdeBlock, partial(conv_unit, channels), PiecewiseConstant(units), steps=units)
    euler = seeded(make, torch.float32)
    blocks = {"euler": euler} | {
        name: euler.with_graph(method=name) for name in ("midpoint", "rk4", "rk4_38")
    }
    x = normal(batch, channels, 16, 16, dtype=torch.float32)
    params = list(euler.parameters())
    works = {name: partial(forward_backward, b, x, params) for name, b in blocks.items()}
    counts = {}
    for name, block in blocks.items():
        with count_nfe(block) as nfe:
            block(x)
        counts[name] = nfe.total
    counted = [
        Row(work, name, "euler", "evaluations", n / counts["euler"])
        for name, n in counts.items()
        if name != "euler"
    ]
    return [*compare(work, works, rounds, {"rk4": 4.1}), *counted]


def refinement(rounds: int, epochs: int, samples: int) -> list[Row]:
    """Whole trainings on the digits: refined after 1/5, 2/5, 3/5 of the epochs, or deep at once."""
    work = f"digits, {epochs} epochs"
    at = tuple(epochs * k // 5 for k in (1, 2, 3))
    data = load_digits()
    rows = (data.x_train[:samples], data.y_train[:samples])
    works: dict[str, Candidate] = {
        "deep from the start": partial(train, rows, epochs, CELLS, None),
        "refined": partial(train, rows, epochs, 1, Refinement(at)),
    }
    lengths = (at[0], at[1] - at[0], at[2] - at[1], epochs - at[2])
    share = sum(n * depth for n, depth in zip(lengths, (1, 2, 4, CELLS), strict=True))
    counted = Row(work, "refined", "deep from the start", "evaluations", share / (epochs * CELLS))
    return [*compare(work, works, rounds, {"refined": 0.65}), counted]


def train(
    rows: Sequence[Tensor], epochs: int, cells: int, refinement: Refinement | None
) -> list[Tensor]:
    """Train a fresh network as the studies on digits do, and return its parameters."""

    def make() -> nn.Module:
        basis = PiecewiseConstant(cells)
        return ContinuousMLP(64, 10, basis=basis, method="rk4", steps=cells)

    net = seeded(make, torch.float32)
    fit(
        net,
        lambda net, x, y: nn.functional.cross_entropy(net(x), y),
        rows,
        optimiser=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
        epochs=epochs,
        batch_size=64,
        generator=torch.Generator().manual_seed(0),
        clip=2.0,
        refinement=refinement,
    )
    return list(net.parameters())
