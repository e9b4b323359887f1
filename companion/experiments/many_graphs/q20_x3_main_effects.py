"""Q20-X3: does the scheme, epsilon or refinement decide whether a network can change its graph?

Queiruga et al. (2020, Fig. 9) compare Euler-trained networks with RK4-trained ones. Theirs differ
in two more ways: Euler's have epsilon = M, RK4's have epsilon = 1 and are refined. Here all
combinations of the three are trained, on digits in both tiers; ``full`` has more seeds.
"""

from collections.abc import Mapping
from itertools import product

import numpy as np

from companion.data import load_digits
from companion.experiments.continuous_digits import CELLS, Swaps, Variant, swap_graphs
from companion.experiments.registry import experiment
from companion.experiments.running import Run
from companion.results import Claim, Findings

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
    claims=("Q20-X3",),
    full={
        "seeds": 20,
        "steps": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20, 24, 28, 32, 48, 64),
    },
)
def q20_x3(
    run: Run,
    *,
    seeds: int = 4,
    epochs: int = 30,
    steps: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 24, 32),
) -> Findings:
    """Train the grid and run every network under every graph.

    Curves: those of :class:`Swaps`. Scalars: ``mean_trained_VARIANT``, ``mean_limit_VARIANT``,
    ``rise_VARIANT`` (the largest rise of the mean test error under a graph of 4 or more steps), and
    for ``scheme``, ``eps`` and ``refined`` the main effects: ``rise_effect_FACTOR`` on that rise,
    and ``limit_effect_FACTOR`` on the deviation in the limit, in factors of ten.
    """
    data = load_digits(device=run.device)
    needed = (COARSEST, CELLS)
    swaps = swap_graphs(run, tuple(GRID.values()), seeds, steps, data, needed, epochs=epochs)
    rises = {levels: largest_rise(swaps, variant.name) for levels, variant in GRID.items()}
    limits = {
        levels: float(np.log10(swaps.limit[variant.name]).mean())
        for levels, variant in GRID.items()
    }
    scalars = {f"rise_{GRID[levels].name}": rise for levels, rise in rises.items()}
    for position, factor in enumerate(FACTORS):
        scalars[f"rise_effect_{factor}"] = main_effect(rises, position)
        scalars[f"limit_effect_{factor}"] = main_effect(limits, position)
    return Findings(
        {**swaps.scalars(), **scalars}, swaps.curves(), _claims(swaps, scalars), data.sha256
    )


def largest_rise(swaps: Swaps, variant: str) -> float:
    """Return the largest rise of the mean error over seeds, under graphs of 4 or more steps."""
    finer = [k for k, steps in enumerate(swaps.steps) if steps >= COARSEST]
    rises = swaps.errors[variant][:, :, finer].mean(0) - swaps.trained[variant].mean()
    return float(rises.max())


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


def _claims(swaps: Swaps, scalars: dict[str, float]) -> list[Claim]:
    rk4 = GRID["rk4", float(CELLS), False].name
    return [
        Claim(
            "Q20-X3",
            "effect of epsilon on the largest rise of error, minus that of the scheme",
            scalars["rise_effect_eps"] - scalars["rise_effect_scheme"],
            low=0.0,
        ),
        Claim(
            "Q20-X3",
            "largest rise of mean error with 4 or more steps, Euler-trained with epsilon = 1",
            scalars[f"rise_{GRID['euler', 1.0, False].name}"],
            high=0.02,
        ),
        Claim(
            "Q20-X3",
            "mean rise of error under Euler with 8 steps, RK4-trained with epsilon = 8",
            float(swaps.change(rk4, "euler", CELLS).mean()),
            low=0.02,
        ),
    ]
