r"""S22-P3: what reverse Euler gets wrong, against its explicit bounds, at every layer.

Small tanh networks are swept back by the paper's rule. Their states and gradients are compared with
the exact ones, with the bounds of :mod:`companion.analysis.bounds`, and with the closed form of the
linear case. For weights smooth in depth, $N(\tilde x_n - x_n)$ tends to a curve $\rho$ that solves
$\dot\rho = J\rho + Jf$, $\rho(1) = 0$.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from companion.analysis.bounds import euler_bounds, tanh_constants
from companion.analysis.reconstruction import reconstruction
from companion.basis import Constant
from companion.block import OdeBlock
from companion.experiments.memory_free.tanh_networks import (
    DEEP,
    FAMILIES,
    Draw,
    draw_networks,
    fit_rate,
    measure,
)
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.gradients import Reconstruct
from companion.ode import odeint
from companion.results import Claim, Findings

Curve = NDArray[np.float64]


@experiment(
    "S22-P3",
    "Reverse Euler's states and gradients against explicit bounds",
    paper="Sander et al. 2022, propositions 3 and 4",
    claims=("CL52", "CL53", "CL54", "S22-P3", "S22-P4"),
    full={"steps": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024), "networks": 32, "dim": 16},
)
def s22_p3(
    run: Run,
    *,
    steps: tuple[int, ...] = (1, 4, 16, 32, 64, 128, 256),
    networks: int = 8,
    dim: int = 6,
) -> Findings:
    """Measure every family of weights at every depth.

    Curves: ``steps``; for each family of weights ``states_FAMILY`` and ``gradients_FAMILY``, the
    largest error of a state and of a layer's gradient, ``relative_FAMILY``, the relative error of
    the whole gradient, and ``state_ratio_FAMILY``, ``gradient_ratio_FAMILY``, the largest error
    over its bound: all of shape ``(steps, networks)``. ``limit_gap``: distance of the scaled errors
    to the limit curve, relative, for smooth weights. ``profile_error``, ``profile_bound`` and
    ``profile_limit``: scaled errors, bound and limit, layer by layer, of the smooth network nearest
    its bound at the largest depth.
    Scalars: ``slope_states_FAMILY``, ``slope_gradients_FAMILY``, ``slope_relative_FAMILY``,
    ``slope_limit``, ``identity``.
    """
    drawn = Draw(networks, dim, run.seed, run.device)
    names = ("states", "gradients", "relative", "state_ratio", "gradient_ratio")

    def sweep(part: Part, family: str, n: int) -> list[list[float]]:
        errors = measure(draw_networks(family, "euler", n, drawn))
        return [
            errors.states.amax(0).tolist(),
            errors.gradients.amax(0).tolist(),
            errors.relative.tolist(),
            errors.state_ratio,
            errors.gradient_ratio,
        ]

    parts = {f"{family}, {n} layers": (family, n) for family in FAMILIES for n in steps}
    table = np.array(list(run.map(sweep, parts).values()))
    table = table.reshape(len(FAMILIES), len(steps), len(names), networks)
    curves: dict[str, Curve] = {
        f"{name}_{family}": table[i, :, j]
        for i, family in enumerate(FAMILIES)
        for j, name in enumerate(names)
    }
    profiles = [_profile(n, drawn) for n in steps]
    gaps = np.array([gap for gap, *_ in profiles])
    _, error, bound, limit = profiles[-1]
    curves |= {"limit_gap": gaps, "profile_error": error, "profile_bound": bound}
    curves |= {"profile_limit": limit}
    deep = tuple(n for n in steps if n >= DEEP)
    scalars = {"identity": max(_identity(rate, n) for rate in (1.7, -0.9) for n in steps)}
    for key in (f"{name}_{family}" for family in FAMILIES for name in names[:3]):
        slope = fit_rate(deep, curves[key][-len(deep) :])
        scalars |= {f"slope_{key}": slope.value, f"slope_error_{key}": slope.error}
    scalars["slope_limit"] = fit_rate(deep, gaps[-len(deep) :, None]).value
    return Findings(scalars, {"steps": steps, **curves}, _claims(scalars, curves))


def _claims(scalars: dict[str, float], curves: dict[str, Curve]) -> list[Claim]:
    """Decide the claims on slopes of means over networks, and on the worst ratio."""

    def slope(id: str, name: str, family: str, rate: float, margin: float) -> Claim:
        text = f"slope of {name} against layers, {family.replace('_', ' ')} weights"
        observed = scalars[f"slope_{name}_{family}"]
        low, high = round(rate - margin, 6), round(rate + margin, 6)
        return Claim(id, text, observed, low=low, high=high)

    def worst(id: str, kind: str) -> Claim:
        ratio = max(curves[f"{kind}_ratio_{family}"].max() for family in FAMILIES)
        text = f"largest {kind} error over its bound, all weights, depths, layers"
        return Claim(id, text, float(ratio), high=1.0)

    claims = [
        slope("CL52", "states", "smooth", -1, 0.03),
        slope("CL53", "gradients", "smooth", -2, 0.05),
        slope("CL53", "relative", "smooth", -1, 0.05),
    ]
    for family in FAMILIES:
        if family != "smooth":
            wide = 0.07 if family == "iid" else 0.0  # fresh weights at every depth scatter more
            claims.append(slope("CL54", "states", family, -1, 0.03 + wide))
            claims.append(slope("CL54", "gradients", family, -2, 0.05 + wide))
    return [
        *claims,
        worst("S22-P3", "state"),
        Claim("S22-P3", "deviation of a linear round trip from (1 - rate^2/N^2)^N",
              scalars["identity"], high=1e-12),
        Claim("S22-P3", "slope of the distance of scaled errors to their limit",
              scalars["slope_limit"], low=-1.1, high=-0.9),
        worst("S22-P4", "gradient"),
    ]  # fmt: skip


def _identity(rate: float, steps: int) -> float:
    """Return how far a linear network's round trip is from its closed form, relatively."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(layer.weight, rate)
    block = OdeBlock(layer, Constant(), steps=steps)
    x0 = torch.ones(1, 1, dtype=torch.float64)
    with torch.no_grad():
        back = reconstruction(block, block(x0), Reconstruct())[0]
    return abs(back.item() / (1 - (rate / steps) ** 2) ** steps - 1)


def _profile(steps: int, drawn: Draw) -> tuple[float, Curve, Curve, Curve]:
    """Return the gap to the limit; then error, bound and limit of the network nearest its bound.

    The three curves are multiplied by the number of layers.
    """
    networks = draw_networks("smooth", "euler", steps, drawn)
    true = torch.stack(networks.states()).detach()
    scaled = steps * (reconstruction(networks.block, true[-1], Reconstruct()) - true)
    limit = _limit(steps, drawn)
    gap = (scaled - limit).norm(dim=-1).max() / limit.norm(dim=-1).max()
    errors, limits = (x.norm(dim=-1).T.cpu().numpy() for x in (scaled, limit))
    weights = torch.stack([layer.weight for layer in networks.layers], dim=1)
    # The bound on states needs neither the radius nor the adjoint.
    bounds = [
        steps * euler_bounds(tanh_constants(weight, radius=0.0), steps, adjoint=0.0).states
        for weight in weights
    ]
    k = int(np.argmax([error[0] / bound[0] for error, bound in zip(errors, bounds, strict=True)]))
    return gap.item(), errors[k], bounds[k], limits[k]


def _limit(steps: int, drawn: Draw) -> Tensor:
    r"""Solve $\dot x = f$ forwards, then it and $\dot\rho = J\rho + Jf$ back; return $\rho$."""
    networks = draw_networks("smooth", "euler", 4, drawn)
    first, second, *_ = networks.layers  # the sine is 0 and 1 there
    A, a = first.weight.detach(), first.bias.detach()
    B, b = second.weight.detach() - A, second.bias.detach() - a

    def coupled(t: Tensor, z: Tensor) -> Tensor:
        x, rho = z
        c = torch.sin(2 * math.pi * t)
        weight = A + c * B
        f = torch.tanh((weight @ x.unsqueeze(-1)).squeeze(-1) + a + c * b)
        pushed = (1 - f**2) * (weight @ (rho + f).unsqueeze(-1)).squeeze(-1)
        return torch.stack([f, pushed])

    times = [n / steps for n in range(steps + 1)]
    start = torch.stack([networks.x0, torch.zeros_like(networks.x0)])
    end = odeint(coupled, start, [0.0, 1.0], method="rk4", steps=256)[-1]
    end = torch.stack([end[0], torch.zeros_like(end[0])])
    substeps = max(1, 256 // steps)
    back: Tensor = odeint(coupled, end, times[::-1], method="rk4", steps=substeps)
    return back[:, 1].flip(0)
