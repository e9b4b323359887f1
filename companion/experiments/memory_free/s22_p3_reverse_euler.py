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
from torch import Tensor

from companion.analysis.bounds import euler_bounds, tanh_constants
from companion.analysis.reconstruction import reconstruction
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.memory_free import tanh_networks as nets
from companion.experiments.memory_free.tanh_networks import FAMILIES, Draw
from companion.gradients import Reconstruct
from companion.ode import odeint

Curve = NDArray[np.float64]


@experiment(
    "S22-P3",
    "Reverse Euler's states and gradients against explicit bounds",
    paper="Sander et al. 2022, propositions 3 and 4",
    claims=(
        *(
            (id, f"slope_{name}_{family}", round(rate - margin, 6), round(rate + margin, 6),
             f"slope of {name} against layers, {family.replace('_', ' ')} weights")
            for id, name, family, rate, margin in (
                ("CL52", "states", "smooth", -1, 0.03),
                ("CL53", "gradients", "smooth", -2, 0.05),
                ("CL53", "relative", "smooth", -1, 0.05),
                *(
                    ("CL54", name, family, rate, margin + 0.07 * (family == "iid"))
                    for family in FAMILIES  # fresh weights at every depth scatter more
                    for name, rate, margin in (("states", -1, 0.03), ("gradients", -2, 0.05))
                    if family != "smooth"
                ),
            )
        ),
        ("S22-P3", "state_ratio", None, 1.0,
         "largest state error over its bound, all weights, depths, layers"),
        ("S22-P3", "identity", None, 1e-12,
         "deviation of a linear round trip from (1 - rate^2/N^2)^N"),
        ("S22-P3", "slope_limit", -1.1, -0.9,
         "slope of the distance of scaled errors to their limit"),
        ("S22-P4", "gradient_ratio", None, 1.0,
         "largest gradient error over its bound, all weights, depths, layers"),
    ),
    full={"steps": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024), "networks": 32, "dim": 16},
    tiny={"steps": (1, 16, 32), "networks": 2, "dim": 3},
    machine_dependent=("identity",),
)  # fmt: skip
def s22_p3(
    run: Run, *, steps: tuple[int, ...] = (1, 4, 16, 32, 64, 128, 256), networks: int = 8,
    dim: int = 6,
) -> Findings:  # fmt: skip
    """Measure every family of weights at every depth.

    Curves: ``steps``; for each family of weights ``states_FAMILY`` and ``gradients_FAMILY``, the
    largest error of a state and of a layer's gradient, ``relative_FAMILY``, the relative error of
    the whole gradient, and ``state_ratio_FAMILY``, ``gradient_ratio_FAMILY``, the largest error
    over its bound: all of shape ``(steps, networks)``. ``limit_gap``: distance of the scaled errors
    to the limit curve, relative, for smooth weights. ``profile_error``, ``profile_bound`` and
    ``profile_limit``: scaled errors, bound and limit, layer by layer, of the smooth network nearest
    its bound at the largest depth.
    """
    drawn = Draw(networks, dim, run.seed, run.device)

    def sweep(part: Part, family: str, n: int) -> dict[str, list[float]]:
        return nets.measure(nets.draw_networks(family, "euler", n, drawn)).largest()

    curves = named(grids(run, sweep, family=FAMILIES, n=steps), "family")
    deep = tuple(n for n in steps if n >= nets.DEEP)
    trips = {(rate, n): nets.round_trip("euler", rate, n) for rate in (1.7, -0.9) for n in steps}
    scalars = {
        "identity": max(abs(x / (1 - (rate / n) ** 2) ** n - 1) for (rate, n), x in trips.items()),
        "state_ratio": max(curves[f"state_ratio_{family}"].max() for family in FAMILIES),
        "gradient_ratio": max(curves[f"gradient_ratio_{family}"].max() for family in FAMILIES),
    }
    for key in (f"{name}_{family}" for family in FAMILIES for name in nets.ERRORS):
        slope = nets.fit_rate(deep, curves[key][-len(deep) :])
        scalars |= {f"slope_{key}": slope.value, f"slope_error_{key}": slope.error}
    profiles = [_profile(n, drawn) for n in steps]
    gaps = np.array([gap for gap, *_ in profiles])
    scalars["slope_limit"] = nets.fit_rate(deep, gaps[-len(deep) :, None]).value
    curves["limit_gap"] = gaps
    for name, curve in zip(("error", "bound", "limit"), profiles[-1][1:], strict=True):
        curves[f"profile_{name}"] = curve
    return Findings(scalars, {"steps": steps, **curves})


def _profile(steps: int, drawn: Draw) -> tuple[float, Curve, Curve, Curve]:
    """Return the gap to the limit; then error, bound and limit of the network nearest its bound.

    The three curves are multiplied by the number of layers.
    """
    networks = nets.draw_networks("smooth", "euler", steps, drawn)
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
    networks = nets.draw_networks("smooth", "euler", 4, drawn)
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
