r"""S22-T1: does the factor 1/N cost a standard residual network any accuracy?

Sander et al. (2022, Table 1) train a ResNet-101 on CIFAR-10 and on ImageNet, once with the usual
layer $\mathrm{relu}(x + F(x))$ and once with $x + \frac1N f(x)$ in every stage. That is the
``full`` tier, with their recipe. The ``smoke`` tier trains small networks on
scikit-learn's digits, also with $x + f(x)$: the same layer without the factor.

ImageNet: ``--set dataset='"imagenet"' --set epochs=100 --set seeds=1`` with a data folder that
holds ``imagenet/train/CLASS/*.JPEG`` and ``imagenet/val/CLASS/*.JPEG``. Under ``torchrun`` the
processes then share every batch, and each norm sees its process's share.
"""

from collections.abc import Callable
from contextlib import suppress
from math import nan
from typing import NamedTuple

from companion.experiments import Claim, Findings, Part, Run, experiment, grid, recipes
from companion.experiments.images import EVALUATION_BATCH, load_images
from companion.models import ResNet
from companion.solve import NonFiniteError
from companion.train import cosine, error_rate, seeded, step_decay


class Recipe(NamedTuple):
    """How a network is trained on a data set, and what the claim asks of it.

    Attributes:
        stem: the network's stem.
        decay: weight decay.
        schedule: of the learning rate, which starts at 0.1.
        error: largest test error with 1/N.
        margin: largest excess of it over the best rule without.
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
    claims=("CL57",),
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

    def train(part: Part, rule: str, seed: int) -> list[float]:
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
                return [error_rate(net, data.test, **options), 0.0, *history["loss"]]
        return [recipes.guessing(data.classes), 1.0] + [nan] * epochs

    # ImageNet trains for days: several processes share one network, not the list of them.
    each = run.seeds(seeds)
    found = grid(run, train, together=dataset == "imagenet", rule=rules, seed=each)
    error = found.pick(0)
    mean = error.mean("seed").named("mean_error", "rule")
    scaled = mean["mean_error_scaled"]
    best = min(mean[f"mean_error_{rule}"] for rule in rules if rule != "scaled")
    text = "mean test error of a ResNet with 1/N"
    claims = [
        Claim("CL57", text, float(scaled), high=recipe.error),
        Claim("CL57", f"{text} minus the best without", float(scaled - best), high=recipe.margin),
    ]
    curves = error.named("error", "rule") | found.pick(1).named("diverged", "rule")
    curves |= {f"loss_{rule}": found.at(rule=rule).values[:, 2:] for rule in rules}
    return Findings(mean, curves, claims, data.provenance)
