r"""FW10: the evaluations of a neural ODE grow while it trains. What holds them down, and who pays?

A disc and a ring around it are separated by a flow in the plane. Besides the loss, training may pay
for

- ``kinetic``: $\int \lVert f\rVert^2$, which is small where points move straight and evenly;
- ``jacobian``: $\int \lVert\epsilon^\top\partial_x f\rVert^2$, with one probe a solve;
- ``both`` of these, as Finlay et al. (2020) do;
- ``estimate``: the solver's own error estimates, $\sum_j |h_j| \lVert e_j\rVert$ over the steps
  that it accepts (Pal et al. 2021);
- ``decay``: weight decay, which knows nothing of the flow.

The learning rate falls to zero like a cosine. At a constant one, an update near the end throws
single runs back, and these decide the means.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from companion import counting, odeint
from companion.analysis.spectra import spectral_radius_along
from companion.experiments import Part, Run, experiment, grids, named
from companion.experiments.limits.error_estimates import solve_with_estimates
from companion.experiments.limits.separator import Separator, disc_and_ring, wrong
from companion.observe import geometric_mean
from companion.results import Findings
from companion.running_costs import (
    Cost,
    estimated_jacobian_norm,
    kinetic_energy,
    random_signs,
    solve_with_costs,
)
from companion.train import cosine, seeded

RULES = ("none", "decay", "kinetic", "jacobian", "both", "estimate")

_PAID = {
    "kinetic": {"kinetic": 0.1},
    "jacobian": {"jacobian": 0.03},
    "both": {"kinetic": 0.03, "jacobian": 0.03},
}
"""What a unit of each integral costs; chosen in trials with other points and another rate."""

_ESTIMATE, _DECAY = 300.0, 0.3

_RATE = 0.02

TOLERANCE, TIGHT = 1e-3, 1e-5
"""Of training, and of the solves whose evaluations are compared: these are less coarse a count."""


@experiment(
    "FW10",
    "Evaluations during training, with what is said to hold them down",
    paper="Chen et al. 2018, section 3; Finlay et al. 2020; Pal et al. 2021",
    full={"strengths": (0.3, 1.0, 3.0), "seeds": 8, "updates": 600},
    tiny={
        "rules": ("none", "both", "estimate"), "seeds": 1, "updates": 2, "points": 20, "hidden": 4,
    },
    claims=(
        ("CL09", "growth_none", 1.3, None,
         "evaluations after training over those before, without a regulariser"),
        ("FW10", "ratio_both", None, 0.8,
         "evaluations with kinetic and Jacobian costs over those without, after training"),
        ("FW10", "error_both", -0.01, 0.01, "test error with these costs minus that without"),
        ("FW10", "ratio_estimate", None, 0.8,
         "evaluations with the solver's estimates as a cost over those without"),
        ("FW10", "error_estimate", -0.01, 0.01, "test error with this cost minus that without"),
    ),
)  # fmt: skip
def fw10(
    run: Run, *, rules: tuple[str, ...] = RULES, strengths: tuple[float, ...] = (1.0,),
    seeds: int = 5, updates: int = 200, points: int = 200, hidden: int = 32,
) -> Findings:  # fmt: skip
    """Train by every rule and strength, on the same points and from the same weights.

    Curves: ``updates`` at which is measured; for every rule and strength, with a row for each seed
    and a column for each of these, ``nfe_RULE_STRENGTH``, at the tight tolerance,
    ``coarse_RULE_STRENGTH``, at that of training, ``error_...``, on 1000 other points, and
    ``radius_...``, the largest spectral radius along a trajectory, as a mean over points;
    ``work_...``, all evaluations of the field in training. Scalars, of the strength 1: geometric
    means over seeds of ``growth_RULE``, ``nfe`` at the end over the start, and of ``ratio_RULE``,
    ``nfe`` at the end over that without a rule, with the largest of a seed, ``worst_RULE``;
    ``error_RULE``, the mean error at the end less that without; ``final_RULE`` and ``radius_RULE``,
    means at the end; ``work_RULE``, training's evaluations over those without.
    """
    moments = sorted({0, *(updates // k for k in (20, 8, 4, 2)), updates})

    def train(part: Part, rule: str, strength: float, seed: int) -> dict[str, Any]:
        return _train(run, rule, strength, seed, moments, points, hidden)

    found = grids(run, train, rule=rules, strength=strengths, seed=run.seeds(seeds))
    end = {name: table.pick(-1) for name, table in found.items() if name != "work"}
    scalars = {}
    at = {"strength": 1.0}
    base = end["nfe"].at(rule="none", **at).values
    for rule in rules:
        nfe, error, radius = (end[k].at(rule=rule, **at).values for k in ("nfe", "error", "radius"))
        begun = found["nfe"].pick(0).at(rule=rule, **at).values
        scalars[f"growth_{rule}"] = float(geometric_mean(nfe / begun))
        scalars[f"ratio_{rule}"] = float(geometric_mean(nfe / base))
        scalars[f"worst_{rule}"] = float((nfe / base).max())
        scalars[f"final_{rule}"] = float(error.mean())
        scalars[f"error_{rule}"] = scalars[f"final_{rule}"] - scalars["final_none"]
        scalars[f"radius_{rule}"] = float(radius.mean())
        work = found["work"].at(rule=rule, **at).values
        spent = work.sum() / found["work"].at(rule="none", **at).values.sum()
        scalars[f"work_{rule}"] = float(spent)
    return Findings(scalars, {"updates": moments, **named(found, "rule", "strength")})


def _train(
    run: Run, rule: str, strength: float, seed: int, moments: list[int], points: int, hidden: int
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    x, y = disc_and_ring(points, generator, run.dtype)
    test = disc_and_ring(1000, generator, run.dtype)
    with seeded(seed, dtype=run.dtype):
        net = Separator(extra=0, hidden=hidden)
    decay = strength * _DECAY if rule == "decay" else 0.0
    optimiser = AdamW(net.parameters(), lr=_RATE, weight_decay=decay)
    seen: dict[str, list[float]] = {"nfe": [], "coarse": [], "error": [], "radius": []}
    with counting() as work:
        for update in range(moments[-1] + 1):
            if update in moments:
                for name, value in _measure(net, *test).items():
                    seen[name].append(value)
            if update == moments[-1]:
                break
            end, paid = _solve(net, x, rule, generator)
            loss = (net.score(end) - y).square().mean() + strength * paid
            for group in optimiser.param_groups:
                group["lr"] = _RATE * cosine(update / moments[-1])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return {**seen, "work": work.nfe}


def _solve(
    net: Separator, x: Tensor, rule: str, generator: torch.Generator
) -> tuple[Tensor, Tensor | float]:
    """Return where points end, and what their ways cost."""
    start = net.start(x)
    knobs: dict[str, Any] = {"rtol": TOLERANCE, "atol": TOLERANCE}
    if rule == "estimate":
        end, estimates = solve_with_estimates(net.field, start, TOLERANCE)
        return end, _ESTIMATE * estimates
    prices = _PAID.get(rule, {})
    if not prices:
        return odeint(net.field, start, [0.0, 1.0], **knobs)[-1], 0.0
    every: dict[str, Cost] = {
        "kinetic": kinetic_energy,
        "jacobian": estimated_jacobian_norm(random_signs(start, generator)),
    }
    costs = {name: every[name] for name in prices}
    ys, integrals = solve_with_costs(net.field, start, [0.0, 1.0], costs, **knobs)
    return ys[-1], sum(price * integrals[name][-1].mean() for name, price in prices.items())


@torch.no_grad()
def _measure(net: Separator, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return what the curves hold; counts of these solves go nowhere else."""
    found, times = {}, [0.0, 0.25, 0.5, 0.75, 1.0]
    for name, tol in (("coarse", TOLERANCE), ("nfe", TIGHT)):
        with counting() as stats:
            ys = odeint(net.field, net.start(x), times, rtol=tol, atol=tol)
        found[name] = float(stats.nfe)
    generator = torch.Generator().manual_seed(0)
    few = ys[:, :: max(1, len(x) // 100)]
    radius = spectral_radius_along(net.field, times, few, generator=generator, iterations=20)
    radius = radius.amax(0).mean()
    return {**found, "error": wrong(net.score(ys[-1]), y), "radius": float(radius)}
