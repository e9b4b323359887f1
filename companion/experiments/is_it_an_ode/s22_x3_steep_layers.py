r"""S22-X3: only a steep layer can make trajectories cross.

If the Lipschitz constant of $f$ is below N, the layer $x + \frac1N f(x)$ has an inverse
and stretches distances by factors between $1 \mp L/N$. S22-F1 shows trained networks on the
line on both sides of the threshold. Here the threshold is approached in two other ways:

- ``line``: random networks on the line whose layers all have the Lipschitz constant pN, for
  factors p around 1;
- ``digits``: networks trained on digits with and without the factor 1/N. A layer with Jacobians of
  both orientations is not injective, in any dimension.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.analysis.interpolation import Interpolation, from_block
from companion.basis import PiecewiseConstant
from companion.block import OdeBlock
from companion.data import load_digits
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.is_it_an_ode.digits_nets import train_perceptron
from companion.experiments.residual_steps.s22_f1_crossing_lines import crossings, euler_states
from companion.models import ResidualMLP
from companion.models.scalar_field import ScalarField
from companion.train import error_rate

NETWORKS = ("scaled", "plain")
"""Networks trained on digits, with and without the factor 1/N."""

_DTYPE = torch.float64


@experiment(
    "S22-X3",
    "Random and trained layers below and above the injectivity threshold",
    paper="Sander et al. 2022, Fig. 1; the threshold is ours",
    claims=(
        ("S22-X3", "swaps_below", None, 0, "crossings, all random layers below N"),
        ("S22-X3", "largest_excess", None, 1 + 1e-12, "largest |slope - 1| over L/N, on the line"),
        ("S22-X3", "folding_above", 0.25, None, "share of layers just above N that fold"),
        ("S22-X3", "largest_stretch", None, 1 + 1e-12,
         "digits: largest |singular value - 1| over L/N"),
        ("S22-X3", "folds_below", None, 0, "digits: layers below N that fold"),
        ("S22-X3", "folds_all", 1, None, "digits: layers that fold, all networks"),
        ("S22-X3", "largest_inverse", None, 1e-9, "digits: error of inputs recovered below N"),
    ),
    full={"layers": 50, "copies": 20, "depths": (2, 4, 8, 16, 32, 64), "seeds": 5},
    tiny={
        "factors": (0.5, 1.05), "layers": 3, "copies": 3, "depths": (2, 6), "seeds": 1, "epochs": 1,
    },
    tolerance=1e-2,  # the networks are trained in single precision
    machine_dependent=("largest_inverse", "inverse_scaled", "inverse_plain"),
)  # fmt: skip
def s22_x3(
    run: Run, *,
    factors: tuple[float, ...] = (0.25, 0.5, 0.75, 0.95, 0.99, 1.05, 1.25, 1.5, 2.0, 3.0),
    layers: int = 20, copies: int = 10, depths: tuple[int, ...] = (2, 4, 8, 16), seeds: int = 2,
    epochs: int = 6,
) -> Findings:  # fmt: skip
    """Look for layers that are not injective.

    Line: ``factors``; ``swaps``, crossings of neighbours in each network, of shape
    ``(factors, copies)``; ``steepest_down``, the smallest slope of every layer with the identity,
    of shape ``(factors, copies, layers)``; ``excess``, the largest distance of a slope from 1 over
    the factor.

    Digits: ``depths``; for ``scaled`` and ``plain`` networks, ``error_NAME`` and ``inverse_NAME``
    (largest error of the inputs recovered by fixed-point iteration, NaN where the iteration is not
    sure to converge) of shape ``(depths, seeds)``; and over all layers of all networks the pairs
    ``bound_NAME``, the Lipschitz bound times the step, and ``folds_NAME``, whether Jacobians of
    both orientations were seen; ``narrow_NAME`` and ``wide_NAME``, the smallest and largest
    singular values seen. The scalar ``folding_above`` is about factors up to 1.1, NaN without any.
    """
    data = load_digits(device=run.device)
    x, y = data.x_test.double(), data.y_test

    def line(part: Part, factor: float) -> dict[str, Any]:
        return _line(factor, layers, copies, run.seed)

    def digits(part: Part, name: str, depth: int, seed: int) -> dict[str, Any]:
        net = train_perceptron(
            part, data.x_train, data.y_train, layers=depth, scaled=name == "scaled",
            equal=False, seed=seed, epochs=epochs,
        )  # fmt: skip
        return _digits_net(net.double(), x, y)

    each = product(NETWORKS, depths, range(seeds))
    found = run.map(
        digits, {f"{name}, {n} layers, seed {s}": (name, n, run.seed + s) for name, n, s in each}
    )
    curves: dict[str, Any] = {"factors": factors, "depths": depths}
    curves |= named(grids(run, line, factor=factors))
    for name in NETWORKS:
        rows = [[found[f"{name}, {n} layers, seed {s}"] for s in range(seeds)] for n in depths]
        for key in ("error", "inverse"):
            curves[f"{key}_{name}"] = [[net[key] for net in row] for row in rows]
        for key in ("bound", "folds", "narrow", "wide"):
            curves[f"{key}_{name}"] = [v for row in rows for net in row for v in net[key]]
    return Findings(_scalars(curves), curves, data=data.sha256)


def _scalars(curves: dict[str, Any]) -> dict[str, float]:
    """Return the numbers that decide the claims."""
    factors, swaps, down = (np.array(curves[k]) for k in ("factors", "swaps", "steepest_down"))
    just = (factors > 1) & (factors <= 1.1)
    bound, folds, narrow, wide = (
        np.concatenate([curves[f"{key}_{name}"] for name in NETWORKS])
        for key in ("bound", "folds", "narrow", "wide")
    )
    folds = folds.astype(bool)
    return {
        "swaps_below": swaps[factors < 1].sum(),
        "largest_excess": max(curves["excess"]),
        "folding_above": (down[just] < 0).mean() if just.any() else math.nan,
        "largest_stretch": (np.maximum(1 - narrow, wide - 1) / bound).max(),
        "folds_below": (folds & (bound < 1)).sum(),
        "folds_all": folds.sum(),
        "largest_inverse": np.nanmax(np.append(curves["inverse_scaled"], -np.inf)),
    }


def _line(factor: float, layers: int, copies: int, seed: int) -> dict[str, Any]:
    """Scale random layers to the Lipschitz constant ``factor`` times their number, and run them."""
    generator = torch.Generator().manual_seed(seed)
    block = OdeBlock(
        lambda: ScalarField(copies, 8, 1.0, generator), PiecewiseConstant(layers), steps=layers
    )
    slopes = _slopes(block)
    with torch.no_grad():
        scale = factor * layers / slopes.abs().amax(1)
        block.weights.stacks.get_parameter("outer").mul_(scale.unsqueeze(-1))
        slopes = 1 + slopes * scale.unsqueeze(1) / layers
    start = torch.linspace(-1, 1, 21, dtype=_DTYPE).unsqueeze(1).repeat(1, copies)
    return {
        "swaps": crossings(euler_states(block, start)).tolist(),
        "steepest_down": slopes.amin(1).T.numpy().round(6).tolist(),
        "excess": (slopes - 1).abs().max().item() / factor,
    }


def _slopes(block: OdeBlock) -> Tensor:
    """Return the slopes of all layers' fields on a grid, shape ``(layers, points, copies)``.

    The grid reaches 200 and is finest near 0: a unit that is steep far out is wide.
    """
    stacks = dict(block.weights.stacks.named_parameters())
    copies = stacks["inner"].shape[1]
    grid = torch.linspace(-6, 6, 6001, dtype=_DTYPE).sinh().unsqueeze(1).repeat(1, copies)
    grid.requires_grad_()
    slopes = []
    for n in range(block.steps):
        weights = {name: stack[n].detach() for name, stack in stacks.items()}
        field = torch.func.functional_call(block.weights.template, weights, (grid,))
        slopes.append(torch.autograd.grad(field.sum(), grid)[0])
    return torch.stack(slopes)


def _digits_net(net: ResidualMLP, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Measure every layer of a trained network at the states that the test samples pass."""
    block = net.block
    with torch.no_grad():
        first = net.stem(x)
        states = euler_states(block, first)
    field, step = from_block(block, "weight"), 1 / block.steps
    bound = (block.scale * step * perceptron_lipschitz(block)).tolist()
    folds, stretches = [], []
    for n, state in enumerate(states[:-1]):
        identity = torch.eye(state.shape[1], dtype=_DTYPE, device=state.device)
        jacobian = identity + step * jacobians(partial(field.piece, n, 0.0), state)
        signs = torch.linalg.det(jacobian).sign()
        folds.append(bool(signs.min() < 0 < signs.max()))
        stretches.append(torch.linalg.svdvals(jacobian))
    inverse = math.nan
    if max(bound) < 1:
        inverse = (_recover(field, max(bound), states[-1]) - first).abs().max().item()
    return {
        "error": error_rate(net.head, (states[-1], y)), "inverse": inverse, "bound": bound,
        "folds": folds, "narrow": [stretch.min().item() for stretch in stretches],
        "wide": [stretch.max().item() for stretch in stretches],
    }  # fmt: skip


def perceptron_lipschitz(block: OdeBlock) -> Tensor:
    r"""Return a Lipschitz bound for every layer's field: the product of its matrices' norms.

    It holds for perceptrons whose activations have the constant 1, such as ReLU and tanh. The
    factors ``scale`` and $1/N$ are left out.

    Example:
        >>> block = OdeBlock(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh()))
        >>> weight = block.weights.stacks.get_parameter("0.weight")
        >>> weight.data[0] = torch.diag(torch.tensor([3.0, 1.0]))
        >>> perceptron_lipschitz(block)
        tensor([3.])
    """
    norms = [
        torch.linalg.matrix_norm(weight.detach(), 2)
        for name, weight in block.weights.stacks.named_parameters()
        if name.endswith("weight")
    ]
    return torch.stack(norms).prod(dim=0)


def jacobians(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the Jacobian of ``function`` at every row of ``x``, shape ``(batch, d, d)``."""
    x = x.detach().requires_grad_()
    values = function(x)
    rows = [torch.autograd.grad(v.sum(), x, retain_graph=True)[0] for v in values.unbind(1)]
    return torch.stack(rows, dim=1)


@torch.no_grad()
def _recover(field: Interpolation, bound: float, x: Tensor) -> Tensor:
    """Go back through all layers; each is inverted by iterating x <- y - f(x) / N.

    An iteration contracts by ``bound``; there are enough of them for the last digit.
    """
    iterations = math.ceil(math.log(1e-17) / math.log(bound))
    for n in reversed(range(field.layers)):
        after = x
        for _ in range(iterations):
            x = after - field.piece(n, 0.0, x) / field.layers
    return x
