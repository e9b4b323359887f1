r"""Q20-R1: what refining changes, and what it leaves as it is.

Splitting the cells of the weight functions leaves them the same functions. Doubling the steps is a
finer graph of the same equation: it moves the output by the error of the coarse graph (Queiruga et
al. 2020, section 4.4).
"""

import copy

import torch
from torch import Tensor

from companion.basis import (
    Basis,
    Chebyshev,
    DiscontinuousLinear,
    Fourier,
    PiecewiseConstant,
    PiecewiseLinear,
)
from companion.block import OdeBlock
from companion.experiments.depth_study import geometric_mean, initial_states, random_block
from companion.experiments.recipes import SIX_SCHEMES
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import pre_activation_unit
from companion.observe import fit_slope
from companion.results import Claim, Findings
from companion.schemes import get_scheme
from companion.train import seeded

CELLS = 4
SMOOTHER: dict[str, Basis] = {
    "linear": PiecewiseLinear(CELLS),
    "discontinuous_linear": DiscontinuousLinear(CELLS),
    "chebyshev": Chebyshev(5, cells=CELLS),
    "fourier": Fourier(5, cells=CELLS),
}


@experiment(
    "Q20-R1",
    "Refining weights is exact, refining steps is as good as the scheme",
    paper="Queiruga et al. 2020, section 4.4",
    claims=("CL32",),
    full={"seeds": 16, "split_steps": (1, 3, 4, 8, 32), "steps": (16, 32, 64, 128, 256)},
)
def q20_r1(
    run: Run,
    *,
    seeds: int = 3,
    split_steps: tuple[int, ...] = (3, 4, 8),
    steps: tuple[int, ...] = (16, 32, 64, 128),
) -> Findings:
    """Refine convolutional blocks with batch norm, and the random field of Q20-X1.

    Scalars: ``constant_MODE``, the largest change of any output when piecewise-constant weights are
    split, over six schemes and all ``split_steps``, in float32; ``BASIS_MODE``, likewise for the
    other bases, relative and in float64; ``order_SCHEME``, fitted to the change when cells and
    steps double. ``MODE`` is ``train`` or ``eval``. Curves: ``steps``, and ``doubled_SCHEME`` of
    shape ``(seeds, steps)``, that change.
    """

    def split(part: Part, seed: int) -> dict[str, float]:
        changes = {}
        for mode in ("train", "eval"):
            block, x = _conv_block(PiecewiseConstant(CELLS), seed, torch.float32, run.device)
            block.train(mode == "train")
            changes[f"constant_{mode}"] = _largest_change(block, x, split_steps)
            for name, basis in SMOOTHER.items():
                block, x = _conv_block(basis, seed, torch.float64, run.device)
                block.train(mode == "train")
                size = float(block(x).detach().abs().max())
                changes[f"{name}_{mode}"] = _largest_change(block, x, split_steps) / size
        return changes

    def double(part: Part, seed: int) -> dict[str, list[float]]:
        block = random_block(PiecewiseConstant(CELLS), seed, run.device)
        x = initial_states(seed, run.device)
        return {scheme: [_doubled(block, x, scheme, n) for n in steps] for scheme in SIX_SCHEMES}

    splits = run.map(split, {f"split, seed {k}": (run.seed + k,) for k in range(seeds)})
    doubles = run.map(double, {f"double, seed {k}": (run.seed + k,) for k in range(seeds)})
    scalars = {
        name: max(changes[name] for changes in splits.values()) for name in splits["split, seed 0"]
    }
    curves = {f"doubled_{s}": [changes[s] for changes in doubles.values()] for s in SIX_SCHEMES}
    orders = {
        s: -fit_slope(steps, geometric_mean(curves[f"doubled_{s}"])).value for s in SIX_SCHEMES
    }
    named = {f"order_{scheme}": order for scheme, order in orders.items()}
    return Findings(scalars | named, {"steps": steps, **curves}, _claims(scalars, orders))


def _claims(changes: dict[str, float], orders: dict[str, float]) -> list[Claim]:
    claims = []
    for mode in ("train", "eval"):
        text = f"change from splitting piecewise-constant weights, six schemes, {mode} mode"
        claims.append(Claim("CL32", text, changes[f"constant_{mode}"], high=0))
        text = f"relative change in four other bases, float64, {mode} mode"
        others = max(changes[f"{name}_{mode}"] for name in SMOOTHER)
        claims.append(Claim("CL32", text, others, high=1e-12))
    for scheme, order in orders.items():
        text = f"order of the change when the steps double too, {scheme}"
        expected = get_scheme(scheme).order
        claims.append(Claim("CL32", text, order, low=expected - 0.1, high=expected + 0.1))
    return claims


def _conv_block(
    basis: Basis, seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[OdeBlock, Tensor]:
    """Return a block with random weights, affine values and statistics, and a batch."""
    with seeded(seed):
        block = OdeBlock(lambda: pre_activation_unit(3), basis)
        for name, tensor in block.state_dict().items():
            if "norm" in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
        x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    return block.to(device, dtype), x.to(device, dtype)


@torch.no_grad()
def _largest_change(block: OdeBlock, x: Tensor, split_steps: tuple[int, ...]) -> float:
    largest = 0.0
    for scheme in SIX_SCHEMES:
        for steps in split_steps:
            coarse = block.with_graph(method=scheme, steps=steps)
            fine = copy.deepcopy(coarse)
            fine.refine(steps=False)
            largest = max(largest, float((fine(x) - coarse(x)).abs().max()))
    return largest


@torch.no_grad()
def _doubled(block: OdeBlock, x: Tensor, scheme: str, steps: int) -> float:
    coarse = block.with_graph(method=scheme, steps=steps)
    fine = copy.deepcopy(coarse)
    fine.refine()
    return float(torch.linalg.vector_norm(fine(x) - coarse(x), dim=1).max())
