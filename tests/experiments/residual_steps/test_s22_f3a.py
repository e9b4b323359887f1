from dataclasses import replace

import numpy as np
import pytest

from companion.data import load_digits
from companion.experiments import Part
from companion.experiments.residual_steps.s22_f3a_layer_factor import _claims, _test_error
from companion.experiments.residual_steps.s22_f3a_layer_factor import s22_f3a as run
from companion.models import ResidualMLP
from companion.train import seeded

DIGITS = load_digits()


def test_deep_plain_networks_fail_and_scaled_ones_do_not():
    """The claims on one seed; a swap of the variants or of the factor would miss."""
    result = run(depths=(2, 32), seeds=1, epochs=4)
    assert result["depths"].tolist() == [2.0, 32.0]
    assert result["error_tied_plain"].shape == (2, 1)
    assert result["error_tied_plain"][0, 0] < 0.15
    assert result["error_tied_plain"][1, 0] > 0.5
    assert result["error_untied_plain"][1, 0] > 0.5
    assert result["error_tied_scaled"].max() < 0.15
    assert result["error_untied_scaled"].max() < 0.15
    assert result["error_tied_plain_32"] == result["error_tied_plain"][1, 0]
    assert result.claim("CL58").holds
    assert result.findings.data == DIGITS.sha256


def test_a_network_that_leaves_the_finite_numbers_counts_as_guessing():
    part = Part(None, lambda fraction: None)
    for scaled, expected in ((False, [0.9, 1.0]), (True, [pytest.approx(0.5, abs=0.5), 0.0])):
        with seeded(0):
            net = ResidualMLP(64, 10, width=8, hidden=16, layers=400, tied=True, scaled=scaled)
        names = ("x_train", "y_train", "x_test", "y_test")
        data = replace(DIGITS, **{name: getattr(DIGITS, name)[:64] for name in names})
        assert _test_error(net, data, part, epochs=1, rate=0.05, seed=0) == expected


def test_other_errors_are_not_taken_for_divergence():
    with pytest.raises(ValueError, match="epochs"):
        run(depths=(2,), seeds=1, epochs=0)


def test_claims_average_over_seeds_and_look_where_they_say():
    names = ("tied_scaled", "tied_plain", "untied_scaled", "untied_plain")
    errors = {name: np.full((3, 2), 0.05) for name in names}
    errors["tied_scaled"][1] = [0.06, 0.10]
    errors["tied_plain"][1:] = [[0.2, 0.6], [0.9, 0.9]]
    errors["untied_scaled"][0] = [0.05, 0.09]
    harmless, shallow, fails = _claims(errors, (2, 32, 64))
    assert harmless.observed == pytest.approx(0.08)
    assert shallow.observed == pytest.approx(0.02)
    assert fails.observed == pytest.approx(0.4)
    *_, fails = _claims(errors, (2, 16, 64))
    assert fails.observed == pytest.approx(0.9)
    *_, fails = _claims(errors, (2, 4, 8))
    assert fails.observed == pytest.approx(0.9)


def test_seeds_differ_and_the_run_seed_shifts_them():
    result = run(depths=(2,), seeds=2, epochs=1)
    shifted = run(depths=(2,), seeds=1, epochs=1, seed=1)
    errors = result["error_tied_scaled"][0]
    assert errors[0] != errors[1]
    assert shifted["error_tied_scaled"][0, 0] == errors[1]
