"""One experiment per file: a function of tier, seed and device that returns a Result.

    from companion.experiments import run

    result = run("S22-F3a", tier="smoke", seed=0)
    result["error_tied_scaled"]          # an array
    result.claim("CL57").holds           # True or False

Every experiment has the tiers ``smoke`` (two CPU cores, data that comes with the package) and
``full``. Parameters of a tier can be overridden by name: ``run("S22-F3a", depths=(2, 4))``.
"""

from companion.experiments.registry import Experiment, experiment, experiments, find, run
from companion.experiments.running import Part, Run

__all__ = ["Experiment", "Part", "Run", "experiment", "experiments", "find", "run"]
