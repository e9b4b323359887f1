r"""Q20-F10-T: wide ContinuousNets on Tiny-ImageNet, with Euler and with midpoint.

Queiruga et al. (2020, Fig. 10 and appendix B.1) train the networks of Q20-T1b on images of 64 by 64
pixels in 200 classes. That is the ``full`` tier. It needs a data folder with
``tiny-imagenet/train/CLASS/*.JPEG`` and ``tiny-imagenet/val/CLASS/*.JPEG``. As downloaded, the
training images lie one folder deeper, and ``val_annotations.txt`` names the classes of the others.
Training images are random pieces, scaled and mirrored. The ``smoke`` tier reads digits.
"""

from dataclasses import replace

from companion.experiments import Findings, Run, experiment
from companion.experiments.images import load_images
from companion.experiments.many_graphs.image_nets import Settings, Study, broken, study


@experiment(
    "Q20-F10-T",
    "Wide ContinuousNets with Euler and midpoint on larger images, under other graphs",
    paper="Queiruga et al. 2020, Fig. 10",
    claims=(
        ("CL47", "swapped", -0.004, {"digits": 0.004, "tiny-imagenet": 0.01},
         "{dataset}, test error, midpoint to RK4 at equal steps, after the swap minus before, mean "
         "over {seeds} seeds"),
        *broken("CL47", "tiny-imagenet"),
    ),
    full={
        "dataset": "tiny-imagenet", "channels": (64, 128, 256), "refine_at": (20, 50, 80),
        "epochs": 160, "seeds": 1, "autocast": True,
    },
    tiny={"channels": (2,), "refine_at": (1,), "epochs": 2, "seeds": 1},
    machine_dependent=tuple(f"images_per_second_{name}" for name in ("euler", "midpoint")),
)  # fmt: skip
def q20_f10_t(
    run: Run, *, dataset: str = "digits", networks: tuple[str, ...] = ("euler", "midpoint"),
    channels: tuple[int, ...] = (8, 16), refine_at: tuple[int, ...] = (2, 4), epochs: int = 8,
    seeds: int = 5, autocast: bool = False, compiled: bool = False,
) -> Findings:  # fmt: skip
    """Train and measure as Q20-T1a does; the curves and scalars are those."""
    settings = Settings(channels, refine_at, epochs, autocast, compiled)
    data = load_images(dataset, run, ("digits", "tiny-imagenet"))
    found = study(run, networks, ("euler", "midpoint"), seeds, data, settings)
    return replace(found.findings, deciding=deciding(found))


def deciding(found: Study) -> dict[str, float]:
    """Return what decides whether midpoint's network bears what breaks Euler's."""
    rise = found.rise("midpoint", "rk4", found.settings.cells)
    return found.deciding() | {"swapped": rise}
