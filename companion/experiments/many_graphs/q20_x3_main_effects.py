"""Q20-X3: does the scheme, epsilon or refinement decide whether a network can change its graph?

Queiruga et al. (2020, Fig. 9) compare Euler-trained networks with RK4-trained ones. Theirs differ
in two more ways: Euler's have epsilon = M, RK4's have epsilon = 1 and are refined. Here all
combinations of the three are trained, on digits.
"""

from collections.abc import Mapping
from itertools import product

import numpy as np

from companion.data import load_digits
from companion.experiments import Findings, Run, experiment
from companion.experiments.continuous_digits import CELLS, MORE_STEPS, STEPS, Swaps, Variant
from companion.experiments.continuous_digits import swap_graphs as swap

FACTORS = ("scheme", "eps", "refined")
"""What the grid varies."""

GRID = {
    (method, scale, refined): Variant(method, scale, refined)
    for method, scale, refined in product(("rk4", "euler"), (1.0, float(CELLS)), (True, False))
}
"""The variants by their levels, of each factor the one that should help to change graphs first."""

COARSEST = 4
"""Fewest steps of a graph that counts: half of what the networks were trained with."""


@experiment(
    "Q20-X3",
    "Scheme, epsilon and refinement: all eight combinations, run under other graphs",
    paper="beyond Queiruga et al. 2020, Fig. 9",
    full={"seeds": 20, "steps": MORE_STEPS},
    tiny={"seeds": 1, "epochs": 2, "steps": (4, 8)},
    claims=(
        ("Q20-X3", "eps_over_scheme", 0.0, None,
         "effect of epsilon on the largest rise of error, minus that of the scheme"),
        ("Q20-X3", "limit_eps_over_scheme", -0.2, 0.2,
         "effect of epsilon on the move to the flow, in factors of ten, minus that of the scheme"),
        ("Q20-X3", "rise_euler_eps1", None, 0.02,
         "largest rise of mean error with 4 or more steps, Euler-trained with epsilon = 1"),
        ("Q20-X3", "swapped_rk4_eps8", 0.02, None,
         "mean rise of error under Euler with 8 steps, RK4-trained with epsilon = 8"),
    ),
)  # fmt: skip
def q20_x3(
    run: Run, *, seeds: int = 8, epochs: int = 30, steps: tuple[int, ...] = STEPS
) -> Findings:
    """Train the grid and run every network under every graph.

    Curves and scalars: those of :class:`Swaps`; ``rise_VARIANT``, the largest rise of the mean test
    error under a graph of 4 or more steps; for ``scheme``, ``eps`` and ``refined`` the main effects
    ``rise_effect_FACTOR`` on that rise, and ``limit_effect_FACTOR`` on the deviation in the limit,
    in factors of ten.
    """
    data = load_digits(device=run.device, dtype=run.dtype)
    needed = (COARSEST, CELLS)
    swaps = swap(run, tuple(GRID.values()), seeds, steps, data, needed, epochs=epochs)
    return Findings({**swaps.scalars(), **effects(swaps)}, swaps.curves(), data=data.sha256)


def effects(swaps: Swaps) -> dict[str, float]:
    """Return the rises of the error, the main effects, and what else the claims are about."""
    names = {levels: variant.name for levels, variant in GRID.items()}
    rises = {levels: largest_rise(swaps, name) for levels, name in names.items()}
    limits = {levels: float(np.log10(swaps.limit(name)).mean()) for levels, name in names.items()}
    scalars = {f"rise_{names[levels]}": rise for levels, rise in rises.items()}
    for position, factor in enumerate(FACTORS):
        scalars[f"rise_effect_{factor}"] = main_effect(rises, position)
        scalars[f"limit_effect_{factor}"] = main_effect(limits, position)
    scalars["eps_over_scheme"] = scalars["rise_effect_eps"] - scalars["rise_effect_scheme"]
    scalars["limit_eps_over_scheme"] = scalars["limit_effect_eps"] - scalars["limit_effect_scheme"]
    large = names["rk4", float(CELLS), False]
    scalars["swapped_rk4_eps8"] = float(swaps.change(large, "euler", CELLS).mean())
    return scalars


def largest_rise(swaps: Swaps, variant: str) -> float:
    """Return the largest rise of the mean error over seeds, under graphs of 4 or more steps."""
    own = swaps.tables[variant]
    finer = [k for k, steps in enumerate(swaps.steps) if steps >= COARSEST]
    return float((own["error"][:, :, finer].mean(0) - own["trained"].mean()).max())


def main_effect(values: Mapping[tuple[str, float, bool], float], position: int) -> float:
    """Return by how much the second level of a factor raises the mean over the other factors.

    Example:
        >>> main_effect({("rk4", 1.0, True): 1.0, ("euler", 1.0, True): 5.0}, position=0)
        4.0
    """
    first = next(iter(values))[position]
    low = [value for levels, value in values.items() if levels[position] == first]
    high = [value for levels, value in values.items() if levels[position] != first]
    return float(np.mean(high) - np.mean(low))
