"""Whether recorded numbers are still what the code computes: a tiny run beside every record.

A record is stale when its numbers move, not when the code behind them is edited. The numbers of a
smoke or full run take minutes or hours to compute anew; those of a tiny run of the same code take a
second. They are stored beside the record and compared.
"""

from dataclasses import replace

import numpy as np

from companion.experiments.registry import Experiment
from companion.results import Findings, Result
from companion.train import Team

ROUNDING = 1e-14
"""What is smaller is left by rounding in double precision: another number on every processor."""


def tiny(entry: Experiment) -> Findings:
    """Run the tier ``tiny`` on the CPU; return the numbers that no machine changes, no claims."""
    found = entry(tier="tiny", team=Team()).findings  # one process, of however many there are
    scalars, curves = (
        {name: value for name, value in numbers.items() if name not in entry.machine_dependent}
        for numbers in (found.scalars, found.curves)
    )
    return Findings(scalars, curves)


def moved(then: Findings, now: Findings, tolerance: float) -> tuple[str, ...]:
    """Return the names of the numbers that differ, or that only one of the two has.

    A number may differ by ``tolerance`` relative to the largest of its array; what is below
    :data:`ROUNDING` is not compared.

    Example:
        >>> then = Findings({"slope": 2.0}, {"error": [1.0, 1e-9]})
        >>> moved(then, Findings({"slope": 2.0 + 1e-9}, {"error": [1.0, 2e-9]}), 1e-6)
        ()
        >>> moved(then, Findings({"slope": 2.1}, {"errors": [1.0]}), 1e-6)
        ('error', 'errors', 'slope')
    """
    old, new = ({**found.scalars, **found.curves} for found in (then, now))
    return tuple(
        name
        for name in sorted({*old, *new})
        if name not in old or name not in new or not _close(old[name], new[name], tolerance)
    )


def checked(result: Result, entry: Experiment, now: Findings | None = None) -> Result:
    """Return a recorded result with what the comparison found; one without a tiny run gets it.

    ``now`` are the numbers of a new tiny run; ``None`` runs it.
    """
    now = tiny(entry) if now is None else now
    if result.tiny is None:
        return replace(result, tiny=now)
    return replace(result, moved=moved(result.tiny, now, entry.tolerance))


def _close(old: object, new: object, tolerance: float) -> bool:
    a, b = np.asarray(old, dtype=np.float64), np.asarray(new, dtype=np.float64)
    if a.shape != b.shape:
        return False
    finite = np.abs(a[np.isfinite(a)])
    within = tolerance * finite.max(initial=0.0) + ROUNDING
    return bool(np.allclose(a, b, rtol=0.0, atol=within, equal_nan=True))
