r"""C18-PL2: two solutions of a Lipschitz equation never meet.

For a field with Lipschitz constant :math:`L`, the distance of two solutions at time t lies between
:math:`e^{-Lt}` and :math:`e^{Lt}` times their distance at the start (Gronwall, both ways). Chen et
al. (2018, section 6) name the theorem of Picard and Lindelöf; the two-sided bound is ours.
"""

import torch

from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.ode import odeint
from companion.results import Claim, Findings


@experiment(
    "C18-PL2",
    "The distance of two solutions of a random network stays between two exponentials",
    paper="Chen et al. 2018, section 6",
    claims=("CL01",),
    full={"fields": 200, "dimension": 10, "pairs": 200, "steps": 400},
)
def c18_pl2(
    run: Run, *, fields: int = 5, dimension: int = 3, pairs: int = 30, steps: int = 50
) -> Findings:
    r"""Solve :math:`\dot x = \tanh(Wx)` from pairs of points, for several random W.

    The rate of a pair is log(distance at time 1 / distance at time 0) / Lipschitz constant.
    Curves, one value a field: ``lipschitz``, the norm of W; ``slowest`` and ``fastest``, the
    extreme rates. Scalars: ``pairs``, in all; ``lowest`` and ``highest``, the extremes over all.
    """
    dtype = torch.float64

    def solve(part: Part, seed: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(dimension, dimension, generator=generator, dtype=dtype)
        start = torch.randn(2, pairs, dimension, generator=generator, dtype=dtype)
        weight, start = weight.to(run.device), start.to(run.device)
        end = odeint(
            lambda t, x: torch.tanh(x @ weight.T), start, [0.0, 1.0], method="rk4", steps=steps
        )[-1]
        before, after = ((x[0] - x[1]).norm(dim=-1) for x in (start, end))
        lipschitz = torch.linalg.matrix_norm(weight, 2)
        rates = (after / before).log() / lipschitz
        return {
            "lipschitz": lipschitz.item(),
            "slowest": rates.min().item(),
            "fastest": rates.max().item(),
        }

    found = run.map(solve, {f"field {k}": (run.seed + k,) for k in range(fields)})
    names = ("lipschitz", "slowest", "fastest")
    curves = {name: [part[name] for part in found.values()] for name in names}
    lowest, highest = min(curves["slowest"]), max(curves["fastest"])
    claims = [
        Claim("CL01", "smallest log(distance ratio) / Lipschitz constant", lowest, low=-1),
        Claim("CL01", "largest log(distance ratio) / Lipschitz constant", highest, high=1),
    ]
    scalars = {"pairs": fields * pairs, "lowest": lowest, "highest": highest}
    return Findings(scalars, curves, claims)
