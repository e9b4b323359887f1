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
from torch import Tensor, nn

from companion.analysis.reconstruction import reconstruction
from companion.basis import Constant
from companion.block import OdeBlock
from companion.experiments.memory_free.tanh_networks import (
    FAMILIES,
    Draw,
    TanhLayer,
    draw_networks,
    fit_rate,
    measure,
)
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.gradients import Reconstruct
from companion.results import Claim, Findings

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

_MARGINS = {("euler", "iid"): 0.16, ("heun", "iid"): 0.31}
"""Half the width of a rate's band where it is not 0.06: every depth draws fresh layers."""

_IID = (
    "defects of independent layers point in random directions, which cancel in part; their mean "
    "remains, so the slopes tend to those of the bound, -1 and -2"
)

Curve = NDArray[np.float64]


@experiment(
    "S22-X1",
    "Rates of reverse Euler and reverse Heun for six kinds of weights",
    paper="Sander et al. 2022, lemma 4, propositions 5 and 6",
    claims=("CL55", "CL56", "S22-X1"),
    full={"steps": (16, 32, 64, 128, 256, 512, 1024), "networks": 32, "dim": 16},
)
def s22_x1(
    run: Run, *, steps: tuple[int, ...] = (16, 32, 64, 128, 256), networks: int = 8, dim: int = 6
) -> Findings:
    """Measure both methods on every family of weights at every depth.

    Curves: ``steps``; for each method and family of weights ``states_METHOD_FAMILY`` and
    ``gradients_METHOD_FAMILY``, the largest error of a state and of the gradient of one set of
    weights, and ``relative_METHOD_FAMILY``, the relative error of the whole gradient, of shape
    ``(steps, networks)``; ``defect_jump`` and ``defect_tied``, of shape ``(steps, networks)``:
    what the leading term of lemma 4 leaves of one step's defect.
    Scalars: ``slope_NAME`` and ``slope_error_NAME`` for every such curve; ``ratio_states`` and
    ``ratio_gradients``, Heun's largest error over its bound; ``identity``.
    """
    names = ("states", "gradients", "relative")
    drawn = Draw(networks, dim, run.seed, run.device)

    def sweep(part: Part, method: str, family: str, n: int) -> list[list[float]]:
        errors = measure(draw_networks(family, method, n, drawn))
        largest = [errors.states.amax(0).tolist(), errors.gradients.amax(0).tolist()]
        ratios = [errors.state_ratio, errors.gradient_ratio]
        return [*largest, errors.relative.tolist(), *ratios]

    kinds = [(method, family) for method in ("euler", "heun") for family in FAMILIES]
    parts = {
        f"{method}, {family}, {n} layers": (method, family, n)
        for method, family in kinds
        for n in steps
    }
    table = np.array(list(run.map(sweep, parts).values()))
    table = table.reshape(len(kinds), len(steps), len(names) + 2, networks)
    curves: dict[str, Curve] = {
        f"{name}_{method}_{family}": table[i, :, j]
        for i, (method, family) in enumerate(kinds)
        for j, name in enumerate(names)
    }
    for name, family in (("jump", "zigzag_1"), ("tied", "tied")):
        curves[f"defect_{name}"] = _defects(family, steps, drawn)
    scalars = {"identity": max(_identity(rate, n) for rate in (1.7, -0.9) for n in (1, 5, *steps))}
    for key, curve in curves.items():
        slope = fit_rate(steps, curve)
        scalars |= {f"slope_{key}": slope.value, f"slope_error_{key}": slope.error}
    heun = table[len(FAMILIES) :]
    scalars |= {"ratio_states": heun[:, :, 3].max(), "ratio_gradients": heun[:, :, 4].max()}
    return Findings(scalars, {"steps": steps, **curves}, _claims(scalars))


def _claims(scalars: dict[str, float]) -> list[Claim]:
    """Decide the paper's rates, which are upper bounds, and then ours, which are sharp."""

    def slope(id: str, key: str, low: float | None, high: float, note: str = "") -> Claim:
        name, method, family = key.split("_", 2)
        text = f"slope of {name} against layers, {method}, {family.replace('_', ' ')} weights"
        return Claim(id, text, scalars[f"slope_{key}"], _rounded(low), _rounded(high), note)

    claims = []
    for family, rate in _PAPER.items():
        claims.append(slope("CL55", f"states_heun_{family}", None, rate + 0.05))
        claims.append(slope("CL56", f"gradients_heun_{family}", None, rate - 1 + 0.05))
    for method in ("euler", "heun"):
        for family in FAMILIES:
            rate = -1.0 if method == "euler" else _RATES[family]
            margin = _MARGINS.get((method, family), 0.06)
            note = _IID if (method, family) == ("heun", "iid") else ""
            for name, at in (("states", rate), ("gradients", rate - 1)):
                key = f"{name}_{method}_{family}"
                claims.append(slope("S22-X1", key, at - margin, at + margin, note))
    remainder = "slope of one Heun step's defect"
    return [
        *claims,
        Claim("S22-X1", f"{remainder} without its leading term", scalars["slope_defect_jump"],
              low=-2.05, high=-1.95),
        Claim("S22-X1", f"{remainder}, equal weights", scalars["slope_defect_tied"],
              low=-3.05, high=-2.95),
        Claim("S22-X1", "largest state error over its bound, Heun, all weights, depths, layers",
              scalars["ratio_states"], high=1.0),
        Claim("S22-X1", "largest gradient error over its bound, Heun, all weights, depths, layers",
              scalars["ratio_gradients"], high=1.0),
        Claim("S22-X1", "deviation of a linear round trip from (1 + rate^4/4N^4)^N",
              scalars["identity"], high=1e-12),
    ]  # fmt: skip


def _rounded(x: float | None) -> float | None:
    """Return a bound without the last digits that sums of decimals leave."""
    return None if x is None else round(x, 6)


def _identity(rate: float, steps: int) -> float:
    """Return how far a tied linear HeunNet's round trip is from its closed form, relatively."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(layer.weight, rate)
    block = OdeBlock(layer, Constant(), method="heun", steps=steps)
    x0 = torch.ones(1, 1, dtype=torch.float64)
    with torch.no_grad():
        back = reconstruction(block, block(x0), Reconstruct())[0]
    return abs(back.item() / (1 + (rate / steps) ** 4 / 4) ** steps - 1)


@torch.no_grad()
def _defects(family: str, steps: tuple[int, ...], drawn: Draw) -> Curve:
    """Return the norm of a step's defect minus its leading term, of shape (steps, networks)."""
    networks = draw_networks(family, "heun", 1, drawn)
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


def _pushed(layer: TanhLayer, x: Tensor, value: Tensor, v: Tensor) -> Tensor:
    """Return the layer's Jacobian at ``x``, where it takes ``value``, applied to ``v``."""
    return (1 - value**2) * (layer.weight @ v.unsqueeze(-1)).squeeze(-1)
