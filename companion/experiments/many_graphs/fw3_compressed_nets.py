"""FW3: which trained networks bear fewer cells, fewer bits and shorter graphs?

Queiruga et al. (2020, section 6) suggest that continuous networks compress well, and leave it to
future work. Here perceptrons trained on digits are projected onto fewer cells, rounded to few bits
and run by shorter graphs, without any more training. Both tiers use digits; ``full`` has more
seeds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from companion.analysis.compression import Report, report
from companion.data import Samples, load_digits
from companion.experiments.continuous_digits import CELLS, Table, Variant, measure_digits
from companion.experiments.registry import experiment
from companion.experiments.running import Run
from companion.models import ContinuousMLP
from companion.results import Claim, Findings

VARIANTS = (
    Variant("euler", scale=CELLS),
    Variant("rk4", scale=CELLS),
    Variant("rk4", refined=True),
)

EULER, RK4, REFINED = (variant.name for variant in VARIANTS)

WAYS: Mapping[str, Mapping[str, Any]] = {
    "as trained": {},
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "3 bits": {"bits": 3},
    "4 cells": {"cells": 4},
    "2 cells": {"cells": 2},
    "1 cell": {"cells": 1},
    "rk4_38, 3 steps": {"method": "rk4_38", "steps": 3},
    "euler, 4 steps": {"method": "euler", "steps": 4},
    "all three": {"cells": 2, "bits": 8, "method": "rk4", "steps": 2},
}
"""The ways to compress, by name."""


@experiment(
    "FW3",
    "Trained perceptrons on fewer cells, with fewer bits, under shorter graphs",
    paper="beyond Queiruga et al. 2020, section 6",
    claims=("FW3",),
    full={"seeds": 20},
)
def fw3(run: Run, *, seeds: int = 4, epochs: int = 30) -> Findings:
    """Train three variants and compress each in every way.

    Curves, for each variant, of shape ``(seeds, ways)``, in the order of :data:`WAYS`:
    ``bytes_VARIANT``, ``nfe_VARIANT``, ``seconds_VARIANT``, ``error_VARIANT`` and
    ``deviation_VARIANT`` from the network as trained. Scalars: ``rounding_VARIANT``, the mean
    deviation at 4 bits; ``merging_VARIANT``, the rise of the mean error on 2 cells.
    """
    data = load_digits(device=run.device)
    found = measure_digits(
        run, VARIANTS, seeds, data, lambda net: reports(net, data), epochs=epochs
    )
    curves: dict[str, Table] = {}
    for name, rows in found.items():
        for k, key in enumerate(Report._fields):
            curves[f"{key}_{name}"] = np.array(rows)[..., k]
    four, two = (list(WAYS).index(way) for way in ("4 bits", "2 cells"))
    rounding = {name: float(curves[f"deviation_{name}"][:, four].mean()) for name in found}
    scalars = {f"rounding_{name}": value for name, value in rounding.items()} | {
        f"merging_{name}": float((table[:, two] - table[:, 0]).mean())
        for name, table in ((name, curves[f"error_{name}"]) for name in found)
    }
    return Findings(scalars, curves, compression_claims(scalars), data.sha256)


def reports(net: ContinuousMLP, data: Samples) -> list[list[float]]:
    """Return the report of every way to compress a network."""
    return [list(report(net, data.x_test, data.y_test, **way)) for way in WAYS.values()]


def compression_claims(scalars: Mapping[str, float]) -> list[Claim]:
    """Decide the claims from ``rounding_VARIANT`` and ``merging_VARIANT``."""
    return [
        Claim(
            "FW3",
            "mean deviation of logits at 4 bits: RK4-refined over Euler-trained with epsilon = 8",
            scalars[f"rounding_{REFINED}"] / scalars[f"rounding_{EULER}"],
            high=0.6,
        ),
        Claim(
            "FW3",
            "change of the mean test error on 2 cells, RK4-refined",
            abs(scalars[f"merging_{REFINED}"]),
            high=0.01,
        ),
        *(
            Claim(
                "FW3",
                f"rise of the mean test error on 2 cells, {words} with epsilon = 8",
                scalars[f"merging_{name}"],
                low=0.01,
            )
            for name, words in ((EULER, "Euler-trained"), (RK4, "RK4-trained"))
        ),
    ]
