"""``companion show`` and ``companion plot``: the numbers of a result in text and as a picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from companion import records
from companion.listing import locate
from companion.results import Result


def show(name: str) -> None:
    """Print the claims, the scalars and the shapes of the curves of a result.

    Raises:
        ValueError: no such file, record or experiment.
    """
    result = find_result(name)
    made = result.provenance
    seconds = made.seconds if made.processor_seconds is None else made.processor_seconds
    print(
        f"{result.experiment}, tier {made.tier}, seed {made.seed}, {made.device}, {seconds:.1f} s"
    )
    print("\n".join(verdicts(result)))
    for scalar, value in result.findings.scalars.items():
        print(f"{scalar} = {value:.6g}")
    for curve in result.findings.curves:
        print(f"{curve}: shape {result[curve].shape}")


def verdicts(result: Result) -> Iterator[str]:
    """Yield a line for each claim of a result: what was measured, and whether it holds."""
    for claim in result.claims:
        verdict = "holds" if claim.holds else "MISSES"
        yield f"{claim.id} {verdict}: {claim.text}: {claim.observed:.4g}"


def plot(name: str, out: Path | None = None) -> Path:
    """Draw every curve of a result against the first list that is as long, and say where.

    As long as its first axis, or else the last one that has such a list. All other axes, such as
    seeds, become a line of medians and a band.

    Args:
        name: what :func:`find_result` takes.
        out: the picture, or a folder for ``ID.TIER.png``; ``None`` is the working folder.

    Raises:
        ValueError: no such result, it has no curves, or the picture cannot be written.
    """
    result = find_result(name)
    pairs = list(_pairs(result))
    if not pairs:
        raise ValueError(f"RESULT: {name!r} is not allowed; {result.experiment} has no curves")
    from matplotlib.figure import Figure  # no window: the figure is only saved

    from companion.figures import spread, use_style

    with use_style():
        rows = -(-len(pairs) // 3)
        figure = Figure(figsize=(12.0, 3.0 * rows))
        for place, (x, curve, axis) in enumerate(pairs, start=1):
            axes = figure.add_subplot(rows, 3, place)
            values = np.moveaxis(result[curve], axis, 0)
            spread(axes, result[x], values.reshape(len(values), -1))
            axes.set(xlabel=x, title=curve, xscale=_scale(result[x]), yscale=_scale(values))
    target = out or Path()
    if target.is_dir():
        target = target / f"{result.experiment}.{result.provenance.tier}.png"
    elif not target.suffix:
        target = target.with_suffix(".png")
    try:
        figure.savefig(target)
    except (OSError, ValueError) as error:  # no such folder, or no such kind of picture
        raise ValueError(
            f"--out: {str(target)!r} is not allowed; it must be a picture to write ({error})"
        ) from error
    print(target)
    return target


def find_result(name: str) -> Result:
    """Return the result in a file, or a recorded one by ``ID`` or ``ID.TIER``.

    Raises:
        ValueError: there is none; the message names the nearest experiment.

    Example:
        >>> find_result("C18-A6").provenance.tier
        'smoke'
    """
    if Path(name).is_file():
        return Result.load(name)
    id, _, tier = name.partition(".")
    locate(id)
    result = records.load(id, tier or "smoke")
    if result is None:
        recorded = [known for owner, known in records.names() if owner == id]
        raise ValueError(
            f"RESULT: {name!r} is not allowed; there is no such file, and of {id} the tiers "
            f"{recorded} are recorded"
        )
    return result


def _scale(values: NDArray[np.float64]) -> Literal["linear", "log"]:
    """Return the scale that shows all values: logarithmic over more than three decades."""
    values = values[np.isfinite(values)]
    return "log" if (values > 0).all() and values.max() > 1e3 * values.min() else "linear"


def _pairs(result: Result) -> Iterator[tuple[str, str, int]]:
    """Yield the name of a list to draw over, that of a curve, and its axis that is as long."""
    shapes = {name: np.shape(values) for name, values in result.findings.curves.items()}
    lists = {shape[0]: name for name, shape in reversed(shapes.items()) if len(shape) == 1}
    for curve, shape in shapes.items():
        axes = [k for k, size in enumerate(shape) if size > 1 and size in lists]
        if not axes or not np.isfinite(result[curve]).any():
            continue
        axis = 0 if 0 in axes else axes[-1]
        if lists[shape[axis]] != curve:
            yield lists[shape[axis]], curve, axis
