r"""Q20-ADJ: how many steps a cell the adjoint needs, with every gradient of the package beside it.

Queiruga et al. 2020 (section 5.2) report that the adjoint's gradients were good enough with
:math:`N_t \ge 3M` steps for :math:`M` cells.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from companion.basis import PiecewiseConstant
from companion.block import OdeBlock
from companion.experiments.q20_depth_common import geometric_mean
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.gradients import Adjoint, Gradient, Reconstruct
from companion.observe import fit_slope
from companion.results import Claim, Findings
from companion.schemes import get_scheme
from companion.train import seeded

CELLS = 4
WIDTH = 8
SCHEMES = ("euler", "midpoint", "rk4")
"""The schemes whose adjoint the paper's statement is tested on."""

GRADIENTS: dict[str, str | Gradient] = {
    "adjoint": "adjoint",
    "checkpoint": "checkpoint",
    "reverse": Reconstruct(rule="reverse"),
    "corrected": Reconstruct(rule="corrected"),
    "predicted": Reconstruct(rule="predicted"),
}


class Task(NamedTuple):
    """A block with rough weights, inputs and targets."""

    block: OdeBlock
    x: Tensor
    target: Tensor


@experiment(
    id="Q20-ADJ",
    title="Gradients of blocks with 4 cells against the steps in a cell",
    paper="Queiruga et al. 2020, section 5.2",
    claims=("CL44",),
    tiers={
        "smoke": {"seeds": 4, "ratios": (1, 2, 3, 4, 6, 8), "gain": 4.0},
        "full": {"seeds": 32, "ratios": (1, 2, 3, 4, 6, 8, 12, 16), "gain": 4.0},
    },
)
def q20_adj(run: Run, *, seeds: int, ratios: tuple[int, ...], gain: float) -> Findings:
    """Compare gradients of the weights with those of backprop on the same graph.

    Curves: ``ratios``, the steps in each of the 4 cells; ``error_GRADIENT_SCHEME`` and
    ``cosine_GRADIENT_SCHEME`` of shape ``(seeds, ratios)``: the norm of the difference relative to
    backprop's gradient, and the cosine between the two. ``GRADIENT`` is ``adjoint``,
    ``checkpoint``, a rule of the memory-free ``reverse``, ``corrected`` and ``predicted``, or
    ``reversible``, which has a scheme of its own. Scalars: ``slope_SCHEME`` of the adjoint's error,
    ``at_one_SCHEME`` and ``at_three_SCHEME``, its geometric means at 1 and 3 steps a cell.
    """
    pairs = {
        f"{name}_{scheme}": (scheme, gradient)
        for name, gradient in GRADIENTS.items()
        for scheme in SCHEMES
    }
    pairs["adjoint_async_leapfrog"] = ("async_leapfrog", Adjoint(method="midpoint"))
    pairs["reversible_async_leapfrog"] = ("async_leapfrog", "reversible")

    def compare(part: Part, seed: int) -> dict[str, list[tuple[float, float]]]:
        task = _task(seed, gain, run.device)
        return {
            name: [_error_and_cosine(task, method, CELLS * ratio, gradient) for ratio in ratios]
            for name, (method, gradient) in pairs.items()
        }

    found = run.map(compare, {f"seed {k}": (run.seed + k,) for k in range(seeds)}).values()
    table = {
        name: torch.tensor([part[name] for part in found], dtype=torch.float64) for name in pairs
    }
    curves = {f"error_{name}": values[..., 0] for name, values in table.items()}
    cosines = {f"cosine_{name}": values[..., 1] for name, values in table.items()}
    scalars: dict[str, float] = {}
    for scheme in SCHEMES:
        errors = geometric_mean(curves[f"error_adjoint_{scheme}"].tolist())
        scalars[f"slope_{scheme}"] = fit_slope(ratios, errors).value
        scalars[f"at_one_{scheme}"] = errors[ratios.index(1)]
        scalars[f"at_three_{scheme}"] = errors[ratios.index(3)]
    return Findings(scalars, {"ratios": ratios, **curves, **cosines}, _claims(scalars))


def _claims(scalars: dict[str, float]) -> list[Claim]:
    gain = scalars["at_three_euler"] / scalars["at_one_euler"]
    claims = [Claim("CL44", "Euler's error at 3 steps a cell over that at 1", gain, high=0.5)]
    for scheme in SCHEMES:
        order = get_scheme(scheme).order
        text = f"slope of the adjoint's error against steps a cell, {scheme}"
        slope = scalars[f"slope_{scheme}"]
        claims.append(Claim("CL44", text, slope, low=-order - 0.4, high=-order + 0.4))
    return claims


def _task(seed: int, gain: float, device: torch.device) -> Task:
    def layer() -> nn.Module:
        linear = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(linear.weight, std=gain / math.sqrt(WIDTH))
        nn.init.normal_(linear.bias, std=gain / 2)
        return nn.Sequential(linear, nn.Tanh())

    with seeded(seed):
        block = OdeBlock(layer, PiecewiseConstant(CELLS)).to(device, torch.float64)
        x, target = torch.randn(2, 16, WIDTH, dtype=torch.float64).to(device)
    return Task(block, x, target)


def _error_and_cosine(
    task: Task, method: str, steps: int, gradient: str | Gradient
) -> tuple[float, float]:
    got, wanted = (_gradient(task, method, steps, g) for g in (gradient, "backprop"))
    lengths = torch.linalg.vector_norm(got) * torch.linalg.vector_norm(wanted)
    error = torch.linalg.vector_norm(got - wanted) / torch.linalg.vector_norm(wanted)
    return float(error), float(got @ wanted / lengths)


def _gradient(task: Task, method: str, steps: int, gradient: str | Gradient) -> Tensor:
    """Return the gradient of all weights in one row."""
    view = task.block.with_graph(method=method, steps=steps, gradient=gradient)
    loss = 0.5 * (view(task.x) - task.target).square().sum()
    parts = torch.autograd.grad(loss, tuple(view.weights.parameters()))
    return torch.cat([part.flatten() for part in parts])
