"""FW8-T in small, and its parts by value."""

import numpy as np
import pytest
import torch
from deciding import decided

from companion.data import load_digits
from companion.experiments import Grid, run
from companion.experiments.free_order import fw8_t_training_rules as fw8_t
from companion.experiments.gradient_rules import (
    RULES,
    digits_net,
)

DIGITS = load_digits()


def grid_of(**errors):
    """Errors over rule, steepness 0.8, 1.6 and 3, and seeds 0 and 1."""
    axes = {"rule": tuple(errors), "steepness": (0.8, 1.6, 3.0), "seed": (0, 1)}
    return Grid(axes, np.array(list(errors.values())))


def test_claims_of_fw8_t_go_by_steepness():
    errors = grid_of(
        backprop=[(0.02, 0.04), (0.02, 0.04), (0.02, 0.04)],
        reverse=[(0.02, 0.05), (0.05, 0.9), (0.3, 0.5)],
        sweeps=[(0.02, 0.03), (0.04, 0.06), (0.2, 0.3)],
        corrected=[(0.02, 0.04), (0.04, 0.95), (0.8, 0.8)],
        reversible=[(0.9, 0.9), (0.02, 0.02), (0.02, 0.02)],  # not memory-free: another network
    )
    numbers = fw8_t.decisive(errors)
    assert numbers == pytest.approx(
        {
            "excess_flat": 0.005, "excess_steep": 0.22, "won_corrected": 0.0,
            "excess_sweeps": 0.02, "excess_reverse_steepest": 0.37, "apart_reverse_flattest": 0.005,
        }
    )  # fmt: skip
    claims = decided("FW8-T", {**numbers, "moderate": 1.6}, depths=(8,))
    assert [c.id for c in claims] == ["FW8-T", "FW8-T", "FW8-T", "FW7", "CL59", "CL60"]
    assert [c.holds for c in claims] == [True, False, True, True, True, True]
    assert "8 layers, L/N = 1.6" in claims[3].text


def test_who_wins_is_counted_and_not_by_how_much():
    errors = grid_of(
        backprop=[(0.0, 0.0)] * 3,
        reverse=[(0.1, 0.1), (0.5, 0.3), (0.1, 0.1)],
        sweeps=[(0.0, 0.0)] * 3,
        corrected=[(0.9, 0.9), (0.1, 0.3), (0.9, 0.9)],
    )
    assert fw8_t.decisive(errors)["won_corrected"] == pytest.approx(1.0)  # of 1 and 0


def test_initial_weights_are_scaled_to_a_steepness():
    x = DIGITS.x_test[:20]
    for wanted in (0.8, 3.0):
        net = digits_net("reverse", 4, 7, fw8_t.gain_for(4, wanted, 7, x))
        assert fw8_t.steepest(net, x) == pytest.approx(wanted, rel=1e-3)


def test_steepest_layer_by_automatic_differentiation():
    net = digits_net("backprop", 3, seed=2, gain=2.0).double()
    x = DIGITS.x_test[:5].double()
    norms = []
    for start in net.stem(x).detach():
        state = start
        for n in range(3):
            w, b, v, c = (p[n].detach() for p in net.block.weights.parameters())

            def layer(y, w=w, b=b, v=v, c=c):
                return v @ torch.relu(w @ y + b) + c

            norms.append(torch.linalg.matrix_norm(torch.func.jacrev(layer)(state), 2).item())
            state = state + layer(state) / 3
    assert fw8_t.steepest(net, x) == pytest.approx(max(norms) / 3, rel=1e-12)


def test_fw8_t_compares_all_rules():
    result = run("FW8-T", depths=(4,), steepness=(0.9,), seeds=1, epochs=1, rules=tuple(RULES))
    for rule in RULES:
        assert result[f"error_{rule}"].shape == result[f"diverged_{rule}"].shape == (1, 1, 1)
    assert result["gains"].shape == (1, 1, 1)
    assert result.claim("CL60").observed == pytest.approx(
        abs(result["error_reverse"] - result["error_backprop"]).item()
    )
