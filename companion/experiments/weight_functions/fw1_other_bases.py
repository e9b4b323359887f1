r"""FW1: other bases of weight functions: the order they allow, and nets with half the parameters.

Queiruga et al. 2020 (section 4.2) leave other bases to future work. A step of a scheme of order $r$
that crosses a knot of a function with $q$ continuous derivatives errs by $O(h^{q+2})$, and a fixed
number of steps do so. On a grid that ignores the knots the order is $\min(r, q + 2)$, with $q = -1$
for jumps.
"""

from typing import Any

import numpy as np

from companion import basis as bases
from companion.data import load_digits
from companion.experiments import Findings, Grid, Part, Run, experiment, grid, grids, named
from companion.experiments.continuous_digits import Variant, swap_table, train_digits
from companion.experiments.depth_study import largest_distance, random_problem, solve_block
from companion.schemes import get_scheme

SCHEMES = ("euler", "midpoint", "heun", "rk4", "rk4_38")

CELLS = 5
"""Not 4: at a quarter, a half and three quarters of a step the 3/8 rule integrates a kink exactly,
and a grid with a step more than a multiple of 4 meets every knot there."""

BASES: dict[str, bases.Basis] = {
    "constant": bases.PiecewiseConstant(CELLS),
    "discontinuous_linear": bases.DiscontinuousLinear(CELLS),
    "linear": bases.PiecewiseLinear(CELLS),
    "chebyshev": bases.Chebyshev(3),
    "fourier": bases.Fourier(3),
}

NETS = {
    "constant": Variant("rk4", weights=bases.PiecewiseConstant(8)),
    "chebyshev": Variant("rk4", weights=bases.Chebyshev(4)),
}
"""Perceptrons on digits with 8 and with 4 coefficients for every weight."""


@experiment(
    "FW1",
    "Bases of weight functions: orders on grids that ignore knots, and nets on digits",
    paper="Queiruga et al. 2020, section 4.2 (left to future work)",
    full={
        "fields": 16, "steps": (61, 121, 241, 481), "finest": 2400, "seeds": 20,
        "graphs": (1, 2, 3, 4, 6, 8, 9, 12, 16, 24, 32, 64),
    },
    tiny={"fields": 1, "steps": (6, 11), "finest": 40, "seeds": 1, "epochs": 1, "graphs": (2, 4)},
    tolerance=1e-2,  # the nets compute in single precision
    claims=(
        *(("FW1", f"order_{name}_{scheme}", order - 0.1, order + 0.1,
           f"order of {scheme} with {name.replace('_', ' ')} weights, unaligned grid")
          for name, basis in BASES.items() for scheme in SCHEMES
          for order in [min(get_scheme(scheme).order, basis.continuity + 2)]),
        ("FW1", "gap", -0.01, 0.01,
         "test error of 4 Chebyshev polynomials minus that of 8 constants"),
        ("FW1", "share", None, 0.5,
         "parameters of the former's block over those of the latter's"),
    ),
)  # fmt: skip
def fw1(
    run: Run, *, fields: int = 2, steps: tuple[int, ...] = (61, 121, 241), finest: int = 1200,
    seeds: int = 4, epochs: int = 30, graphs: tuple[int, ...] = (2, 4, 8, 16, 32),
) -> Findings:  # fmt: skip
    r"""Fit orders in five bases, then train nets in two of them and run these under other graphs.

    Curves: ``steps``, no multiples of the 5 cells; ``errors_BASIS_SCHEME``, of shape
    ``(fields, steps)``, against ``rk4`` with ``finest`` steps; ``graphs``; for ``NET`` in
    ``constant`` and ``chebyshev`` the tables of Q20-F9, ``trained_NET``, ``error_NET``,
    ``deviation_NET`` and ``limit_NET``. Scalars: ``parameters_NET`` of the block;
    ``mean_trained_NET`` and ``mean_limit_NET``; what decides claims.
    """
    data = load_digits(device=run.device)

    def errors(part: Part, basis: str, seed: int) -> list[list[float]]:
        block, x, truth = random_problem(BASES[basis], seed, finest, run.device)
        ends = [[solve_block(block, x, scheme, n) for n in steps] for scheme in SCHEMES]
        return [[largest_distance(y, truth) for y in row] for row in ends]

    def train(part: Part, net: str) -> dict[str, Any]:
        nets = train_digits(part, NETS[net], run.seeds(seeds), data, epochs=epochs)
        rows = [swap_table(net, data, graphs) for net in nets]
        size = sum(p.numel() for p in nets[0].block.parameters())
        return {"parameters": size, **{key: [row[key] for row in rows] for key in rows[0]}}

    table = grid(run, errors, basis=BASES, seed=run.seeds(fields))
    found = Grid({**table.axes, "scheme": SCHEMES, "steps": steps}, table.values)
    nets = grids(run, train, net=NETS)
    scalars = found.geometric("seed").orders("steps").named("order", "basis", "scheme")
    scalars |= nets.pop("parameters").named("parameters", "net")
    curves = {"steps": steps, "graphs": graphs, **found.named("errors", "basis", "scheme")}
    curves |= named(nets, "net")
    for name in (f"{key}_{net}" for key in ("trained", "limit") for net in NETS):
        scalars[f"mean_{name}"] = np.mean(curves[name])
    scalars["gap"] = scalars["mean_trained_chebyshev"] - scalars["mean_trained_constant"]
    scalars["share"] = scalars["parameters_chebyshev"] / scalars["parameters_constant"]
    return Findings(scalars, curves, data=data.provenance)
