r"""FW1: other bases of weight functions: the order they allow, and nets with half the parameters.

Queiruga et al. 2020 (section 4.2) leave other bases to future work. A step of a scheme of order
:math:`r` that crosses a knot of a function with :math:`q` continuous derivatives errs by
:math:`O(h^{q+2})`, and a fixed number of steps do so. On a grid that ignores the knots the order is
:math:`\min(r, q + 2)`, with :math:`q = -1` for jumps.
"""

from typing import Any

import numpy as np

from companion.basis import (
    Basis,
    Chebyshev,
    DiscontinuousLinear,
    Fourier,
    PiecewiseConstant,
    PiecewiseLinear,
)
from companion.data import Samples, load_digits
from companion.experiments.continuous_digits import Variant, swap_table, train_digits
from companion.experiments.depth_study import (
    geometric_mean,
    initial_states,
    random_block,
    solve_block,
)
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.observe import fit_slope
from companion.results import Claim, Findings
from companion.schemes import get_scheme

SCHEMES = ("euler", "midpoint", "heun", "rk4", "rk4_38")

CELLS = 5
"""Not 4: at a quarter, a half and three quarters of a step the 3/8 rule integrates a kink exactly,
and a grid with a step more than a multiple of 4 meets every knot there."""

BASES: dict[str, Basis] = {
    "constant": PiecewiseConstant(CELLS),
    "discontinuous_linear": DiscontinuousLinear(CELLS),
    "linear": PiecewiseLinear(CELLS),
    "chebyshev": Chebyshev(3),
    "fourier": Fourier(3),
}

NETS = {
    "constant": Variant("rk4", weights=PiecewiseConstant(8)),
    "chebyshev": Variant("rk4", weights=Chebyshev(4)),
}
"""Perceptrons on digits with 8 and with 4 coefficients for every weight."""


@experiment(
    "FW1",
    "Bases of weight functions: orders on grids that ignore knots, and nets on digits",
    paper="Queiruga et al. 2020, section 4.2 (left to future work)",
    claims=("FW1",),
    full={
        "fields": 16,
        "steps": (61, 121, 241, 481),
        "finest": 2400,
        "seeds": 20,
        "graphs": (1, 2, 3, 4, 6, 8, 9, 12, 16, 24, 32, 64),
    },
)
def fw1(
    run: Run,
    *,
    fields: int = 2,
    steps: tuple[int, ...] = (61, 121, 241),
    finest: int = 1200,
    seeds: int = 4,
    epochs: int = 30,
    graphs: tuple[int, ...] = (2, 4, 8, 16, 32),
) -> Findings:
    r"""Fit orders in five bases, then train nets in two of them and run these under other graphs.

    Curves: ``steps``, no multiples of the 5 cells; ``errors_BASIS_SCHEME``, of shape
    ``(fields, steps)``, against ``rk4`` with ``finest`` steps; ``graphs``; for ``NET`` in
    ``constant`` and ``chebyshev`` the tables of Q20-F9, ``trained_NET``, ``error_NET``,
    ``deviation_NET`` and ``limit_NET``. Scalars: ``order_BASIS_SCHEME``; ``parameters_NET`` of the
    block; ``mean_trained_NET`` and ``mean_limit_NET``.
    """
    errors = _errors(run, fields, steps, finest)
    orders = {
        f"order_{name}": -fit_slope(steps, geometric_mean(curve)).value
        for name, curve in errors.items()
    }
    data = load_digits(device=run.device)
    nets = run.map(
        lambda part, name: _train(part, name, run.seed, seeds, data, epochs, graphs),
        {f"net, {name}": (name,) for name in NETS},
    )
    tables = {
        f"{key}_{name}": np.array(nets[f"net, {name}"][key])
        for name in NETS
        for key in ("trained", "error", "deviation", "limit")
    }
    means = {
        f"mean_{key}": float(table.mean())
        for key, table in tables.items()
        if key.startswith(("trained", "limit"))
    }
    sizes = {f"parameters_{name}": nets[f"net, {name}"]["parameters"] for name in NETS}
    scalars = {**orders, **means, **sizes}
    named = {f"errors_{name}": curve for name, curve in errors.items()}
    curves = {"steps": steps, "graphs": graphs, **named, **tables}
    return Findings(scalars, curves, _claims(scalars), data.provenance)


def _errors(
    run: Run, fields: int, steps: tuple[int, ...], finest: int
) -> dict[str, list[list[float]]]:
    def measure(part: Part, basis: str, seed: int) -> dict[str, list[float]]:
        block = random_block(BASES[basis], seed, run.device)
        x = initial_states(seed, run.device)
        truth = solve_block(block, x, "rk4", finest)
        return {
            scheme: [
                float((solve_block(block, x, scheme, n) - truth).norm(dim=1).max()) for n in steps
            ]
            for scheme in SCHEMES
        }

    parts = {f"{b}, field {k}": (b, run.seed + k) for b in BASES for k in range(fields)}
    found = run.map(measure, parts)
    return {
        f"{basis}_{scheme}": [found[f"{basis}, field {k}"][scheme] for k in range(fields)]
        for basis in BASES
        for scheme in SCHEMES
    }


def _train(
    part: Part,
    name: str,
    seed: int,
    seeds: int,
    data: Samples,
    epochs: int,
    graphs: tuple[int, ...],
) -> dict[str, Any]:
    """Return the tables of the nets of a variant by seed, and the parameters of a block."""
    own = range(seed, seed + seeds)
    nets = train_digits(part, NETS[name], own, data, epochs=epochs)
    rows = [swap_table(net, data, graphs) for net in nets]
    found: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0]}
    found["parameters"] = sum(p.numel() for p in nets[0].block.parameters())
    return found


def _claims(scalars: dict[str, float]) -> list[Claim]:
    claims = []
    for basis, made in BASES.items():
        for scheme in SCHEMES:
            expected = min(get_scheme(scheme).order, made.continuity + 2)
            text = f"order of {scheme} with {basis.replace('_', ' ')} weights, unaligned grid"
            order = scalars[f"order_{basis}_{scheme}"]
            claims.append(Claim("FW1", text, order, low=expected - 0.1, high=expected + 0.1))
    gap = scalars["mean_trained_chebyshev"] - scalars["mean_trained_constant"]
    share = scalars["parameters_chebyshev"] / scalars["parameters_constant"]
    better = "test error of 4 Chebyshev polynomials minus that of 8 constants"
    smaller = "parameters of the former's block over those of the latter's"
    return [
        *claims,
        Claim("FW1", better, gap, low=-0.01, high=0.01),
        Claim("FW1", smaller, share, high=0.5),
    ]
