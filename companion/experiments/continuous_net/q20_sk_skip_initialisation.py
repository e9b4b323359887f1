r"""Q20-SK: skip initialisation along depth: an identity that can learn.

A residual times a learnt scalar that starts at zero (Queiruga et al. 2020, appendix A.2) does
nothing at first, in any basis and under any graph. Its scalar alone has a gradient then.
"""

import torch
from torch import Tensor, nn

from companion.basis import (
    Basis,
    Chebyshev,
    Constant,
    DiscontinuousLinear,
    Fourier,
    PiecewiseConstant,
    PiecewiseLinear,
)
from companion.block import OdeBlock
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import ContinuousNet, SkipInit, Stitch, pre_activation_unit
from companion.models.layers import basic_branch, pre_activation
from companion.results import Claim, Findings
from companion.schemes import SCHEMES
from companion.train import seeded

BASES: tuple[Basis, ...] = (
    Constant(),
    PiecewiseConstant(4),
    PiecewiseLinear(4),
    DiscontinuousLinear(4),
    Chebyshev(4, cells=4),
    Fourier(5, cells=4),
)


@experiment(
    "Q20-SK",
    "Blocks and nets with skip initialisation before their first step",
    paper="Queiruga et al. 2020, appendix A.2",
    claims=("CL46",),
    full={"seeds": 16, "steps": 8, "channels": 16},
)
def q20_sk(run: Run, *, seeds: int = 2, steps: int = 4, channels: int = 4) -> Findings:
    """Look at outputs and gradients before the first step of training, and after it.

    Scalars, the extremes over seeds, bases and schemes: ``moved``, the largest change that a block
    makes to its input; ``net``, the largest difference between a ContinuousNet and its stem,
    stitches' shortcuts and head alone; ``others``, the largest gradient of any weight but the
    scalars; ``scalar``, the smallest norm of the scalars' gradient, relative to the largest;
    ``awake``, the smallest share of the other weights that have a gradient after one step;
    ``silenced``, the largest gradient of all where the residual itself starts at zero.
    """

    def look(part: Part, seed: int) -> dict[str, float]:
        found = [
            _block(basis, scheme, steps, channels, seed, run.device)
            for basis in BASES
            for scheme in SCHEMES
        ]
        sizes = [one["scalar"] for one in found]
        return {
            "moved": max(one["moved"] for one in found),
            "others": max(one["others"] for one in found),
            "scalar": min(sizes) / max(sizes),
            "awake": min(one["awake"] for one in found),
            "net": _net(seed, steps, channels, run.device),
            "silenced": _silenced(seed, steps, channels, run.device),
        }

    found = list(run.map(look, {f"seed {k}": (run.seed + k,) for k in range(seeds)}).values())
    extremes = {"moved": max, "others": max, "scalar": min, "awake": min, "net": max}
    scalars = {name: extremes.get(name, max)(part[name] for part in found) for name in found[0]}
    claims = [
        Claim("CL46", "change from a block, six bases, six schemes", scalars["moved"], high=0),
        Claim("CL46", "a whole net against one without blocks", scalars["net"], high=0),
        Claim("CL46", "largest gradient of the other weights", scalars["others"], high=0),
        Claim("CL46", "smallest over largest gradient of the scalars", scalars["scalar"], low=1e-3),
        Claim("CL46", "share of other weights that learn after a step", scalars["awake"], low=1),
    ]
    return Findings(scalars, claims=claims)


def _images(seed: int, channels: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, channels, 6, 6, generator=generator).to(device)


def _block(
    basis: Basis, scheme: str, steps: int, channels: int, seed: int, device: torch.device
) -> dict[str, float]:
    with seeded(seed):
        block = OdeBlock(lambda: SkipInit(pre_activation_unit(channels)), basis, scheme, steps).to(
            device
        )
    x = _images(seed, channels, device)
    y = block(x)
    gradients = _gradients(block, y)
    skip = gradients.pop("weights.stacks.skip")
    others = max(float(g.abs().max()) for g in gradients.values())
    with torch.no_grad():
        block.weights.stacks.get_parameter("skip").sub_(0.1 * skip / skip.norm())
    after = _gradients(block, block(x))
    after.pop("weights.stacks.skip")
    awake = sum(bool(g.any()) for g in after.values()) / len(after)
    moved = float((y - x).detach().abs().max())
    return {"moved": moved, "others": others, "scalar": float(skip.norm()), "awake": awake}


def _gradients(block: OdeBlock, y: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a loss that pulls the output to zero."""
    named = dict(block.named_parameters())
    found = torch.autograd.grad(y.square().sum(), tuple(named.values()))
    return dict(zip(named, found, strict=True))


@torch.no_grad()
def _net(seed: int, steps: int, channels: int, device: torch.device) -> float:
    with seeded(seed):
        net = ContinuousNet(inputs=channels, channels=(channels, 2 * channels), steps=steps)
    net.to(device).eval()
    x = _images(seed, channels, device)
    state = net.stem(x)
    for stitch in net.stitches:
        assert isinstance(stitch, Stitch)
        state = stitch.down(state)
    return float((net(x) - net.head(state.mean((2, 3)))).abs().max())


def _silenced(seed: int, steps: int, channels: int, device: torch.device) -> float:
    def residual() -> nn.Module:
        return SkipInit(pre_activation(basic_branch(channels, channels)))

    with seeded(seed):
        block = OdeBlock(residual, PiecewiseConstant(steps), steps=steps).to(device)
    gradients = _gradients(block, block(_images(seed, channels, device)))
    return max(float(g.abs().max()) for g in gradients.values())
