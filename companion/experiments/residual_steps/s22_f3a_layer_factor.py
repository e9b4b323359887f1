r"""S22-F3a: does the factor 1/N decide whether deep residual networks train?

Sander et al. (2022, Fig. 3a) tie the weights of all layers of a stage and compare
$x + \frac1N f(x)$ with $x + f(x)$ as the depth N grows. Here the networks are small
perceptrons and the data are scikit-learn's handwritten digits, in both tiers: ``full`` has more
depths and seeds, not CIFAR-10. Untied networks are trained beside the tied ones.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion.data import Samples, load_digits
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import ResidualMLP
from companion.results import Claim, Findings
from companion.solve import NonFiniteError
from companion.train import fit, seeded, step_decay

_CHANCE = 0.9
"""Error counted for a network whose state stopped being finite: that of guessing."""

_VARIANTS = {
    f"{'tied' if tied else 'untied'}_{'scaled' if scaled else 'plain'}": (tied, scaled)
    for tied in (True, False)
    for scaled in (True, False)
}


@experiment(
    "S22-F3a",
    "Residual networks of growing depth on digits, with and without the 1/N factor",
    paper="Sander et al. 2022, Fig. 3a and Table 1",
    claims=("CL57", "CL58"),
    full={"depths": (2, 4, 8, 16, 32, 64, 128, 256), "seeds": 10, "epochs": 10},
)
def s22_f3a(
    run: Run,
    *,
    depths: tuple[int, ...] = (2, 4, 8, 16, 64),
    seeds: int = 3,
    epochs: int = 6,
    rate: float = 0.05,
) -> Findings:
    """Train every variant at every depth from every seed.

    Curves: ``depths``; for each variant (``tied`` or ``untied``, ``scaled`` by 1/N or ``plain``)
    ``error_VARIANT`` and ``diverged_VARIANT`` of shape ``(depths, seeds)``. Scalars:
    ``error_VARIANT_DEPTH``, the mean over seeds.
    """
    data = load_digits(device=run.device)

    def train(part: Part, variant: str, depth: int, seed: int) -> list[float]:
        tied, scaled = _VARIANTS[variant]
        with seeded(seed):
            model = ResidualMLP(
                64, 10, width=8, hidden=16, layers=depth, tied=tied, scaled=scaled
            ).to(run.device)
        return _test_error(model, data, part, epochs, rate, seed)

    parts = {
        f"{variant}, {depth} layers, seed {seed}": (variant, depth, run.seed + seed)
        for variant in _VARIANTS
        for depth in depths
        for seed in range(seeds)
    }
    table = np.array(list(run.map(train, parts).values()))
    table = table.reshape(len(_VARIANTS), len(depths), seeds, 2)
    errors = dict(zip(_VARIANTS, table[..., 0], strict=True))
    curves = {f"error_{name}": values for name, values in errors.items()}
    curves |= {
        f"diverged_{name}": values for name, values in zip(_VARIANTS, table[..., 1], strict=True)
    }
    means = {
        f"error_{name}_{depth}": row.mean()
        for name, values in errors.items()
        for depth, row in zip(depths, values, strict=True)
    }
    return Findings(means, {"depths": depths, **curves}, _claims(errors, depths), data.sha256)


def _claims(errors: dict[str, NDArray[np.float64]], depths: tuple[int, ...]) -> list[Claim]:
    """Decide the claims on errors averaged over seeds."""
    mean = {name: table.mean(axis=1) for name, table in errors.items()}
    deep = (
        [depth >= 32 for depth in depths]
        if max(depths) >= 32
        else [d == max(depths) for d in depths]
    )
    shallow = depths.index(min(depths))
    return [
        Claim(
            "CL57",
            "largest mean test error over depths, tied, with 1/N",
            float(mean["tied_scaled"].max()),
            high=0.08,
        ),
        Claim(
            "CL57",
            f"mean test error with 1/N minus without, untied, {min(depths)} layers",
            float(mean["untied_scaled"][shallow] - mean["untied_plain"][shallow]),
            high=0.02,
        ),
        Claim(
            "CL58",
            "smallest mean test error over depths from 32, tied, without 1/N",
            float(mean["tied_plain"][deep].min()),
            low=0.3,
        ),
    ]


def _test_error(
    model: nn.Module, data: Samples, part: Part, epochs: int, rate: float, seed: int
) -> list[float]:
    """Train and return the test error and whether training diverged."""

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(net(x), y)

    try:
        fit(
            model,
            loss,
            (data.x_train, data.y_train),
            optimiser=lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
            epochs=epochs,
            batch_size=64,
            generator=torch.Generator().manual_seed(seed),
            schedule=step_decay(0.7),
            clip=5.0,
            snapshot=part.snapshot,
            report=part.report,
        )
        with torch.no_grad():
            wrong = model(data.x_test).argmax(1) != data.y_test
    except NonFiniteError:
        return [_CHANCE, 1.0]
    return [wrong.double().mean().item(), 0.0]
