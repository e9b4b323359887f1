r"""Is a trained model a discretisation of a differential equation? A convergence test.

A numerical method of order $r$ has the error $E(h) = O(h^r)$, so it gets better when its step
$h$ shrinks. A model that only fits the data at its own step gets worse: its error dips there
(Queiruga et al. 2020, section 3.3.3); Krishnapriyan et al. (2023, arXiv 2202.08494) develop this
into a test of learnt models. Errors here are norms, not their squares as printed in
Eq. 18: a square would double every slope.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from companion.arguments import check_count
from companion.models import OneStepNet, with_graph
from companion.observe import fit_slope
from companion.solve import NonFiniteError
from companion.train import evaluating

__all__ = [
    "CONTINUOUS",
    "DISCRETE",
    "Convergence",
    "classifier_convergence",
    "convergence_test",
    "fitted_order",
    "graph_errors",
]

DISCRETE, CONTINUOUS = "discrete model", "continuous model"
"""The verdicts: right at its own step only, or a discretisation of a differential equation."""

DIP_LIMIT = 10.0
"""A time series model whose error grows by more than this factor at a finer step is discrete."""

DEVIATION_LIMIT = 0.15
"""A classifier whose logits move by more than this share of their norm is discrete."""


class Convergence(NamedTuple):
    """What a convergence test finds.

    Attributes:
        steps: numbers of steps of the graphs.
        errors: for each method the errors, one for each number of steps; infinite where the state
            stopped being finite.
        order: for each method the fitted order.
        dip: for a time series the largest error of the model's own method at more steps, over the
            error at its own, both no less than what rounding leaves; for a classifier the distance
            between its own logits and the reference's, over the norm of its own.
        verdict: :data:`DISCRETE` or :data:`CONTINUOUS`.
    """

    steps: tuple[int, ...]
    errors: dict[str, tuple[float, ...]]
    order: dict[str, float]
    dip: float
    verdict: str


def convergence_test(
    net: OneStepNet,
    start: Tensor,
    end: Tensor,
    *,
    time: float,
    methods: Sequence[str],
    steps: Sequence[int],
) -> Convergence:
    r"""Run a trained net under several graphs and compare where it arrives with the truth.

    The error is $E = \lVert x_N - x(T) \rVert$, the order the slope of $\log E$ against
    $\log(T/N)$ over the steps that are not finer than the net's own. The net is discrete if its
    error at any finer step exceeds ten times that at its own. Errors below what rounding leaves of
    that many steps count as that: a net that is exact under every graph has no dip.

    Args:
        net: the trained net.
        start: the true state at time 0.
        end: the true state at ``time``.
        time: the time $T$, a multiple of the net's step.
        methods: the schemes to run; the net's own is always tested too.
        steps: numbers $N$ of steps from 0 to ``time``; the net's own number is always tested, and
            at least one must be larger.

    Raises:
        ValueError: states of different shapes, a time that is no multiple of the net's step,
            numbers of steps that are no integers of at least 1 or none finer than the net's, or an
            unknown method.

    Source:
        Queiruga et al. 2020, Eq. 18 and 19, without the square.

    Example:
        >>> from companion.data import pendulum
        >>> net = OneStepNet("euler", step=0.1, generator=torch.Generator().manual_seed(0))
        >>> test = convergence_test(net, pendulum.exact(0.0), pendulum.exact(1.6), time=1.6,
        ...                         methods=("euler", "rk4"), steps=(16, 32))
        >>> test.steps, sorted(test.errors)
        ((16, 32), ['euler', 'rk4'])
    """
    own = round(time / net.step)
    if own < 1 or not math.isclose(own * net.step, time, rel_tol=1e-9):
        raise ValueError(f"time: {time!r} is not allowed; it must be a multiple of {net.step!r}")
    if start.shape != end.shape:
        raise ValueError(
            f"end: shape {tuple(end.shape)} is not allowed; it must be start's, "
            f"{tuple(start.shape)}"
        )
    counts = _counts((*steps, own))
    if counts[-1] == own:
        raise ValueError(f"steps: {tuple(steps)!r} is not allowed; one must exceed {own}")

    def evaluate(method: str, n: int) -> Tensor:
        return net.rollout(start, n, method=method, step=time / n)[-1]

    errors = graph_errors(evaluate, end, (*methods, net.method), counts)
    coarse = counts[: counts.index(own) + 1]
    order = {method: fitted_order(coarse, values) for method, values in errors.items()}
    trained = errors[net.method]
    least = _rounding(start, end, counts[-1])
    dip = max(least, *trained[len(coarse) :]) / max(least, trained[len(coarse) - 1])
    return Convergence(counts, errors, order, dip, _verdict(dip, DIP_LIMIT))


def classifier_convergence(
    model: nn.Module,
    x: Tensor,
    methods: Sequence[str],
    steps: Sequence[int],
    reference: tuple[str, int] = ("rk4", 32),
) -> Convergence:
    r"""Run a trained classifier under several graphs and compare its logits with a fine graph's.

    There is no truth but the differential equation itself, solved by the reference. The error of a
    graph is $\lVert \ell - \ell_{\mathrm{ref}} \rVert / \lVert \ell_{\mathrm{own}} \rVert$ with
    $\ell_{\mathrm{own}}$ the logits of the graph that was trained. The model is discrete if that
    graph's own error exceeds 0.15. The order is fitted to all errors above zero; in single
    precision, rounding bends it.

    Args:
        model: a model with blocks; it runs in evaluation mode.
        x: samples.
        methods: the schemes to run.
        steps: steps of every block, one graph each.
        reference: the scheme and the steps of the graph to compare with.

    Raises:
        ValueError: numbers of steps that are no integers of at least 1, or an unknown method.

    Source:
        After Queiruga et al. 2020, Fig. 9, with logits in place of error rates.

    Example:
        >>> from companion import OdeBlock
        >>> block = OdeBlock(nn.Linear(1, 1), method="midpoint", steps=4).double()
        >>> stacks = block.weights.stacks
        >>> _ = nn.init.ones_(stacks.weight), nn.init.zeros_(stacks.bias)
        >>> test = classifier_convergence(block, torch.ones(1, 1).double(), ["euler"], [64, 128])
        >>> round(test.order["euler"], 1)  # exp(1) by Euler's method
        1.0
    """
    counts = _counts(steps)

    def evaluate(method: str, n: int) -> Tensor:
        logits: Tensor = with_graph(model, method=method, steps=n)(x)
        return logits

    with evaluating(model), torch.no_grad():
        own, truth = model(x), evaluate(*reference)
        absolute = graph_errors(evaluate, truth, methods, counts)
    norm = float(own.norm())
    errors = {m: tuple(_share(e, norm) for e in values) for m, values in absolute.items()}
    order = {method: fitted_order(counts, values) for method, values in errors.items()}
    dip = _share(float((own - truth).norm()), norm)
    return Convergence(counts, errors, order, dip, _verdict(dip, DEVIATION_LIMIT))


@torch.no_grad()
def graph_errors(
    evaluate: Callable[[str, int], Tensor],
    truth: Tensor,
    methods: Sequence[str],
    steps: Sequence[int],
) -> dict[str, tuple[float, ...]]:
    r"""Return $\lVert y - y_{\mathrm{true}} \rVert$ for every method and number of steps.

    Args:
        evaluate: ``evaluate(method, steps)`` returns what a graph computes.
        truth: what it should be.
        methods: names; repeated ones count once.
        steps: numbers of steps.

    Returns:
        For each method one error a number of steps, infinite where a state stopped being finite.

    Example:
        >>> graph_errors(lambda method, n: torch.tensor([3.0, 4.0]) / n, torch.zeros(2), ["m"],
        ...              [1, 5])
        {'m': (5.0, 1.0)}
    """

    def error(method: str, n: int) -> float:
        try:
            return float((evaluate(method, n) - truth).norm())
        except NonFiniteError:
            return math.inf

    return {method: tuple(error(method, n) for n in steps) for method in methods}


def fitted_order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Return minus the slope of log error against log steps, over finite errors above zero.

    Args:
        steps: numbers of steps.
        errors: their errors; further ones are left out.

    Returns:
        The order, or NaN where fewer than two errors are left.

    Example:
        >>> round(fitted_order([1, 2, 4, 8], [1.0, 0.25, 0.0625, 0.0]), 6)
        2.0
    """
    points = [(n, e) for n, e in zip(steps, errors, strict=False) if 0 < e < math.inf]
    if len(points) < 2:
        return math.nan
    kept, values = zip(*points, strict=True)
    return -fit_slope(kept, values).value


def _counts(steps: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of steps, each once, in increasing order."""
    for n in steps:
        check_count("steps", n)
    return tuple(sorted(set(steps)))


def _rounding(start: Tensor, end: Tensor, steps: int) -> float:
    """Return what the rounding of so many sums may add up to."""
    size = float(torch.maximum(start.norm(), end.norm()))
    return torch.finfo(start.dtype).eps * steps * max(size, torch.finfo(start.dtype).tiny)


def _share(part: float, norm: float) -> float:
    """Return ``part / norm``; nothing is no part of anything, and any part of nothing infinite."""
    if part == 0:
        return 0.0
    return part / norm if norm > 0 else math.inf


def _verdict(dip: float, limit: float) -> str:
    return CONTINUOUS if dip <= limit else DISCRETE
