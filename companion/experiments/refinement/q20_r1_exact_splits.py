r"""Q20-R1: what refining changes, and what it leaves as it is.

Splitting the cells of the weight functions leaves them the same functions. Doubling the steps is a
finer graph of the same equation: it moves the output by the error of the coarse graph (Queiruga et
al. 2020, section 4.4).
"""

import copy
from typing import Any

import torch
from torch import Tensor

from companion import basis as bases
from companion.block import OdeBlock
from companion.experiments import Findings, Part, Run, experiment, grid
from companion.experiments.depth_study import initial_states, random_block
from companion.experiments.recipes import SIX_SCHEMES
from companion.models import pre_activation_unit
from companion.schemes import get_scheme
from companion.train import seeded

CELLS = 4
BASES: dict[str, bases.Basis] = {
    "constant": bases.PiecewiseConstant(CELLS),
    "linear": bases.PiecewiseLinear(CELLS),
    "discontinuous_linear": bases.DiscontinuousLinear(CELLS),
    "chebyshev": bases.Chebyshev(5, cells=CELLS),
    "fourier": bases.Fourier(5, cells=CELLS),
}


MODES = ("train", "eval")


@experiment(
    "Q20-R1",
    "Refining weights is exact, refining steps is as good as the scheme",
    paper="Queiruga et al. 2020, section 4.4",
    full={"seeds": 16, "split_steps": (1, 3, 4, 8, 32), "steps": (16, 32, 64, 128, 256)},
    tiny={"seeds": 1, "split_steps": (3,), "steps": (16, 32)},
    claims=(
        *(
            claim
            for mode in MODES
            for claim in (
                ("CL32", f"constant_{mode}", None, 0,
                 f"change from splitting piecewise-constant weights, six schemes, {mode} mode"),
                ("CL32", f"smoother_{mode}", None, 1e-12,
                 f"relative change in four other bases, float64, {mode} mode"),
            )
        ),
        *(
            ("CL32", f"order_{name}", get_scheme(name).order - 0.1, get_scheme(name).order + 0.1,
             f"order of the change when the steps double too, {name}")
            for name in SIX_SCHEMES
        ),
    ),
)  # fmt: skip
def q20_r1(
    run: Run, *, seeds: int = 3, split_steps: tuple[int, ...] = (3, 4, 8),
    steps: tuple[int, ...] = (16, 32, 64, 128),
) -> Findings:  # fmt: skip
    """Refine convolutional blocks with batch norm, and the random field of Q20-X1.

    Scalars: ``constant_MODE``, the largest change of any output when piecewise-constant weights are
    split, over six schemes and all ``split_steps``, in float32; ``BASIS_MODE``, likewise for the
    other bases, relative and in float64, and ``smoother_MODE``, the largest of those. Curves:
    ``steps``, and ``doubled_SCHEME`` of shape ``(seeds, steps)``, the change when cells and steps
    double, to which ``order_SCHEME`` is fitted.
    """

    def split(part: Part, mode: str, basis: str, seed: int) -> float:
        exact = basis == "constant"
        dtype = torch.float32 if exact else torch.float64
        block, x = _conv_block(BASES[basis], seed, dtype, run.device)
        block.train(mode == "train")
        size = 1.0 if exact else float(block(x).detach().abs().max())
        return _largest_change(block, x, split_steps) / size

    def double(part: Part, scheme: str, seed: int, steps: int) -> float:
        block = random_block(BASES["constant"], seed, run.device)
        return _doubled(block, initial_states(seed, run.device), scheme, steps)

    own = run.seeds(seeds)
    largest = grid(run, split, mode=MODES, basis=BASES, seed=own).max("seed")
    scalars: dict[str, Any] = {
        f"{name}_{mode}": largest.at(mode=mode, basis=name).values
        for mode in MODES
        for name in BASES
    }
    for mode in MODES:
        scalars[f"smoother_{mode}"] = largest.at(mode=mode).values[1:].max()
    doubled = grid(run, double, scheme=SIX_SCHEMES, seed=own, steps=steps)
    scalars |= doubled.geometric("seed").orders("steps").named("order", "scheme")
    return Findings(scalars, {"steps": steps, **doubled.named("doubled", "scheme")})


def _conv_block(
    basis: bases.Basis, seed: int, dtype: torch.dtype, device: torch.device
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
