"""The experiments on continuous depth, in small, against values of another origin."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from companion import PiecewiseConstant
from companion.experiments import fw1, q20_adj, q20_bn, q20_r1, run
from companion.experiments.depth_study import (
    initial_states,
    random_block,
    solve_block,
    solve_naively,
)
from companion.models import ContinuousNet, ode_blocks
from companion.schemes import SCHEMES
from companion.train import seeded

CPU = torch.device("cpu")


def assert_all_hold(result):
    for claim in result.findings.claims:
        assert claim.holds, (claim.text, claim.observed)


# Q20-X1 and Q20-R1


def test_the_reference_is_the_solution_of_the_equation():
    """Cell by cell with another package."""
    block, x = random_block(PiecewiseConstant(4), 0, CPU), initial_states(0, CPU)
    weight, bias = (p.detach().numpy() for p in block.weights.parameters())
    state = x.numpy()
    for k in range(4):

        def field(t, y, k=k):
            return np.tanh(y.reshape(8, 4) @ weight[k].T + bias[k]).ravel()

        solved = solve_ivp(field, (0, 0.25), state.ravel(), "DOP853", rtol=1e-12, atol=1e-12)
        state = solved.y[:, -1].reshape(8, 4)
    got = solve_block(block, x, "rk4", 512).numpy()
    np.testing.assert_allclose(got, state, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SCHEMES)
def test_naive_stages_read_the_cell_that_begins_at_a_knot(name):
    """The scheme written with fractions: stage (n + c)/N reads cell floor(M (n + c)/N)."""
    scheme, steps = SCHEMES[name], 4
    block, x = random_block(PiecewiseConstant(2), 0, CPU), initial_states(0, CPU)
    weight, bias = block.weights.parameters()
    y = x
    for n in range(steps):
        slopes = []
        for c, row in zip(scheme.c, scheme.a, strict=True):
            cell = min(int(2 * (n + c) / steps), 1)
            inner = y + sum((float(a) / steps * k for a, k in zip(row, slopes, strict=True)), 0)
            slopes.append(torch.tanh(inner @ weight[cell].T + bias[cell]))
        y = y + sum(float(b) / steps * k for b, k in zip(scheme.b, slopes, strict=True))
    torch.testing.assert_close(solve_naively(block, x, name, steps), y, rtol=0, atol=1e-13)


def test_x1_tells_the_orders_apart():
    result = run("Q20-X1", fields=1, steps=(32, 64), finest=512)
    assert_all_hold(result)
    assert len(result.findings.claims) == 5 * 3
    assert result["naive_aligned_rk4"].shape == (1, 2)
    lost = result["naive_aligned_rk4"][:, -1] / result["one_sided_aligned_rk4"][:, -1]
    assert (lost > 1e4).all()


def test_r1_is_exact_in_weights_and_of_the_scheme_in_steps():
    result = run("Q20-R1", seeds=1, split_steps=(3,), steps=(32, 64))
    assert_all_hold(result)
    block, x = random_block(PiecewiseConstant(4), 0, CPU), initial_states(0, CPU)
    change = solve_block(block, x, "heun", 128) - solve_block(block, x, "heun", 64)
    assert result["doubled_heun"][0, 1] == pytest.approx(change.norm(dim=1).max().item(), rel=1e-9)


def test_r1_sees_a_split_that_puts_the_halves_elsewhere(monkeypatch):
    block, x = q20_r1._conv_block(PiecewiseConstant(4), 0, torch.float32, CPU)
    monkeypatch.setattr(PiecewiseConstant, "refine", lambda self, c: torch.cat([c, c]))
    assert q20_r1._largest_change(block, x, (3,)) > 1e-3


# Q20-PC, Q20-ST, Q20-SK, Q20-BN


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


# Q20-ADJ


def euler_adjoint(task, steps):
    """Euler back from the end for state and adjoint at once: gradients of weights and biases."""
    weight, bias = (p.detach() for p in task.block.weights.parameters())
    grads = torch.zeros_like(weight), torch.zeros_like(bias)
    x = task.x
    for n in range(steps):
        cell = n * q20_adj.CELLS // steps
        x = x + torch.tanh(x @ weight[cell].T + bias[cell]) / steps
    a = x - task.target
    for n in reversed(range(steps)):
        cell = n * q20_adj.CELLS // steps
        value = torch.tanh(x @ weight[cell].T + bias[cell])
        inner = a * (1 - value**2) / steps
        grads[0][cell] += inner.T @ x
        grads[1][cell] += inner.sum(0)
        x, a = x - value / steps, a + inner @ weight[cell]
    return torch.cat([g.flatten() for g in grads])


def test_adj_measures_the_adjoint_written_out():
    result = run("Q20-ADJ", seeds=1, ratios=(1, 3), nets=1, train_ratios=(1, 3), epochs=1)
    task = q20_adj._task(0, 4.0, CPU)
    for k, ratio in enumerate((1, 3)):
        wanted = q20_adj._gradient(task, "euler", 4 * ratio, "backprop")
        got = euler_adjoint(task, 4 * ratio)
        error = ((got - wanted).norm() / wanted.norm()).item()
        assert result["error_adjoint_euler"][0, k] == pytest.approx(error, rel=1e-9)
        cosine = torch.nn.functional.cosine_similarity(got, wanted, dim=0).item()
        assert result["cosine_adjoint_euler"][0, k] == pytest.approx(cosine, rel=1e-9)
    assert result["error_checkpoint_rk4"].max() < 1e-15
    assert result["error_reversible_async_leapfrog"].max() < 1e-13
    assert result["at_three_euler"] / result["at_one_euler"] < 0.5
    harm = result["test_error_adjoint"] - result["test_error_backprop"]
    assert result["harm_at_three"] == pytest.approx(harm[0, 1])
    assert harm[0, 0] > 0.1


# FW1


def test_fw1_finds_the_orders_and_half_the_parameters(monkeypatch):
    monkeypatch.setattr(fw1, "BASES", {name: fw1.BASES[name] for name in ("linear", "fourier")})
    result = run("FW1", fields=1, steps=(61, 121), finest=600, seeds=1, epochs=1, graphs=(4, 8))
    *orders, gap, share = result.findings.claims
    assert len(orders) == 2 * 5
    for claim in orders:
        expected = (claim.low + claim.high) / 2
        assert claim.observed == pytest.approx(expected, abs=0.2), claim.text
    assert share.observed == 0.5
    assert result["error_chebyshev"].shape == (1, 4, 2)
    assert gap.observed == result["mean_trained_chebyshev"] - result["mean_trained_constant"]


@pytest.mark.parametrize("knot", [Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)])
def test_the_three_eighths_rule_integrates_kinks_at_quarters(knot):
    """So 4 cells on a grid of 4 m + 1 steps would show another order than the rest."""

    def error(name, knot):
        scheme = SCHEMES[name]
        found = sum(b * max(c - knot, 0) for b, c in zip(scheme.b, scheme.c, strict=True))
        return found - (1 - knot) ** 2 / 2

    assert error("rk4_38", knot) == 0
    assert all(error(name, Fraction(k, 5)) for name in SCHEMES for k in range(1, 5))
