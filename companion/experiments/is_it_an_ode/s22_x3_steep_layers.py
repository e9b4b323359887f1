r"""S22-X3: only a steep layer can make trajectories cross.

If the Lipschitz constant of :math:`f` is below N, the layer :math:`x + \frac1N f(x)` has an inverse
and stretches distances by factors between :math:`1 \mp L/N`. S22-F1 shows trained networks on the
line on both sides of the threshold. Here the threshold is approached in two other ways:

- ``line``: random networks on the line whose layers all have the Lipschitz constant pN, for
  factors p around 1;
- ``digits``: networks trained on digits with and without the factor 1/N. A layer with Jacobians of
  both orientations is not injective, in any dimension.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.analysis.interpolation import Interpolation, from_block
from companion.basis import PiecewiseConstant
from companion.block import OdeBlock
from companion.data import load_digits
from companion.experiments.is_it_an_ode.digits_nets import error_of, train_perceptron
from companion.experiments.registry import experiment
from companion.experiments.residual_steps.s22_f1_crossing_lines import crossings, euler_states
from companion.experiments.running import Part, Run
from companion.models import ResidualMLP
from companion.models.scalar_field import ScalarField
from companion.results import Claim, Findings

_DTYPE = torch.float64


@experiment(
    "S22-X3",
    "Random and trained layers below and above the injectivity threshold",
    paper="Sander et al. 2022, Fig. 1; the threshold is ours",
    claims=("S22-X3",),
    full={"layers": 50, "copies": 20, "depths": (2, 4, 8, 16, 32, 64), "seeds": 5},
)
def s22_x3(
    run: Run,
    *,
    factors: tuple[float, ...] = (0.25, 0.5, 0.75, 0.95, 0.99, 1.05, 1.25, 1.5, 2.0, 3.0),
    layers: int = 20,
    copies: int = 10,
    depths: tuple[int, ...] = (2, 4, 8, 16),
    seeds: int = 2,
    epochs: int = 6,
) -> Findings:
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
    singular values seen.
    """
    data = load_digits(device=run.device)

    def measure(part: Part, name: str, size: float, seed: int) -> dict[str, Any]:
        if name == "line":
            return _line(size, layers, copies, seed)
        net = train_perceptron(
            part,
            data.x_train,
            data.y_train,
            layers=int(size),
            scaled=name == "scaled",
            equal=False,
            seed=seed,
            epochs=epochs,
        )
        return _digits_net(net.double(), data.x_test.double(), data.y_test)

    parts: dict[str, tuple[str, float, int]] = {
        f"line, {p} N": ("line", p, run.seed) for p in factors
    }
    parts |= {
        f"{name}, {depth} layers, seed {seed}": (name, depth, run.seed + seed)
        for name in ("scaled", "plain")
        for depth in depths
        for seed in range(seeds)
    }
    found = run.map(measure, parts)
    line = [found[f"line, {p} N"] for p in factors]
    curves: dict[str, Any] = {"factors": factors, "depths": depths}
    curves |= {name: [row[name] for row in line] for name in line[0]}
    for name in ("scaled", "plain"):
        rows = [[found[f"{name}, {n} layers, seed {s}"] for s in range(seeds)] for n in depths]
        for key in ("error", "inverse"):
            curves[f"{key}_{name}"] = [[net[key] for net in row] for row in rows]
        for key in ("bound", "folds", "narrow", "wide"):
            curves[f"{key}_{name}"] = [v for row in rows for net in row for v in net[key]]
    return Findings({}, curves, _claims(curves), data.sha256)


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

    The grid reaches 200, far beyond the states, and is finest near 0: a unit that is steep far out
    would be missed otherwise, and a unit centred there is wide.
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
        logits = net.head(states[-1])
    field, step = from_block(block, "weight"), 1 / block.steps
    bound = (block.scale * step * perceptron_lipschitz(block)).tolist()
    folds, narrow, wide = [], [], []
    for n, state in enumerate(states[:-1]):
        identity = torch.eye(state.shape[1], dtype=_DTYPE, device=state.device)
        jacobian = identity + step * jacobians(partial(field.piece, n, 0.0), state)
        stretch = torch.linalg.svdvals(jacobian)
        signs = torch.linalg.det(jacobian).sign()
        folds.append(bool(signs.min() < 0 < signs.max()))
        narrow.append(stretch.min().item())
        wide.append(stretch.max().item())
    inverse = float("nan")
    if max(bound) < 1:
        inverse = (_recover(field, max(bound), states[-1]) - first).abs().max().item()
    return {
        "error": error_of(logits, y), "inverse": inverse, "bound": bound,
        "folds": folds, "narrow": narrow, "wide": wide,
    }  # fmt: skip


def perceptron_lipschitz(block: OdeBlock) -> Tensor:
    r"""Return a Lipschitz bound for every layer's field: the product of its matrices' norms.

    It holds for perceptrons whose activations have the constant 1, such as ReLU and tanh.

    Args:
        block: its residual is a sequence of linear layers and such activations.

    Returns:
        Shape ``(coefficients,)``, without the factors ``scale`` and $1/N$.

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
    """Return the Jacobian of ``function`` at every row of ``x``.

    Shapes:
        ``(batch, d)`` to ``(batch, d, d)``.

    Example:
        >>> jacobians(lambda x: x**2, torch.tensor([[1.0, 2.0]]))
        tensor([[[2., 0.],
                 [0., 4.]]])
    """
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


def _claims(curves: dict[str, Any]) -> list[Claim]:
    factors, swaps = np.array(curves["factors"]), np.array(curves["swaps"])
    down, excess = np.array(curves["steepest_down"]), max(curves["excess"])
    claims = []
    if (below := factors < 1).any():
        claims.append(
            Claim("S22-X3", "crossings, all random layers below N", int(swaps[below].sum()), high=0)
        )
    claims.append(
        Claim(
            "S22-X3",
            "largest |slope - 1| over L/N, on the line",
            excess,
            high=1 + 1e-12,
        )
    )
    if (just := (factors > 1) & (factors <= 1.1)).any():
        share = float((down[just] < 0).mean())
        claims.append(Claim("S22-X3", "share of layers just above N that fold", share, low=0.25))
    bound = np.concatenate([curves[f"bound_{name}"] for name in ("scaled", "plain")])
    folds = np.concatenate([curves[f"folds_{name}"] for name in ("scaled", "plain")]).astype(bool)
    narrow, wide = (
        np.concatenate([curves[f"{key}_{name}"] for name in ("scaled", "plain")])
        for key in ("narrow", "wide")
    )
    stretch = float((np.maximum(1 - narrow, wide - 1) / bound).max())
    inverse = float(np.nanmax(np.append(curves["inverse_scaled"], -np.inf)))
    return [
        *claims,
        Claim("S22-X3", "digits: largest |singular value - 1| over L/N", stretch, high=1 + 1e-12),
        Claim(
            "S22-X3", "digits: layers below N that fold", int((folds & (bound < 1)).sum()), high=0
        ),
        Claim("S22-X3", "digits: layers that fold, all networks", int(folds.sum()), low=1),
        Claim("S22-X3", "digits: error of inputs recovered below N", inverse, high=1e-9),
    ]
