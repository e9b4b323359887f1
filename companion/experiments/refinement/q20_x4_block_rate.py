r"""Q20-X4: is what a refinement does to the loss more than a cut of the block's learning rate?

Queiruga et al. (2020, section 4.4) see accuracy and loss improve after a refinement. A refinement
of cells and steps halves the speed of SGD in the block, and in the block alone. Here perceptrons of
one cell go on in five ways, all with an optimiser made anew. Two of them are matched controls: half
the rate in the block only, and a refinement with twice the rate in the block. Without a cut of the
rate the loss jumps by a factor of two from seed to seed, and a mean over 32 seeds is good to 15 %.
That is why the range of the last claim is wide.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from companion.data import Samples, load_digits
from companion.experiments import Findings, Grid, Part, Run, experiment, grids, named
from companion.experiments.continuous_digits import Variant, digits_net, net_error
from companion.experiments.recipes import digits_recipe, scores
from companion.experiments.side_by_side import fit_side_by_side
from companion.models import ContinuousMLP
from companion.observe import geometric_mean

RATE = 0.05


class Way(NamedTuple):
    """One way to go on: refine or not, and factors on the rates of the block and of the ends."""

    refined: bool
    block: float
    ends: float


WAYS = {
    "before": Way(False, 1.0, 1.0),
    "refined": Way(True, 1.0, 1.0),
    "half": Way(False, 0.5, 0.5),
    "half_block": Way(False, 0.5, 1.0),
    "refined_twice": Way(True, 2.0, 1.0),
}
"""As before; refined; half the rate; half the block's rate; refined, with twice the block's."""


@experiment(
    "Q20-X4",
    "Refined networks beside networks of one cell with half the learning rate in the block",
    paper="beyond Queiruga et al. 2020, section 4.4",
    full={"seeds": 64, "before": 12, "after": 12},
    tiny={"seeds": 1, "before": 1, "after": 1},
    claims=(
        ("Q20-X4", "gain", None, 0.8,
         "training loss, refined over as before, geometric mean over {seeds} seeds"),
        ("Q20-X4", "refined_over_half_block", 0.9, 1.1,
         "training loss, refined over half the rate in the block, geometric mean over {seeds} "
         "seeds"),
        ("Q20-X4", "twice_over_before", 0.75, 1.33,
         "training loss, refined with twice the rate in the block over as before, geometric mean "
         "over {seeds} seeds"),
    ),
)  # fmt: skip
def q20_x4(run: Run, *, seeds: int = 32, before: int = 6, after: int = 6) -> Findings:
    """Train one cell for ``before`` epochs, and go on in all of :data:`WAYS` for ``after``.

    Curves: ``loss_WAY`` and ``error_WAY``, the training loss and the test error at the end, one
    entry a seed. Scalars: ``mean_loss_WAY``, geometric means, and ratios of them.
    """
    data = load_digits(device=run.device, dtype=run.dtype)
    own = run.seeds(seeds)

    def go_on(part: Part, way: str) -> dict[str, list[float]]:
        return _measured(_trained(part, WAYS[way], own, data, before, after), data)

    found = grids(run, go_on, way=WAYS)
    return Findings(ratios(found["loss"]), named(found, "way"), data=data.provenance)


def _trained(
    part: Part, way: Way, seeds: Sequence[int], data: Samples, before: int, after: int
) -> list[ContinuousMLP]:
    """Train a network from every seed, all side by side; go on with an optimiser made anew."""
    nets = [digits_net(Variant("rk4", refined=True), k, data.x_train.dtype) for k in seeds]
    nets = [net.to(data.x_train.device) for net in nets]
    for epochs, step in ((before, WAYS["before"]), (after, way)):
        if step.refined:
            for net in nets:
                net.refine()
        recipe = digits_recipe(epochs) | {"schedule": None, "optimiser": by_part(step)}
        fit_side_by_side(nets, data.x_train, data.y_train, seeds, **recipe)
    for net, seed in zip(nets, seeds, strict=True):
        part.keep(net, f"seed {seed}")
    return nets


def by_part(way: Way) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return what makes the optimiser of networks whose block has a rate of its own."""

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        given = list(parameters)
        ends = [*given[:2], *given[-2:]]  # weight and bias of the stem, and of the head
        groups = [
            {"params": given[2:-2], "lr": RATE * way.block},
            {"params": ends, "lr": RATE * way.ends},
        ]
        return SGD(groups, momentum=0.9, weight_decay=5e-4)

    return make


def _measured(nets: list[ContinuousMLP], data: Samples) -> dict[str, list[float]]:
    losses = [float(cross_entropy(scores(net, data.x_train), data.y_train)) for net in nets]
    return {"loss": losses, "error": [net_error(net, data) for net in nets]}


def ratios(loss: Grid) -> dict[str, float]:
    """Return geometric means over seeds of the losses, and what the claims are about."""
    means = {way: float(geometric_mean(loss.at(way=way).values)) for way in WAYS}
    return {f"mean_loss_{way}": mean for way, mean in means.items()} | {
        "gain": means["refined"] / means["before"],
        "refined_over_half_block": means["refined"] / means["half_block"],
        "twice_over_before": means["refined_twice"] / means["before"],
    }
