"""Compare candidates on the same work: first their values, then their times in turns.

Times are processor times of one thread. Every round runs each candidate once, in an order that
rotates, and gives one ratio to the baseline. The median of the rounds' ratios is reported with its
quartiles. So a load that comes and goes on the machine meets all candidates alike.
"""

import gc
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from companion.files import replacing
from companion.machine import device_name, package_versions

Candidate = Callable[[], Sequence[Tensor]]
"""One run of the work; it returns everything that must agree: the result and all gradients."""


MEASURED = ("ratio", "quartiles", "of the least", "bar")
"""The heads of the columns with numbers."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a candidate's cost over the baseline's.

    Attributes:
        work: what was run.
        candidate: who ran it.
        baseline: whose cost is 1.
        quantity: what is compared: ``"time"``, ``"bytes"``, ``"operations"`` or ``"evaluations"``.
        ratio: the candidate's cost over the baseline's; for times the median of the rounds;
            ``None`` for a candidate that is not installed.
        low: first quartile of the rounds' ratios, for times.
        high: third quartile, likewise.
        least: the least time over the baseline's least, which a busy machine disturbs least.
        bar: the largest ratio aimed at, if one is set.
        note: what else is worth knowing.
    """

    work: str
    candidate: str
    baseline: str
    quantity: str
    ratio: float | None
    low: float | None = None
    high: float | None = None
    least: float | None = None
    bar: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "not installed"
        if self.bar is None:
            return ""
        return "within" if self.ratio <= self.bar else "above"


def agree(candidates: Mapping[str, Candidate | None], rtol: float) -> None:
    """Check that all candidates return what the first returns, up to ``rtol`` of its size."""
    ready = ((name, run) for name, run in candidates.items() if run is not None)
    (_, reference), *others = [(name, run()) for name, run in ready]
    for name, values in others:
        for i, (value, expected) in enumerate(zip(values, reference, strict=True)):
            error = (value - expected).abs().max() / expected.abs().max()
            if not error <= rtol:
                raise AssertionError(f"{name}: result {i} is off by {error:.1e}, above {rtol:.0e}")


def compare(
    work: str,
    candidates: Mapping[str, Candidate | None],
    rounds: int,
    bars: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
    over: Mapping[tuple[str, str], float] | None = None,
) -> list[Row]:
    """Time the candidates in turns; the first is the baseline of the others.

    A candidate that is ``None`` is not installed: a gap in the table. ``over`` names more pairs,
    (candidate, baseline), with their bars.
    """
    ready = {name: run for name, run in candidates.items() if run is not None}
    times = _times(ready, rounds)
    first, *others = candidates
    pairs = [(name, first, (bars or {}).get(name)) for name in others]
    pairs += [(name, baseline, bar) for (name, baseline), bar in (over or {}).items()]
    return [
        _row(work, name, baseline, times, bar, (notes or {}).get(name, "") * (baseline == first))
        for name, baseline, bar in pairs
    ]


def _row(
    work: str,
    name: str,
    baseline: str,
    times: Mapping[str, list[float]],
    bar: float | None,
    note: str,
) -> Row:
    if not {name, baseline} <= times.keys():
        return Row(work, name, baseline, "time", None, bar=bar, note=note)
    mine, base = times[name], times[baseline]
    ratios = [a / b for a, b in zip(mine, base, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    least = min(mine) / min(base)
    return Row(work, name, baseline, "time", median(ratios), low, high, least, bar, note)


def _times(candidates: Mapping[str, Candidate], rounds: int) -> dict[str, list[float]]:
    for run in [*candidates.values()] * 2:  # warm-up
        run()
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                start = time.process_time()
                candidates[name]()
                times[name].append(time.process_time() - start)
    finally:
        gc.enable()
    return times


class _Operations(TorchDispatchMode):
    """Counts the operations that reach a kernel; views and detaching do no work and don't count."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += not func.is_view
        return func(*args, **(kwargs or {}))


def operations(run: Candidate) -> int:
    """Count the operations of one run, forward and backward."""
    with _Operations() as counter:
        run()
    return counter.total


def table(rows: Iterable[Row]) -> str:
    """Return the rows as text in columns."""
    heads = ("work", "candidate", "over", "quantity", *MEASURED, "verdict")
    lines = [heads, *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    padded = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of one line, in the order of the heads of :func:`table`."""
    spread = "" if row.low is None else f"{row.low:.2f} to {row.high:.2f}"
    numbers = (_shown(row.ratio, 3), spread, _shown(row.least, 3), _shown(row.bar, 2))
    return (row.work, row.candidate, row.baseline, row.quantity, *numbers, row.verdict)


def _shown(number: float | None, digits: int) -> str:
    return "" if number is None else f"{number:.{digits}f}"


def save(path: Path, reports: list[dict[str, Any]], order: Sequence[str]) -> None:
    """Write reports as JSON, in the given order of names; reports of other names are kept."""
    kept = json.loads(path.read_text(encoding="utf-8"))["benchmarks"] if path.exists() else []
    by_name = {part["name"]: part for part in (*kept, *reports)}
    with replacing(path) as temporary:
        content = {"benchmarks": [by_name[name] for name in order if name in by_name]}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def report(
    name: str, question: str, excluded: str, rows: Iterable[Row], rounds: int
) -> dict[str, Any]:
    """Return one benchmark's part of the file: what was measured, and on what."""
    provenance = {
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
        "rounds": rounds,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    plain = [{**asdict(row), "verdict": row.verdict} for row in rows]
    named = {"name": name, "question": question, "excluded": excluded}
    return {**named, "rows": plain, "provenance": provenance}
