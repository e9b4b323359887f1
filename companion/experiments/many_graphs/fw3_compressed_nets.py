"""FW3: which trained networks bear fewer cells, fewer bits and shorter graphs?

Queiruga et al. (2020, section 6) suggest that continuous networks compress well, and leave it to
future work. Here perceptrons on digits are compressed without any more training.
"""

from collections.abc import Mapping
from typing import Any

from companion.analysis.compression import Report, report
from companion.data import Samples, load_digits
from companion.experiments import Findings, Run, experiment
from companion.experiments.continuous_digits import Table, measure_digits, named
from companion.experiments.many_graphs.fw2a_adaptive_inference import VARIANTS
from companion.models import ContinuousMLP

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
    full={"seeds": 20},
    tiny={"seeds": 1, "epochs": 2},
    machine_dependent=tuple(f"seconds_{name}" for name in (EULER, RK4, REFINED)),
    claims=(
        ("FW3", "rounding_ratio", None, 0.6,
         "mean deviation of logits at 4 bits: RK4-refined over Euler-trained with epsilon = 8"),
        ("FW3", "merging_change", None, 0.01,
         "change of the mean test error on 2 cells, RK4-refined"),
        ("FW3", f"merging_{EULER}", 0.01, None,
         "rise of the mean test error on 2 cells, Euler-trained with epsilon = 8"),
        ("FW3", f"merging_{RK4}", 0.01, None,
         "rise of the mean test error on 2 cells, RK4-trained with epsilon = 8"),
    ),
)  # fmt: skip
def fw3(run: Run, *, seeds: int = 5, epochs: int = 30) -> Findings:
    """Train three variants and compress each in every way.

    Curves, for each variant, of shape ``(seeds, ways)``, in the order of :data:`WAYS`:
    ``bytes_VARIANT``, ``nfe_VARIANT``, ``seconds_VARIANT``, ``error_VARIANT`` and
    ``deviation_VARIANT`` from the network as trained. Scalars: ``rounding_VARIANT``, the mean
    deviation at 4 bits; ``merging_VARIANT``, the rise of the mean error on 2 cells.
    """
    data = load_digits(device=run.device, dtype=run.dtype)

    def measure(net: ContinuousMLP) -> dict[str, list[float]]:
        return reports(net, data)

    curves = named(measure_digits(run, VARIANTS, seeds, data, measure, epochs=epochs))
    return Findings(losses(curves), curves, data=data.sha256)


def reports(net: ContinuousMLP, data: Samples) -> dict[str, list[float]]:
    """Return what every way to compress a network costs and loses, a list for each number."""
    found = [report(net, data.x_test, data.y_test, **way) for way in WAYS.values()]
    return {name: [getattr(one, name) for one in found] for name in Report._fields}


def losses(curves: Mapping[str, Table]) -> dict[str, float]:
    """Return what rounding and merging cost, from the curves."""
    four, two = (list(WAYS).index(way) for way in ("4 bits", "2 cells"))
    scalars: dict[str, float] = {}
    for name in (EULER, RK4, REFINED):
        error = curves[f"error_{name}"]
        scalars[f"rounding_{name}"] = float(curves[f"deviation_{name}"][:, four].mean())
        scalars[f"merging_{name}"] = float((error[:, two] - error[:, 0]).mean())
    scalars["rounding_ratio"] = scalars[f"rounding_{REFINED}"] / scalars[f"rounding_{EULER}"]
    scalars["merging_change"] = abs(scalars[f"merging_{REFINED}"])
    return scalars
