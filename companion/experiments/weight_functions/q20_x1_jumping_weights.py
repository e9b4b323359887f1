r"""Q20-X1: weights that jump cost the schemes their order, unless stages are read from inside.

A scheme with a stage at the far end of a step evaluates the field at a knot. Read from the right,
that stage belongs to the next cell. Queiruga et al. 2020 (section 5.3.1) note that convergence is
not guaranteed with discontinuous weights; this is where, and why.
"""

from companion.basis import PiecewiseConstant
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments import depth_study as study
from companion.observe import fit_slope, geometric_mean
from companion.schemes import get_scheme

SCHEMES = ("euler", "midpoint", "heun", "rk4", "rk4_38")
CELLS = 4
STAGES = {"one_sided": study.solve_block, "naive": study.solve_naively}
GRIDS = {"aligned": 0, "unaligned": 1}
"""By how many steps a grid exceeds a multiple of the cells."""


def _expected(name: str) -> tuple[tuple[str, str, int], ...]:
    """Return the orders of a scheme, for stages and a grid."""
    scheme = get_scheme(name)
    naive = 1 if scheme.c[-1] == 1 else scheme.order  # a stage at the far end reads the next cell
    aligned = (("one_sided", "aligned", scheme.order), ("naive", "aligned", naive))
    return (*aligned, ("one_sided", "unaligned", 1))


@experiment(
    "Q20-X1",
    "Orders with weights that jump: one-sided and right-continuous stages",
    paper="Queiruga et al. 2020, section 5.3.1 (a remark)",
    full={"fields": 32, "steps": (16, 32, 64, 128, 256), "finest": 4096},
    tiny={"fields": 2, "steps": (4, 8), "finest": 64},
    claims=tuple(
        ("Q20-X1", f"order_{stages}_{where}_{name}", order - 0.1, order + 0.1,
         f"order of {name}, {stages.replace('_', '-')} stages, {where} grid")
        for name in SCHEMES for stages, where, order in _expected(name)
    ),
)  # fmt: skip
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

    def errors(part: Part, seed: int) -> dict[str, list[float]]:
        block, x, truth = study.random_problem(PiecewiseConstant(CELLS), seed, finest, run.device)
        return {
            f"{kind}_{where}_{scheme}": [
                study.largest_distance(solve(block, x, scheme, n + more), truth) for n in steps
            ]
            for kind, solve in STAGES.items()
            for where, more in GRIDS.items()
            for scheme in SCHEMES
        }

    curves = named(grids(run, errors, seed=run.seeds(fields)))
    scalars: dict[str, float] = {}
    for name, table in curves.items():
        counts = [n + ("unaligned" in name) for n in steps]
        scalars[f"order_{name}"] = -fit_slope(counts, geometric_mean(table).tolist()).value
    return Findings(scalars, {"steps": steps, **curves})
