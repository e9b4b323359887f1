r"""S22-F3a: does the factor 1/N decide whether deep residual networks train?

Sander et al. (2022, Fig. 3a) tie the weights of all layers of a stage and compare
$x + \frac1N f(x)$ with $x + f(x)$ as the depth N grows, on CIFAR-10. Here small perceptrons read
scikit-learn's digits in both tiers. Untied networks are trained beside the tied ones.
"""

from companion.data import load_digits
from companion.experiments import Findings, Part, Run, experiment, grid, recipes
from companion.models import ResidualMLP
from companion.train import seeded, step_decay

VARIANTS = {
    f"{'tied' if tied else 'untied'}_{'scaled' if scaled else 'plain'}": (tied, scaled)
    for tied in (True, False)
    for scaled in (True, False)
}


@experiment(
    "S22-F3a",
    "Residual networks of growing depth on digits, with and without the 1/N factor",
    paper="Sander et al. 2022, Fig. 3a and Table 1",
    full={"depths": (2, 4, 8, 16, 32, 64, 128, 256), "seeds": 10, "epochs": 10},
    tiny={"depths": (2, 4), "seeds": 1, "epochs": 1},
    tolerance=1e-2,
    claims=(
        ("CL57", "worst", None, 0.08, "largest mean test error over depths, tied, with 1/N"),
        ("CL57", "shallow", None, 0.02,
         "mean test error with 1/N minus without, untied, {depths[0]} layers"),
        ("CL58", "deep", 0.3, None,
         "smallest mean test error over depths from 32, tied, without 1/N"),
    ),
)  # fmt: skip
def s22_f3a(
    run: Run, *, depths: tuple[int, ...] = (2, 4, 8, 16, 64), seeds: int = 3, epochs: int = 6,
    rate: float = 0.05,
) -> Findings:  # fmt: skip
    """Train every variant at every depth from every seed.

    Curves: ``depths``; for each variant (``tied`` or ``untied``, ``scaled`` by 1/N or ``plain``)
    ``error_VARIANT`` and ``diverged_VARIANT`` of shape ``(depths, seeds)``. Scalars:
    ``error_VARIANT_DEPTH``, means over seeds; ``deep`` is about 32 layers or more, else the most.
    """
    data = load_digits(device=run.device)

    def train(part: Part, variant: str, depth: int, seed: int) -> list[float]:
        tied, scaled = VARIANTS[variant]
        with seeded(seed):
            net = ResidualMLP(64, 10, width=8, hidden=16, layers=depth, tied=tied, scaled=scaled)
        return recipes.trained_error(
            part, net.to(run.device), *recipes.splits(data), seed,
            optimiser=recipes.sgd(rate), epochs=epochs, batch_size=64,
            schedule=step_decay(0.7), clip=5.0,
        )  # fmt: skip

    each = run.seeds(seeds)
    found = grid(run, train, variant=VARIANTS, depth=depths, seed=each)
    error, diverged = found.pick(0), found.pick(1)
    mean = error.mean("seed").named("error", "variant", "depth")
    deep = [n for n in depths if n >= 32] or [max(depths)]
    scalars = {
        **mean,
        "worst": max(mean[f"error_tied_scaled_{n}"] for n in depths),
        "shallow": mean[f"error_untied_scaled_{depths[0]}"]
        - mean[f"error_untied_plain_{depths[0]}"],
        "deep": min(mean[f"error_tied_plain_{n}"] for n in deep),
    }
    curves = {**error.named("error", "variant"), **diverged.named("diverged", "variant")}
    return Findings(scalars, {"depths": depths, **curves}, data=data.sha256)
