"""Perceptrons in company: each does what it does alone."""

import pytest
import torch

from companion.data import load_digits
from companion.experiments import Part
from companion.experiments.digits_company import DigitsCompany, company_errors, mean_losses
from companion.experiments.gradient_rules import digits_error, digits_net
from companion.experiments.recipes import classification_loss

DIGITS = load_digits(dtype=torch.float64)
QUIET = Part(None, lambda fraction: None)


def nets(rule, seeds, depth=6):
    return [digits_net(rule, depth, k, gain=1.5).double() for k in seeds]


@pytest.mark.parametrize("rule", ["backprop", "reverse", "corrected", "predicted", "heun_reverse"])
def test_a_member_is_trained_as_if_it_were_alone(rule):
    together, alone = nets(rule, (3, 5)), nets(rule, (3, 5))
    found = company_errors(QUIET, DIGITS, together, (3, 5), epochs=1, rate=0.02)
    for k, (own, twin) in enumerate(zip(together, alone, strict=True)):
        assert found[k] == digits_error(QUIET, DIGITS, twin, (3, 5)[k], epochs=1, rate=0.02)
        for a, b in zip(own.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_losses_are_those_of_the_members():
    members = nets("reverse", (1, 2, 3))
    x, y = DIGITS.x_train[:30].view(3, 10, 64), DIGITS.y_train[:30].view(3, 10)
    wanted = [classification_loss(*part) for part in zip(members, x, y, strict=True)]
    torch.testing.assert_close(mean_losses(DigitsCompany(members), x, y), torch.stack(wanted))


def test_a_member_that_diverges_counts_as_guessing():
    members = nets("backprop", (0, 1), depth=2)
    with torch.no_grad():
        members[1].stem.weight *= 1e305
    first, second = company_errors(QUIET, DIGITS, members, (0, 1), epochs=1, rate=0.02)
    assert first[1] == 0
    assert second == [0.9, 1.0]
