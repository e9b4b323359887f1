r"""Q20-ST: the factor of a stitch, as printed and as it must be.

Queiruga et al. 2020 (appendix A.1) scale the residual of a stitch to that within the blocks and
print the factor $\varepsilon T/\Delta t$. But a step of a block adds $\varepsilon\,\Delta t/T$
times the residual.
"""

import numpy as np
import torch

from companion.basis import Constant
from companion.block import OdeBlock
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.models import ContinuousNet, Stitch, pre_activation_unit
from companion.solve import FixedStep
from companion.train import seeded


@experiment(
    "Q20-ST",
    "The printed and the corrected factor of a stitch",
    paper="Queiruga et al. 2020, appendix A.1",
    full={"steps": (1, 2, 4, 8, 16, 32, 64, 128), "channels": 16},
    tiny={"steps": (1, 3, 8), "channels": 2},
    tolerance=1e-2,  # single precision
    machine_dependent=("worst_corrected",),  # rounding, which no two processors share
    claims=(),
)
def q20_st(
    run: Run, *, steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32), channels: int = 4
) -> Findings:
    r"""Compare what a stitch adds with what a step of a block adds, for the same residual.

    Curves: ``steps``; for ``RULE`` in ``classic``, $\varepsilon = N_t$, and ``scaled``,
    $\varepsilon = 1$, the ratio of the two sizes with the factor of a
    :class:`~companion.models.ContinuousNet`, ``corrected_RULE``, and with the printed one,
    ``printed_RULE``. Scalars: ``worst_FACTOR``, the largest distance of a ratio from 1.
    """

    @torch.no_grad()
    def ratios(part: Part, rule: str, n: int) -> dict[str, float]:
        scale = float(n) if rule == "classic" else 1.0
        with seeded(run.seed):
            unit = pre_activation_unit(channels).to(run.device)
            x = torch.randn(8, channels, 6, 6).to(run.device)
            net = ContinuousNet(channels=(4, 4), basis=Constant(), steps=n, scale=scale)
        stitch = net.stitches[0]
        assert isinstance(stitch, Stitch)
        problem = OdeBlock(unit, steps=n, scale=scale).problem(x)
        assert isinstance(problem.solver, FixedStep)
        added = problem.solver.ahead(problem.field, x, next(problem.solver.grid(problem.t))) - x
        residual = float(unit(x).norm() / added.norm())
        return {"corrected": stitch.scale * residual, "printed": scale * n * residual}

    found = grids(run, ratios, rule=("classic", "scaled"), n=steps)
    worst = {f"worst_{name}": np.abs(pair.values - 1).max() for name, pair in found.items()}
    return Findings(worst, {"steps": steps, **named(found, "rule")})
