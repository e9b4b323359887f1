r"""S22-X1: how fast reverse Euler and reverse Heun improve with depth, for six kinds of weights.

Sander et al. (2022, propositions 5 and 6) bound reverse Heun's errors by
$O(\Delta/N + 1/N^2)$ for states and $O(\Delta/N^2 + 1/N^3)$ for gradients, where $\Delta$ is the
largest squared jump of the weights. Without remainders the bound is a product of two sums
(:func:`companion.analysis.bounds.heun_bounds`), and the rates for weights smooth in depth are
$N^{-3}$ and $N^{-4}$.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.memory_free import tanh_networks as nets
from companion.experiments.memory_free.tanh_networks import FAMILIES, Draw

_PAPER: dict[str, float] = {
    "tied": -2, "smooth": -2, "zigzag_1_over_n": -2, "zigzag_1_over_root_n": -2, "zigzag_1": -1,
    "iid": -1,
}  # fmt: skip
"""The rate of reverse Heun's states that the paper's bound allows; gradients are one faster."""

_RATES: dict[str, float] = {
    "tied": -3, "smooth": -3, "zigzag_1_over_n": -3, "zigzag_1_over_root_n": -2, "zigzag_1": -1,
    "iid": -1.25,
}  # fmt: skip
"""What the product bound predicts, and for independent layers the middle of -1 and -1.5."""

_EXPECTED = (
    *(("euler", family, -1.0) for family in FAMILIES),
    *(("heun", family, rate) for family, rate in _RATES.items()),
)

_MARGINS = {("euler", "iid"): 0.16, ("heun", "iid"): 0.31}
"""Half the width of a rate's band where it is not 0.06: every depth draws fresh layers.

Defects of independent layers point in random directions, which cancel in part; their mean remains,
so the slopes tend to those of the bound, -1 and -2.
"""

Curve = NDArray[np.float64]


@experiment(
    "S22-X1",
    "Rates of reverse Euler and reverse Heun for six kinds of weights",
    paper="Sander et al. 2022, lemma 4, propositions 5 and 6",
    claims=(
        *(
            (id, f"slope_{name}_heun_{family}", None, round(rate + 0.05, 6),
             f"slope of {name} against layers, heun, {family.replace('_', ' ')} weights")
            for family, allowed in _PAPER.items()
            for id, name, rate in (
                ("CL55", "states", allowed), ("CL56", "gradients", allowed - 1),
            )
        ),
        *(
            ("S22-X1", f"slope_{name}_{method}_{family}", round(rate - margin, 6),
             round(rate + margin, 6),
             f"slope of {name} against layers, {method}, {family.replace('_', ' ')} weights")
            for method, family, order in _EXPECTED
            for margin in (_MARGINS.get((method, family), 0.06),)
            for name, rate in (("states", order), ("gradients", order - 1))
        ),
        ("S22-X1", "slope_defect_jump", -2.05, -1.95,
         "slope of one Heun step's defect without its leading term"),
        ("S22-X1", "slope_defect_tied", -3.05, -2.95,
         "slope of one Heun step's defect, equal weights"),
        ("S22-X1", "ratio_states", None, 1.0,
         "largest state error over its bound, Heun, all weights, depths, layers"),
        ("S22-X1", "ratio_gradients", None, 1.0,
         "largest gradient error over its bound, Heun, all weights, depths, layers"),
        ("S22-X1", "identity", None, 1e-12,
         "deviation of a linear round trip from (1 + rate^4/4N^4)^N"),
    ),
    full={"steps": (16, 32, 64, 128, 256, 512, 1024), "networks": 32, "dim": 16},
    tiny={"steps": (8, 16), "networks": 2, "dim": 3},
    machine_dependent=("identity",),
)  # fmt: skip
def s22_x1(
    run: Run, *, steps: tuple[int, ...] = (16, 32, 64, 128, 256), networks: int = 8, dim: int = 6
) -> Findings:
    """Measure both methods on every family of weights at every depth.

    Curves: ``steps``; for each method and family of weights ``states_METHOD_FAMILY`` and
    ``gradients_METHOD_FAMILY``, the largest error of a state and of the gradient of one set of
    weights, and ``relative_METHOD_FAMILY``, the relative error of the whole gradient, of shape
    ``(steps, networks)``; ``defect_jump`` and ``defect_tied``, of shape ``(steps, networks)``:
    what the leading term of lemma 4 leaves of one step's defect. Scalars: ``slope_NAME`` and
    ``slope_error_NAME`` for every such curve, and what decides claims.
    """
    drawn = Draw(networks, dim, run.seed, run.device)

    def sweep(part: Part, method: str, family: str, n: int) -> dict[str, list[float]]:
        return nets.measure(nets.draw_networks(family, method, n, drawn)).largest()

    found = grids(run, sweep, method=("euler", "heun"), family=FAMILIES, n=steps)
    states, gradients = (
        found.pop(f"{name}_ratio").at(method="heun") for name in ("state", "gradient")
    )
    curves: dict[str, Curve] = named(found, "method", "family")
    for name, family in (("jump", "zigzag_1"), ("tied", "tied")):
        curves[f"defect_{name}"] = _defects(family, steps, drawn)
    trips = {
        (rate, n): nets.round_trip("heun", rate, n) for rate in (1.7, -0.9) for n in (1, 5, *steps)
    }
    scalars = {
        "identity": max(
            abs(x / (1 + (rate / n) ** 4 / 4) ** n - 1) for (rate, n), x in trips.items()
        ),
        "ratio_states": states.values.max(),
        "ratio_gradients": gradients.values.max(),
    }
    for key, curve in curves.items():
        slope = nets.fit_rate(steps, curve)
        scalars |= {f"slope_{key}": slope.value, f"slope_error_{key}": slope.error}
    return Findings(scalars, {"steps": steps, **curves})


@torch.no_grad()
def _defects(family: str, steps: tuple[int, ...], drawn: Draw) -> Curve:
    """Return the norm of a step's defect minus its leading term, of shape (steps, networks)."""
    networks = nets.draw_networks(family, "heun", 1, drawn)
    first, second = networks.layers
    x, rows = networks.x0, []
    f, g = first(x), second(x)
    turned = _pushed(second, x, g, g - f) - _pushed(first, x, f, g - f)
    for n in steps:
        h = 1 / n
        phi = (f + second(x + h * f)) / 2
        end = x + h * phi
        psi = (second(end) + first(end - h * second(end))) / 2
        rows.append((psi - phi - h / 4 * turned).norm(dim=-1).tolist())
    return np.array(rows)


def _pushed(layer: nets.TanhLayer, x: Tensor, value: Tensor, v: Tensor) -> Tensor:
    """Return the layer's Jacobian at ``x``, where it takes ``value``, applied to ``v``."""
    return (1 - value**2) * (layer.weight @ v.unsqueeze(-1)).squeeze(-1)
