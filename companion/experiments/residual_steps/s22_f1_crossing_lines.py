r"""S22-F1: can a residual network learn $x \mapsto -x$ on the line?

Sander et al. (2022, Fig. 1) show two residual networks of 300 layers: one learns a smooth
increasing map, the other reverses the line, and its trajectories cross. Four networks here:

- ``smooth``: 300 layers learn $\tanh 2x$ (the paper's target cannot be read in our copy);
- ``direct``: 300 layers are trained on $-x$ from a smooth start, and fail;
- ``crossing``: 10 layers learn $-x$. As 10 strong layers among 290 that do nothing they are a
  network of 300 layers with the factor 1/300;
- ``finer``: the same 10 sets of weights, each kept for 30 of 300 Euler steps.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from companion.basis import PiecewiseConstant
from companion.block import OdeBlock
from companion.experiments import Findings, Part, Run, experiment
from companion.models.scalar_field import ScalarField
from companion.train import cosine, fit

_POINTS = torch.linspace(-1, 1, 21, dtype=torch.float64)

BEST_MONOTONE = float((_POINTS**2).mean())
"""Smallest mean squared error of a non-decreasing map on the task -x: that of the constant 0."""


SMOOTH, ROUGH = (8, 1.0), (32, 3.0)
"""Units of a layer, and the standard deviation of all initial values."""


@experiment(
    "S22-F1",
    "Residual networks on the line: a smooth target, and one whose trajectories must cross",
    paper="Sander et al. 2022, Fig. 1",
    full={"copies": 20, "updates": 600},
    tiny={"layers": 8, "few": 4, "copies": 2, "updates": 3, "rough_updates": 5},
    claims=(
        ("CL64", "worst_loss_smooth", None, 2e-3, "largest loss, target tanh 2x"),
        ("CL64", "most_crossings_smooth", None, 0, "most crossings, target tanh 2x"),
        ("CL64", "worst_loss_crossing", None, 5e-3, "largest loss, target -x"),
        ("CL64", "fewest_crossings_crossing", 10, None, "fewest crossings, target -x"),
        ("CL64", "most_crossings_finer", None, 0, "most crossings, same weights, finer steps"),
        ("CL64", "least_excess_finer", 1.0, None,
         "smallest loss, same weights, finer steps, over that of the best monotone map"),
        ("S22-X3", "flattest_crossing", 1.0, None,
         "smallest Lipschitz constant over N among layers that cross"),
        ("S22-X3", "steepest_smooth", None, 1.0,
         "largest Lipschitz bound over N in the network without crossings"),
    ),
)  # fmt: skip
def s22_f1(
    run: Run, *, layers: int = 300, few: int = 10, copies: int = 5, updates: int = 60,
    rough_updates: int = 2000,
) -> Findings:  # fmt: skip
    """Train the four networks, ``copies`` random starts each.

    Curves: for each network ``loss_NAME`` and ``crossings_NAME``, one value a copy, and
    ``states_NAME``, the first copy's trajectories at ``depth``. ``lipschitz_crossing`` has the
    layers of the network of ``layers`` layers that cross, in all copies; ``lipschitz_smooth`` an
    upper bound for every copy. Scalars: ``worst_loss_NAME``, ``best_monotone``.
    """
    if layers % few:
        raise ValueError(f"few must divide layers = {layers}; got {few}")

    def train(part: Part, name: str) -> dict[str, Any]:
        rough = name == "crossing"
        target = torch.tanh(2 * _POINTS) if name == "smooth" else -_POINTS
        x, y = (v.to(run.device).unsqueeze(1).repeat(1, copies) for v in (_POINTS, target))
        block = _network(few if rough else layers, copies, run.seed, ROUGH if rough else SMOOTH)
        fit(
            block.to(run.device), _loss, (x, y), epochs=rough_updates if rough else updates,
            optimiser=partial(Adam, lr=0.02 if rough else 0.05), batch_size=len(x),
            generator=torch.Generator().manual_seed(run.seed), schedule=cosine, clip=1.0,
            snapshot=part.snapshot, report=part.report,
        )  # fmt: skip
        part.keep(block)
        if not rough:
            weight = block.weights.stacks.get_parameter
            bound = (weight("inner") * weight("outer")).abs().sum(-1).amax(0)
            return {"networks": {name: _describe(block, x, y)}, "lipschitz": bound.tolist()}
        deep = _among_idle_layers(block, layers, copies)
        finer = _describe(block.with_graph(steps=layers), x, y)
        return {
            "networks": {name: _describe(deep, x, y), "finer": finer},
            "lipschitz": _lipschitz_where_crossing(deep, x),
        }

    parts = run.map(train, {name: (name,) for name in ("smooth", "direct", "crossing")})
    networks = {name: found for part in parts.values() for name, found in part["networks"].items()}
    steep, smooth = parts["crossing"]["lipschitz"], parts["smooth"]["lipschitz"]
    curves = {f"{key}_{name}": v for name, found in networks.items() for key, v in found.items()}
    curves["depth"] = torch.linspace(0, 1, len(networks["smooth"]["states"]))
    curves |= {"lipschitz_crossing": steep, "lipschitz_smooth": smooth}
    scalars = {f"worst_loss_{name}": max(found["loss"]) for name, found in networks.items()} | {
        "best_monotone": BEST_MONOTONE,
        "most_crossings_smooth": max(networks["smooth"]["crossings"]),
        "fewest_crossings_crossing": min(networks["crossing"]["crossings"]),
        "most_crossings_finer": max(networks["finer"]["crossings"]),
        "least_excess_finer": min(networks["finer"]["loss"]) / BEST_MONOTONE,
        "flattest_crossing": min(steep, default=0.0) / layers,
        "steepest_smooth": max(smooth) / layers,
    }
    return Findings(scalars, curves)


def crossings(states: Tensor) -> Tensor:
    """Count how often neighbours swap places from one layer to the next.

    Shapes: ``(layers + 1, points, ...)``, the points in order at the start, to ``(...)``.

    Example:
        >>> crossings(torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0]]))
        tensor(2)
    """
    gaps = states.diff(dim=1).sign()
    return (gaps[1:] != gaps[:-1]).sum((0, 1))


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


def _network(layers: int, copies: int, seed: int, start: tuple[int, float]) -> OdeBlock:
    generator = torch.Generator().manual_seed(seed)
    basis = PiecewiseConstant(cells=layers)
    return OdeBlock(lambda: ScalarField(copies, *start, generator), basis, "euler", steps=layers)


def _loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    squares: Tensor = (net(x) - y) ** 2
    return squares.mean(0).sum()


@torch.no_grad()
def _among_idle_layers(block: OdeBlock, layers: int, copies: int) -> OdeBlock:
    """Spread the layers of ``block`` among idle ones, so that ``layers`` layers do the same.

    A factor on the outer weights makes up for the smaller step. Idle layers have weights 0.
    """
    every = layers // block.steps
    deep = _network(layers, copies, 0, ROUGH).to(next(block.parameters()).device)
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
    """Return a lower bound of the Lipschitz constant of every layer in which some pair crosses.

    It is the largest slope between the smallest and the largest state that enters the layer.
    """
    states = euler_states(block, x)
    fractions = torch.linspace(0, 1, 4001, dtype=x.dtype, device=x.device).unsqueeze(1)
    found = []
    for n in range(block.steps):
        crossed = crossings(states[n : n + 2]) > 0
        if crossed.any():
            weights = {name: p[n] for name, p in block.weights.stacks.named_parameters()}
            low, high = states[n].amin(0), states[n].amax(0)
            points = (low + fractions * (high - low)).requires_grad_()
            field = torch.func.functional_call(block.weights.template, weights, (points,))
            (slope,) = torch.autograd.grad(field.sum(), points)
            found += slope.abs().amax(0)[crossed].tolist()
    return found
