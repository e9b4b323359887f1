r"""Q20-X6: which cells do stages read that find their place with numbers of single precision?

Stages at the end of a step belong to the cell before the knot. The code that Queiruga et al. (2020)
released means to say so by a time that is smaller by 1e-15, and takes the integer part of the time
times the number of cells. Here that rule is written anew, with times in single or double precision,
and beside it the rule of this course, which counts in fractions. Weights and states are in double
precision throughout, so that nothing differs but the cells.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.recipes import normal
from companion.observe import fit_slope
from companion.schemes import get_scheme

NUDGE, CELLS = 1e-15, 4

Place = Callable[[int, Fraction, int, int], int]
"""The cell that stage ``c`` of a step reads, of so many steps and cells."""


@experiment(
    "Q20-X6",
    "Cells that stages read by a nudge of the time, in single and in double precision",
    paper="beyond Queiruga et al. 2020, section 4.3",
    full={"seeds": 16, "steps": (16, 32, 64, 128, 256), "most": 256},
    tiny={"seeds": 1, "steps": (8, 16), "most": 4},
    claims=(
        ("Q20-X6", "order_single", 0.8, 1.2, "order of RK4, nudge in single precision"),
        ("Q20-X6", "order_double", 3.8, 4.2, "order of RK4, nudge in double precision"),
        ("Q20-X6", "order_fractions", 3.8, 4.2, "order of RK4, places in fractions"),
        ("Q20-X6", "unread_three", 1, 1,
         "cells that Euler's method with 3 steps never reads of 3, single precision"),
        ("Q20-X6", "unread_powers", 0, 0,
         "the same, sum over powers of two up to {most} cells and steps"),
    ),
)  # fmt: skip
def q20_x6(
    run: Run, *, seeds: int = 4, steps: tuple[int, ...] = (8, 16, 32, 64), most: int = 64
) -> Findings:
    """Solve with 4 cells of random weights by RK4, and list the cells that Euler's method reads.

    Curves: ``steps``; ``error_RULE`` of shape ``(seeds, steps)``, the distance from the solution of
    4 times as many steps with places in fractions; ``unread_RULE``, for 1 to ``most`` cells with as
    many Euler steps how many are never read. Scalars: ``order_RULE``, ``skipping_RULE``, the share
    of those numbers of cells at which some cell is never read.
    """

    def errors(part: Part, rule: str, seed: int) -> dict[str, list[float]]:
        draw = normal(seed)
        weights, x = draw(CELLS, 4, 4), draw(8, 4)
        exact = solve(weights, x, 4 * max(steps), RULES["fractions"])
        ends = [solve(weights, x, n, RULES[rule]) for n in steps]
        return {"error": [float((end - exact).norm()) for end in ends]}

    found = grids(run, errors, rule=RULES, seed=run.seeds(seeds))
    means = {rule: found["error"].at(rule=rule).geometric("seed").values for rule in RULES}
    unread = {rule: [len(never_read(m, place)) for m in range(1, most + 1)]
              for rule, place in RULES.items()}  # fmt: skip
    scalars: dict[str, float] = {}
    for rule in RULES:
        scalars[f"order_{rule}"] = -fit_slope(steps, means[rule].tolist()).value
        scalars[f"skipping_{rule}"] = float(np.mean(np.array(unread[rule]) > 0))
    scalars["unread_three"] = unread["single"][2]
    powers = [2**k for k in range(int(math.log2(most)) + 1)]
    scalars["unread_powers"] = sum(unread["single"][m - 1] for m in powers)
    curves = {"steps": steps, **named(found, "rule")}
    return Findings(scalars, curves | {f"unread_{rule}": row for rule, row in unread.items()})


def nudged(
    step: int, c: Fraction, steps: int, cells: int, real: type[np.float32] | type[np.float64]
) -> int:
    """Return the integer part of the time times the cells, in the precision of ``real``.

    The later half of the grid is counted from its end, as :func:`torch.linspace` does; the last bit
    of that depends on the processor. Nothing but the last stage of a step is nudged.

    Example:
        >>> [nudged(step, Fraction(0), 3, 3, np.float32) for step in range(3)]
        [0, 1, 1]
    """
    h = real(1) / real(steps)

    def time(n: int) -> np.floating[Any]:
        return h * real(n) if n < (steps + 1) // 2 else real(1) - h * real(steps - n)

    start, end = time(step), time(step + 1)
    t = end - real(NUDGE) if c == 1 else start + real(float(c)) * (end - start)
    return min(int(t * real(cells)), cells - 1)


def in_fractions(step: int, c: Fraction, steps: int, cells: int) -> int:
    """Return the cell that a stage reads, by the rule of this course.

    Example:
        >>> [in_fractions(step, Fraction(1), 3, 3) for step in range(3)]
        [0, 1, 2]
    """
    place = (step + c) * cells / steps
    return math.ceil(place) - 1 if c == 1 else math.floor(place)


RULES: dict[str, Place] = {
    "single": partial(nudged, real=np.float32),
    "double": partial(nudged, real=np.float64),
    "fractions": in_fractions,
}
"""How a stage finds its cell."""


def solve(weights: Tensor, x: Tensor, steps: int, place: Place) -> Tensor:
    """Return where RK4 takes the states with the field tanh of the cell's matrix times them."""
    scheme = get_scheme("rk4")
    for step in range(steps):
        cells = [place(step, Fraction(c), steps, len(weights)) for c in scheme.c]
        matrices = [weights[cell].T for cell in cells]
        x = scheme.step(partial(_slope, matrices), x, 1 / steps)
    return x


def _slope(matrices: Sequence[Tensor], stage: int, x: Tensor) -> Tensor:
    return torch.tanh(x @ matrices[stage])


def never_read(cells: int, place: Place) -> set[int]:
    """Return the cells that as many steps of Euler's method never read."""
    return set(range(cells)) - {place(n, Fraction(0), cells, cells) for n in range(cells)}
