"""Q20-F11: does it matter that the residuals start at zero?

Queiruga et al. (2020, Fig. 11) repeat their Fig. 9 without skip initialisation, also with a network
twice as deep and half as wide. Their Euler nets then lose less under other graphs, and still lose.
Here the networks are perceptrons on digits.
"""

from companion.basis import PiecewiseConstant
from companion.data import load_digits
from companion.experiments import Findings, Run, experiment
from companion.experiments.continuous_digits import CELLS, MORE_STEPS, STEPS, Variant, swap_graphs

EULER = Variant("euler", scale=CELLS)
EULER_SKIP = Variant("euler", scale=CELLS, skip_init=True)
DEEP = Variant(
    "euler", scale=2 * CELLS, weights=PiecewiseConstant(2 * CELLS), steps=2 * CELLS, width=8
)
RK4 = Variant("rk4", refined=True)
RK4_SKIP = Variant("rk4", refined=True, skip_init=True)

COARSE = 4
"""Steps of a graph that is coarser than that of the training."""


@experiment(
    "Q20-F11",
    "Perceptrons with and without skip initialisation, run with other schemes and steps",
    paper="Queiruga et al. 2020, Fig. 11",
    full={"seeds": 20, "steps": tuple(sorted((*MORE_STEPS, 17)))},
    tiny={"seeds": 2, "epochs": 2, "steps": (4, 9, 16)},
    claims=(
        ("CL41", "least_limit_euler", 0.25, None,
         "smallest deviation of logits over seeds, Euler without skip initialisation, 8 layers"),
        ("CL41", "least_limit_deep", 0.25, None,
         "smallest deviation of logits over seeds, Euler without skip initialisation, "
         "16 layers of half the width"),
        ("Q20-F11", "coarse_difference", None, 0.0,
         "mean rise of error under Euler with 4 steps: without skip initialisation minus with",
         "The opposite of the paper: on digits, skip initialisation keeps the weights small, and "
         "an Euler net that has it loses less."),
    ),
)  # fmt: skip
def q20_f11(
    run: Run, *, seeds: int = 5, epochs: int = 30,
    steps: tuple[int, ...] = tuple(sorted((*STEPS, 17))),
) -> Findings:  # fmt: skip
    """Train five variants and run each under every graph.

    Curves and scalars: those of :class:`~companion.experiments.continuous_digits.Swaps`, and
    ``coarse_VARIANT``, the mean rise of the error under Euler with 4 steps.
    """
    data = load_digits(device=run.device, dtype=run.dtype)
    variants = (EULER, EULER_SKIP, DEEP, RK4, RK4_SKIP)
    swaps = swap_graphs(run, variants, seeds, steps, data, (COARSE, CELLS + 1), epochs=epochs)
    coarse = {v.name: float(swaps.change(v.name, "euler", COARSE).mean()) for v in variants}
    scalars = {
        **swaps.scalars(),
        **{f"coarse_{name}": rise for name, rise in coarse.items()},
        "coarse_difference": coarse[EULER.name] - coarse[EULER_SKIP.name],
        "least_limit_euler": float(swaps.limit(EULER.name).min()),
        "least_limit_deep": float(swaps.limit(DEEP.name).min()),
    }
    return Findings(scalars, swaps.curves(), data=data.sha256)
