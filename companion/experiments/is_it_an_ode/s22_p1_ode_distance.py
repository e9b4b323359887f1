r"""S22-P1: how far is a network from an ODE through its layers?

Sander et al. (2022, Proposition 1) bound the distance by $\frac{C_N}{2N} \frac{e^L - 1}{L}$.
Four examples with closed forms, and random smooth fields. Two examples attain the bound:

- ``line``: $\varphi = as + b$, with $L = 0$; the paper's;
- ``tight``: $\varphi = Lx + u(s)$ with a solution of constant acceleration, with
  $L > 0$; ours.

In two, whose layers have no smoothness in depth, the distance does not shrink:

- ``counting``: $f_n = n$, residuals interpolated;
- ``zigzag``: $f = \theta^2$ with $\theta_n = (-1)^n$, weights interpolated.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.analysis import interpolation as between
from companion.analysis.interpolation import euler_bound, from_field, network
from companion.experiments import Findings, Part, Run, experiment
from companion.experiments.recipes import normal
from companion.observe import fit_slope

_LIPSCHITZ, _ACCELERATION = 1.3, 2.0
"""L and the constant acceleration of the example ``tight``."""

_DTYPE = torch.float64


@experiment(
    "S22-P1",
    "The distance of a network to its ODE, against the bound and in four closed forms",
    paper="Sander et al. 2022, Proposition 1",
    claims=(
        ("CL48", "closed_line", None, 1e-12, "as + b: distance to the closed form |a| s / 2N"),
        ("CL48", "closed_tight", None, 1e-12, "Lx + u: distance to the closed form"),
        ("CL48", "excess_line", None, 1e-12, "as + b: gap over bound, minus 1, largest over N"),
        ("CL48", "attained_tight", 0.99, 1.0, "Lx + u: gap over bound, deepest"),
        ("CL49", "closed_counting", None, 1e-12, "f = n: distance of the gap to 1/2"),
        ("CL49", "closed_zigzag", None, 1e-12, "f = theta^2, zigzag: distance of the gap to 2/3"),
        ("CL48", "ratio", None, 1.0, "largest gap over its bound, random fields, all N and n"),
        ("CL48", "slope_shallowest", -1.05, -0.95,
         "shallowest slope of the gap in N, random fields"),
        ("CL48", "slope_steepest", -1.05, -0.95, "steepest slope of the gap in N, random fields"),
    ),
    full={
        "depths": (1, 4, 10, 100, 1000), "tight_depths": (1, 10, 100, 1000, 10000, 100000),
        "generic_depths": (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096), "fields": 100,
        "dimension": 16,
    },
    tiny={"depths": (1, 4), "tight_depths": (1, 50), "generic_depths": (8, 16), "fields": 2},
)  # fmt: skip
def s22_p1(
    run: Run, *, depths: tuple[int, ...] = (1, 4, 10, 100),
    tight_depths: tuple[int, ...] = (1, 10, 100, 1000),
    generic_depths: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512), fields: int = 5,
    dimension: int = 4,
) -> Findings:  # fmt: skip
    """Measure the distances of the examples and of random fields.

    Curves: ``depths`` (``tight_depths`` for the example tight), and for every example
    ``gap_NAME``, the largest distance over the nodes, ``bound_NAME``, and ``off_NAME``, how far
    the distances are from the closed form; ``generic_depths``, and of shape
    ``(generic_depths, fields)`` ``gap_generic`` and ``ratio_generic``, the largest distance over
    its bound, over all nodes.
    """
    if any(max(generic_depths) % depth for depth in generic_depths):
        raise ValueError(f"generic_depths must divide the largest of them; got {generic_depths}")
    examples = {"line": _line, "tight": _tight, "counting": _counting, "zigzag": _zigzag}

    def measure(part: Part, name: str) -> Any:
        if name == "generic":
            return _generic(run, generic_depths, fields, dimension)
        own = tight_depths if name == "tight" else depths
        return [examples[name](depth, run.device) for depth in own]

    parts = run.map(measure, {name: (name,) for name in (*examples, "generic")})
    generic = parts.pop("generic")
    slopes = [fit_slope(generic_depths, gap).value for gap in np.transpose(generic["gap_generic"])]
    scalars = {
        "slope_shallowest": max(slopes), "slope_steepest": min(slopes),
        "ratio": np.max(generic["ratio_generic"]),
    }  # fmt: skip
    curves: dict[str, Any] = {"depths": depths, "tight_depths": tight_depths}
    curves |= {"generic_depths": generic_depths, **generic}
    for name, rows in parts.items():
        gap, bound, off = np.array(rows).T
        curves |= {f"gap_{name}": gap, f"bound_{name}": bound, f"off_{name}": off}
        scalars[f"closed_{name}"] = off.max()
    scalars["excess_line"] = np.abs(curves["gap_line"] / curves["bound_line"] - 1).max()
    scalars["attained_tight"] = curves["gap_tight"][-1] / curves["bound_tight"][-1]
    return Findings(scalars, curves)


def _line(layers: int, device: torch.device) -> tuple[float, float, float]:
    """Return gap, bound, and distance to the closed form: the error is |a| s / (2N) at depth s."""
    a = torch.tensor([[1.0, -2.0, 0.5]], dtype=_DTYPE, device=device)
    b = torch.tensor([[0.3, 0.1, -0.7]], dtype=_DTYPE, device=device)
    field = from_field(lambda t, x: a * t + b, layers)
    return _compare(field, torch.ones_like(a), a.norm().item() / (2 * layers) * _depth(layers))


def _tight(layers: int, device: torch.device) -> tuple[float, float, float]:
    """Let the solution be 1 + 0.4 s + C s^2 / 2; the errors then sum to a geometric series."""
    lipschitz, c = _LIPSCHITZ, _ACCELERATION

    def path(s: Tensor) -> Tensor:
        return 1 + 0.4 * s + c / 2 * s**2

    field = from_field(lambda t, x: lipschitz * (x - path(t)) + 0.4 + c * t, layers)
    exact = path(_depth(layers)).to(device)
    gap = (network(field, exact[:1].unsqueeze(1)).flatten() - exact).abs().cpu()
    steps = torch.arange(layers + 1, dtype=_DTYPE)
    grown = torch.expm1(steps * math.log1p(lipschitz / layers))
    bound = euler_bound(c, lipschitz, layers)
    off = (gap - c / (2 * lipschitz * layers) * grown).abs().max()
    return gap.max().item(), bound[-1].item(), off.item()


def _counting(layers: int, device: torch.device) -> tuple[float, float, float]:
    """Let f_n = n: the gap at depth s is s / 2."""
    functions = [lambda x, n=n: torch.full_like(x, n) for n in range(layers + 1)]
    field = between.residual_interpolation(functions[:-1], last=functions[-1])
    return _compare(field, torch.ones(1, 1, dtype=_DTYPE, device=device), _depth(layers) / 2)


def _zigzag(layers: int, device: torch.device) -> tuple[float, float, float]:
    """Let f = theta^2 with theta = 1, -1, 1, ...: the gap at depth s is 2 s / 3."""
    signs = (-1.0) ** torch.arange(layers + 1, dtype=_DTYPE, device=device)

    def square(x: Tensor, theta: Tensor) -> Tensor:
        return theta**2 + 0 * x

    field = between.weight_interpolation(square, signs[:-1], last=signs[-1])
    return _compare(field, torch.zeros(1, 1, dtype=_DTYPE, device=device), 2 * _depth(layers) / 3)


def _depth(layers: int) -> Tensor:
    return torch.arange(layers + 1, dtype=_DTYPE) / layers


def _compare(
    field: between.Interpolation, x: Tensor, expected: Tensor
) -> tuple[float, float, float]:
    """Measure gap and curvature of a field that does not depend on the state."""
    gap = between.ode_distance(field, x, steps=1).squeeze(1).cpu()
    bound = euler_bound(between.curvature(field, x, steps=1).item(), 0.0, field.layers)[-1]
    return gap.max().item(), bound.item(), (gap - expected).abs().max().item()


def _generic(run: Run, depths: tuple[int, ...], fields: int, dimension: int) -> dict[str, Any]:
    """Measure random fields tanh(Wx + c sin 3s) + w cos 2s with norm of W one, all at once."""
    draw = normal(run.seed, run.device)
    weight, shift = draw(fields, dimension, dimension), draw(fields, dimension)
    drift, x = draw(fields, dimension), draw(fields, dimension)
    weight /= torch.linalg.matrix_norm(weight, 2)[:, None, None]

    def field(t: Tensor, x: Tensor) -> Tensor:
        inner = torch.einsum("fij,fj->fi", weight, x) + shift * torch.sin(3 * t)
        return torch.tanh(inner) + drift * torch.cos(2 * t)

    finest = max(depths)
    exact = between.solution(from_field(field, finest), x, steps=4)
    largest = between.curvature(from_field(field, finest), x, steps=1)
    gaps, ratios = [], []
    for depth in depths:
        gap = (network(from_field(field, depth), x) - exact[:: finest // depth]).norm(dim=2)
        unit = euler_bound(1.0, 1.0, depth).to(run.device)
        gaps.append(gap.amax(0).tolist())
        ratios.append((gap[1:] / (unit[1:, None] * largest)).amax(0).tolist())
    return {"gap_generic": gaps, "ratio_generic": ratios}
