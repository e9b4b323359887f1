r"""FW7: more sweeps towards the input of a layer, and how far they reach.

The input $x$ of a layer solves $x = x_{n+1} - \frac1N f_n(x)$. The paper's rule takes one step of
this iteration from $x_{n+1}$; $k$ further sweeps take $k$ more. Each should gain an order, whether
weights are smooth in depth or not, as long as the iteration contracts: $\mathrm{Lip}(f_n) < N$.
States stored every $K$ layers are the other remedy.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.analysis.reconstruction import gradient_error, trajectory
from companion.experiments import Findings, Grid, Part, Run, experiment, grid, grids, named
from companion.experiments.free_order.networks import KINDS, Task, draw_task, state_error
from companion.gradients import Reconstruct
from companion.observe import fit_slope, geometric_mean

_ORDERS = (0, 1, 2, 3)
_GAIN = 2**0.5
"""Factor on both matrices of a layer, which doubles its Lipschitz constant."""


@experiment(
    "FW7",
    "Fixed-point sweeps in a memory-free backward pass",
    paper="beyond Sander et al. 2022, section 4.1",
    claims=(
        *(
            ("FW7", f"slope_{kind}_{k}",
             None if kind == "iid" else -k - 1.15,  # independent weights may do better by chance
             -k - 0.85, f"slope of the state's error with {k} sweeps, {kind} weights")
            for kind in KINDS
            for k in _ORDERS
        ),
        ("FW7", "slope_stored", 0.8, 1.5,
         "slope of the gradient error of reverse against the distance of stored states"),
        ("FW7", "left_flat", None, 1e-3,
         "share of the state's error that {sweeps[-1]} sweeps leave, largest over networks with "
         "Lip/N < 1"),
        ("FW7", "left_steep", 1e-2, None,
         "share of the state's error that {sweeps[-1]} sweeps leave, smallest over networks with "
         "Lip/N > 1.5"),
    ),
    full={
        "depths": (16, 32, 64, 128, 256), "shallow": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
        "stored": (2, 4, 8, 16, 32, 64, 128, 256), "networks": 5,
    },
    tiny={
        "depths": (4, 8), "shallow": (1, 6), "sweeps": (0, 4), "stored": (2, 4, 8), "networks": 1,
    },
)  # fmt: skip
def fw7(
    run: Run, *, depths: tuple[int, ...] = (16, 32, 64),
    shallow: tuple[int, ...] = (1, 2, 4, 6, 8, 16),
    sweeps: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32),
    stored: tuple[int, ...] = (2, 4, 8, 16, 32, 64), networks: int = 2,
) -> Findings:  # fmt: skip
    r"""Reconstruct the states of random perceptrons with growing numbers of sweeps.

    Curves: ``depths``; ``state_KIND_k``, the largest error of a state with k sweeps, of shape
    ``(depths, networks)``; ``shallow``, ``sweeps``, and for steeper networks with independent
    weights ``shallow_state`` of shape ``(shallow, networks, sweeps)`` and ``steepness``, the
    largest $\lVert\partial_x f_n\rVert/N$ along the trajectory, ``(shallow, networks)``;
    ``stored``, the distances of stored states, and the relative gradient errors
    ``stored_reverse`` and ``stored_corrected`` of shape ``(stored, networks)`` for smooth networks
    as deep as the last of them. ``slope_stored`` is fitted to all distances but the largest.
    """
    seeds, device = run.seeds(networks), run.device

    def states(part: Part, kind: str, depth: int, seed: int) -> list[float]:
        return _errors(draw_task("mlp", kind, depth, "euler", seed, device), _ORDERS)

    def steep(part: Part, shallow: int, seed: int) -> dict[str, Any]:
        task = draw_task("mlp", "iid", shallow, "euler", seed, device)
        with torch.no_grad():
            for parameter in task.block.parameters():
                parameter.mul_(_GAIN)
        return {"steepness": steepness(task), "shallow_state": _errors(task, sweeps)}

    def apart(part: Part, stored: int, seed: int) -> dict[str, float]:
        task = draw_task("mlp", "smooth", deepest, "euler", seed, device)
        rules = {rule: Reconstruct(rule, every=stored) for rule in ("reverse", "corrected")}
        return {
            f"stored_{name}": gradient_error(task.block, task.x, task.loss, rule).relative
            for name, rule in rules.items()
        }

    deepest = stored[-1]
    errors = grid(run, states, kind=KINDS, depth=depths, seed=seeds)
    by_sweeps = Grid({**errors.axes, "sweeps": _ORDERS}, errors.values)
    slopes, _ = by_sweeps.geometric("seed").slopes("depth")
    curves = by_sweeps.named("state", "kind", "sweeps")
    curves |= named(grids(run, steep, shallow=shallow, seed=seeds))
    curves |= named(grids(run, apart, stored=stored, seed=seeds))
    far = geometric_mean(curves["stored_reverse"][:-1], 1).tolist()
    scalars = slopes.named("slope", "kind", "sweeps")
    scalars["slope_stored"] = fit_slope(stored[:-1], far).value
    axes = {"depths": depths, "sweeps": sweeps, "shallow": shallow, "stored": stored}
    steepest, state = curves["steepness"], curves["shallow_state"]
    left = state[..., -1] / state[..., 0]
    deciding = {
        "left_flat": left[steepest < 1].max(initial=0.0),
        "left_steep": left[steepest > 1.5].min(initial=np.inf),
    }
    return Findings(scalars, {**axes, **curves}, deciding=deciding)


def _errors(task: Task, sweeps: tuple[int, ...]) -> list[float]:
    return [state_error(task, Reconstruct(sweeps=k)) for k in sweeps]


@torch.no_grad()
def steepness(task: Task) -> float:
    r"""Return the largest $\lVert\partial_x f_n(x_n)\rVert / N$ over layers and samples."""
    inner, outer = task.block.parameters()
    states = trajectory(task.block, task.x)
    slopes = 1 - torch.tanh(torch.einsum("nbd,nhd->nbh", states[:-1], inner)).square()
    largest = 0.0
    for slope, w, v in zip(slopes, inner, outer, strict=True):
        jacobians: Tensor = torch.einsum("ih,bh,hj->bij", v, slope, w)
        largest = max(largest, float(torch.linalg.matrix_norm(jacobians, 2).max()))
    return largest / len(inner)
