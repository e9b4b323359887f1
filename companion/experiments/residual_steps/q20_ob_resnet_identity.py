r"""Q20-OB: a residual network and Euler's method are the same computation.

Queiruga et al. (2020, sections 2 and 4) read the layer $x + \mathcal R(x, \theta_n)$ as an
Euler step, and write other schemes with the same unit (Fig. 5). Here a block is compared with plain
layers that share no code with it, in values and in gradients.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from companion.block import OdeBlock
from companion.experiments import Findings, Part, Run, experiment, grid
from companion.ode import odeint
from companion.train import seeded

_Unit = Callable[[Tensor], Tensor]
_Layer = Callable[[_Unit, Tensor, float], Tensor]


@experiment(
    "Q20-OB",
    "Blocks against plain residual layers, written out for every scheme",
    paper="Queiruga et al. 2020, Eqs. 1 to 3 and Fig. 5",
    full={"depths": (1, 3, 8, 64, 512), "width": 64},
    tiny={"depths": (3, 8)},
    claims=(
        ("CL02", "worst_unit_steps", None, 0, "Euler with step 1 against x + f(x), float32"),
        ("CL31", "worst_classic", None, 0, "block with scale N against x + f(x), float32"),
        ("CL31", "worst_scaled", None, 0, "block with scale 1 against x + (1/N) f(x), float32"),
        ("CL30", "others", None, 1e-12, "five other schemes against layers, float64"),
    ),
)
def q20_ob(run: Run, *, depths: tuple[int, ...] = (1, 3, 8, 64), width: int = 8) -> Findings:
    """Compare outputs and gradients with those of plain layers.

    Curves: ``depths``; the largest difference in the output or a gradient of ``unit_steps`` (the
    package's Euler solver with step 1 against layers x + f(x), float32), of ``classic`` and
    ``scaled`` (Euler blocks against x + f(x) and x + (1/N) f(x), float32), and of a block with each
    other scheme against that scheme written out (float64).
    """
    schemes = [name for name in WRITTEN_OUT if name != "euler"]
    exact = ("unit_steps", "classic", "scaled")

    def compare(part: Part, kind: str, depth: int) -> float:
        scheme, dtype = (kind, torch.float64) if kind in schemes else ("euler", torch.float32)
        with seeded(run.seed):
            units = [_unit(width).to(run.device, dtype) for _ in range(depth)]
            x = torch.randn(5, width).to(run.device, dtype)
        plain = x
        for unit in units:
            h = 1.0 if kind in ("unit_steps", "classic") else 1 / depth
            plain = WRITTEN_OUT[scheme](unit, plain, h)
        if kind == "unit_steps":
            times = [0.0, float(depth)]
            end = odeint(lambda t, x: units[int(t)](x), x, times, method="euler", steps=depth)
            ours = _with_gradients(end[-1], units)
        else:
            scale = float(depth) if kind == "classic" else 1.0
            block = OdeBlock.from_modules(units, method=scheme, scale=scale)
            ours = _with_gradients(block(x), [block.weights])
        return float((ours - _with_gradients(plain, units)).abs().max())

    found = grid(run, compare, kind=(*exact, *schemes), depth=depths)
    worst = found.max("depth").named("worst", "kind")
    scalars = {"others": max(worst[f"worst_{scheme}"] for scheme in schemes)}
    scalars |= {f"worst_{kind}": worst[f"worst_{kind}"] for kind in exact}
    curves = {kind: found.at(kind=kind).values for kind in (*exact, *schemes)}
    return Findings(scalars, {"depths": depths, **curves})


def _heun(f: _Unit, x: Tensor, h: float) -> Tensor:
    first = f(x)
    return x + h / 2 * (first + f(x + h * first))


def _kutta3(f: _Unit, x: Tensor, h: float) -> Tensor:
    first = f(x)
    second = f(x + h / 2 * first)
    return x + h / 6 * (first + 4 * second + f(x - h * first + 2 * h * second))


def _rk4(f: _Unit, x: Tensor, h: float) -> Tensor:
    first = f(x)
    second = f(x + h / 2 * first)
    third = f(x + h / 2 * second)
    return x + h / 6 * (first + 2 * second + 2 * third + f(x + h * third))


def _rk4_38(f: _Unit, x: Tensor, h: float) -> Tensor:
    first = f(x)
    second = f(x + h / 3 * first)
    third = f(x - h / 3 * first + h * second)
    return x + h / 8 * (first + 3 * second + 3 * third + f(x + h * (first - second + third)))


WRITTEN_OUT: dict[str, _Layer] = {
    "euler": lambda f, x, h: x + h * f(x), "midpoint": lambda f, x, h: x + h * f(x + h / 2 * f(x)),
    "heun": _heun, "kutta3": _kutta3, "rk4": _rk4, "rk4_38": _rk4_38,
}  # fmt: skip
"""One layer of each scheme, from the residual unit ``f``, sums and skip connections alone."""


def _with_gradients(y: Tensor, modules: Sequence[nn.Module]) -> Tensor:
    """Return ``y`` and the gradients of its sum of squares, parameter by parameter, in one row."""
    names = [name for name, _ in modules[0].named_parameters()]
    wanted = [module.get_parameter(name) for name in names for module in modules]
    return torch.cat(
        [v.detach().flatten() for v in (y, *torch.autograd.grad((y**2).sum(), wanted))]
    )


def _unit(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width, bias=False))
