"""What does `torch.compile` save?"""

import time
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Candidate, Row, agree, compare
from benchmarks.problems import TanhField, forward_backward, normal, rk4_loop, seeded
from companion import odeint

QUESTION = "What does compiling ten steps at a time save?"
EXCLUDED = (
    "Compilation and the first calls; the note says how long they took. The times are a tensor, so "
    "that one compiled piece serves all intervals. Results agree to single precision."
)
FULL = {"pieces": 10, "steps": 10}
TINY = {"pieces": 2, "steps": 2, "backend": "aot_eager"}


def run(rounds: int, pieces: int, steps: int, backend: str = "inductor") -> list[Row]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    works = candidates(pieces, steps, backend)
    start = time.perf_counter()
    agree(works, rtol=1e-4)
    seconds = time.perf_counter() - start
    bars, notes = {"compiled": 0.5}, {"compiled": f"compiled in {seconds:.0f} s"}
    work = f"rk4, {pieces * steps} steps, forward + backward"
    rows = compare(work, works, rounds, bars, notes)
    # Dynamo falls back to plain Python without a word when it has compiled too often.
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    if compiled != 1:
        raise AssertionError(f"{compiled} graphs were compiled; one serves all pieces")
    return rows


def candidates(pieces: int, steps: int, backend: str) -> dict[str, Candidate]:
    field = seeded(TanhField, torch.float32)
    y0 = normal(64, 2, dtype=torch.float32)
    ends = torch.linspace(0, 1, pieces + 1)
    intervals = [ends[i : i + 2].clone() for i in range(pieces)]

    @partial(torch.compile, fullgraph=True, backend=backend)
    def piece(y: Tensor, t: Tensor) -> Tensor:
        return odeint(field, y, t, method="rk4", steps=steps)[-1]

    def compiled(y: Tensor) -> Tensor:
        for t in intervals:
            y = piece(y, t)
        return y

    params = list(field.parameters())
    return {
        "plain loop": partial(
            forward_backward, lambda y: rk4_loop(field, y, pieces * steps), y0, params
        ),
        "compiled": partial(forward_backward, compiled, y0, params),
    }
