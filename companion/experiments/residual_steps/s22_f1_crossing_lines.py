r"""S22-F1: can a residual network learn :math:`x \mapsto -x` on the line?

Sander et al. (2022, Fig. 1) show two residual networks of 300 layers: one learns a smooth
increasing map, the other reverses the line, and its trajectories cross. Four networks here:

- ``smooth``: 300 layers learn :math:`\tanh 2x` (the paper's target cannot be read in our copy);
- ``direct``: 300 layers are trained on :math:`-x` from a smooth start, and fail;
- ``crossing``: 10 layers learn :math:`-x`. As 10 strong layers among 290 that do nothing they are a
  network of 300 layers with the factor 1/300;
- ``finer``: the same 10 sets of weights, each kept for 30 of 300 Euler steps.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from companion.basis import PiecewiseConstant
from companion.block import OdeBlock
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models.scalar_field import ScalarField
from companion.results import Claim, Findings
from companion.train import fit

_POINTS = torch.linspace(-1, 1, 21, dtype=torch.float64)

BEST_MONOTONE = float((_POINTS**2).mean())
"""Smallest mean squared error of a non-decreasing map on the task -x: that of the constant 0."""

_SMOOTH = {"hidden": 8, "std": 1.0, "rate": 0.05}
_ROUGH = {"hidden": 32, "std": 3.0, "rate": 0.02}


@experiment(
    "S22-F1",
    "Residual networks on the line: a smooth target, and one whose trajectories must cross",
    paper="Sander et al. 2022, Fig. 1",
    claims=("CL64", "S22-X3"),
    full={"copies": 20, "updates": 600, "rough_updates": 2000},
)
def s22_f1(
    run: Run,
    *,
    layers: int = 300,
    few: int = 10,
    copies: int = 5,
    updates: int = 60,
    rough_updates: int = 800,
) -> Findings:
    """Train the four networks, ``copies`` random starts each.

    Curves: for each network ``loss_NAME`` and ``crossings_NAME``, one value a copy, and
    ``states_NAME``, the first copy's trajectories at ``depth``. ``lipschitz_crossing`` has the
    layers of the network of ``layers`` layers that cross, in all copies; ``lipschitz_smooth`` an
    upper bound for every copy.
    """
    if layers % few:
        raise ValueError(f"few must divide layers = {layers}; got {few}")

    def train(part: Part, name: str) -> dict[str, Any]:
        rough = name == "crossing"
        target = torch.tanh(2 * _POINTS) if name == "smooth" else -_POINTS
        x, y = (v.to(run.device).unsqueeze(1).repeat(1, copies) for v in (_POINTS, target))
        options = _ROUGH if rough else _SMOOTH
        block = _network(few if rough else layers, copies, run.seed, options).to(run.device)
        _fit(block, x, y, part, rough_updates if rough else updates, options["rate"], run.seed)
        if not rough:
            weight = block.weights.stacks.get_parameter
            bound = (weight("inner") * weight("outer")).abs().sum(-1).amax(0)
            return {name: _describe(block, x, y), "bound": bound.tolist()}
        deep = _among_idle_layers(block, layers, copies)
        return {
            name: _describe(deep, x, y),
            "lipschitz": _lipschitz_where_crossing(deep, x),
            "finer": _describe(block.with_graph(steps=layers), x, y),
        }

    parts = run.map(train, {name: (name,) for name in ("smooth", "direct", "crossing")})
    networks = {
        name: values
        for part in parts.values()
        for name, values in part.items()
        if isinstance(values, dict)
    }
    curves = {f"{key}_{name}": v for name, d in networks.items() for key, v in d.items()}
    curves |= {
        "depth": torch.linspace(0, 1, len(networks["smooth"]["states"])),
        "lipschitz_crossing": parts["crossing"]["lipschitz"],
        "lipschitz_smooth": parts["smooth"]["bound"],
    }
    scalars = {f"worst_loss_{name}": max(values["loss"]) for name, values in networks.items()}
    scalars["best_monotone"] = BEST_MONOTONE
    return Findings(scalars, curves, _claims(curves, layers))


def crossings(states: Tensor) -> Tensor:
    """Count how often neighbours swap places from one layer to the next.

    Args:
        states: shape ``(layers + 1, points, ...)``, the points in order at the start.

    Returns:
        Counts of shape ``(...)``.

    Example:
        >>> crossings(torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0]]))
        tensor(2)
    """
    gaps = states.diff(dim=1).sign()
    swaps = gaps[1:] != gaps[:-1]
    return swaps.sum((0, 1))


def euler_states(block: OdeBlock, x: Tensor) -> Tensor:
    """Return the states before every layer of an Euler block and after the last, stacked.

    Example:
        >>> block = OdeBlock(nn.Identity(), steps=2)
        >>> euler_states(block, torch.ones(1))
        tensor([[1.0000],
                [1.5000],
                [2.2500]])
    """
    seen: list[Tensor] = []
    hook = block.weights.template.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            end = block(x)
    finally:
        hook.remove()
    return torch.stack([*seen, end])


def _network(layers: int, copies: int, seed: int, options: dict[str, Any]) -> OdeBlock:
    generator = torch.Generator().manual_seed(seed)
    return OdeBlock(
        lambda: ScalarField(copies, options["hidden"], options["std"], generator),
        basis=PiecewiseConstant(cells=layers),
        method="euler",
        steps=layers,
    )


def _fit(
    block: OdeBlock, x: Tensor, y: Tensor, part: Part, updates: int, rate: float, seed: int
) -> None:
    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        squares: Tensor = (net(x) - y) ** 2
        return squares.mean(0).sum()

    fit(
        block,
        loss,
        (x, y),
        optimiser=lambda parameters: torch.optim.Adam(parameters, lr=rate),
        epochs=updates,
        batch_size=len(x),
        generator=torch.Generator().manual_seed(seed),
        schedule=lambda progress: (1 + math.cos(math.pi * progress)) / 2,
        clip=1.0,
        snapshot=part.snapshot,
        report=part.report,
    )


@torch.no_grad()
def _among_idle_layers(block: OdeBlock, layers: int, copies: int) -> OdeBlock:
    """Spread the layers of ``block`` among idle ones, so that ``layers`` layers do the same.

    A factor on the outer weights makes up for the smaller step. Idle layers have weights 0.
    """
    every = layers // block.steps
    deep = _network(layers, copies, 0, _ROUGH).to(next(block.parameters()).device)
    for name, values in deep.weights.stacks.named_parameters():
        values.zero_()
        values[every // 2 :: every] = block.weights.stacks.get_parameter(name)
    deep.weights.stacks.get_parameter("outer").mul_(every)
    return deep


def _describe(block: OdeBlock, x: Tensor, y: Tensor) -> dict[str, Any]:
    states = euler_states(block, x)
    return {
        "loss": ((states[-1] - y) ** 2).mean(0).tolist(),
        "crossings": crossings(states).tolist(),
        "states": states[:: max(1, block.steps // 60), :, 0].cpu().numpy().round(4).tolist(),
    }


def _lipschitz_where_crossing(block: OdeBlock, x: Tensor) -> list[float]:
    """Return the largest slope of the field of every layer in which some pair crosses.

    The slope is searched between the smallest and the largest state that enters the layer: a lower
    bound of the Lipschitz constant.
    """
    states = euler_states(block, x)
    found = []
    for n in range(block.steps):
        crossed = crossings(states[n : n + 2]) > 0
        if not crossed.any():
            continue
        weights = {name: p[n] for name, p in block.weights.stacks.named_parameters()}
        low, high = states[n].amin(0), states[n].amax(0)
        fractions = torch.linspace(0, 1, 4001, dtype=x.dtype, device=x.device).unsqueeze(1)
        grid = (low + fractions * (high - low)).requires_grad_()
        field = torch.func.functional_call(block.weights.template, weights, (grid,))
        (slope,) = torch.autograd.grad(field.sum(), grid)
        found += slope.abs().amax(0)[crossed].tolist()
    return found


def _claims(curves: dict[str, Any], layers: int) -> list[Claim]:
    loss = {name: curves[f"loss_{name}"] for name in ("smooth", "crossing", "finer")}
    swaps = {name: curves[f"crossings_{name}"] for name in loss}
    strongest = min(curves["lipschitz_crossing"], default=0.0)
    return [
        Claim("CL64", "largest loss, target tanh 2x", max(loss["smooth"]), high=2e-3),
        Claim("CL64", "most crossings, target tanh 2x", max(swaps["smooth"]), high=0),
        Claim("CL64", "largest loss, target -x", max(loss["crossing"]), high=5e-3),
        Claim("CL64", "fewest crossings, target -x", min(swaps["crossing"]), low=10),
        Claim("CL64", "most crossings, same weights, finer steps", max(swaps["finer"]), high=0),
        Claim(
            "CL64",
            "smallest loss, same weights, finer steps, over that of the best monotone map",
            min(loss["finer"]) / BEST_MONOTONE,
            low=1.0,
        ),
        Claim(
            "S22-X3",
            "smallest Lipschitz constant over N among layers that cross",
            strongest / layers,
            low=1.0,
        ),
        Claim(
            "S22-X3",
            "largest Lipschitz bound over N in the network without crossings",
            max(curves["lipschitz_smooth"]) / layers,
            high=1.0,
        ),
    ]
