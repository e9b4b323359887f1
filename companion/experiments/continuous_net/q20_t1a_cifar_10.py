r"""Q20-T1a: ContinuousNets on CIFAR-10, beside a residual network, and under other graphs.

Queiruga et al. (2020, Table 1) train a ResNet, a ContinuousNet with Euler and one with RK4 and
refinement, with 32 units in each of three stages. The ``full`` tier has 8 units and 60 epochs. The
paper's size and schedule: ``--set epochs=160 --set refine_at=[20,40,60,70,80]``. It names no rate,
decay or batch size; those here are usual ones. The ``smoke`` tier reads digits.
"""

from dataclasses import replace

from companion.experiments import Findings, Run, experiment
from companion.experiments.images import load_images
from companion.experiments.many_graphs.image_nets import Settings, Study, broken, study

NETWORKS = ("resnet", "euler", "rk4", "rk4_deep")

MARGINS = {"digits": 0.01, "cifar10": 0.015}
"""Largest difference of the errors of two networks."""

LEAST = {dataset: -margin for dataset, margin in MARGINS.items()}


@experiment(
    "Q20-T1a",
    "ContinuousNets with Euler and RK4 beside a residual network, and their swapped graphs",
    paper="Queiruga et al. 2020, Table 1 and Figs. 7 to 9",
    claims=(
        ("CL36", "over_resnet", LEAST, MARGINS,
         "{dataset}, test error, ContinuousNet with Euler minus ResNet, mean over {seeds} seeds"),
        ("CL37", "over_euler", 0.001, MARGINS,
         "{dataset}, test error, RK4 with refinement minus Euler, mean over {seeds} seeds"),
        ("CL38", "swapped", -0.004, 0.004,
         "{dataset}, test error, RK4 to Euler, after the swap minus before, mean over {seeds} "
         "seeds"),
        ("CL39", "short", -0.004, 0.004,
         "{dataset}, test error, RK4 to the 3/8 rule with {third} of {cells} steps, after the swap "
         "minus before, mean over {seeds} seeds"),
        *broken("CL41", "cifar10"),
    ),
    full={
        "dataset": "cifar10", "networks": NETWORKS, "channels": (16, 32, 64),
        "refine_at": (8, 15, 22), "epochs": 60, "seeds": 1, "autocast": True,
    },
    tiny={"networks": NETWORKS, "channels": (2, 3), "refine_at": (1,), "epochs": 2,
          "seeds": 1},
    machine_dependent=tuple(f"images_per_second_{name}" for name in NETWORKS),
)  # fmt: skip
def q20_t1a(
    run: Run, *, dataset: str = "digits",
    networks: tuple[str, ...] = ("resnet", "euler", "rk4"), channels: tuple[int, ...] = (8, 16),
    refine_at: tuple[int, ...] = (1, 2, 4), epochs: int = 8, seeds: int = 4,
    autocast: bool = False, compiled: bool = False,
) -> Findings:  # fmt: skip
    """Train every network from every seed, and run it with other schemes and steps.

    Curves: ``steps`` of the graphs; for each network ``error_NAME`` and ``loss_NAME`` of shape
    ``(seeds, epochs)``; for those continuous in depth ``swap_error_NAME`` and ``deviation_NAME``
    of shape ``(seeds, 4, steps)``, the test error and the logit deviation with Euler, midpoint,
    RK4 and the 3/8 rule, ``variation_NAME`` of shape ``(seeds, blocks)``, and for the refined ones
    ``refined_error_NAME`` of shape ``(seeds, splits)``, the error just after each split. Scalars:
    ``mean_error_NAME``, ``parameters_NAME`` and ``images_per_second_NAME``, training at full depth.
    """
    settings = Settings(channels, refine_at, epochs, autocast, compiled)
    data = load_images(dataset, run, tuple(MARGINS))
    found = study(run, networks, ("resnet", "euler", "rk4"), seeds, data, settings)
    return replace(found.findings, deciding=deciding(found))


def deciding(found: Study) -> dict[str, float]:
    """Return what decides the claims: differences of errors averaged over seeds."""
    resnet, euler, rk4 = (found.error(name) for name in ("resnet", "euler", "rk4"))
    return found.deciding() | {
        "over_resnet": euler - resnet,
        "over_euler": rk4 - euler,
        "swapped": found.rise("rk4", "euler", found.settings.cells),
        "short": found.rise("rk4", "rk4_38", found.settings.third),
    }
