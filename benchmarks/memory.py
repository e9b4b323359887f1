"""What does the adjoint keep for its backward pass?"""

import torch

from benchmarks.harness import Row
from benchmarks.problems import TanhField, normal, seeded
from companion import odeint
from companion.observe import saved_bytes

QUESTION = "How many bytes does a gradient method keep between the forward and backward pass?"
EXCLUDED = (
    "Parameters and the initial state, which exist anyway. Bytes are counted, not estimated: they "
    "are the same on every machine. The output itself counts."
)
FULL = {"steps": 10, "outputs": 100}
TINY = {"steps": 2, "outputs": 5}


def run(rounds: int, steps: int, outputs: int) -> list[Row]:
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
