r"""Q20-F10-T: wide ContinuousNets on Tiny-ImageNet, with Euler and with midpoint.

Queiruga et al. (2020, Fig. 10 and appendix B.1) train the networks of Q20-T1b on images of 64 by 64
pixels in 200 classes, one with Euler, one with midpoint and refinement, and run them with other
schemes and steps. That is the ``full`` tier. It needs a data folder with
``tiny-imagenet/train/CLASS/*.JPEG`` and ``tiny-imagenet/val/CLASS/*.JPEG``. As downloaded, the
training images lie one folder deeper, and ``val_annotations.txt`` names the classes of the others.
Training images are random pieces, scaled and mirrored. The ``smoke`` tier is the same code on the
small images of scikit-learn's digits.
"""

from dataclasses import replace

from companion.experiments import Claim, Findings, Run, experiment
from companion.experiments.images import load_images
from companion.experiments.many_graphs.image_nets import Settings, Study, study


@experiment(
    "Q20-F10-T",
    "Wide ContinuousNets with Euler and midpoint on larger images, under other graphs",
    paper="Queiruga et al. 2020, Fig. 10",
    claims=("CL47",),
    full={
        "dataset": "tiny-imagenet",
        "channels": (64, 128, 256),
        "refine_at": (20, 50, 80),
        "epochs": 160,
        "autocast": True,
    },
    tiny={"channels": (2,), "refine_at": (1,), "epochs": 2},
    machine_dependent=tuple(f"images_per_second_{name}" for name in ("euler", "midpoint")),
)
def q20_f10_t(
    run: Run,
    *,
    dataset: str = "digits",
    networks: tuple[str, ...] = ("euler", "midpoint"),
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
    data = load_images(dataset, run, ("digits", "tiny-imagenet"))
    found = study(run, networks, ("euler", "midpoint"), seeds, data, settings)
    return replace(found.findings, claims=_claims(found, dataset))


def _claims(found: Study, dataset: str) -> list[Claim]:
    """Decide whether midpoint's network bears what breaks Euler's: RK4 in its place."""
    text = f"{dataset}, test error, midpoint to RK4 at equal steps, after the swap minus before"
    rise = found.rise("midpoint", "rk4", found.settings.cells)
    return [Claim("CL47", text, rise, high=0.01), found.broken("CL47", dataset)]
