"""FW8-T in small, and its parts by value."""

import math

import numpy as np
import pytest
import torch
from deciding import decided

from companion.data import load_digits
from companion.experiments import run
from companion.experiments.free_order import fw8_t_training_rules as fw8_t
from companion.experiments.gradient_rules import (
    RULES,
    digits_net,
)

DIGITS = load_digits()


def test_claims_of_fw8_t_split_the_depths_by_contraction(make_study):
    study = make_study(
        (4, 8, 16, 32),
        backprop=[(0.02, 0.02)] * 4,
        reverse=[(0.3, 0.3), (0.5, 0.5), (0.02, 0.02), (0.03, 0.03)],
        sweeps=[(0.42, 0.42), (0.03, 0.05), (0.01, 0.01), (0.035, 0.035)],
        reversible=[(0.02, 0.02), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)],
    )
    contraction = np.array([3.0, 1.5, 0.9, 0.4])
    flat, steep = fw8_t._excess(study, contraction)
    numbers = {"excess_flat": flat, "excess_steep": steep, **fw8_t.deciding(study, contraction)}
    *_, sweeps = decided("FW8-T", numbers)
    assert sweeps.id == "FW7"
    assert "1.50 on average" in sweeps.note
    assert sweeps.observed == pytest.approx(0.02)
    assert (flat, steep) == pytest.approx((0.015, 0.28))
    flat, steep = fw8_t._excess(study, np.array([1.5, 1.4, 1.3, 1.2]))
    assert (flat, steep) == pytest.approx((0.015, 0.28))


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
    result = run("FW8-T", depths=(2, 16), seeds=1, epochs=1, rules=tuple(RULES))
    assert {name for name in result.findings.curves if name.startswith("error_")} == {
        f"error_{rule}" for rule in RULES
    }
    assert result["enough_backprop"] == 2
    assert result["enough_reverse"] > 2
    assert result["median_reverse_16"] == result["error_reverse"][1, 0]
    assert result["contraction"].shape == (2, 1)
    assert result["contraction_2"] > 2 > 1 > result["contraction_16"]
    assert [claim.holds for claim in result.claims if claim.text.endswith(">= 2")] == [True]


def test_enough_layers_are_those_that_come_near_the_reference(make_study):
    study = make_study(
        (2, 8),
        backprop=[(0.02, 0.04), (0.02, 0.02)],
        reverse=[(0.5, 0.7), (0.03, 0.05)],
        reversible=[(0.04, 0.05), (0.05, 0.05)],
    )
    assert fw8_t.enough(study, "reverse", np.mean) == 8
    assert fw8_t.enough(study, "backprop", np.mean) == 2
    assert fw8_t.enough(study, "reversible", np.mean) == 2
    assert fw8_t.enough(study, "reversible", np.max) == 2
    assert fw8_t.enough(study, "reverse", np.max) == math.inf
