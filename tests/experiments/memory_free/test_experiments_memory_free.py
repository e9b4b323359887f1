"""The experiments on memory-free sweeps in small, against sweeps written out in plain loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from companion.exercises import WrongAnswer
from companion.exercises.memory_free import CONTRIBUTIONS, JUMPS, QUIET, ROUND_TRIP
from companion.experiments import find, run
from companion.experiments.memory_free.s22_p3_reverse_euler import _limit
from companion.experiments.memory_free.tanh_networks import (
    FAMILIES,
    Draw,
    Networks,
    draw_networks,
    fit_rate,
    measure,
)
from companion.gradients import Reconstruct

F64 = torch.float64
THREE = Draw(count=3, dim=4, seed=5, device=torch.device("cpu"))


def plain(networks, method):
    """States, reversed states and both gradients of each network alone, by loops and autograd."""
    layers, steps = networks.layers, networks.block.steps
    h = 1 / steps
    params = [p for layer in layers for p in (layer.weight, layer.bias)]

    def step(x, n):
        first = layers[n](x)
        return x + h / 2 * (first + layers[n + 1](x + h * first)) if method == "heun" else (
            x + h * first)  # fmt: skip

    def back(x, n):
        if method == "euler":
            return x - h * layers[n](x)
        first = layers[n + 1](x)
        return x - h / 2 * (first + layers[n](x - h * first))

    with torch.no_grad():
        true = [networks.x0]
        for n in range(steps):
            true.append(step(true[-1], n))
        rebuilt = [true[-1]]
        for n in reversed(range(steps)):
            rebuilt.insert(0, back(rebuilt[0], n))
    found = []
    for states in (true, rebuilt):
        a, total = true[-1] - networks.target, [torch.zeros_like(p) for p in params]
        for n in reversed(range(steps)):
            x = states[n].clone().requires_grad_()
            a, *grads = torch.autograd.grad(step(x, n), (x, *params), a, allow_unused=True)
            total = [t if g is None else t + g for t, g in zip(total, grads, strict=True)]
        pairs = zip(total[::2], total[1::2], strict=True)
        found.append(torch.stack([torch.cat([w, b.unsqueeze(-2)], -2) for w, b in pairs]))
    return torch.stack(true), torch.stack(rebuilt), *found


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("family", FAMILIES)
def test_errors_are_those_of_plain_loops(method, family):
    networks = draw_networks(family, method, 6, THREE)
    true, rebuilt, exact, got = plain(networks, method)
    errors = measure(networks)
    torch.testing.assert_close(errors.states, (rebuilt - true).norm(dim=-1), rtol=1e-9, atol=1e-15)
    wanted = torch.linalg.vector_norm(got - exact, dim=(-2, -1))
    torch.testing.assert_close(errors.gradients, wanted, rtol=1e-9, atol=1e-15)
    flat = [g.transpose(0, 1).flatten(1) for g in (got - exact, exact)]
    torch.testing.assert_close(errors.relative, flat[0].norm(dim=1) / flat[1].norm(dim=1))
    assert errors.states.shape == (7, 3)
    assert max(errors.state_ratio) <= 1
    assert max(errors.gradient_ratio) <= 1


@pytest.mark.parametrize(
    ("family", "jump"),
    [
        ("tied", 0.0),
        ("zigzag_1_over_n", 0.8 / 16),
        ("zigzag_1_over_root_n", 0.2),
        ("zigzag_1", 0.8),
    ],
)
def test_families_jump_as_their_names_say(family, jump):
    """In the operator norm the matrices move by 0.4 times the change of the coefficient."""
    weight = torch.stack(
        [layer.weight for layer in draw_networks(family, "heun", 16, THREE).layers]
    )
    jumps = torch.linalg.matrix_norm(weight.diff(dim=0), 2)
    torch.testing.assert_close(jumps, torch.full_like(jumps, jump))


def test_smooth_weights_follow_a_sine_and_independent_ones_do_not_repeat():
    layers = draw_networks("smooth", "euler", 8, THREE).layers
    bias = torch.stack([layer.bias for layer in layers]).detach()
    moved = (bias - bias[0]) / (bias[2] - bias[0])
    sine = torch.sin(2 * math.pi * torch.arange(8, dtype=F64) / 8)
    torch.testing.assert_close(moved, sine[:, None, None].expand(-1, 3, 4))
    layers = draw_networks("iid", "euler", 8, THREE).layers
    gaps = [(a.weight - b.weight).norm() for a in layers for b in layers if a is not b]
    assert min(gaps) > 0.3
    norms = torch.linalg.matrix_norm(draw_networks("tied", "euler", 2, THREE).layers[0].weight, 2)
    torch.testing.assert_close(norms, torch.ones(3, dtype=F64))


def test_a_violated_bound_shows():
    """Weights doubled behind the bound's back: the block no longer is what the layers say."""
    networks = draw_networks("tied", "euler", 4, THREE)
    for p in networks.block.parameters():
        p.data *= 30
    wrong = Networks(networks.layers, networks.block, networks.x0, networks.target)
    assert max(measure(wrong).state_ratio) > 1


def test_rates_are_those_of_the_geometric_mean():
    errors = np.array([[1.0, 4.0], [0.5, 0.5], [0.25, 1 / 16]])
    assert fit_rate((2, 4, 8), errors).value == pytest.approx(-2)


def test_the_paper_s_rates_and_bounds_hold_in_small():
    result = run("S22-P3", steps=(1, 3, 16, 32, 64), networks=3, dim=4)
    assert all("iid" in claim.text for claim in result.misses)  # three networks scatter too much
    assert result["states_smooth"].shape == (5, 3)
    assert {claim.id for claim in result.claims} == {"CL52", "CL53", "CL54", "S22-P3", "S22-P4"}
    families = {family for family in FAMILIES if family != "smooth"}
    assert sum(claim.id == "CL54" for claim in result.claims) == 2 * len(families)
    worst = max(result[f"state_ratio_{family}"].max() for family in FAMILIES)
    assert result.claim("S22-P3").observed == worst
    assert 0.01 < worst <= 1
    assert result["slope_limit"] == pytest.approx(-1, abs=0.1)
    profile = [result[f"profile_{name}"] for name in ("error", "bound", "limit")]
    assert [len(curve) for curve in profile] == [65, 65, 65]
    assert all(curve[-1] == 0 for curve in profile)
    np.testing.assert_allclose(profile[0], profile[2], atol=0.06 * profile[2].max())
    assert np.all(profile[0] <= profile[1])


def test_rates_come_from_deep_networks_alone():
    shallow = run("S22-P3", steps=(1, 2, 16, 24), networks=1, dim=2)
    deep = run("S22-P3", steps=(16, 24), networks=1, dim=2)
    assert shallow["slope_states_tied"] == deep["slope_states_tied"]
    np.testing.assert_array_equal(shallow["states_tied"][2:], deep["states_tied"])


def test_a_wrong_rate_or_a_broken_bound_misses():
    entry = find("S22-P3")
    scalars = {row.scalar: ((row.low or 0) + row.high) / 2 for row in entry.rows}
    assert all(row.decide(scalars, entry.tiers["tiny"]).holds for row in entry.rows)
    scalars |= {"slope_gradients_zigzag_1": -1.0, "gradient_ratio": 1.01}
    claims = [row.decide(scalars, entry.tiers["tiny"]) for row in entry.rows]
    assert [claim.id for claim in claims if not claim.holds] == ["CL54", "S22-P4"]


def test_the_limit_curve_solves_its_equation():
    """Central differences of rho against J rho + J f at the exact states."""
    steps, many = 400, 4000
    rho = _limit(steps, THREE)
    fine = draw_networks("smooth", "euler", many, THREE)
    with torch.no_grad():
        x, n, h = fine.x0, many // 4, 1 / many  # to depth 1/4, where rho has index 100
        for layer in fine.layers[:n]:
            x = x + h * layer(x)
        layer = fine.layers[n]
        slope = (rho[101] - rho[99]) * steps / 2
        f, r = layer(x), rho[100]
        wanted = (1 - f**2) * (layer.weight @ (r + f).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(slope, wanted, rtol=0, atol=2e-3)
    assert rho[-1].abs().max() == 0
    assert wanted.norm() > 0.1


def test_heun_s_table_of_rates_in_small():
    result = run("S22-X1", steps=(16, 32, 64), networks=3, dim=4)
    for claim in result.claims:  # three shallow depths: near the bands, not yet inside
        margin = 0.0 if "slope" not in claim.text else 0.3 if "iid" in claim.text else 0.03
        assert replace(claim, low=claim.low and claim.low - margin, high=claim.high + margin).holds
    assert len([c for c in result.claims if "slope of states" in c.text]) == 6 + 12
    assert result["slope_states_heun_smooth"] == pytest.approx(-3, abs=0.06)
    assert result["slope_gradients_heun_smooth"] == pytest.approx(-4, abs=0.07)
    assert result["slope_defect_jump"] == pytest.approx(-2, abs=0.05)
    assert result["slope_defect_tied"] == pytest.approx(-3, abs=0.05)
    assert result["identity"] < 1e-12
    assert 1e-3 < result["ratio_states"] <= 1
    assert 1e-4 < result["ratio_gradients"] <= 1


def test_relative_errors_leave_biases_out_and_square():
    result = run("S22-F3c", steps=(4, 8, 16, 32), networks=3, dim=4, seed=5)
    networks = draw_networks("iid", "heun", 8, THREE)
    *_, exact, got = plain(networks, "heun")
    errors = (got - exact)[:, :, :-1].square().sum(dim=(-2, -1))
    wanted = (errors / exact[:, :, :-1].square().sum(dim=(-2, -1))).mean(dim=0)
    np.testing.assert_allclose(result["squared_heun_iid"][1], wanted, rtol=1e-9)
    ratio = np.sqrt(result["squared_heun_iid"] / result["squared_euler_iid"])
    worst = np.exp(np.log(ratio).mean(axis=1)).max()
    assert result["heun_over_euler_iid"] == pytest.approx(worst)
    assert result["heun_over_euler_smooth"] < 0.3
    assert result["slope_heun_smooth"] < -2.5
    for name in ("euler_smooth", "heun_smooth"):  # what is not handed on saves an order
        gained = result[f"slope_{name}"] - result[f"slope_{name}_copied"]
        assert gained == pytest.approx(1, abs=0.15)


def test_networks_sweep_back_by_the_paper_s_rule():
    """The rule under test is the default of the companion, not a better one."""
    assert Reconstruct() == Reconstruct(rule="reverse", order=1, sweeps=0, every=None)


@pytest.mark.parametrize(
    ("exercise", "mistake", "hint"),
    [
        (ROUND_TRIP, "orders of the schemes", "odd powers cancel"),
        (ROUND_TRIP, "Euler comes back too large", "too large"),
        (ROUND_TRIP, "a product is forgotten", "all products"),
        (ROUND_TRIP, "powers alone", "pair"),
        (CONTRIBUTIONS, "the first slope does not move y", "for x_n"),
        (CONTRIBUTIONS, "only the weights forget that y moves", "for theta_n is"),
        (CONTRIBUTIONS, "an extra factor for the later weights", "nothing comes after"),
        (QUIET, "statistics move", "buffer 1.running_mean"),
        (QUIET, "eval mode", "another function"),
        (QUIET, "eval mode for the gradient", "in training mode"),
        (QUIET, "momentum zero", "num_batches_tracked"),
        (QUIET, "left in eval mode", "left in eval"),
        (QUIET, "differentiated at the end", "differentiate start"),
        (JUMPS, "a zigzag of the field", r"N\^-"),
        (JUMPS, "unrelated layers", r"N\^-"),
        (JUMPS, "tied", "jump of the weights is only 0"),
        (JUMPS, "smooth", "jump of the weights is only 0.0"),
        (JUMPS, "a field of zero", "moves by 0"),
        (JUMPS, "one set too few", "17 nodes"),
    ],
)
def test_hint_names_the_mistake(exercise, mistake, hint):
    with pytest.raises(WrongAnswer, match=hint):
        exercise.check(exercise.wrong[mistake])


def test_open_exercise_takes_other_right_answers():
    """Hidden units permuted; a field that never sees what it adds."""
    generator = torch.Generator().manual_seed(0)
    A, W = torch.randn(2, 8, 4, generator=generator, dtype=F64) / 2

    def permuted(steps):
        orders = [torch.arange(8) if n % 2 else torch.arange(8).flip(0) for n in range(steps + 1)]
        return [(A.T[:, order], W[order]) for order in orders]

    def unseen(steps):
        into = torch.tensor([[0.0], [2.0]], dtype=F64)
        seen = torch.tensor([[1.0, 0.0]], dtype=F64)
        return [((-1) ** n * into, (1 + n % 2) * seen) for n in range(steps + 1)]

    assert "falls like" in JUMPS.check(permuted)
    assert "exactly" in JUMPS.check(unseen)
