r"""S22-F4: from how many layers on does memory-free training equal backprop?

Sander et al. (2022, Fig. 4) train residual networks and HeunNets on CIFAR-10, once by backprop and
once by their memory-free gradients, at depths 2 to 64. That is the ``full`` tier, with our rules
beside theirs; the epochs are fewer than their 90. The ``smoke`` tier trains perceptrons on
scikit-learn's digits. Their initial weights are twice the usual ones: the layers start far enough
from the identity for shallow networks to fail.
"""

from functools import partial

from torch.optim import SGD

from companion.data import Samples, crop_and_flip, load_cifar10, load_digits
from companion.experiments.gradient_rules import (
    RULES,
    Study,
    digits_error,
    digits_net,
    splits,
    train_all,
    trained_error,
)
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import ResidualConvNet
from companion.results import Claim, Findings
from companion.train import seeded, step_decay

_PAPER = ("backprop", "reverse", "heun_backprop", "heun_reverse")
"""The four curves of the paper's figure."""


@experiment(
    "S22-F4",
    "Test error against depth, trained by backprop and without stored activations",
    paper="Sander et al. 2022, Fig. 4",
    claims=("CL59", "CL60", "CL61"),
    full={
        "dataset": "cifar10",
        "rules": (*_PAPER, "corrected", "predicted", "heun_corrected"),
        "depths": (2, 4, 8, 16, 32, 64),
        "seeds": 3,
        "epochs": 30,
        "rate": 0.1,
    },
)
def s22_f4(
    run: Run,
    *,
    dataset: str = "digits",
    rules: tuple[str, ...] = _PAPER,
    depths: tuple[int, ...] = (2, 8, 32),
    seeds: int = 2,
    epochs: int = 8,
    rate: float = 0.02,
) -> Findings:
    """Train a network by every rule, at every depth, from every seed.

    Curves: ``depths``; for each rule ``error_RULE`` and ``diverged_RULE`` of shape
    ``(depths, seeds)``; a network whose state stops being finite counts as guessing. Scalars:
    ``error_RULE_DEPTH``, the means over seeds.
    """
    if dataset not in ("digits", "cifar10"):
        raise ValueError(f"dataset must be digits or cifar10; got {dataset!r}")
    if dataset == "digits":
        data = load_digits(device=run.device)
    else:
        data = load_cifar10(run.data, device=run.device)

    def train(part: Part, rule: str, depth: int, seed: int) -> list[float]:
        if dataset == "cifar10":
            return _cifar_error(part, data, rule, depth, seed, epochs=epochs, rate=rate)
        net = digits_net(rule, depth, seed, gain=2.0)
        return digits_error(part, data, net, seed, epochs=epochs, rate=rate)

    study = train_all(run, train, rules=rules, depths=depths, seeds=seeds, needed=_PAPER)
    return Findings(study.scalars(), study.curves(), _claims(study, dataset), data.provenance)


def _cifar_error(
    part: Part, data: Samples, rule: str, depth: int, seed: int, *, epochs: int, rate: float
) -> list[float]:
    """Train the paper's network by the paper's recipe."""
    with seeded(seed):
        net = ResidualConvNet(depth, method=RULES[rule].method, gradient=RULES[rule].gradient)
    return trained_error(
        part, net.to(data.x_train.device), *splits(data), seed,
        optimiser=lambda parameters: SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4),
        epochs=epochs,
        batch_size=256,
        schedule=step_decay(1 / 3, 2 / 3),
        augment=partial(crop_and_flip, fill=data.black),
    )  # fmt: skip


def _claims(study: Study, dataset: str) -> list[Claim]:
    """Decide the claims on errors averaged over seeds."""
    shallow, middle, deep = min(study.depths), study.nearest(8), study.nearest(32)
    failing = min(study.excess(rule, shallow) for rule in ("reverse", "heun_reverse"))
    equal = max(abs(study.excess(rule, deep)) for rule in ("reverse", "heun_reverse"))
    heun, euler = study.mean("heun_reverse", middle), study.mean("reverse", middle)
    claims = [
        Claim(
            "CL59",
            f"mean test error, memory-free minus backprop, {shallow} layers, Euler or Heun",
            failing,
            low=0.1,
        ),
        Claim(
            "CL60",
            f"mean test error, memory-free against backprop, {deep} layers, Euler or Heun",
            equal,
            high=0.02,
        ),
        Claim(
            "CL61",
            f"mean test error, memory-free, Heun minus Euler, {middle} layers",
            heun - euler,
            high=0.0,
        ),
    ]
    if dataset == "digits":
        claims.append(
            Claim("CL61", f"mean test error, memory-free, Heun, {middle} layers", heun, high=0.06)
        )
    return claims
