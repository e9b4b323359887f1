"""FW4: transfer to a new task by splitting cells and training only the last of them.

A net continuous in depth learns the digits 0 to 4 with two cells of weights. Its cells are split
to eight, and only the last quarter of depth is trained on the digits 5 to 9, with a new head. A
residual network of eight layers is treated alike, and as many parameters are trained. Its residual
is multiplied by 1, as is usual, or by 1/8: the second has the step of the net continuous in depth.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion.basis import PiecewiseConstant
from companion.data import Samples, load_digits
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.recipes import classification_loss, digits_recipe, sgd
from companion.models import ContinuousMLP
from companion.train import error_rate, fit, seeded, step_decay

CELLS, COARSE, TRAINED = 8, 2, 2
"""Cells in the end, cells at first, and cells at the end of depth that the new task may change."""

KINDS: dict[str, tuple[int, str, float]] = {
    "continuous": (COARSE, "rk4", 1.0),
    "resnet": (CELLS, "euler", float(CELLS)),
    "scaled_resnet": (CELLS, "euler", 1.0),
}
"""Cells at first, scheme and scale of the networks; all take 8 steps."""

Set = tuple[Tensor, Tensor]


@experiment(
    "FW4",
    "Transfer between digits by splitting cells and training the last quarter of depth",
    paper="none; Queiruga et al. 2020, section 6, names transfer as future work",
    full={"seeds": 16, "epochs": 30, "tuning": 30},
    tiny={"seeds": 2, "epochs": 1, "tuning": 1},
    claims=(
        ("FW4", "over_resnet", None, 0.01, "error on the new task minus that of a ResNet"),
        ("FW4", "over_scaled_resnet", None, 0.01,
         "error on the new task minus that of a ResNet with the factor 1/8"),
        ("FW4", "most_split_change", None, 1e-6, "largest change of the loss by the split"),
    ),
)  # fmt: skip
def fw4(run: Run, *, seeds: int = 8, epochs: int = 15, tuning: int = 15) -> Findings:
    """Pretrain and fine-tune every network from every seed.

    Curves: for each of :data:`KINDS` ``before_NET``, test error on 0 to 4 after
    pretraining, and ``after_NET``, test error on 5 to 9 after fine-tuning, one value a seed;
    ``split_change``, change of the loss by the split. Scalars: ``error_NET``, means over seeds of
    the error after fine-tuning; ``trained_NET``, parameters that the new task may change.
    """
    data = load_digits(device=run.device, dtype=run.dtype)

    def transfer(part: Part, kind: str, seed: int) -> dict[str, float]:
        return _transferred(part, kind, seed, epochs, tuning, data)

    found = grids(run, transfer, kind=KINDS, seed=run.seeds(seeds))
    change, trained = found.pop("split_change").at(kind="continuous"), found.pop("trained")
    error = found["after"].mean("seed").named("error", "kind")
    scalars = {
        **error,
        **trained.max("seed").named("trained", "kind"),
        "over_resnet": error["error_continuous"] - error["error_resnet"],
        "over_scaled_resnet": error["error_continuous"] - error["error_scaled_resnet"],
        "most_split_change": change.max("seed").values,
    }
    curves = {**named(found, "kind"), "split_change": change.values}
    return Findings(scalars, curves, data=data.sha256)


def _transferred(
    part: Part, kind: str, seed: int, epochs: int, tuning: int, data: Samples
) -> dict[str, float]:
    """Pretrain one network on the first five digits, and fine-tune it on the others."""
    old_train, old_test = _digits(data, 0)
    new_train, new_test = _digits(data, 5)
    cells, method, scale = KINDS[kind]
    with seeded(seed, dtype=data.x_train.dtype):
        basis = PiecewiseConstant(cells)
        net = ContinuousMLP(64, 5, basis=basis, method=method, steps=CELLS, scale=scale)
        head = nn.Linear(net.head.in_features, 5)
    net.to(data.x_train.device)
    _fit(net, old_train, epochs, seed, net.parameters())
    part.keep(net, "before")
    before = error_rate(net, old_test)
    net.head = head.to(data.x_train.device)
    with torch.no_grad():
        loss = cross_entropy(net(new_test[0]), new_test[1])
        while net.block.weights.basis.cells < CELLS:
            net.block.refine(steps=False)
        change = float(cross_entropy(net(new_test[0]), new_test[1]) - loss)
    hooks = freeze_early_cells(net)
    _fit(net, new_train, tuning, seed, [*net.block.parameters(), *net.head.parameters()])
    for hook in hooks:
        hook.remove()
    part.keep(net, "after")
    late = sum(p[-TRAINED:].numel() for p in net.block.parameters())
    trained = late + sum(p.numel() for p in net.head.parameters())
    after = error_rate(net, new_test)
    return {"before": before, "after": after, "split_change": abs(change), "trained": trained}


def freeze_early_cells(net: ContinuousMLP) -> list[torch.utils.hooks.RemovableHandle]:
    """Let no gradient reach the stem, or the cells before the last quarter; return the hooks."""
    net.stem.requires_grad_(False)

    def late(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[-TRAINED:] = gradient[-TRAINED:]
        return kept

    return [param.register_hook(late) for param in net.block.parameters()]  # type: ignore[no-untyped-call]


def _fit(
    net: nn.Module, data: Set, epochs: int, seed: int, trained: Iterable[nn.Parameter]
) -> None:
    """Train some parameters; without weight decay, which would move those without a gradient."""
    own = list(trained)
    recipe = digits_recipe(epochs) | {
        "optimiser": lambda _: sgd(0.05)(own),
        "schedule": step_decay(2 / 3),
    }
    generator = torch.Generator().manual_seed(seed)
    fit(net, classification_loss, data, generator=generator, **recipe)


def _digits(data: Samples, first: int) -> tuple[Set, Set]:
    """Return the training and the test samples of five digits, their classes counted from 0."""

    def chosen(x: Tensor, y: Tensor) -> Set:
        rows = (y >= first) & (y < first + 5)
        return x[rows], y[rows] - first

    return chosen(data.x_train, data.y_train), chosen(data.x_test, data.y_test)
