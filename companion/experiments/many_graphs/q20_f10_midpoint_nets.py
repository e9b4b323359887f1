"""Q20-F10: midpoint-trained networks under other graphs.

Queiruga et al. (2020, Fig. 10) repeat their Fig. 9 on Tiny-ImageNet with Euler and midpoint, both
refined and with epsilon = 1. Here the networks are perceptrons on digits. An Euler net with
epsilon = 8 is shown beside them, because with epsilon = 1 it does not break there (Q20-X3).
"""

from companion.data import load_digits
from companion.experiments import Findings, Run, experiment
from companion.experiments.continuous_digits import CELLS, MORE_STEPS, STEPS, Variant, swap_graphs

MIDPOINT = Variant("midpoint", refined=True)
EULER = Variant("euler", refined=True)
EULER_LARGE = Variant("euler", scale=CELLS)


@experiment(
    "Q20-F10",
    "Midpoint-trained perceptrons run with other schemes and other numbers of steps",
    paper="Queiruga et al. 2020, Fig. 10",
    full={"seeds": 20, "steps": MORE_STEPS},
    tiny={"seeds": 2, "epochs": 2, "steps": (1, 2, 8)},
    claims=(
        ("CL47", f"change_{MIDPOINT.name}", None, 0.006,
         "largest change of test error over seeds and graphs of 2 or more steps, midpoint"),
        ("CL47", "most_limit_midpoint", None, 0.02,
         "largest deviation of logits over seeds, midpoint"),
        ("CL47", "least_limit_euler", 0.25, None,
         "smallest deviation of logits over seeds, Euler with epsilon = 8"),
    ),
)  # fmt: skip
def q20_f10(
    run: Run, *, seeds: int = 5, epochs: int = 30, steps: tuple[int, ...] = STEPS
) -> Findings:
    """Train the three variants and run each under every graph.

    Curves and scalars: those of :class:`~companion.experiments.continuous_digits.Swaps`, and
    ``change_VARIANT``, the largest change of the error over seeds and graphs of 2 or more steps.
    """
    data = load_digits(device=run.device, dtype=run.dtype)
    variants = (MIDPOINT, EULER, EULER_LARGE)
    swaps = swap_graphs(run, variants, seeds, steps, data, (2,), epochs=epochs)
    scalars = {
        **swaps.scalars(),
        **{f"change_{v.name}": swaps.largest_change(v.name, least=2) for v in variants},
        "most_limit_midpoint": float(swaps.limit(MIDPOINT.name).max()),
        "least_limit_euler": float(swaps.limit(EULER_LARGE.name).min()),
    }
    return Findings(scalars, swaps.curves(), data=data.sha256)
