r"""S22-F3b: does memory-free training fail at the depths of usual networks?

Sander et al. (2022, Fig. 3b) train a ResNet-101 on ImageNet and use memory-free gradients in its
third stage, which has 23 layers. It fails: the errors are of size $1/N$, and 23 is not enough.
That is the ``full`` tier, with our corrected rule beside theirs. It reads ImageNet as S22-T1 does.
The ``smoke`` tier trains the perceptrons of S22-F4 with the depths at which they fail.
"""

from functools import partial
from typing import Any

from companion.data import load_digits, load_image_folder
from companion.experiments import Findings, Part, Run, experiment
from companion.experiments.digits_company import study_together
from companion.experiments.gradient_rules import RULES, Study, digits_net, train_all
from companion.experiments.recipes import guessing, sgd, trained_error
from companion.models import ResNet
from companion.models.resnets import ResNetStage
from companion.train import seeded, step_decay


@experiment(
    "S22-F3b",
    "Memory-free training of networks that are not deep enough for it",
    paper="Sander et al. 2022, Fig. 3b",
    claims=(
        ("CL59", "excess", 0.1, None,
         "test error, memory-free minus backprop, smallest over depths and seeds"),
    ),
    full={"dataset": "imagenet", "depths": (23,), "seeds": 1, "epochs": 100, "rate": 0.1},
    tiny={"depths": (2, 3), "seeds": 1, "epochs": 1},
    tolerance=1e-2,  # trained in single precision
)  # fmt: skip
def s22_f3b(
    run: Run, *, dataset: str = "digits",
    rules: tuple[str, ...] = ("backprop", "reverse", "corrected"),
    depths: tuple[int, ...] = (2, 4), seeds: int = 8, epochs: int = 12, rate: float = 0.02,
) -> Findings:  # fmt: skip
    """Train a network by every rule, at every depth, from every seed.

    On ImageNet the depth is the number of layers of the third stage, and the rule holds there; all
    other stages use backprop. Curves and scalars are those of S22-F4.
    """
    if dataset not in ("digits", "imagenet"):
        raise ValueError(f"dataset must be digits or imagenet; got {dataset!r}")
    euler = [rule for rule, value in RULES.items() if value.method == "euler"]
    if not set(rules) <= set(euler):
        raise ValueError(f"rules must be some of {', '.join(euler)}; got {', '.join(rules)}")
    options: dict[str, Any] = {
        "rules": rules, "depths": depths, "seeds": seeds, "needed": ("backprop", "reverse"),
        "epochs": epochs, "rate": rate,
    }  # fmt: skip
    if dataset == "digits":
        digits = load_digits(device=run.device, dtype=run.dtype)
        study = study_together(run, partial(digits_net, gain=2.0), digits, **options)
        provenance = digits.provenance
    else:
        files, val = load_image_folder(run.data)
        study = _on_imagenet(run, files, val, **options)
        provenance = f"{files.sha256} {val.sha256}"
    excess = min(study.smallest_excess("reverse", depth) for depth in depths)
    return Findings(study.scalars() | {"excess": excess}, study.curves(), data=provenance)


def _on_imagenet(
    run: Run, files: Any, val: Any, *, epochs: int, rate: float, **options: Any
) -> Study:
    """Train ResNet-101 with other third stages, all processes on one network."""
    classes = len(files.classes)

    def train(part: Part, rule: str, depth: int, seed: int) -> list[float]:
        return trained_error(
            part, _resnet(rule, depth, seed, classes).to(run.device), files, val, seed,
            optimiser=sgd(rate, 1e-4), epochs=epochs, batch_size=256,
            schedule=step_decay(0.3, 0.6, 0.9), chance=guessing(classes),
        )  # fmt: skip

    return train_all(run, train, together=True, **options)


def _resnet(rule: str, depth: int, seed: int, classes: int) -> ResNet:
    """Return ResNet-101 with another third stage, and a gradient of its own there."""
    with seeded(seed):
        net = ResNet((3, 4, depth, 3), "bottleneck", stem="imagenet", classes=classes)
    stage = net.stages[2]
    assert isinstance(stage, ResNetStage)
    stage.block = stage.block.with_graph(gradient=RULES[rule].gradient)
    return net
