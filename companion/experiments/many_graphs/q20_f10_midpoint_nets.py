"""Q20-F10: midpoint-trained networks under other graphs.

Queiruga et al. (2020, Fig. 10) repeat their Fig. 9 on Tiny-ImageNet with Euler and midpoint, both
refined and with epsilon = 1. Here the networks are perceptrons on digits in both tiers; ``full``
has more seeds. An Euler net with epsilon = 8 is shown beside them, because on digits an Euler net
with epsilon = 1 does not break (Q20-X3).
"""

from companion.data import load_digits
from companion.experiments.continuous_digits import CELLS, Variant, swap_graphs
from companion.experiments.registry import experiment
from companion.experiments.running import Run
from companion.results import Claim, Findings

MIDPOINT = Variant("midpoint", refined=True)
EULER = Variant("euler", refined=True)
EULER_LARGE = Variant("euler", scale=CELLS)


@experiment(
    "Q20-F10",
    "Midpoint-trained perceptrons run with other schemes and other numbers of steps",
    paper="Queiruga et al. 2020, Fig. 10",
    claims=("CL47",),
    full={
        "seeds": 20,
        "steps": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20, 24, 28, 32, 48, 64),
    },
)
def q20_f10(
    run: Run,
    *,
    seeds: int = 4,
    epochs: int = 30,
    steps: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 24, 32),
) -> Findings:
    """Train the three variants and run each under every graph.

    Curves: those of :class:`~companion.experiments.continuous_digits.Swaps` for
    ``midpoint_eps1_refined``, ``euler_eps1_refined`` and ``euler_eps8``. Scalars:
    ``mean_trained_VARIANT``, ``mean_limit_VARIANT``, and ``change_VARIANT``, the largest change of
    the error over seeds and graphs of 2 or more steps.
    """
    data = load_digits(device=run.device)
    variants = (MIDPOINT, EULER, EULER_LARGE)
    swaps = swap_graphs(run, variants, seeds, steps, data, (2,), epochs=epochs)
    changes = {f"change_{v.name}": swaps.largest_change(v.name, least=2) for v in variants}
    claims = [
        Claim(
            "CL47",
            "largest change of test error over seeds and graphs of 2 or more steps, midpoint",
            changes[f"change_{MIDPOINT.name}"],
            high=0.006,
        ),
        Claim(
            "CL47",
            "largest deviation of logits over seeds, midpoint",
            float(swaps.limit[MIDPOINT.name].max()),
            high=0.02,
        ),
        Claim(
            "CL47",
            "smallest deviation of logits over seeds, Euler with epsilon = 8",
            float(swaps.limit[EULER_LARGE.name].min()),
            low=0.25,
        ),
    ]
    return Findings({**swaps.scalars(), **changes}, swaps.curves(), claims, data.sha256)
