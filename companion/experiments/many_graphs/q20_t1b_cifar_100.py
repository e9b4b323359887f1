r"""Q20-T1b: wide ContinuousNets on CIFAR-100, and under other graphs.

Queiruga et al. (2020, Table 1) train networks four times as wide as on CIFAR-10, with 8 units in
each of three stages, and refine the one with RK4 after 20, 50 and 80 epochs of 160. That is the
``full`` tier. The ``smoke`` tier is the same code on the small images of scikit-learn's digits.
"""

from dataclasses import replace

from companion.experiments import Claim, Findings, Run, experiment
from companion.experiments.images import load_images
from companion.experiments.many_graphs.image_nets import Settings, Study, study

LEVELS = {"digits": (0.1, 0.1), "cifar100": (0.232, 0.24)}
"""Largest errors of Euler and RK4: on CIFAR-100 two points above the paper's."""


@experiment(
    "Q20-T1b",
    "Wide ContinuousNets with Euler and RK4, and their swapped graphs",
    paper="Queiruga et al. 2020, Table 1 and Fig. 9",
    claims=("CL43",),
    full={
        "dataset": "cifar100",
        "networks": ("resnet", "euler", "rk4"),
        "channels": (64, 128, 256),
        "refine_at": (20, 50, 80),
        "epochs": 160,
        "autocast": True,
    },
    tiny={"channels": (2, 3), "refine_at": (1,), "epochs": 2},
    machine_dependent=tuple(f"images_per_second_{name}" for name in ("euler", "rk4")),
)
def q20_t1b(
    run: Run,
    *,
    dataset: str = "digits",
    networks: tuple[str, ...] = ("euler", "rk4"),
    channels: tuple[int, ...] = (8, 16),
    refine_at: tuple[int, ...] = (2, 4),
    epochs: int = 8,
    seeds: int = 1,
    autocast: bool = False,
    compiled: bool = False,
) -> Findings:
    """Train every network from every seed, and run it with other schemes and steps.

    Curves and scalars are those of Q20-T1a.
    """
    settings = Settings(channels, refine_at, epochs, autocast, compiled)
    data = load_images(dataset, run, tuple(LEVELS))
    found = study(run, networks, ("euler", "rk4"), seeds, data, settings)
    return replace(found.findings, claims=_claims(found, dataset))


def _claims(found: Study, dataset: str) -> list[Claim]:
    """Decide the claims on errors averaged over seeds."""
    cells, (euler, rk4) = found.settings.cells, LEVELS[dataset]
    half = max(cells // 2, 1)
    texts = (
        "Euler",
        "RK4 with refinement",
        f"RK4 to the 3/8 rule with {half} of {cells} steps, after the swap minus before",
    )
    first, second, swapped = (f"{dataset}, test error, {text}" for text in texts)
    return [
        Claim("CL43", first, found.error("euler"), high=euler),
        Claim("CL43", second, found.error("rk4"), high=rk4),
        Claim("CL43", swapped, found.rise("rk4", "rk4_38", half), high=0.02),
    ]
