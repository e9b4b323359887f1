r"""FW10-S: what does a network cost that has learned a stiff equation?

Van der Pol's oscillator, in the coordinates of Liénard, has one fast and one slow variable:

$$\dot x = \mu\,\bigl(y + x - \tfrac13 x^3\bigr), \qquad \dot y = -\tfrac1\mu\,x .$$

A network learns the two velocities in units of $\mu$ and $1/\mu$, as whoever standardises data
would have it, and is then solved in place of the equation. For a growing $\mu$ the motion creeps
along a slow curve for most of the time, while the rate at which it would return to that curve,
about $\mu(x^2 - 1)$, grows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from companion import counting, odeint
from companion.analysis.spectra import spectral_radius_along
from companion.experiments import Part, Run, experiment, grids
from companion.observe import fit_slope
from companion.results import Findings
from companion.train import cosine, seeded

METHODS = ("bosh3", "dopri5", "tsit5", "scipy_solver")
"""Three explicit pairs, and LSODA, which is implicit where that pays."""


@experiment(
    "FW10-S",
    "Evaluations of networks that have learned van der Pol's oscillator, for a growing rate",
    paper="Chen et al. 2018, section 6",
    full={"rates": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0), "seeds": 8, "updates": 2000},
    tiny={"rates": (1.0, 5.0), "methods": ("dopri5", "scipy_solver"), "seeds": 1, "updates": 3,
          "time": 1.0},
    claims=(
        ("CL20", "growth_dopri5", 10.0, None,
         "dopri5's evaluations of the networks at the rate {rates[-1]:g} over those at "
         "{rates[0]:g}"),
        ("CL20", "slope_dopri5", 0.8, 1.2,
         "slope of dopri5's evaluations against the rate, {rates[-2]:g} to {rates[-1]:g}"),
        ("CL20", "growth_scipy_solver", None, 3.0,
         "LSODA's evaluations of the networks at the rate {rates[-1]:g} over those at "
         "{rates[0]:g}"),
    ),
)  # fmt: skip
def fw10_s(
    run: Run, *, rates: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0),
    methods: tuple[str, ...] = METHODS, seeds: int = 5, updates: int = 600,
    tolerance: float = 1e-4, time: float = 5.0,
) -> Findings:  # fmt: skip
    """Train a network a seed, and solve it for every rate by every method, from (2, 2/3).

    Curves: ``rates``; ``nfe_METHOD``, with a row a seed and a column a rate, also for the equation
    itself, ``true_METHOD``; ``radius``, the largest spectral radius along the trajectory;
    ``misfit``, a seed, the mean squared error of the velocities relative to their variance, and
    ``away``, the largest distance of the network's trajectory from the equation's at the end.
    Scalars, as means over seeds: ``growth_METHOD``, evaluations at the last rate over those at the
    first; ``slope_METHOD`` between the last two; ``radius_first`` and ``radius_last``;
    ``mean_misfit``.
    """

    def study(part: Part, seed: int) -> dict[str, Any]:
        net, misfit = _trained(seed, updates)
        found: dict[str, Any] = {"misfit": misfit, "radius": [], "away": []}
        for rate in rates:
            ends = {}
            for name, velocity in (("nfe", net), ("true", lienard)):
                field = Oscillator(velocity, rate)
                for method in methods:
                    nfe, ys = _solve(field, method, tolerance, time)
                    found.setdefault(f"{name}_{method}", []).append(nfe)
                ends[name] = ys[-1]
            found["away"].append(float((ends["nfe"] - ends["true"]).norm()))
            found["radius"].append(_radius(Oscillator(net, rate), ys, time))
        return found

    found = {name: table.values for name, table in grids(run, study, seed=run.seeds(seeds)).items()}
    scalars = {"mean_misfit": float(found["misfit"].mean())}
    for method in methods:
        nfe = found[f"nfe_{method}"]
        scalars[f"growth_{method}"] = float((nfe[:, -1] / nfe[:, 0]).mean())
        scalars[f"slope_{method}"] = fit_slope(rates[-2:], nfe.mean(0)[-2:].tolist()).value
    scalars["radius_first"], scalars["radius_last"] = found["radius"].mean(0)[[0, -1]].tolist()
    return Findings(scalars, {"rates": rates, **found})


START = (2.0, 2 / 3)
"""On the slow curve, where the limit cycle of a large rate enters it."""


def lienard(x: Tensor) -> Tensor:
    """Return both velocities of states ``(batch, 2)``, in units of the rate and of its inverse.

    Example:
        >>> lienard(torch.tensor([[2.0, 1.0]]))
        tensor([[ 0.3333, -2.0000]])
    """
    first, second = x.unbind(1)
    return torch.stack([second + first - first**3 / 3, -first], 1)


class Oscillator(nn.Module):
    """A field of the plane with one fast and one slow variable.

    Args:
        velocity: both velocities in their own units, a function of states ``(batch, 2)``.
        rate: the number of units of the fast one, and one over those of the slow one.
    """

    def __init__(self, velocity: Any, rate: float) -> None:
        super().__init__()
        self.velocity, self.rate = velocity, rate

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate it; the rate is constant in time."""
        units = x.new_tensor([self.rate, 1 / self.rate])
        value: Tensor = self.velocity(x) * units
        return value


def _trained(seed: int, updates: int) -> tuple[nn.Module, float]:
    """Fit velocities around the limit cycle; return the network and its error."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([2.5, 1.5], dtype=torch.float64)
    x = scale * (2 * torch.rand(512, 2, generator=generator, dtype=torch.float64) - 1)
    wanted = lienard(x)
    with seeded(seed, dtype=torch.float64):
        net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(),
                            nn.Linear(32, 2))  # fmt: skip
    optimiser = Adam(net.parameters(), lr=0.01)
    for update in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * cosine(update / updates)
        loss = ((net(x) - wanted).square().mean(0) / wanted.var(0)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net, float(loss.detach())


@torch.no_grad()
def _solve(field: nn.Module, method: str, tolerance: float, time: float) -> tuple[int, Tensor]:
    start = torch.tensor([START], dtype=torch.float64)
    gradient = "adjoint" if method == "scipy_solver" else "backprop"
    with counting() as stats:
        ys: Tensor = odeint(
            field, start, _times(time), method=method, rtol=tolerance, atol=tolerance,
            gradient=gradient,
        )  # fmt: skip
    return stats.nfe, ys


def _times(time: float) -> list[float]:
    return torch.linspace(0, time, 21).tolist()


def _radius(field: nn.Module, ys: Tensor, time: float) -> float:
    generator = torch.Generator().manual_seed(0)
    return float(spectral_radius_along(field, _times(time), ys, generator=generator).max())
