r"""Q20-T1b: wide ContinuousNets on CIFAR-100, and under other graphs.

Queiruga et al. (2020, Table 1) train networks four times as wide as on CIFAR-10, with 8 units in
each of three stages, and refine the one with RK4 after 20, 50 and 80 epochs of 160. That is the
``full`` tier. The ``smoke`` tier is the same code on the small images of scikit-learn's digits.
"""

from dataclasses import replace

from companion.experiments import Findings, Run, experiment
from companion.experiments.images import load_images
from companion.experiments.many_graphs.image_nets import Settings, Study, study


@experiment(
    "Q20-T1b",
    "Wide ContinuousNets with Euler and RK4, and their swapped graphs",
    paper="Queiruga et al. 2020, Table 1 and Fig. 9",
    claims=(  # on CIFAR-100 the errors are two points above the paper's
        ("CL43", "mean_error_euler", None, {"cifar100": 0.232}, "{dataset}, test error, Euler"),
        ("CL43", "mean_error_rk4", None, {"cifar100": 0.24},
         "{dataset}, test error, RK4 with refinement"),
        ("CL43", "over_euler", 0.0, 0.02,
         "{dataset}, test error, RK4 with refinement minus Euler, mean over {seeds} seeds"),
        ("CL43", "halved", -0.004, {"digits": 0.004, "cifar100": 0.02},
         "{dataset}, test error, RK4 to the 3/8 rule with {half} of {cells} steps, after the swap "
         "minus before, mean over {seeds} seeds"),
    ),
    full={
        "dataset": "cifar100", "networks": ("resnet", "euler", "rk4"), "channels": (64, 128, 256),
        "refine_at": (20, 50, 80), "epochs": 160, "seeds": 1, "autocast": True,
    },
    tiny={"channels": (2, 3), "refine_at": (1,), "epochs": 2, "seeds": 1},
    machine_dependent=tuple(f"images_per_second_{name}" for name in ("euler", "rk4")),
)  # fmt: skip
def q20_t1b(
    run: Run, *, dataset: str = "digits", networks: tuple[str, ...] = ("euler", "rk4"),
    channels: tuple[int, ...] = (8, 16), refine_at: tuple[int, ...] = (2, 4), epochs: int = 8,
    seeds: int = 5, autocast: bool = False, compiled: bool = False,
) -> Findings:  # fmt: skip
    """Train and measure as Q20-T1a does; the curves and scalars are those."""
    settings = Settings(channels, refine_at, epochs, autocast, compiled)
    data = load_images(dataset, run, ("digits", "cifar100"))
    found = study(run, networks, ("euler", "rk4"), seeds, data, settings)
    return replace(found.findings, deciding=deciding(found))


def deciding(found: Study) -> dict[str, float]:
    """Return what a change of the graph decides."""
    half = max(found.settings.cells // 2, 1)
    return found.deciding() | {
        "half": half,
        "halved": found.rise("rk4", "rk4_38", half),
        "over_euler": found.error("rk4") - found.error("euler"),
    }
