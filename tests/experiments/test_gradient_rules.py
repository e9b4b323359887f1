"""Training one network by every gradient rule: what the training experiments share."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from companion.data import load_digits
from companion.experiments import Part, Run
from companion.experiments.copied_states import CopiedStates
from companion.experiments.gradient_rules import (
    RULES,
    digits_error,
    digits_net,
    train_all,
)
from companion.gradients import Backprop, Reconstruct, Reversible

DIGITS = load_digits()
QUIET = Part(None, lambda fraction: None)


def test_rules_are_what_their_names_say():
    expected = {
        "backprop": ("euler", Backprop()),
        "reverse": ("euler", Reconstruct("reverse")),
        "sweeps": ("euler", Reconstruct("reverse", sweeps=2)),
        "corrected": ("euler", Reconstruct("corrected")),
        "predicted": ("euler", Reconstruct("predicted", order=1)),
        "predicted_2": ("euler", Reconstruct("predicted", order=2)),
        "heun_backprop": ("heun", Backprop()),
        "heun_reverse": ("heun", Reconstruct("reverse")),
        "heun_corrected": ("heun", Reconstruct("corrected")),
        "reversible": ("async_leapfrog", Reversible()),
        "reverse_copied": ("euler", CopiedStates()),
        "heun_reverse_copied": ("heun", CopiedStates()),
    }
    assert {name: (rule.method, rule.gradient) for name, rule in RULES.items()} == expected
    for name, rule in RULES.items():
        assert rule.reference == ("heun_backprop" if name.startswith("heun") else "backprop")
        net = digits_net(name, 3, seed=0, gain=2.0)
        assert (net.block.method, net.block.gradient) == expected[name]
        assert net.block.steps == 3


def test_rules_of_one_scheme_start_from_the_same_network():
    one, same = (digits_net(rule, 3, seed=4, gain=2.0) for rule in ("backprop", "predicted"))
    other = digits_net("backprop", 3, seed=5, gain=2.0)
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a.any() or not torch.equal(a, c)


def test_one_step_of_training_is_written_out():
    """64 samples are one batch: clipped at 1, rate times the depth for the layers."""
    data = replace(DIGITS, x_train=DIGITS.x_train[:64], y_train=DIGITS.y_train[:64])
    net, twin = (digits_net("backprop", 5, seed=1, gain=2.0) for _ in range(2))
    cross_entropy(twin(data.x_train), data.y_train).backward()
    norm = torch.stack([p.grad.norm() for p in twin.parameters()]).norm()
    assert norm > 1.2
    digits_error(QUIET, data, net, seed=0, epochs=1, rate=0.01)
    before = dict(twin.named_parameters())
    for name, p in net.named_parameters():
        rate = 0.05 if name.startswith("block") else 0.01
        torch.testing.assert_close(p, before[name] - rate * before[name].grad / norm)


def test_training_learns_and_counts_what_diverges():
    learned = digits_error(
        QUIET, DIGITS, digits_net("corrected", 16, 0, 1.0), 0, epochs=4, rate=0.02
    )
    assert learned[0] < 0.1
    assert learned[1] == 0
    net = digits_net("backprop", 2, 0, 2.0)
    with torch.no_grad():
        net.stem.weight *= 1e38
    assert digits_error(QUIET, DIGITS, net, 0, epochs=1, rate=0.02) == [0.9, 1.0]


def test_a_study_keeps_rules_depths_and_seeds_apart():
    def train(part, rule, depth, seed):
        return [100 * list(RULES).index(rule) + depth + seed / 10, float(seed == 7)]

    whole = Run(6, torch.device("cpu"), None, 30.0, lambda fraction, name: None, None)
    rules = ("backprop", "reverse")
    study = train_all(whole, train, rules=rules, depths=(2, 8), seeds=2, needed=())
    np.testing.assert_allclose(
        study.errors.at(rule="reverse").values, [[102.6, 102.7], [108.6, 108.7]]
    )
    np.testing.assert_allclose(study.diverged.at(rule="backprop").values, [[0, 1], [0, 1]])
    assert study.mean("backprop", 8) == pytest.approx(8.65)
    assert study.scalars()["error_reverse_2"] == pytest.approx(102.65)
    assert set(study.curves()) == {
        "depths", "error_backprop", "error_reverse", "diverged_backprop", "diverged_reverse",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (("backprop", "adjoint"), "rules must be some of backprop, reverse, .*; got adjoint"),
        (("backprop",), "rules must include reverse; got backprop"),
        (("reverse",), "rules must include backprop; got reverse"),
        (("backprop", "reverse", "heun_corrected"), "rules must include heun_backprop; got"),
    ],
)
def test_rules_are_known_and_comparable(rules, message):
    with pytest.raises(ValueError, match=message):
        train_all(None, None, rules=rules, depths=(2,), seeds=1, needed=("reverse",))


def test_excess_is_over_backprop_of_the_same_scheme(make_study):
    study = make_study(
        (2, 8),
        backprop=[(0.02, 0.04), (0.02, 0.02)],
        reverse=[(0.5, 0.7), (0.03, 0.05)],
        heun_backprop=[(0.04, 0.06), (0.1, 0.1)],
        heun_reverse=[(0.2, 0.2), (0.11, 0.11)],
        reversible=[(0.04, 0.05), (0.05, 0.05)],
    )
    assert study.excess("reverse", 2) == pytest.approx(0.57)
    assert study.smallest_excess("reverse", 2) == pytest.approx(0.48)
    assert study.excess("heun_reverse", 2) == pytest.approx(0.15)
    assert study.excess("reversible", 8) == pytest.approx(0.03)
    assert [study.nearest(depth) for depth in (1, 5, 6, 32)] == [2, 2, 8, 8]
