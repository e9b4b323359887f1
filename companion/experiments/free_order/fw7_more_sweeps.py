r"""FW7: more sweeps towards the input of a layer, and how far they reach.

The input $x$ of a layer solves $x = x_{n+1} - \frac1N f_n(x)$. The paper's rule takes one step of
this iteration from $x_{n+1}$; $k$ further sweeps take $k$ more. Each should gain an order, whether
weights are smooth in depth or not, as long as the iteration contracts: $\mathrm{Lip}(f_n) < N$.
States stored every $K$ layers are the other remedy.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.analysis.reconstruction import gradient_error, trajectory
from companion.experiments import Claim, Findings, Part, Run, experiment, grid
from companion.experiments.free_order.networks import KINDS, Task, draw_task, state_error
from companion.gradients import Reconstruct
from companion.observe import fit_slope, geometric_mean

Curve = NDArray[np.float64]

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
    as deep as the last of them. Scalars: ``slope_KIND_k``; ``slope_stored``, of
    ``stored_reverse`` against the distance, but for the largest.
    """
    seeds, device = run.seeds(networks), run.device

    def states(part: Part, kind: str, depth: int, seed: int) -> list[float]:
        return _errors(draw_task("mlp", kind, depth, "euler", seed, device), _ORDERS)

    def steep(part: Part, shallow: int, seed: int) -> list[float]:
        task = draw_task("mlp", "iid", shallow, "euler", seed, device)
        with torch.no_grad():
            for parameter in task.block.parameters():
                parameter.mul_(_GAIN)
        return [steepness(task), *_errors(task, sweeps)]

    def apart(part: Part, stored: int, seed: int) -> list[float]:
        task = draw_task("mlp", "smooth", deepest, "euler", seed, device)
        rules = (Reconstruct(rule, every=stored) for rule in ("reverse", "corrected"))
        return [gradient_error(task.block, task.x, task.loss, rule).relative for rule in rules]

    deepest = stored[-1]
    errors = grid(run, states, kind=KINDS, depth=depths, seed=seeds)
    steeper = grid(run, steep, shallow=shallow, seed=seeds).values
    reverse, corrected = np.moveaxis(grid(run, apart, stored=stored, seed=seeds).values, -1, 0)
    curves = {
        f"state_{kind}_{k}": errors.at(kind=kind).pick(k).values for kind in KINDS for k in _ORDERS
    }
    scalars = {name.replace("state", "slope"): _slope(depths, e) for name, e in curves.items()}
    scalars["slope_stored"] = _slope(stored[:-1], reverse[:-1])
    steepest, left = steeper[..., 0], steeper[..., -1] / steeper[..., 1]
    axes = {"depths": depths, "sweeps": sweeps, "shallow": shallow, "stored": stored}
    curves |= {"steepness": steepest, "shallow_state": steeper[..., 1:]}
    curves |= {"stored_reverse": reverse, "stored_corrected": corrected}
    return Findings(scalars, {**axes, **curves}, _reach(sweeps[-1], steepest, left))


def _errors(task: Task, sweeps: tuple[int, ...]) -> list[float]:
    return [state_error(task, Reconstruct(sweeps=k)) for k in sweeps]


@torch.no_grad()
def steepness(task: Task) -> float:
    r"""Return the largest $\lVert\partial_x f_n(x_n)\rVert / N$ over layers and samples.

    Example:
        >>> task = draw_task("mlp", "iid", 4, "euler", 0, torch.device("cpu"))
        >>> 0.2 < steepness(task) < 1.0
        True
    """
    inner, outer = task.block.parameters()
    states = trajectory(task.block, task.x)
    slopes = 1 - torch.tanh(torch.einsum("nbd,nhd->nbh", states[:-1], inner)).square()
    largest = 0.0
    for slope, w, v in zip(slopes, inner, outer, strict=True):
        jacobians: Tensor = torch.einsum("ih,bh,hj->bij", v, slope, w)
        largest = max(largest, float(torch.linalg.matrix_norm(jacobians, 2).max()))
    return largest / len(inner)


def _slope(x: tuple[int, ...], errors: Curve) -> float:
    return fit_slope(x, geometric_mean(errors, 1).tolist()).value


def _reach(sweeps: int, steepness: Curve, left: Curve) -> list[Claim]:
    """Decide where sweeps help: what they leave of the error, below and above steepness 1."""
    text = f"share of the state's error that {sweeps} sweeps leave"
    return [
        Claim("FW7", f"{text}, largest over networks with Lip/N < 1",
              float(left[steepness < 1].max(initial=0.0)), high=1e-3),
        Claim("FW7", f"{text}, smallest over networks with Lip/N > 1.5",
              float(left[steepness > 1.5].min(initial=np.inf)), low=1e-2),
    ]  # fmt: skip
