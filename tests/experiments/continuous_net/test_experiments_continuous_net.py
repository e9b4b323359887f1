"""The experiments on ContinuousNet's parts, in small, against values of another origin."""

import numpy as np
import torch

from companion import PiecewiseConstant
from companion.experiments import run
from companion.experiments.continuous_net import q20_bn_batch_norm as q20_bn
from companion.models import ContinuousNet, ode_blocks
from companion.train import seeded


def assert_all_hold(result):
    for claim in result.findings.claims:
        assert claim.holds, (claim.text, claim.observed)


def test_pc_is_the_papers_list():
    result = run("Q20-PC")
    assert_all_hold(result)
    assert result["parameters"].tolist() == [97_219 * m + 73_180 for m in (1, 2, 4, 8, 16, 32)]


def test_pc_counts_what_differs_from_the_list(monkeypatch):
    monkeypatch.setattr(
        "companion.experiments.continuous_net.q20_pc_parameter_counts.PAPER",
        (0.2, 0.4, 0.5, 0.9, 1.6, 3.2),
    )
    claim = run("Q20-PC", cells=(1, 2)).claim("CL35")
    assert (claim.observed, claim.holds) == (1, False)


def test_st_is_one_step_with_the_corrected_factor_and_the_square_off_with_the_printed():
    result = run("Q20-ST", steps=(1, 3, 8), channels=2)
    assert result["worst_corrected"] <= 1e-6
    np.testing.assert_allclose(result["printed_classic"], [1, 9, 64], rtol=1e-6)
    np.testing.assert_allclose(result["printed_scaled"], [1, 9, 64], rtol=1e-6)


def test_sk_is_exact():
    result = run("Q20-SK", seeds=1, steps=3, channels=2)
    assert_all_hold(result)
    assert result["moved"] == result["net"] == result["others"] == result["silenced"] == 0


def test_bn_finds_that_one_set_of_statistics_does_harm():
    result = run("Q20-BN", seeds=1, epochs=1, channels=(4,))
    assert [claim.observed for claim in result.findings.claims[:3]] == [0, 0, 0]
    assert result["mean_deviation_shared_euler"] > result["mean_deviation_doubled_rk4"]
    assert 0 < result["own_rk4"][0] < 0.9


def test_shared_statistics_are_the_means_over_cells_and_nothing_else_moves():
    with seeded(0):
        net = ContinuousNet(inputs=1, channels=(2,), basis=PiecewiseConstant(3), steps=3)
        net.blocks[0].weights.stacks.get_parameter("skip").data.fill_(1.0)
        net(torch.randn(9, 1, 5, 5))
    state, shared = net.state_dict(), q20_bn._with_shared_statistics(net).state_dict()
    for name, tensor in state.items():
        means = name.startswith("blocks") and name.endswith(("running_mean", "running_var"))
        expected = tensor.mean(0).expand_as(tensor) if means else tensor
        torch.testing.assert_close(shared[name], expected, msg=name)
        assert not means or not torch.equal(tensor[0], tensor[1])


def test_halves_whose_statistics_do_not_part_are_counted():
    """Before its first step a net with skip initialisation has one state at all depths."""
    with seeded(0):
        net = ContinuousNet(inputs=1, channels=(2, 3), basis=PiecewiseConstant(2))
        x = torch.randn(9, 1, 5, 5)
    net.refine()
    assert q20_bn._equal_halves(net, x) == 2 * 2 * 2
    for block in ode_blocks(net):
        block.weights.stacks.get_parameter("skip").data.fill_(1.0)
    assert q20_bn._equal_halves(net, x) == 0
