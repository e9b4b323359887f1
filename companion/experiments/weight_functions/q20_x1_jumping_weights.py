r"""Q20-X1: weights that jump cost the schemes their order, unless stages are read from inside.

A scheme with a stage at the far end of a step evaluates the field at a knot. Read from the right,
that stage belongs to the next cell. Queiruga et al. 2020 (section 5.3.1) note that convergence is
not guaranteed with discontinuous weights; this is where, and why.
"""

import torch

from companion.basis import PiecewiseConstant
from companion.experiments.depth_study import (
    geometric_mean,
    initial_states,
    random_block,
    solve_block,
    solve_naively,
)
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.observe import fit_slope
from companion.results import Claim, Findings
from companion.schemes import get_scheme

SCHEMES = ("euler", "midpoint", "heun", "rk4", "rk4_38")
CELLS = 4


@experiment(
    "Q20-X1",
    "Orders with weights that jump: one-sided and right-continuous stages",
    paper="Queiruga et al. 2020, section 5.3.1 (a remark)",
    claims=("Q20-X1",),
    full={"fields": 32, "steps": (16, 32, 64, 128, 256), "finest": 4096},
)
def q20_x1(
    run: Run, *, fields: int = 4, steps: tuple[int, ...] = (16, 32, 64, 128), finest: int = 2048
) -> Findings:
    """Fit the order of five schemes on grids that meet the 4 cells, and on grids that do not.

    The error is the largest distance of the 8 end states to those of one-sided ``rk4`` with
    ``finest`` steps. An aligned grid has ``steps`` steps, multiples of 4; an unaligned one has one
    step more.

    Curves: ``steps``; ``STAGES_GRID_SCHEME`` of shape ``(fields, steps)``, the errors. Scalars:
    ``order_STAGES_GRID_SCHEME``, fitted to the geometric mean over the random fields. ``STAGES`` is
    ``one_sided`` or ``naive``, ``GRID`` is ``aligned`` or ``unaligned``.
    """

    def measure(part: Part, seed: int) -> dict[str, list[float]]:
        block = random_block(PiecewiseConstant(CELLS), seed, run.device)
        x = initial_states(seed, run.device)
        truth = solve_block(block, x, "rk4", finest)
        errors: dict[str, list[float]] = {}
        for scheme in SCHEMES:
            for grid, extra in (("aligned", 0), ("unaligned", 1)):
                for stages, solve in (("one_sided", solve_block), ("naive", solve_naively)):
                    ends = [solve(block, x, scheme, n + extra) for n in steps]
                    errors[f"{stages}_{grid}_{scheme}"] = [_distance(y, truth) for y in ends]
        return errors

    found = run.map(measure, {f"field {k}": (run.seed + k,) for k in range(fields)})
    curves = {name: [errors[name] for errors in found.values()] for name in found["field 0"]}
    orders = {}
    for name, errors in curves.items():
        grid = [n + 1 for n in steps] if "_unaligned_" in name else steps
        orders[f"order_{name}"] = -fit_slope(grid, geometric_mean(errors)).value
    return Findings(orders, {"steps": steps, **curves}, _claims(orders))


def _claims(orders: dict[str, float]) -> list[Claim]:
    claims = []
    for scheme in SCHEMES:
        order = get_scheme(scheme).order
        reads_far_end = get_scheme(scheme).c[-1] == 1
        for stages, grid, expected in (
            ("one_sided", "aligned", order),
            ("naive", "aligned", 1 if reads_far_end else order),
            ("one_sided", "unaligned", 1),
        ):
            text = f"order of {scheme}, {stages.replace('_', '-')} stages, {grid} grid"
            observed = orders[f"order_{stages}_{grid}_{scheme}"]
            low, high = expected - 0.1, expected + 0.1
            claims.append(Claim("Q20-X1", text, observed, low=low, high=high))
    return claims


def _distance(ends: torch.Tensor, truth: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(ends - truth, dim=1).max())
