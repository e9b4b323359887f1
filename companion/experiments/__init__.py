"""Experiments: functions of a tier, a seed and a device that return a Result, one a file.

    from companion.experiments import run

    result = run("S22-F3a")              # the recorded smoke run
    result["error_tied_scaled"]          # an array
    result.claim("CL57").holds           # True or False

Every experiment has the tiers ``smoke`` (at most 90 processor seconds, on data that comes with the
package), ``full`` and ``tiny`` (a second: it tells whether recorded numbers are still what the code
computes). Parameters of a tier can be overridden by name: ``run("S22-F3a", depths=(2, 4))``
computes what no record holds. Files lie in the folder of their chapter and are called after their
ID: :mod:`companion.listing` finds them.
"""

from companion.experiments.grid import Grid, grid, grids, named
from companion.experiments.registry import Experiment, Row, experiment, find, run
from companion.experiments.running import Part, Run
from companion.results import Claim, Findings

__all__ = [
    "Claim",
    "Experiment",
    "Findings",
    "Grid",
    "Part",
    "Row",
    "Run",
    "experiment",
    "find",
    "grid",
    "grids",
    "named",
    "run",
]
