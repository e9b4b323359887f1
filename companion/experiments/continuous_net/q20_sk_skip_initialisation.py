r"""Q20-SK: skip initialisation along depth: an identity that can learn.

A residual times a learnt scalar that starts at zero (Queiruga et al. 2020, appendix A.2) does
nothing at first, in any basis and under any graph. Its scalar alone has a gradient then.
"""

import torch
from torch import Tensor

from companion import basis as bases
from companion.block import OdeBlock
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.recipes import SIX_SCHEMES
from companion.models import ContinuousNet, SkipInit, Stitch, pre_activation_unit
from companion.models.layers import basic_branch, pre_activation
from companion.train import seeded

BASES: tuple[bases.Basis, ...] = (
    bases.Constant(),
    bases.PiecewiseConstant(4),
    bases.PiecewiseLinear(4),
    bases.DiscontinuousLinear(4),
    bases.Chebyshev(4, cells=4),
    bases.Fourier(5, cells=4),
)


@experiment(
    "Q20-SK",
    "Blocks and nets with skip initialisation before their first step",
    paper="Queiruga et al. 2020, appendix A.2",
    full={"seeds": 16, "steps": 8, "channels": 16},
    tiny={"seeds": 1, "steps": 2, "channels": 2},
    tolerance=1e-2,  # single precision
    claims=(
        ("CL46", "moved", None, 0, "change from a block, six bases, six schemes"),
        ("CL46", "net", None, 0, "a whole net against one without blocks"),
        ("CL46", "others", None, 0, "largest gradient of the other weights"),
        ("CL46", "scalar", 1e-3, None, "smallest over largest gradient of the scalars"),
        ("CL46", "awake", 1, None, "share of other weights that learn after a step"),
    ),
)
def q20_sk(run: Run, *, seeds: int = 2, steps: int = 4, channels: int = 4) -> Findings:
    """Look at outputs and gradients before the first step of training, and after it.

    Scalars are extremes over seeds, bases and schemes. One decides no claim: ``silenced``, the
    largest gradient of all where the residual itself starts at zero. A net without blocks is its
    stem, its stitches' shortcuts and its head.
    """

    def look(part: Part, seed: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(8, channels, 6, 6, generator=generator).to(run.device)
        with seeded(seed):
            silent = OdeBlock(
                lambda: SkipInit(pre_activation(basic_branch(channels, channels))),
                bases.PiecewiseConstant(steps), steps=steps,
            )  # fmt: skip
        nothing = max(_sizes(_gradients(silent.to(run.device), x)))
        found = torch.tensor(
            [_block(basis, scheme, steps, seed, x) for basis in BASES for scheme in SIX_SCHEMES],
            dtype=torch.float64,
        )
        moved, others, size, awake = found.T
        return {
            "moved": float(moved.max()), "others": float(others.max()),
            "scalar": float(size.min() / size.max()), "awake": float(awake.min()),
            "net": _net(seed, steps, x), "silenced": nothing,
        }  # fmt: skip

    found = named(grids(run, look, seed=run.seeds(seeds)))
    least = {name: found.pop(name).min() for name in ("scalar", "awake")}
    return Findings(least | {name: values.max() for name, values in found.items()})


def _block(basis: bases.Basis, scheme: str, steps: int, seed: int, x: Tensor) -> list[float]:
    """Return the block's change, the others' largest gradient, the scalars', the share awake."""
    with seeded(seed):
        block = OdeBlock(
            lambda: SkipInit(pre_activation_unit(x.shape[1])), basis, scheme, steps
        ).to(x.device)
    moved = float((block(x) - x).detach().abs().max())
    gradients = _gradients(block, x)
    skip = gradients.pop("weights.stacks.skip")
    with torch.no_grad():
        block.weights.stacks.get_parameter("skip").sub_(0.1 * skip / skip.norm())
    after = _gradients(block, x)
    after.pop("weights.stacks.skip")
    awake = sum(bool(g.any()) for g in after.values()) / len(after)
    return [moved, max(_sizes(gradients)), float(skip.norm()), awake]


def _gradients(block: OdeBlock, x: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a loss that pulls the output to zero."""
    named = dict(block.named_parameters())
    found = torch.autograd.grad(block(x).square().sum(), tuple(named.values()))
    return dict(zip(named, found, strict=True))


def _sizes(gradients: dict[str, Tensor]) -> list[float]:
    return [float(g.abs().max()) for g in gradients.values()]


@torch.no_grad()
def _net(seed: int, steps: int, x: Tensor) -> float:
    """Return how far a net is from its stem, its stitches' shortcuts and its head."""
    channels = x.shape[1]
    with seeded(seed):
        net = ContinuousNet(inputs=channels, channels=(channels, 2 * channels), steps=steps)
    state = net.to(x.device).eval().stem(x)
    for stitch in net.stitches:
        assert isinstance(stitch, Stitch)
        state = stitch.down(state)
    return float((net(x) - net.head(state.mean((2, 3)))).abs().max())
