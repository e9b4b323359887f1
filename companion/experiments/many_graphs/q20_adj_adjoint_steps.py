r"""Q20-ADJ: how many steps a cell the adjoint needs, with every gradient of the package beside it.

Queiruga et al. 2020 (section 5.2) report that with the adjoint their networks converged to a high
accuracy only with $N_t \ge 3M$ steps for $M$ cells.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from companion.basis import PiecewiseConstant
from companion.block import OdeBlock
from companion.data import Samples, load_digits
from companion.experiments import Findings, Grid, Part, Run, experiment, grids, named, recipes
from companion.experiments.recipes import splits
from companion.gradients import Adjoint, Gradient, Reconstruct
from companion.models import ContinuousMLP
from companion.observe import fit_slope, geometric_mean
from companion.schemes import get_scheme
from companion.train import error_rate, seeded

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

PAIRS: dict[str, tuple[str, str | Gradient]] = {
    **{f"{name}_{scheme}": (scheme, gradient) for name, gradient in GRADIENTS.items()
       for scheme in SCHEMES},
    "adjoint_async_leapfrog": ("async_leapfrog", Adjoint(method="midpoint")),
    "reversible_async_leapfrog": ("async_leapfrog", "reversible"),
}  # fmt: skip
"""The scheme and the gradient of what is compared, by name."""


class Task(NamedTuple):
    """A block with rough weights, inputs and targets."""

    block: OdeBlock
    x: Tensor
    target: Tensor


@experiment(
    "Q20-ADJ",
    "Gradients and training of blocks with 4 cells against the steps in a cell",
    paper="Queiruga et al. 2020, section 5.2",
    full={
        "seeds": 32, "ratios": (1, 2, 3, 4, 6, 8, 12, 16),
        "nets": 5, "train_ratios": (1, 2, 3, 4, 6, 8),
    },
    tolerance=1e-4,  # nets that are trained before they are measured
    tiny={"seeds": 1, "ratios": (1, 3), "nets": 1, "epochs": 1},
    claims=(
        ("CL44", "gain_euler", None, 0.5, "Euler's error at 3 steps a cell over that at 1"),
        *(
            ("CL44", f"slope_{name}", -get_scheme(name).order - 0.4, -get_scheme(name).order + 0.4,
             f"slope of the adjoint's error against steps a cell, {name}")
            for name in SCHEMES
        ),
        ("CL44", "harm_at_one", 0.1, None,
         "test error that training with the adjoint adds, 1 step a cell"),
        ("CL44", "harm_ratio", None, 0.5,
         "test error that training with the adjoint adds, 3 steps a cell over 1 step"),
        ("CL44", "harm_at_three", 0.01, 0.15,
         "test error that training with the adjoint adds, 3 steps a cell"),
    ),
)  # fmt: skip
def q20_adj(
    run: Run, *, seeds: int = 4, ratios: tuple[int, ...] = (1, 2, 3, 4, 6, 8), gain: float = 4.0,
    nets: int = 5, train_ratios: tuple[int, ...] = (1, 3), epochs: int = 8,
) -> Findings:  # fmt: skip
    """Compare gradients with those of backprop on the same graph, then train on digits with both.

    Curves: ``ratios``, the steps in each of the 4 cells; for each of :data:`PAIRS` ``error_PAIR``
    and ``cosine_PAIR`` of shape ``(seeds, ratios)``: the norm of the difference relative to
    backprop's gradient, and the cosine between the two. Scalars: ``at_one_SCHEME`` and
    ``at_three_SCHEME``, geometric means of the adjoint's errors at 1 and 3 steps a cell.

    Perceptrons with 4 cells and Euler's scheme, scale 4, train with ``train_ratios`` steps a cell:
    ``test_error_GRADIENT`` and ``loss_GRADIENT`` of shape ``(nets, train_ratios)`` for ``adjoint``
    and ``backprop``. Scalars ``harm_at_one`` and ``harm_at_three``: the mean test error that the
    adjoint adds; ``harm_ratio`` is infinite if the first is not above 0.
    """

    def compare(part: Part, seed: int) -> dict[str, list[float]]:
        task, found = _task(seed, gain, run.device), {}
        for name, (method, gradient) in PAIRS.items():
            pairs = [_error_and_cosine(task, method, CELLS * n, gradient) for n in ratios]
            found[f"error_{name}"], found[f"cosine_{name}"] = map(list, zip(*pairs, strict=True))
        return found

    curves: dict[str, Any] = named(grids(run, compare, seed=run.seeds(seeds)))
    scalars: dict[str, float] = {}
    for scheme in SCHEMES:
        means = geometric_mean(curves[f"error_adjoint_{scheme}"]).tolist()
        scalars[f"slope_{scheme}"] = fit_slope(ratios, means).value
        scalars[f"at_one_{scheme}"] = means[ratios.index(1)]
        scalars[f"at_three_{scheme}"] = means[ratios.index(3)]
    scalars["gain_euler"] = scalars["at_three_euler"] / scalars["at_one_euler"]
    data = load_digits(device=run.device, dtype=run.dtype)
    trained = _trained(run, data, nets, train_ratios, epochs)
    errors = trained["test_error"]
    harm = errors.at(kind="adjoint").values - errors.at(kind="backprop").values
    one, three = (float(harm.mean(0)[train_ratios.index(k)]) for k in (1, 3))
    scalars |= {"harm_at_one": one, "harm_at_three": three}
    scalars["harm_ratio"] = three / one if one > 0 else math.inf
    curves |= named(trained, "kind") | {"ratios": ratios, "train_ratios": train_ratios}
    return Findings(scalars, curves, data=data.provenance)


def _trained(
    run: Run, data: Samples, nets: int, ratios: tuple[int, ...], epochs: int
) -> dict[str, Grid]:
    """Return test errors and losses of the last epoch, by gradient, seed and steps a cell."""
    x = data.x_train

    def train(part: Part, kind: str, seed: int, ratio: int) -> dict[str, float]:
        with seeded(seed, dtype=x.dtype):
            net = ContinuousMLP(
                64, 10, basis=PiecewiseConstant(CELLS), steps=CELLS * ratio, scale=float(CELLS),
                gradient=kind,
            )  # fmt: skip
        recipe = recipes.digits_recipe(epochs)
        history = recipes.train(part, net.to(x.device), splits(data)[0], seed, **recipe)
        assert history is not None  # the state stays finite
        error = error_rate(net, splits(data)[1])
        return {"test_error": error, "loss": history["loss"][-1]}

    return grids(run, train, kind=("adjoint", "backprop"), seed=run.seeds(nets), ratio=ratios)


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
