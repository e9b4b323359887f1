r"""C18-E2b: what the tolerance does to a trained ODE-Net (Chen et al. 2018, Fig. 3).

The paper's four panels: the error of the solver against its evaluations, time against
evaluations, evaluations backwards against forwards, and evaluations against the epoch of training.
One more question: what becomes of a net that was trained at one tolerance and is run at another?
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam

from companion.block import OdeBlock
from companion.counts import counting
from companion.data import load_mnist
from companion.experiments import Findings, Part, Run, experiment, grid, grids
from companion.experiments.annulus import annulus_samples
from companion.experiments.recipes import (
    deviation,
    error_of,
    scores,
    sgd,
    shortest,
    splits,
    train,
)
from companion.models import ConvField, ODENet, TanhMLP, with_graph
from companion.observe import fit_line, fit_slope
from companion.train import cosine, seeded

EXACT = 1e-10
"""The tolerance that stands for the solution itself."""

TIGHT = 1e-3
"""Slopes are fitted from this tolerance on: at looser ones the first steps decide."""

TESTED = 1000
"""Test samples that are run at every tolerance."""

Pair = tuple[Tensor, Tensor]


@experiment(
    "C18-E2b",
    "Error, time and evaluations of trained ODE-Nets against the tolerance",
    paper="Chen et al. 2018, Fig. 3",
    full={"dataset": "mnist", "hidden": 64, "epochs": 10, "seeds": 1, "samples": 60_000},
    tiny={
        "samples": 200, "hidden": 4, "epochs": 2, "seeds": 1, "tolerances": (1e-1, 1e-3, 1e-5),
        "others": (1e-1,), "repeats": 1,
    },
    machine_dependent=("seconds", "r_squared"),
    claims=(
        ("CL09", "growth", 1.3, None,
         "{dataset}, evaluations after training over those before, mean of {seeds}"),
        ("CL10", "slope", -0.26, -0.14,
         "{dataset}, slope of dopri5's evaluations against the tolerance, trained nets"),
        ("C18-E2", "half", 0.4, 0.6,
         "{dataset}, evaluations backwards over forwards, trained nets, median",
         "The paper reports about half. An adjoint that controls the error of the state and of its "
         "own takes as many evaluations as the forward solve, here as on untrained fields."),
        ("C18-E2b", "r_squared", 0.95, None,
         "{dataset}, share of the variance of the time that evaluations explain"),
    ),
)  # fmt: skip
def c18_e2b(
    run: Run, *, dataset: str = "annulus", samples: int = 1000, hidden: int = 32, epochs: int = 40,
    seeds: int = 5,
    tolerances: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8),
    others: tuple[float, ...] = (1e-1, 1e-5), repeats: int = 3,
) -> Findings:  # fmt: skip
    """Train at the tolerance 1e-3, and at ``others``; run the nets at all of ``tolerances``.

    The nets are trained by backprop and run in double precision; ``hidden`` is the width of the
    field. The panels are of the nets trained at 1e-3.

    Curves: ``tolerances``; ``nfe_epoch``, evaluations for the test samples before training and
    after each epoch, shape ``(seeds, epochs + 1)``; of shape ``(seeds, tolerances)`` ``forward``
    and ``backward`` evaluations, the latter of the adjoint, ``deviation``, the distance of the
    scores from the exact ones over the norm of these, and ``seconds``; and for each tolerance of
    training ``error_TOLERANCE``, test errors of that shape. Scalars: ``growth``, the mean over
    seeds; from 1e-3 on ``slope``, of the mean evaluations against the tolerance, and ``order``, of
    the mean deviation against the mean evaluations, its sign changed; ``half``, the median ratio of
    backward to forward evaluations, with ``half_least`` and ``half_most``; ``r_squared`` of the
    line through the mean times against the mean evaluations; for each tolerance of training the
    mean test error at that very tolerance, ``own_TOLERANCE``, at the tightest,
    ``tight_TOLERANCE``, and at the loosest, ``loose_TOLERANCE``.
    """
    training, test = _data(dataset, run, samples)
    wide = (test[0].double(), test[1])

    def trained(part: Part, tolerance: float, seed: int) -> tuple[nn.Module, list[float]]:
        net = _net(dataset, hidden, tolerance, seed, run.dtype).to(run.device)
        before = _evaluations(net, test[0])
        history = train(
            part, net, training, seed, on_epoch=lambda: {"nfe": _evaluations(net, test[0])},
            schedule=cosine, epochs=epochs, **_recipe(dataset),
        )  # fmt: skip
        assert history is not None  # a bounded field moves nothing to infinity
        return net.double(), [before, *history["nfe"]]

    def panels(part: Part, seed: int) -> dict[str, Any]:
        net, nfe = trained(part, TIGHT, seed)
        seconds = _seconds(part, net, wide[0], tolerances, repeats)
        return {"nfe_epoch": nfe, **measured(net, wide, tolerances), "seconds": seconds}

    def elsewhere(part: Part, trained_at: float, seed: int) -> list[float]:
        net, _ = trained(part, trained_at, seed)
        return [error_of(scores(_view(net, at), wide[0]), wide[1]) for at in tolerances]

    found = {
        name: table.values for name, table in grids(run, panels, seed=run.seeds(seeds)).items()
    }
    other = grid(run, elsewhere, trained_at=others, seed=run.seeds(seeds))
    errors = {TIGHT: found.pop("error")} | {at: other.at(trained_at=at).values for at in others}
    scalars = panel_scalars(found, tolerances)
    for at, error in errors.items():
        mean = error.mean(0)
        scalars |= {
            f"own_{at:.0e}": float(mean[tolerances.index(at)]),
            f"tight_{at:.0e}": float(mean[-1]),
            f"loose_{at:.0e}": float(mean[0]),
        }
    curves = {f"error_{at:.0e}": error for at, error in errors.items()}
    data = f"{dataset}, {len(training[0])} samples"
    return Findings(scalars, {"tolerances": tolerances, **found, **curves}, data=data)


def _data(dataset: str, run: Run, samples: int) -> tuple[Pair, Pair]:
    """Return what to train on, and what to test on."""
    if dataset == "annulus":
        data = annulus_samples(run.seed, samples, TESTED, run.dtype)
    elif dataset == "mnist":
        data = load_mnist(run.data, dtype=run.dtype)
    else:
        raise ValueError(f"dataset must be one of annulus, mnist; got {dataset!r}")
    (x, y), (x_test, y_test) = splits(data)
    device = run.device
    training = (x[:samples].to(device), y[:samples].to(device))
    return training, (x_test[:TESTED].to(device), y_test[:TESTED].to(device))


def _net(dataset: str, hidden: int, tolerance: float, seed: int, dtype: torch.dtype) -> nn.Module:
    """Return an ODE-Net before its training."""
    knobs: dict[str, Any] = {"method": "dopri5", "rtol": tolerance, "atol": tolerance, "time": True}
    with seeded(seed, dtype=dtype):
        if dataset == "mnist":
            return ODENet(OdeBlock(ConvField(hidden), **knobs), channels=hidden)
        return nn.Sequential(OdeBlock(TanhMLP(2, (hidden, hidden)), **knobs), nn.Linear(2, 2))


def _recipe(dataset: str) -> dict[str, Any]:
    if dataset == "mnist":
        return {"optimiser": sgd(0.1), "batch_size": 128}
    return {"optimiser": lambda parameters: Adam(parameters, lr=1e-2), "batch_size": 100}


@torch.no_grad()
def _evaluations(net: nn.Module, x: Tensor) -> int:
    with counting() as stats:
        net(x)
    return stats.nfe


def measured(net: nn.Module, test: Pair, tolerances: tuple[float, ...]) -> dict[str, Any]:
    """Return evaluations in both directions, deviations and errors of a net, by tolerance."""
    x, y = test
    with torch.no_grad():
        exact = with_graph(net, rtol=EXACT, atol=EXACT)(x)
    rows = []
    for tolerance in tolerances:
        view = with_graph(net, rtol=tolerance, atol=tolerance, gradient="adjoint")
        with counting() as stats:
            found = view(x)
            cross_entropy(found, y).backward()  # type: ignore[no-untyped-call]
        found = found.detach()
        rows.append((stats.nfe, stats.nfe_backward, deviation(found, exact), error_of(found, y)))
    names = ("forward", "backward", "deviation", "error")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _seconds(
    part: Part, net: nn.Module, x: Tensor, tolerances: tuple[float, ...], repeats: int
) -> list[float]:
    """Return processor seconds of a forward pass, by tolerance."""
    views = [_view(net, tolerance) for tolerance in tolerances]
    with torch.no_grad():
        return shortest(part, [partial(view, x) for view in views], repeats)


def _view(net: nn.Module, tolerance: float) -> nn.Module:
    """Return the net at another tolerance."""
    return with_graph(net, rtol=tolerance, atol=tolerance)


def panel_scalars(panels: dict[str, Any], tolerances: tuple[float, ...]) -> dict[str, float]:
    """Return the numbers that sum up the four panels, each of which has one row a seed."""
    epochs = panels["nfe_epoch"]
    forward, off, seconds = (panels[name].mean(0) for name in ("forward", "deviation", "seconds"))
    tight = [k for k, tolerance in enumerate(tolerances) if tolerance <= TIGHT]
    ratios = panels["backward"] / panels["forward"]
    return {
        "growth": float((epochs[:, -1] / epochs[:, 0]).mean()),
        "slope": fit_slope([tolerances[k] for k in tight], forward[tight].tolist()).value,
        "order": -fit_slope(forward[tight].tolist(), off[tight].tolist()).value,
        "half": float(np.median(ratios)),
        "half_least": float(ratios.min()),
        "half_most": float(ratios.max()),
        "r_squared": fit_line(forward, seconds).r_squared,
    }
