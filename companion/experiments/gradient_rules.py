"""Training one network by every gradient rule: what the training experiments share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.optim import SGD, Optimizer

from companion.data import Samples
from companion.experiments.copied_states import CopiedStates
from companion.experiments.grid import Grid, grid
from companion.experiments.recipes import classification_loss as classification_loss
from companion.experiments.recipes import splits, trained_error
from companion.experiments.running import Part, Run
from companion.gradients import NAMED_RULES, Rule
from companion.models import ResidualMLP
from companion.train import seeded, step_decay

RULES: Mapping[str, Rule] = {
    **{
        name: NAMED_RULES[name]
        for name in (
            "backprop", "reverse", "sweeps", "corrected", "predicted", "predicted_2",
            "heun_backprop", "heun_reverse", "heun_corrected", "reversible",
        )
    },
    "reverse_copied": Rule("euler", CopiedStates()),
    "heun_reverse_copied": Rule("heun", CopiedStates()),
}  # fmt: skip
"""The rules that networks are trained by. In the last two, no layer hands its error on."""


def at_depth(rule: str, depth: int) -> str:
    """Name a rule at a depth, by another name than that of a rule whose number is its order.

    Example:
        >>> at_depth("predicted", 16), at_depth("predicted", 2)
        ('predicted_16', 'predicted_depth_2')
    """
    name = f"{rule}_{depth}"
    return f"{rule}_depth_{depth}" if name in RULES else name


class Study(NamedTuple):
    """Test errors over the axes ``rule``, ``depth`` and ``seed``, and 1 where a state diverged."""

    errors: Grid
    diverged: Grid

    @property
    def depths(self) -> tuple[int, ...]:
        """Numbers of layers."""
        return self.errors.axes["depth"]

    def mean(self, rule: str, depth: int) -> float:
        """Return the mean test error over seeds."""
        return float(self.errors.at(rule=rule, depth=depth).values.mean())

    def excess(self, rule: str, depth: int) -> float:
        """Return the mean test error minus that of the rule's reference."""
        return self.mean(rule, depth) - self.mean(RULES[rule].reference, depth)

    def smallest_excess(self, rule: str, depth: int) -> float:
        """Return the smallest difference over seeds: a test error minus that of the reference."""
        own, reference = (
            self.errors.at(rule=name, depth=depth).values for name in (rule, RULES[rule].reference)
        )
        return float((own - reference).min())

    def nearest(self, depth: int) -> int:
        """Return the depth of the study nearest to ``depth``, the smaller of two."""
        return min(self.depths, key=lambda own: (abs(own - depth), own))

    def scalars(self) -> dict[str, float]:
        """Return ``error_RULE_DEPTH``, the means over seeds."""
        pairs = [(rule, depth) for rule in self.errors.axes["rule"] for depth in self.depths]
        return {f"error_{at_depth(rule, depth)}": self.mean(rule, depth) for rule, depth in pairs}

    def curves(self) -> dict[str, Any]:
        """Return ``depths``, ``error_RULE`` and ``diverged_RULE``."""
        errors, diverged = self.errors.named("error", "rule"), self.diverged
        return {"depths": self.depths, **errors, **diverged.named("diverged", "rule")}


def train_all(
    run: Run,
    train: Callable[[Part, str, int, int], list[float]],
    *,
    rules: Sequence[str],
    depths: Sequence[int],
    seeds: int,
    needed: Sequence[str],
    together: bool = False,
) -> Study:
    """Train a network by every rule, at every depth, from every seed.

    ``train(part, rule, depth, seed)`` returns the error and whether the network diverged.
    """
    check_rules(rules, needed)
    seed = run.seeds(seeds)
    found = grid(run, train, together=together, rule=rules, depth=depths, seed=seed)
    return Study(found.pick(0), found.pick(1))


def check_rules(rules: Sequence[str], needed: Sequence[str]) -> None:
    """Refuse an unknown rule, or that one is missing that a claim needs or that others need.

    A claim needs those of ``needed``; every rule needs its reference, to be compared with.
    """
    if unknown := [rule for rule in rules if rule not in RULES]:
        raise ValueError(f"rules must be some of {', '.join(RULES)}; got {', '.join(unknown)}")
    wanted = [*needed, *(RULES[rule].reference for rule in rules)]
    if missing := [rule for rule in dict.fromkeys(wanted) if rule not in rules]:
        raise ValueError(f"rules must include {', '.join(missing)}; got {', '.join(rules)}")


def digits_net(rule: str, depth: int, seed: int, gain: float) -> ResidualMLP:
    """Return the perceptron of ``depth`` layers that is trained on digits."""
    with seeded(seed):
        return ResidualMLP(
            64, 10, width=16, hidden=32, layers=depth, tied=False, scaled=True, gain=gain,
            method=RULES[rule].method, gradient=RULES[rule].gradient,
        )  # fmt: skip


def layer_rates(
    net: Any, rate: float, factor: float
) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return what makes SGD whose rate in the layers is ``factor`` times that elsewhere."""
    ends = [*net.stem.parameters(), *net.head.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": ends},
        {"params": [*net.block.parameters()], "lr": rate * factor},
    ]
    return lambda parameters: SGD(groups, lr=rate, momentum=0.9)


def digits_error(
    part: Part, data: Samples, net: ResidualMLP, seed: int, *, epochs: int, rate: float
) -> list[float]:
    """Train a perceptron on digits; return its test error, and whether it diverged.

    The gradients of a layer's parameters are of size $1/N$, so their learning rate is ``rate``
    times $N$.
    """
    net = net.to(data.x_train.device)
    return trained_error(
        part, net, *splits(data), seed, optimiser=layer_rates(net, rate, net.block.steps),
        epochs=epochs, batch_size=64, schedule=step_decay(0.7), clip=1.0,
    )  # fmt: skip
