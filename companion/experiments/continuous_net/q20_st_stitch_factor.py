r"""Q20-ST: the factor of a stitch, as printed and as it must be.

Queiruga et al. 2020 (appendix A.1) scale the residual of a stitch to that within the blocks and
print the factor :math:`\varepsilon T/\Delta t`. But a step of a block adds
:math:`\varepsilon\,\Delta t/T` times the residual.
"""

import torch

from companion.basis import Constant
from companion.block import OdeBlock
from companion.experiments.registry import experiment
from companion.experiments.running import Run
from companion.models import ContinuousNet, Stitch, pre_activation_unit
from companion.results import Findings
from companion.solve import FixedStep
from companion.train import seeded


@experiment(
    "Q20-ST",
    "The printed and the corrected factor of a stitch",
    paper="Queiruga et al. 2020, appendix A.1",
    claims=(),
    full={"steps": (1, 2, 4, 8, 16, 32, 64, 128), "channels": 16},
)
def q20_st(
    run: Run, *, steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32), channels: int = 4
) -> Findings:
    r"""Compare what a stitch adds with what a step of a block adds, for the same residual.

    Curves: ``steps``; for ``RULE`` in ``classic``, :math:`\varepsilon = N_t`, and ``scaled``,
    :math:`\varepsilon = 1`, the ratio of the two sizes with the factor of a
    :class:`~companion.models.ContinuousNet`, ``corrected_RULE``, and with the printed one,
    ``printed_RULE``. Scalars: the largest distance of a ratio from 1, ``worst_corrected`` and
    ``worst_printed``.
    """
    ratios = {
        rule: [_ratios(run, n, float(n) if rule == "classic" else 1.0, channels) for n in steps]
        for rule in ("classic", "scaled")
    }
    curves = {
        f"{factor}_{rule}": [pair[k] for pair in pairs]
        for rule, pairs in ratios.items()
        for k, factor in enumerate(("corrected", "printed"))
    }
    worst = {
        f"worst_{factor}": max(
            abs(ratio - 1) for name, values in curves.items() if factor in name for ratio in values
        )
        for factor in ("corrected", "printed")
    }
    return Findings(worst, {"steps": steps, **curves})


@torch.no_grad()
def _ratios(run: Run, steps: int, scale: float, channels: int) -> tuple[float, float]:
    """Return what a stitch adds over what a block's first step adds: corrected, printed."""
    with seeded(run.seed):
        unit = pre_activation_unit(channels).to(run.device)
        x = torch.randn(8, channels, 6, 6).to(run.device)
        net = ContinuousNet(channels=(4, 4), basis=Constant(), steps=steps, scale=scale)
    stitch = net.stitches[0]
    assert isinstance(stitch, Stitch)
    problem = OdeBlock(unit, steps=steps, scale=scale).problem(x)
    assert isinstance(problem.solver, FixedStep)
    added = problem.solver.ahead(problem.field, x, next(problem.solver.grid(problem.t))) - x
    residual = float(unit(x).norm() / added.norm())
    return stitch.scale * residual, scale * steps * residual
