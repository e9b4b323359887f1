r"""Q20-X0: what is left after a step forwards and a step back.

A step of an explicit scheme of order $m$ and the same scheme's step with $-h$ undo each other up to
$O(h^{m+1})$. The leading errors of the two cancel where $m$ is even, so that $O(h^{m+2})$ is left.
This is the lemma on round trips, of which the guess of a memory-free sweep is an instance.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.experiments import Findings, Part, Run, experiment, grid
from companion.experiments.recipes import SIX_SCHEMES, normal
from companion.ode import odeint
from companion.schemes import SCHEMES


def gained(method: str) -> int:
    """Return the order of a round trip's error.

    Example:
        >>> [gained(method) for method in ("euler", "heun", "kutta3", "rk4")]
        [2, 4, 4, 6]
    """
    order = SCHEMES[method].order
    return order + 2 - order % 2


@experiment(
    "Q20-X0",
    "What is left after a step forwards and a step back",
    paper="beyond Queiruga et al. 2020",
    claims=tuple(
        ("Q20-X0", f"slope_{method}", gained(method) - 0.15, gained(method) + 0.15,
         f"slope of the round trip's error against the step, {method}")
        for method in SIX_SCHEMES
    ),
    full={"fields": 32, "dim": 16},
    tiny={"steps": (4, 8), "fields": 1, "dim": 2},
)  # fmt: skip
def q20_x0(
    run: Run, *, steps: tuple[int, ...] = (8, 16, 32, 64), fields: int = 8, dim: int = 4
) -> Findings:  # fmt: skip
    """Take one step of size 1 over ``steps`` there and back, in random fields that vary in time.

    Curves: ``steps``; ``error_METHOD`` of shape ``(steps, fields)``. Scalars: ``slope_METHOD``, of
    the geometric means over fields against the step.
    """

    def left(part: Part, method: str, steps: int, seed: int) -> float:
        return round_trip(*random_field(seed, dim, run.device), method, 1 / steps)

    seeds = run.seeds(fields)
    found = grid(run, left, method=SIX_SCHEMES, steps=steps, seed=seeds)
    slopes = found.geometric("seed").orders("steps").named("slope", "method")
    curves = {"steps": np.array(steps), **found.named("error", "method")}
    return Findings({name: float(value) for name, value in slopes.items()}, curves)


def random_field(
    seed: int, dim: int, device: torch.device
) -> tuple[Callable[[Any, Tensor], Tensor], Tensor]:
    r"""Return $f(t, y) = \tanh((A + tB)\,y + c)$ and a start, in double precision."""
    draw = normal(seed, device)
    a, b, c, y0 = draw(dim, dim), draw(dim, dim), draw(dim), draw(dim)
    return lambda t, y: torch.tanh((a + t * b) @ y / dim**0.5 + c), y0


def round_trip(field: Callable[[Any, Tensor], Tensor], y0: Tensor, method: str, h: float) -> float:
    """Return the distance from the start after a step of size ``h`` and one back."""
    end = odeint(field, y0, [0.0, h], method=method, steps=1)[-1]
    back = odeint(field, end, [h, 0.0], method=method, steps=1)[-1]
    return float((back - y0).norm())
