"""Q20-X5 in small: start and rate apart, both together equal to epsilon."""

import numpy as np
import pytest
import torch
from deciding import decided
from torch import nn

from companion.experiments import Grid, run
from companion.experiments.continuous_digits import Variant, digits_net
from companion.experiments.many_graphs import q20_x5_gauge_parts as q20_x5
from companion.experiments.recipes import normal


def test_the_last_layer_has_a_rate_and_a_decay_of_its_own():
    """Parameters in the order of the network: stem, first and last layer of the block, head."""
    params = [nn.Parameter(torch.ones(1)) for _ in range(8)]
    sgd = q20_x5.optimiser(q20_x5.Gauge(rate=64.0))(params)
    for p in params:
        p.grad = torch.ones(1)
    sgd.step()
    moved = [(1 - p.item()) / 0.01 for p in params]
    decayed = [1 + 5e-4] * 8
    decayed[4] = decayed[5] = 64 * (1 + 5e-4 / 64)
    assert moved == pytest.approx(decayed, rel=1e-5)


def test_start_and_rate_together_are_epsilon_and_apart_they_are_not():
    result = run("Q20-X5", seed=3, seeds=2, epochs=1)
    assert result["gauge_gap"] < 1e-5
    assert result["limit_both"] == pytest.approx(result["limit_eps8"], rel=1e-4)
    for kind in ("unit", "start", "rate"):
        assert not np.allclose(result[f"limit_{kind}"], result["limit_eps8"], rtol=0.05)
    for kind in ("start", "rate"):
        ratio = result[f"mean_limit_{kind}"] / result["mean_limit_unit"]
        assert result[f"{kind}_effect"] == pytest.approx(np.log10(ratio))


def test_steepness_is_that_of_a_plain_loop():
    """The Jacobian of V relu(W x + b) + c by hand, at the states of the Euler net."""
    net = digits_net(Variant("euler", scale=8.0), 0, torch.float64)
    W, b, V, c = (p.detach() for p in net.block.parameters())
    with torch.no_grad():
        x = normal(0)(5, 64)
        states, squares = net.stem(x), []
        for n in range(8):
            inner = states @ W[n].T + b[n]
            kinks = [torch.diag((row > 0).double()) for row in inner]
            squares += [torch.linalg.matrix_norm(V[n] @ kink @ W[n], 2) ** 2 for kink in kinks]
            states = states + inner.relu() @ V[n].T + c[n]
    wanted = torch.stack(squares).mean().sqrt().item()
    assert q20_x5.steepness(net, x) == pytest.approx(wanted, rel=1e-9)


def test_claims_of_x5():
    limits = {"unit": [0.01, 0.04], "start": [0.1, 0.9], "rate": [0.3, 0.3], "both": [0.5, 0.5]}
    limits["eps8"] = limits["both"]
    axes = {"kind": tuple(q20_x5.KINDS)}
    table = Grid(axes, np.array([limits[kind] for kind in q20_x5.KINDS]))
    found = {"limit": table, "error": table, "flow_error": table}
    scores = np.ones((5, 2, 3, 10))
    scores[3, 1] *= 1.01  # the second seed of "both"
    scalars = q20_x5.effects(found, Grid(axes, scores))
    claims = decided("Q20-X5", scalars, seeds=2)
    assert [c.observed for c in claims] == pytest.approx([np.log10(15), np.log10(15), 0.01])
    assert [c.holds for c in claims] == [True, True, False]
    assert scalars["mean_flow_error_start"] == pytest.approx(0.5)
