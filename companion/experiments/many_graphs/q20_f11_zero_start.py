"""Q20-F11: does it matter that the residuals start at zero?

Queiruga et al. (2020, Fig. 11) repeat their Fig. 9 without skip initialisation, also with a network
twice as deep and half as wide. Their Euler nets then lose less under other graphs, and still lose.
Here the networks are perceptrons on digits in both tiers; ``full`` has more seeds.
"""

from companion.basis import PiecewiseConstant
from companion.data import load_digits
from companion.experiments.continuous_digits import CELLS, Swaps, Variant, swap_graphs
from companion.experiments.registry import experiment
from companion.experiments.running import Run
from companion.results import Claim, Findings

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
    claims=("CL41", "Q20-F11"),
    full={
        "seeds": 20,
        "steps": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 17, 20, 24, 28, 32, 48, 64),
    },
)
def q20_f11(
    run: Run,
    *,
    seeds: int = 4,
    epochs: int = 30,
    steps: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 17, 24, 32),
) -> Findings:
    """Train five variants and run each under every graph.

    Curves: those of :class:`Swaps` for ``euler_eps8``, ``euler_eps8_skip``, ``euler_eps16_deep16``,
    ``rk4_eps1_refined`` and ``rk4_eps1_refined_skip``. Scalars: ``mean_trained_VARIANT``,
    ``mean_limit_VARIANT``, and ``coarse_VARIANT``, the mean rise of the error under Euler with 4
    steps.
    """
    data = load_digits(device=run.device)
    variants = (EULER, EULER_SKIP, DEEP, RK4, RK4_SKIP)
    swaps = swap_graphs(run, variants, seeds, steps, data, (COARSE, CELLS + 1), epochs=epochs)
    coarse = {
        f"coarse_{v.name}": float(swaps.change(v.name, "euler", COARSE).mean()) for v in variants
    }
    return Findings(
        {**swaps.scalars(), **coarse}, swaps.curves(), _claims(swaps, coarse), data.sha256
    )


def _claims(swaps: Swaps, coarse: dict[str, float]) -> list[Claim]:
    degrades = [
        Claim(
            "CL41",
            f"smallest deviation of logits over seeds, Euler without skip initialisation, {what}",
            float(swaps.limit[variant.name].min()),
            low=0.25,
        )
        for what, variant in (("8 layers", EULER), ("16 layers of half the width", DEEP))
    ]
    return [
        *degrades,
        Claim(
            "Q20-F11",
            "mean rise of error under Euler with 4 steps: without skip initialisation minus with",
            coarse[f"coarse_{EULER.name}"] - coarse[f"coarse_{EULER_SKIP.name}"],
            high=0.0,
            note="The opposite of the paper: on digits, skip initialisation keeps the weights "
            "small, and an Euler net that has it loses less.",
        ),
    ]
