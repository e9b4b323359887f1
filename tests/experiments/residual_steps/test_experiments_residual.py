"""The experiments of chapter 1: their claims at a small size, and their parts by value."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from companion import OdeBlock, PiecewiseConstant
from companion.exercises import WrongAnswer
from companion.exercises.residual_steps import (
    BETWEEN,
    COMPOUND,
    RINGS,
    SCHEME,
    THRESHOLD,
    TURN,
)
from companion.experiments import run
from companion.experiments.residual_steps import q20_ob_resnet_identity as q20_ob
from companion.experiments.residual_steps.s22_f1_crossing_lines import (
    BEST_MONOTONE,
    ROUGH,
    _among_idle_layers,
    _network,
    crossings,
    euler_states,
)
from companion.models.scalar_field import ScalarField

# Q20-OB: blocks are layers


def test_blocks_equal_plain_layers():
    result = run("Q20-OB", depths=(1, 5), width=6)
    assert result.misses == ()
    for kind in ("unit_steps", "classic", "scaled"):
        assert result[kind].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scheme", ["midpoint", "heun", "kutta3", "rk4", "rk4_38"])
def test_another_written_out_scheme_would_be_noticed(scheme, monkeypatch):
    """Each comparison can fail: against Euler's layer every other scheme differs."""
    monkeypatch.setitem(q20_ob.WRITTEN_OUT, scheme, q20_ob.WRITTEN_OUT["euler"])
    result = run("Q20-OB", depths=(2,), width=6)
    assert result[scheme].min() > 1e-3
    assert not result.claim("CL30").holds


def test_gradients_are_compared_too(monkeypatch):
    """An Euler layer with the right value and no gradient to its unit must miss."""
    monkeypatch.setitem(q20_ob.WRITTEN_OUT, "euler", lambda f, x, h: x + h * f(x.detach()))
    result = run("Q20-OB", depths=(3,), width=6)
    assert not result.claim("CL02").holds


# C18-PL2: distances


def test_distance_rates_against_another_solver():
    result = run("C18-PL2", fields=2, dimension=2, pairs=4)
    assert result.misses == ()
    assert result["pairs"] == 8
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, 2, generator=generator, dtype=torch.float64).numpy()
    start = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64).numpy()

    def end(x):
        solved = solve_ivp(lambda t, x: np.tanh(weight @ x), (0, 1), x, rtol=1e-10, atol=1e-12)
        return solved.y[:, -1]

    after = [np.linalg.norm(end(x) - end(y)) for x, y in zip(*start, strict=True)]
    before = np.linalg.norm(start[0] - start[1], axis=1)
    rates = np.log(after / before) / np.linalg.norm(weight, 2)
    assert result["slowest"][1] == pytest.approx(rates.min(), abs=1e-7)
    assert result["fastest"][1] == pytest.approx(rates.max(), abs=1e-7)
    assert result["lowest"] == result["slowest"].min()
    assert result["highest"] == result["fastest"].max()


# S22-F1: crossing trajectories


def test_crossings_are_counted_by_pair_and_layer():
    still = [0.0, 1.0, 2.0, 3.0]
    reversed_ = still[::-1]
    states = torch.tensor([still, reversed_, reversed_, [3.0, 2.0, 0.0, 1.0]])
    assert crossings(states) == 3 + 0 + 1
    assert crossings(torch.stack([states, states], -1)).tolist() == [4, 4]
    assert crossings(states[:1].repeat(3, 1)) == 0


def test_scalar_field_columns_are_independent():
    field = ScalarField(2, 3, std=1.5, generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for p in range(4):
        for c in range(2):
            units = torch.tanh(field.inner[c] * x[p, c] + field.shift[c])
            torch.testing.assert_close(field(x)[p, c], units @ field.outer[c])


def test_idle_layers_change_nothing():
    block = _network(3, 2, 0, ROUGH)
    deep = _among_idle_layers(block, 12, 2)
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(1).repeat(1, 2)
    shallow, states = euler_states(block, x), euler_states(deep, x)
    assert deep.steps == 12
    assert deep.scale == 1.0
    torch.testing.assert_close(states[-1], shallow[-1], rtol=1e-13, atol=1e-13)
    assert (states.diff(dim=0).abs().amax((1, 2)) > 0).sum() == 3


def test_euler_states_are_the_states_of_the_layers():
    generator = torch.Generator().manual_seed(0)
    block = OdeBlock(lambda: ScalarField(1, 4, 1.0, generator), PiecewiseConstant(cells=4), steps=4)
    x = torch.ones(2, 1, dtype=torch.float64)
    states = euler_states(block, x)
    assert states.shape == (5, 2, 1)
    torch.testing.assert_close(states[-1], block(x), rtol=0, atol=0)
    first = {name: p[0] for name, p in block.weights.stacks.named_parameters()}
    step = torch.func.functional_call(block.weights.template, first, (x,)) / 4
    torch.testing.assert_close(states[1], x + step, rtol=0, atol=0)


def test_untrained_networks_miss_the_claims_about_learning():
    result = run("S22-F1", layers=40, few=4, copies=2, updates=1, rough_updates=1)
    assert pytest.approx(1.1 / 3) == BEST_MONOTONE
    assert {claim.text for claim in result.misses} >= {
        "largest loss, target tanh 2x",
        "largest loss, target -x",
    }
    assert result["states_crossing"].shape == (41, 21)
    with pytest.raises(ValueError, match="few must divide layers = 40; got 3"):
        run("S22-F1", layers=40, few=3)


# Exercises: right answers of another kind, and hints that name the mistake


def test_a_field_that_jumps_at_one_half_is_right():
    """Two shears map (x, 0) to (x, x) and then to (-x, x), with a jump in between."""

    def shears(t, x):
        zero = torch.zeros_like(x[:, 0])
        return torch.stack([zero, 2 * x[:, 0]] if t < 0.5 else [-4 * x[:, 1], zero], dim=1)

    assert TURN.check(shears).startswith("Right")


def test_a_spiral_is_right_too():
    b = 2.0
    a = -np.log(-np.cos(b))

    def spiral(t, x):
        return a * x + b * torch.stack([-x[:, 1], x[:, 0]], dim=1)

    assert TURN.check(spiral).startswith("Right")


def test_answers_computed_in_single_precision_are_judged_as_in_double():
    def step(f, t, x, h):
        t, x, h = (torch.tensor(float(v), dtype=torch.float32) for v in (t, x, h))
        first = f(t.item(), x.item())
        second = f((t + 2 / 3 * h).item(), (x + 2 / 3 * h * first).item())
        return x + h * (first + 3 * second) / 4

    assert SCHEME.check(step).startswith("Right")
    for shrink in (0.01, 0.004, 0.001):

        def slopes(layers, shrink=shrink, dtype=torch.float32):
            small = max(shrink, 2.0 ** (1 - layers) * 1.01)  # the others may stretch by 2
            stretch = small ** (-1 / (layers - 1))
            reverse = torch.tensor([-(1 + small) * layers], dtype=dtype)
            return torch.cat([reverse, torch.full((layers - 1,), layers * (stretch - 1))])

        assert THRESHOLD.check(slopes).startswith("Right")

        def too_short(layers, slopes=slopes):
            return torch.cat([slopes(layers)[:1], 0.999 * slopes(layers)[1:]])

        with pytest.raises(WrongAnswer, match=r"multiplies by -0\.9"):
            THRESHOLD.check(too_short)


@pytest.mark.parametrize(
    ("exercise", "mistake", "hint"),
    [
        (SCHEME, "a field of the state alone", r"call f\(t, x\)"),
        (SCHEME, "a stray term", "nothing else"),
        (SCHEME, "rounded", "2 / 3"),
        (SCHEME, "half a step", "second slope"),
        (THRESHOLD, "the factor N is forgotten", "forget the factor N"),
        (THRESHOLD, "shrunk below rounding", "collapses"),
        (TURN, "a rounded half turn", "Almost"),
        (TURN, "a quarter turn", "where is there room"),
        (TURN, "all meet on the way", "they meet there"),
        (TURN, "jumps at another time", "jumps at another t"),
        (COMPOUND, "the sign", "with its sign"),
        (RINGS, "a narrow strip", "where is there room"),
        (RINGS, "the other way round", "The sign"),
        (BETWEEN, "the same power", "independent directions"),
    ],
)
def test_hints_name_the_mistake(exercise, mistake, hint):
    with pytest.raises(WrongAnswer, match=hint):
        exercise.check(exercise.wrong[mistake])
