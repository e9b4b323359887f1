r"""Q20-ADJ: how many steps a cell the adjoint needs, with every gradient of the package beside it.

Queiruga et al. 2020 (section 5.2) report that with the adjoint their networks converged to a high
accuracy only with :math:`N_t \ge 3M` steps for :math:`M` cells.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.basis import PiecewiseConstant
from companion.block import OdeBlock
from companion.data import Samples, load_digits
from companion.experiments.depth_study import geometric_mean
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.gradients import Adjoint, Gradient, Reconstruct
from companion.models import ContinuousMLP
from companion.observe import fit_slope
from companion.results import Claim, Findings
from companion.schemes import get_scheme
from companion.train import error_rate, fit, seeded, step_decay

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
    "Q20-ADJ",
    "Gradients and training of blocks with 4 cells against the steps in a cell",
    paper="Queiruga et al. 2020, section 5.2",
    claims=("CL44",),
    full={
        "seeds": 32,
        "ratios": (1, 2, 3, 4, 6, 8, 12, 16),
        "nets": 5,
        "train_ratios": (1, 2, 3, 4, 6, 8),
    },
)
def q20_adj(
    run: Run,
    *,
    seeds: int = 4,
    ratios: tuple[int, ...] = (1, 2, 3, 4, 6, 8),
    gain: float = 4.0,
    nets: int = 3,
    train_ratios: tuple[int, ...] = (1, 3),
    epochs: int = 8,
) -> Findings:
    """Compare gradients with those of backprop on the same graph, then train on digits with both.

    Curves: ``ratios``, the steps in each of the 4 cells; ``error_GRADIENT_SCHEME`` and
    ``cosine_GRADIENT_SCHEME`` of shape ``(seeds, ratios)``: the norm of the difference relative to
    backprop's gradient, and the cosine between the two. ``GRADIENT`` is ``adjoint``,
    ``checkpoint``, a rule of the memory-free ``reverse``, ``corrected`` and ``predicted``, or
    ``reversible``, which has a scheme of its own. Scalars: ``slope_SCHEME`` of the adjoint's error,
    ``at_one_SCHEME`` and ``at_three_SCHEME``, its geometric means at 1 and 3 steps a cell.

    Perceptrons with 4 cells and Euler's scheme, scale 4, train with ``train_ratios`` steps a cell:
    ``test_error_GRADIENT`` and ``loss_GRADIENT`` of shape ``(nets, train_ratios)`` for ``adjoint``
    and ``backprop``. Scalars ``harm_at_one`` and ``harm_at_three``: the mean test error that the
    adjoint adds.
    """
    errors, cosines = _compared(run, seeds, ratios, gain)
    scalars: dict[str, float] = {}
    for scheme in SCHEMES:
        means = geometric_mean(errors[f"adjoint_{scheme}"].tolist())
        scalars[f"slope_{scheme}"] = fit_slope(ratios, means).value
        scalars[f"at_one_{scheme}"] = means[ratios.index(1)]
        scalars[f"at_three_{scheme}"] = means[ratios.index(3)]
    data = load_digits(device=run.device)
    trained = _trained(run, data, nets, train_ratios, epochs)
    harm = (trained["test_error_adjoint"] - trained["test_error_backprop"]).mean(0)
    scalars["harm_at_one"] = float(harm[train_ratios.index(1)])
    scalars["harm_at_three"] = float(harm[train_ratios.index(3)])
    curves = {"ratios": ratios, "train_ratios": train_ratios, **trained}
    curves |= {f"error_{name}": table for name, table in errors.items()}
    curves |= {f"cosine_{name}": table for name, table in cosines.items()}
    return Findings(scalars, curves, _claims(scalars), data.provenance)


def _compared(
    run: Run, seeds: int, ratios: tuple[int, ...], gain: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return relative errors and cosines by gradient and scheme, of shape ``(seeds, ratios)``."""
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
    tables = {
        name: torch.tensor([part[name] for part in found], dtype=torch.float64) for name in pairs
    }
    return (
        {name: table[..., 0] for name, table in tables.items()},
        {name: table[..., 1] for name, table in tables.items()},
    )


def _claims(scalars: dict[str, float]) -> list[Claim]:
    gain = scalars["at_three_euler"] / scalars["at_one_euler"]
    claims = [Claim("CL44", "Euler's error at 3 steps a cell over that at 1", gain, high=0.5)]
    for scheme in SCHEMES:
        order = get_scheme(scheme).order
        text = f"slope of the adjoint's error against steps a cell, {scheme}"
        slope = scalars[f"slope_{scheme}"]
        claims.append(Claim("CL44", text, slope, low=-order - 0.4, high=-order + 0.4))
    one, three = scalars["harm_at_one"], scalars["harm_at_three"]
    text = "test error that training with the adjoint adds"
    return [
        *claims,
        Claim("CL44", f"{text}, 1 step a cell", one, low=0.1),
        Claim(
            "CL44",
            f"{text}, 3 steps a cell over 1 step",
            three / one if one > 0 else math.inf,
            high=0.5,
        ),
    ]


def _trained(
    run: Run, data: Samples, nets: int, ratios: tuple[int, ...], epochs: int
) -> dict[str, Tensor]:
    """Return test errors and losses of the last epoch, of shape ``(nets, ratios)``."""

    def train(part: Part, seed: int, ratio: int, gradient: str) -> tuple[float, float]:
        with seeded(seed):
            net = ContinuousMLP(
                64, 10, basis=PiecewiseConstant(CELLS), steps=CELLS * ratio, scale=float(CELLS),
                gradient=gradient,
            ).to(run.device)  # fmt: skip
        history = fit(
            net, lambda net, x, y: F.cross_entropy(net(x), y), (data.x_train, data.y_train),
            optimiser=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
            epochs=epochs, batch_size=64, generator=torch.Generator().manual_seed(seed),
            schedule=step_decay(2 / 3, 13 / 15), clip=2.0, snapshot=part.snapshot,
            report=part.report,
        )  # fmt: skip
        return error_rate(net, (data.x_test, data.y_test)), history["loss"][-1]

    kinds = ("adjoint", "backprop")
    parts = {
        f"{kind}, {ratio} steps a cell, net {k}": (run.seed + k, ratio, kind)
        for kind in kinds
        for k in range(nets)
        for ratio in ratios
    }
    found = torch.tensor(list(run.map(train, parts).values()), dtype=torch.float64)
    tables = found.reshape(len(kinds), nets, len(ratios), 2)
    return {
        f"{name}_{kind}": tables[i, ..., j]
        for i, kind in enumerate(kinds)
        for j, name in enumerate(("test_error", "loss"))
    }


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
