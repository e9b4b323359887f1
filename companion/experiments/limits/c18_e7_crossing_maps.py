r"""C18-E7: what a flow cannot do, and what more dimensions change.

- ``line``: $x \mapsto -x$ on 21 points of $[-1, 1]$, the task that no flow on the line can do. The
  state gets ``extra`` dimensions that start at 0, and its first coordinate is read at time 1.
- ``annulus``: a disc and a ring around it, to be separated by an affine function of the end (Dupont
  et al. 2019). On the whole disc and ring no flow of the plane can do that; on samples it can.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Adam

from companion import counting, odeint
from companion.analysis.reversal import least_lipschitz, pair_rates
from companion.experiments import Part, Run, experiment, grids, named
from companion.experiments.annulus import NARROW
from companion.experiments.limits.separator import Separator, disc_and_ring, wrong
from companion.models import TanhMLP
from companion.results import Findings
from companion.train import cosine, seeded

TOLERANCE, TIGHT = 1e-3, 1e-6
"""Of training, and of the solves that are measured."""

RATE = 0.02
"""The learning rate at first; it falls to zero like a cosine."""

BEST_MONOTONE = float((torch.linspace(-1, 1, 21, dtype=torch.float64) ** 2).mean())
"""The mean squared error of the best non-decreasing map on the task -x, the constant 0."""


@experiment(
    "C18-E7",
    "Reversing a line and taking a disc out of a ring, with 0, 1, 2 and 5 dimensions more",
    paper="Dupont et al. 2019, sections 3 and 4",
    full={"seeds": 8, "updates": 1000, "ring_updates": 600},
    tiny={
        "extras": (0, 1), "seeds": 1, "updates": 3, "ring_updates": 2, "points": 20, "hidden": 4,
    },
    claims=(
        ("CL22", "excess", 1.0, None,
         "smallest loss on the line without extra dimensions over that of the best monotone map"),
        ("CL22", "line_1", None, 0.02, "largest loss on the line with one extra dimension"),
        ("CL22", "annulus_1", None, 0.02,
         "mean test error on the annulus with one extra dimension"),
        ("CL22", "saved_1", None, 1.0,
         "evaluations on the annulus with one extra dimension over those without"),
        ("C18-E7", "steepness", 1.0, None,
         "smallest Lipschitz constant of the trained fields over the optimum"),
        ("C18-E7", "turned", 1.0, None,
         "smallest integral of the rates that pairs force on the field, over the optimum for "
         "what it learned"),
    ),
)  # fmt: skip
def c18_e7(
    run: Run, *, extras: tuple[int, ...] = (0, 1, 2, 5), seeds: int = 5, updates: int = 300,
    ring_updates: int = 200, points: int = 200, hidden: int = 32,
) -> Findings:  # fmt: skip
    r"""Train with every number of extra dimensions.

    Curves, with a row for each number of extra dimensions and a column for each seed: on the line
    ``line_loss`` and ``line_nfe``; ``steep``, the largest norm of the field's Jacobian on segments
    between states of one time, a lower bound of its Lipschitz constant; ``forced``, the integral
    over time of the largest rate at which it changes the distance of two states, and ``needed``,
    the least that such an integral can be for the factor that the pair of ends has. On the annulus
    ``ring_loss``, ``ring_error``, ``ring_nfe``, and ``widest`` and ``narrowest``, the extreme
    singular values of the flow's Jacobian over the disc of radius 1.5. Scalars: means over seeds
    ``line_mean_EXTRA``, ``nfe_EXTRA`` and ``annulus_EXTRA`` (the error), and those of the claims.
    """

    def train(part: Part, extra: int, seed: int) -> dict[str, float]:
        line = _line(run, extra, seed, updates, hidden)
        return line | _annulus(run, extra, seed, ring_updates, points, hidden)

    found = grids(run, train, extra=extras, seed=run.seeds(seeds))
    of = {name: table.values for name, table in found.items()}
    lifted = [k for k, extra in enumerate(extras) if extra]
    scalars = {
        "excess": of["line_loss"][extras.index(0)].min() / BEST_MONOTONE,
        "steepness": of["steep"][lifted].min() / least_lipschitz(),
        "turned": (of["forced"] / of["needed"])[lifted].min(),
        "saved_1": of["ring_nfe"][extras.index(1)].mean() / of["ring_nfe"][extras.index(0)].mean(),
    }
    for k, extra in enumerate(extras):
        scalars[f"line_{extra}"] = of["line_loss"][k].max()
        scalars[f"line_mean_{extra}"] = of["line_loss"][k].mean()
        scalars[f"line_nfe_{extra}"] = of["line_nfe"][k].mean()
        scalars[f"steep_{extra}"] = np.median(of["steep"][k])
        scalars[f"annulus_{extra}"] = of["ring_error"][k].mean()
        scalars[f"nfe_{extra}"] = of["ring_nfe"][k].mean()
        scalars[f"narrowest_{extra}"] = np.median(of["narrowest"][k])
        scalars[f"widest_{extra}"] = np.median(of["widest"][k])
    numbers = {name: float(value) for name, value in scalars.items()}
    return Findings(numbers, {"extras": extras, **named(found)})


def _line(run: Run, extra: int, seed: int, updates: int, hidden: int) -> dict[str, float]:
    """Train on x -> -x; solve again at a tight tolerance, and measure."""
    x = torch.linspace(-1, 1, 21, dtype=run.dtype)
    start = pad(x[:, None], (0, extra))
    with seeded(seed, dtype=run.dtype):
        field = TanhMLP(1 + extra, (hidden, hidden))
    _fit(field, updates, lambda: (_ends(field, start)[:, 0] + x).square().mean())
    times = torch.linspace(0, 1, 41).tolist()
    with torch.no_grad(), counting() as stats:
        field, start = field.double(), start.double()
        ys = odeint(field, start, times, rtol=TIGHT, atol=TIGHT)
    ends = ys[-1, :, 0]
    factor = max(1e-3, -float((ends[-1] - ends[0]) / 2))
    rates, norms = pair_rates(field, times, ys)
    return {
        "line_loss": float((ends + x).square().mean()),
        "line_nfe": stats.nfe,
        "steep": float(norms.max()),
        "forced": float(torch.trapezoid(rates, torch.tensor(times).double())),
        "needed": least_lipschitz(factor),
    }


def _annulus(
    run: Run, extra: int, seed: int, updates: int, points: int, hidden: int
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    x, y = disc_and_ring(points, generator, run.dtype)
    more, sides = disc_and_ring(1000, generator, run.dtype)
    with seeded(seed, dtype=run.dtype):
        net = Separator(extra, hidden)
    start = net.start(x)
    _fit(net, updates, lambda: (net.score(_ends(net.field, start)) - y).square().mean())
    with torch.no_grad(), counting() as stats:
        end = odeint(net.field, net.start(more), [0.0, 1.0], rtol=1e-5, atol=1e-5)[-1]
        scores = net.score(end)
    stretches = _stretches(net)
    return {
        "ring_loss": float((scores - sides).square().mean()),
        "ring_error": wrong(scores, sides),
        "ring_nfe": stats.nfe,
        "widest": float(stretches.max()),
        "narrowest": float(stretches.min()),
    }


def _fit(net: nn.Module, updates: int, loss: Callable[[], Tensor]) -> None:
    optimiser = Adam(net.parameters(), lr=RATE)
    for update in range(updates):
        for group in optimiser.param_groups:  # at a constant rate some runs end thrown back
            group["lr"] = RATE * cosine(update / updates)
        optimiser.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _ends(field: nn.Module, start: Tensor) -> Any:
    return odeint(field, start, [0.0, 1.0], rtol=TOLERANCE, atol=TOLERANCE)[-1]


def _stretches(net: Separator) -> Tensor:
    """Return the singular values of the derivative of the flow, at points all over the disc."""
    line = torch.linspace(-NARROW[2], NARROW[2], 25, dtype=net.head.weight.dtype)
    grid = torch.cartesian_prod(line, line)
    grid = grid[grid.norm(dim=1) <= NARROW[2] + 1e-6].requires_grad_()
    ends = odeint(net.field, net.start(grid), [0.0, 1.0], rtol=1e-5, atol=1e-5)[-1]
    rows = [
        torch.autograd.grad(ends[:, k].sum(), grid, retain_graph=True)[0]
        for k in range(ends.shape[1])
    ]
    values: Tensor = torch.linalg.svdvals(torch.stack(rows, 1).detach().double())
    return values
