r"""FW7: more sweeps towards the input of a layer, and how far they reach.

The input $x$ of a layer solves $x = x_{n+1} - \frac1N f_n(x)$. The paper's rule takes one step of
this iteration from $x_{n+1}$; $k$ further sweeps take $k$ more. Each should gain an order, whether
weights are smooth in depth or not, as long as the iteration contracts: $\mathrm{Lip}(f_n) < N$.
States stored every $K$ layers are the other remedy.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.analysis.reconstruction import gradient_error, reconstruction, trajectory
from companion.experiments.free_order.networks import KINDS, Task, draw_task
from companion.experiments.registry import experiment
from companion.experiments.running import Run
from companion.gradients import Reconstruct
from companion.observe import fit_slope
from companion.results import Claim, Findings

Curve = NDArray[np.float64]

_ORDERS = (0, 1, 2, 3)
_GAIN = 2**0.5
"""Factor on both matrices of a layer, which doubles its Lipschitz constant."""


@experiment(
    "FW7",
    "Fixed-point sweeps in a memory-free backward pass",
    paper="beyond Sander et al. 2022, section 4.1",
    claims=("FW7",),
    full={
        "depths": (16, 32, 64, 128, 256),
        "shallow": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
        "stored": (2, 4, 8, 16, 32, 64, 128, 256),
        "networks": 5,
    },
)
def fw7(
    run: Run,
    *,
    depths: tuple[int, ...] = (16, 32, 64),
    shallow: tuple[int, ...] = (1, 2, 4, 6, 8, 16),
    sweeps: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32),
    stored: tuple[int, ...] = (2, 4, 8, 16, 32, 64),
    networks: int = 2,
) -> Findings:
    r"""Reconstruct the states of random perceptrons with growing numbers of sweeps.

    Curves: ``depths``; ``state_KIND_k``, the largest error of a state with k sweeps, of shape
    ``(depths, networks)``; ``shallow``, ``sweeps``, and for steeper networks with independent
    weights ``shallow_state`` of shape ``(shallow, networks, sweeps)`` and ``steepness``, the
    largest $\lVert\partial_x f_n\rVert/N$ along the trajectory, ``(shallow, networks)``;
    ``stored``, the distances of stored states, and the relative gradient errors
    ``stored_reverse`` and ``stored_corrected`` of shape ``(stored, networks)`` for smooth networks
    as deep as the last of them. Scalars: ``slope_KIND_k``.
    """
    seeds = range(run.seed, run.seed + networks)
    parts: dict[str, tuple[Any, ...]] = {
        f"{kind} {depth} {seed}": (state_errors, kind, depth, seed, _ORDERS, run.device)
        for kind in KINDS
        for depth in depths
        for seed in seeds
    }
    parts |= {f"shallow {n} {s}": (shallow_errors, n, s, sweeps, run.device)
              for n in shallow for s in seeds}  # fmt: skip
    parts |= {f"stored {k} {s}": (stored_errors, k, stored[-1], s, run.device)
              for k in stored for s in seeds}  # fmt: skip
    found = run.map(lambda part, measure, *arguments: measure(*arguments), parts)

    def table(name: str, rows: tuple[int, ...]) -> Curve:
        return np.array([[found[f"{name} {row} {seed}"] for seed in seeds] for row in rows])

    curves: dict[str, Curve] = {
        f"state_{kind}_{k}": table(kind, depths)[..., k] for kind in KINDS for k in _ORDERS
    }
    slopes = {name.replace("state", "slope"): _slope(depths, e) for name, e in curves.items()}
    steep = table("shallow", shallow)
    errors = table("stored", stored)
    curves |= {"depths": np.array(depths), "sweeps": np.array(sweeps)}
    curves |= {"shallow": np.array(shallow), "stored": np.array(stored)}
    curves |= {"steepness": steep[..., 0], "shallow_state": steep[..., 1:]}
    curves |= {"stored_reverse": errors[..., 0], "stored_corrected": errors[..., 1]}
    claims = [*_orders(slopes), *_reach(curves), *_stored(curves)]
    return Findings(slopes, curves, claims)


def state_errors(
    kind: str, depth: int, seed: int, sweeps: tuple[int, ...], device: torch.device
) -> list[float]:
    """Return the largest error of a state for each number of sweeps."""
    return _errors(draw_task("mlp", kind, depth, "euler", seed, device), sweeps)


def shallow_errors(
    depth: int, seed: int, sweeps: tuple[int, ...], device: torch.device
) -> list[float]:
    """Return the steepness of a network with independent weights, and its errors."""
    task = draw_task("mlp", "iid", depth, "euler", seed, device)
    with torch.no_grad():
        for parameter in task.block.parameters():
            parameter.mul_(_GAIN)
    return [steepness(task), *_errors(task, sweeps)]


def stored_errors(every: int, depth: int, seed: int, device: torch.device) -> list[float]:
    """Return relative gradient errors, reverse and corrected, with every ``every``-th state."""
    task = draw_task("mlp", "smooth", depth, "euler", seed, device)
    rules = (Reconstruct(rule, every=every) for rule in ("reverse", "corrected"))
    return [gradient_error(task.block, task.x, task.loss, rule).relative for rule in rules]


def _errors(task: Task, sweeps: tuple[int, ...]) -> list[float]:
    states = trajectory(task.block, task.x)

    def error(k: int) -> float:
        seen = reconstruction(task.block, states[-1], Reconstruct(sweeps=k))
        return float((seen - states).flatten(1).norm(dim=1).max())

    return [error(k) for k in sweeps]


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


def _slope(depths: tuple[int, ...], errors: Curve) -> float:
    return fit_slope(depths, np.exp(np.log(errors).mean(axis=1)).tolist()).value


def _orders(slopes: Mapping[str, float]) -> list[Claim]:
    """Decide that k sweeps have order k + 1; independent weights may do better by cancelling."""
    return [
        Claim("FW7", f"slope of the state's error with {k} sweeps, {kind} weights",
              slopes[f"slope_{kind}_{k}"],
              low=None if kind == "iid" else -k - 1.15, high=-k - 0.85)
        for kind in KINDS
        for k in _ORDERS
    ]  # fmt: skip


def _reach(curves: Mapping[str, Curve]) -> list[Claim]:
    """Decide where sweeps help: what they leave of the error, below and above steepness 1."""
    left = curves["shallow_state"][..., -1] / curves["shallow_state"][..., 0]
    flat, steep = curves["steepness"] < 1, curves["steepness"] > 1.5
    text = f"share of the state's error that {curves['sweeps'][-1]:.0f} sweeps leave"
    return [
        Claim("FW7", f"{text}, largest over networks with Lip/N < 1",
              float(left[flat].max(initial=0.0)), high=1e-3),
        Claim("FW7", f"{text}, smallest over networks with Lip/N > 1.5",
              float(left[steep].min(initial=np.inf)), low=1e-2),
    ]  # fmt: skip


def _stored(curves: Mapping[str, Curve]) -> list[Claim]:
    every = tuple(int(k) for k in curves["stored"][:-1])
    return [
        Claim("FW7", "slope of the gradient error of reverse against the distance of stored states",
              _slope(every, curves["stored_reverse"][:-1]), low=0.8, high=1.5)
    ]  # fmt: skip
