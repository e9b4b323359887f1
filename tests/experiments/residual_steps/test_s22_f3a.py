from dataclasses import replace

import pytest

from companion.data import load_digits
from companion.experiments.residual_steps import s22_f3a_layer_factor as module

run = module.s22_f3a

DIGITS = load_digits()


def test_deep_plain_networks_fail_and_scaled_ones_do_not():
    """The claims on one seed; a swap of the variants or of the factor would miss.

    The plain networks of 64 layers guess on any processor, whichever classes they guess.
    """
    result = run(depths=(2, 64), seeds=1, epochs=4)
    assert result["depths"].tolist() == [2.0, 64.0]
    assert result["error_tied_plain"].shape == (2, 1)
    assert result["error_tied_plain"][0, 0] < 0.15
    assert result["error_tied_plain"][1, 0] > 0.5
    assert result["error_untied_plain"][1, 0] > 0.5
    assert result["error_tied_scaled"].max() < 0.15
    assert result["error_untied_scaled"].max() < 0.15
    assert result["error_tied_plain_64"] == result["error_tied_plain"][1, 0]
    assert result.claim("CL58").holds
    assert result.findings.data == DIGITS.sha256


def test_a_network_that_leaves_the_finite_numbers_counts_as_guessing(monkeypatch):
    names = ("x_train", "y_train", "x_test", "y_test")
    short = replace(DIGITS, **{name: getattr(DIGITS, name)[:64] for name in names})
    monkeypatch.setattr(module, "load_digits", lambda device: short)
    result = run(depths=(400,), seeds=1, epochs=1)
    assert result["error_tied_plain"].tolist() == [[0.9]]
    assert result["diverged_tied_plain"].tolist() == [[1.0]]
    assert 0 <= result["error_tied_scaled"][0, 0] <= 1
    assert result["diverged_tied_scaled"].tolist() == [[0.0]]


def test_other_errors_are_not_taken_for_divergence():
    with pytest.raises(ValueError, match="learning rate"):
        run(depths=(2,), seeds=1, epochs=1, rate=-1.0)


@pytest.mark.parametrize(
    ("depths", "deep"), [((2, 32, 64), 0.4), ((2, 16, 64), 0.9), ((2, 4, 8), 0.9)]
)
def test_claims_average_over_seeds_and_look_where_they_say(depths, deep, monkeypatch):
    errors = {name: [[0.05, 0.05] for _ in depths] for name in module.VARIANTS}
    errors["tied_scaled"][1] = [0.06, 0.10]
    errors["tied_plain"][1:] = [[0.2, 0.6], [0.9, 0.9]]
    errors["untied_scaled"][0] = [0.05, 0.09]
    told = iter([error for table in errors.values() for row in table for error in row])
    monkeypatch.setattr(module.recipes, "trained_error", lambda *args, **kwargs: [next(told), 0.0])
    result = run(depths=depths, seeds=2)
    harmless, shallow, fails = result.claims
    assert harmless.observed == pytest.approx(0.08)
    assert shallow.observed == pytest.approx(0.02)
    assert shallow.text.endswith("untied, 2 layers")
    assert fails.observed == pytest.approx(deep)
    assert result["error_tied_plain"].tolist() == errors["tied_plain"]


def test_seeds_differ_and_the_run_seed_shifts_them():
    result = run(depths=(2,), seeds=2, epochs=1)
    shifted = run(depths=(2,), seeds=1, epochs=1, seed=1)
    errors = result["error_tied_scaled"][0]
    assert errors[0] != errors[1]
    assert shifted["error_tied_scaled"][0, 0] == errors[1]
