r"""S22-F4: from how many layers on does memory-free training equal backprop?

Sander et al. (2022, Fig. 4) train residual networks and HeunNets on CIFAR-10, once by backprop and
once by their memory-free gradients. That is the ``full`` tier, with our rules beside theirs; the
epochs are fewer than their 90. The ``smoke`` tier trains perceptrons on digits. Their initial
weights are twice the usual ones: the layers start far enough from the identity for shallow networks
to fail.

The layers of the code that was published with the paper keep a copy of every output, so that no
layer hands its error on to the one before. Both ways are trained: a chain of reconstructed states,
and ``copied``.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from companion.data import Samples, crop_and_flip, load_cifar10, load_digits
from companion.experiments import Findings, Part, Run, experiment
from companion.experiments.digits_company import study_together
from companion.experiments.gradient_rules import RULES, Study, digits_net, train_all
from companion.experiments.recipes import sgd, splits, trained_error
from companion.models import ResidualConvNet
from companion.train import seeded, step_decay

_PAPER = ("backprop", "reverse", "heun_backprop", "heun_reverse")
"""The four curves of the paper's figure."""

_FREE = ("reverse", "heun_reverse")

_COPIED = ("reverse_copied", "heun_reverse_copied")


@experiment(
    "S22-F4",
    "Test error against depth, trained by backprop and without stored activations",
    paper="Sander et al. 2022, Fig. 4",
    claims=(
        ("CL59", "failing", 0.1, None,
         "test error, memory-free minus backprop, {depths[0]} layers, smallest over seeds, Euler "
         "and Heun"),
        ("CL60", "apart", None, 0.01,
         "mean test error, memory-free against backprop, {deep} layers, Euler or Heun"),
        ("CL61", "over_euler", None, 0.0,
         "mean test error, memory-free, Heun minus Euler, {middle} layers"),
        ("CL61", "heun_excess", None, 0.01,
         "mean test error, Heun, memory-free minus backprop, {middle} layers"),
        ("CL61", "over_twice_as_deep", None, 0.0,
         "mean test error, memory-free, Heun with {middle} layers minus Euler with twice as many: "
         "equal evaluations"),
    ),
    full={
        "dataset": "cifar10",
        "rules": (*_PAPER, *_COPIED, "corrected", "predicted", "heun_corrected"),
        "depths": (2, 4, 8, 16, 32, 64), "seeds": 3, "epochs": 30, "rate": 0.1,
    },
    tiny={"depths": (2, 3), "seeds": 1, "epochs": 1},
    tolerance=1e-2,  # trained in single precision
)  # fmt: skip
def s22_f4(
    run: Run, *, dataset: str = "digits", rules: tuple[str, ...] = (*_PAPER, *_COPIED),
    depths: tuple[int, ...] = (2, 4, 8, 16, 32), seeds: int = 8, epochs: int = 8,
    rate: float = 0.02,
) -> Findings:  # fmt: skip
    """Train a network by every rule, at every depth, from every seed.

    Curves: ``depths``; for each rule ``error_RULE`` and ``diverged_RULE`` of shape
    ``(depths, seeds)``; a network whose state stops being finite counts as guessing. Scalars:
    ``error_RULE_DEPTH``, the means over seeds. Claims are decided at the depths nearest to the
    paper's.
    """
    if dataset not in ("digits", "cifar10"):
        raise ValueError(f"dataset must be digits or cifar10; got {dataset!r}")
    options: dict[str, Any] = {
        "rules": rules, "depths": depths, "seeds": seeds, "needed": _PAPER, "epochs": epochs,
        "rate": rate,
    }  # fmt: skip
    if dataset == "digits":
        data = load_digits(device=run.device, dtype=run.dtype)
        study = study_together(run, partial(digits_net, gain=2.0), data, **options)
    else:
        data = load_cifar10(run.data, device=run.device)
        study = _on_cifar(run, data, **options)
    found = Findings(study.scalars(), study.curves(), data=data.provenance)
    return replace(found, deciding=deciding(study))


def _on_cifar(run: Run, data: Samples, *, epochs: int, rate: float, **options: Any) -> Study:
    """Train the paper's networks, one after another."""

    def train(part: Part, rule: str, depth: int, seed: int) -> list[float]:
        with seeded(seed):
            deep = ResidualConvNet(depth, method=RULES[rule].method, gradient=RULES[rule].gradient)
        return trained_error(
            part, deep.to(run.device), *splits(data), seed, optimiser=sgd(rate, 5e-4),
            epochs=epochs, batch_size=256, schedule=step_decay(1 / 3, 2 / 3),
            augment=partial(crop_and_flip, fill=data.black),
        )  # fmt: skip

    return train_all(run, train, **options)


def deciding(study: Study) -> dict[str, float]:
    """Return what decides the claims; their depths are the nearest ones to the paper's."""
    middle, deep = study.nearest(8), study.nearest(32)
    heun = study.mean("heun_reverse", middle)
    return {
        "middle": middle,
        "deep": deep,
        "failing": min(study.smallest_excess(rule, study.depths[0]) for rule in _FREE),
        "apart": max(abs(study.excess(rule, deep)) for rule in _FREE),
        "over_euler": heun - study.mean("reverse", middle),
        "heun_excess": study.excess("heun_reverse", middle),
        "over_twice_as_deep": heun - study.mean("reverse", study.nearest(2 * middle)),
    }
