r"""S22-T1: does the factor 1/N cost a standard residual network any accuracy?

Sander et al. (2022, Table 1) train a ResNet-101 on CIFAR-10 and on ImageNet, once with the usual
layer $\mathrm{relu}(x + F(x))$ and once with $x + \frac1N f(x)$ in every stage. That is the
``full`` tier. The ``smoke`` tier trains small networks on digits, also with $x + f(x)$.

ImageNet: ``--set dataset='"imagenet"' --set epochs=100 --set seeds=1`` with a data folder that
holds ``imagenet/train/CLASS/*.JPEG`` and ``imagenet/val/CLASS/*.JPEG``. Under ``torchrun`` the
processes then share every batch, and each norm sees its process's share.
"""

from collections.abc import Callable
from contextlib import suppress
from math import nan
from typing import Any, NamedTuple

from companion.experiments import Findings, Part, Run, experiment, grids, named, recipes
from companion.experiments.images import EVALUATION_BATCH, load_images
from companion.models import ResNet
from companion.solve import NonFiniteError
from companion.train import cosine, error_rate, seeded, step_decay


class Recipe(NamedTuple):
    """How a network is trained on a data set, and what the claim asks of it.

    The ``schedule`` is that of the learning rate, which starts at 0.1. With 1/N, ``error`` is the
    largest test error, and ``margin`` its largest excess over the best rule without.
    """

    stem: str
    decay: float
    schedule: Callable[[float], float]
    error: float
    margin: float


RECIPES = {
    "digits": Recipe("cifar", 5e-4, cosine, error=0.08, margin=0.02),
    "cifar10": Recipe("cifar", 5e-4, cosine, error=0.055, margin=0.005),
    "imagenet": Recipe("imagenet", 1e-4, step_decay(0.3, 0.6, 0.9), error=0.25, margin=0.01),
}
"""The recipes of Sander et al. 2022, appendix B, and one for digits."""


@experiment(
    "S22-T1",
    "Standard residual networks with the factor 1/N in every stage and without",
    paper="Sander et al. 2022, Table 1",
    full={
        "dataset": "cifar10", "layers": (3, 4, 23, 3), "kind": "bottleneck", "width": 64,
        "rules": ("original", "scaled"), "epochs": 200, "autocast": True,
    },
    tiny={"layers": (2, 3), "width": 2, "seeds": 1, "epochs": 1},
    tolerance=1e-2,
    claims=(
        ("CL57", "mean_error_scaled", None, {name: r.error for name, r in RECIPES.items()},
         "mean test error of a ResNet with 1/N"),
        ("CL57", "excess", None, {name: r.margin for name, r in RECIPES.items()},
         "mean test error of a ResNet with 1/N minus the best without"),
    ),
)  # fmt: skip
def s22_t1(
    run: Run, *, dataset: str = "digits", layers: tuple[int, ...] = (3, 4, 6), kind: str = "basic",
    width: int = 8, rules: tuple[str, ...] = ("original", "classic", "scaled"), seeds: int = 3,
    epochs: int = 3, gradient: str = "backprop", autocast: bool = False,
) -> Findings:  # fmt: skip
    """Train a network by every rule from every seed.

    Curves: for each rule ``error_RULE`` and ``diverged_RULE`` of shape ``(seeds,)`` and
    ``loss_RULE``, the training loss, of shape ``(seeds, epochs)``. A network whose state stops
    being finite counts as guessing. Scalars: ``mean_error_RULE``, over seeds. ``gradient`` is
    that of the residual stages; ``autocast`` computes convolutions in bfloat16.
    """
    data = load_images(dataset, run, tuple(RECIPES))
    if "scaled" not in rules or len(rules) < 2:
        raise ValueError(f"rules must hold 'scaled' and another to compare it with; got {rules!r}")
    recipe = RECIPES[dataset]

    def train(part: Part, rule: str, seed: int) -> dict[str, Any]:
        with seeded(seed, dtype=run.dtype):
            net = ResNet(
                layers, kind, stem=recipe.stem, inputs=data.channels, classes=data.classes,
                width=width, rule=rule, gradient=gradient,
            ).to(run.device)  # fmt: skip
        history = recipes.train(
            part, net, data.train, seed,
            loss=recipes.bfloat16_loss if autocast else recipes.classification_loss,
            optimiser=recipes.sgd(0.1, recipe.decay), epochs=epochs, batch_size=data.batch_size,
            schedule=recipe.schedule, augment=data.augment,
        )  # fmt: skip
        if history is not None:
            with suppress(NonFiniteError):
                options = {"batch_size": EVALUATION_BATCH, "workers": recipes.readers(data.test)}
                error = error_rate(net, data.test, **options)
                return {"error": error, "diverged": 0.0, "loss": history["loss"]}
        return {"error": recipes.guessing(data.classes), "diverged": 1.0, "loss": [nan] * epochs}

    # ImageNet trains for days: several processes share one network, not the list of them.
    each = run.seeds(seeds)
    found = grids(run, train, together=dataset == "imagenet", rule=rules, seed=each)
    mean = found["error"].mean("seed").named("mean_error", "rule")
    best = min(mean[f"mean_error_{rule}"] for rule in rules if rule != "scaled")
    excess = {"excess": mean["mean_error_scaled"] - best}
    return Findings(mean, named(found, "rule"), data=data.provenance, deciding=excess)
