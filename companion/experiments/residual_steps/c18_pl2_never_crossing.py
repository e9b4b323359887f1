r"""C18-PL2: two solutions of a Lipschitz equation never meet.

For a field with Lipschitz constant $L$, the distance of two solutions at time t lies between
$e^{-Lt}$ and $e^{Lt}$ times their distance at the start (Gronwall, both ways). Chen et al. (2018,
section 6) name the theorem of Picard and Lindelöf; the two-sided bound is ours.
"""

import torch

from companion.experiments import Findings, Part, Run, experiment, grids, named, recipes
from companion.ode import odeint


@experiment(
    "C18-PL2",
    "The distance of two solutions of a random network stays between two exponentials",
    paper="Chen et al. 2018, section 6",
    full={"fields": 200, "dimension": 10, "pairs": 200, "steps": 400},
    tiny={"fields": 2, "pairs": 4, "steps": 20},
    claims=(
        ("CL01", "lowest", -1, None, "smallest log(distance ratio) / Lipschitz constant"),
        ("CL01", "highest", None, 1, "largest log(distance ratio) / Lipschitz constant"),
    ),
)
def c18_pl2(
    run: Run, *, fields: int = 5, dimension: int = 3, pairs: int = 30, steps: int = 50
) -> Findings:
    r"""Solve $\dot x = \tanh(Wx)$ from pairs of points, for several random W.

    The rate of a pair is log(distance at time 1 / distance at time 0) / Lipschitz constant.
    Curves, one value a field: ``lipschitz``, the norm of W; ``slowest`` and ``fastest``, the
    extreme rates. Scalars: ``pairs``, in all, and what decides the claims.
    """

    def solve(part: Part, seed: int) -> dict[str, float]:
        draw = recipes.normal(seed, run.device)
        weight, start = draw(dimension, dimension), draw(2, pairs, dimension)
        end = odeint(
            lambda t, x: torch.tanh(x @ weight.T), start, [0.0, 1.0], method="rk4", steps=steps
        )[-1]
        before, after = ((x[0] - x[1]).norm(dim=-1) for x in (start, end))
        lipschitz = torch.linalg.matrix_norm(weight, 2)
        rates = (after / before).log() / lipschitz
        slowest, fastest = rates.min().item(), rates.max().item()
        return {"lipschitz": lipschitz.item(), "slowest": slowest, "fastest": fastest}

    curves = named(grids(run, solve, seed=run.seeds(fields)))
    lowest, highest = curves["slowest"].min(), curves["fastest"].max()
    return Findings({"pairs": fields * pairs, "lowest": lowest, "highest": highest}, curves)
