r"""C18-PL2: two solutions of a Lipschitz equation never meet.

For a field with Lipschitz constant :math:`L`, the distance of two solutions at time t lies between
:math:`e^{-Lt}` and :math:`e^{Lt}` times their distance at the start (Gronwall, both ways). Chen et
al. (2018, section 6) name the theorem of Picard and Lindelöf; the two-sided bound is ours.
"""

import math

import torch

from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.ode import odeint
from companion.results import Claim, Findings


@experiment(
    id="C18-PL2",
    title="The distance of two solutions of a random network stays between two exponentials",
    paper="Chen et al. 2018, section 6",
    claims=("CL01",),
    tiers={
        "smoke": {"fields": 5, "dimension": 3, "pairs": 30, "steps": 50},
        "full": {"fields": 200, "dimension": 10, "pairs": 200, "steps": 400},
    },
)
def c18_pl2(run: Run, *, fields: int, dimension: int, pairs: int, steps: int) -> Findings:
    r"""Solve :math:`\dot x = \tanh(Wx)` from pairs of points, for several random W.

    Curves: ``lipschitz``, the norm of each W; ``ratio``, distance at time 1 over distance at time
    0, shape ``(fields, pairs)``.
    """
    dtype = torch.float64

    def solve(part: Part, seed: int) -> dict[str, object]:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(dimension, dimension, generator=generator, dtype=dtype)
        start = torch.randn(2, pairs, dimension, generator=generator, dtype=dtype)
        weight, start = weight.to(run.device), start.to(run.device)
        end = odeint(
            lambda t, x: torch.tanh(x @ weight.T), start, [0.0, 1.0], method="rk4", steps=steps
        )[-1]
        ratio = (end[0] - end[1]).norm(dim=-1) / (start[0] - start[1]).norm(dim=-1)
        return {
            "lipschitz": torch.linalg.matrix_norm(weight, 2).item(),
            "ratio": ratio.tolist(),
        }

    found = run.map(solve, {f"field {k}": (run.seed + k,) for k in range(fields)})
    curves = {key: [part[key] for part in found.values()] for key in ("lipschitz", "ratio")}
    # log(ratio) / L lies in [-1, 1], whatever the field.
    position = [
        math.log(ratio) / part["lipschitz"] for part in found.values() for ratio in part["ratio"]
    ]
    claims = [
        Claim("CL01", "smallest log(distance ratio) / Lipschitz constant", min(position), low=-1),
        Claim("CL01", "largest log(distance ratio) / Lipschitz constant", max(position), high=1),
    ]
    return Findings({"lowest": min(position), "highest": max(position)}, curves, claims)
