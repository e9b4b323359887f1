"""Tableaux by exact order conditions, stages by a mocked field, orders by fitted slopes."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from rooted_trees import density, dot, residues, trees

from companion import odeint
from companion.observe import fit_slope
from companion.schemes import SCHEMES, advance, get_scheme

ALL = pytest.mark.parametrize("name", list(SCHEMES))


def test_trees_and_their_densities_are_the_tables():
    """Hairer, Norsett and Wanner, Solving ODEs I, table II.2.2: up to five vertices; A000081."""
    assert [len(trees(n)) for n in range(1, 8)] == [1, 1, 2, 4, 9, 20, 48]
    found = [sorted(map(density, trees(n))) for n in range(1, 6)]
    assert found == [[1], [2], [3, 6], [4, 8, 12, 24], [5, 10, 15, 20, 20, 30, 40, 60, 120]]


def test_names_keep_their_orders():
    orders = {"euler": 1, "midpoint": 2, "heun": 2, "kutta3": 3, "rk4": 4, "rk4_38": 4}
    assert orders.items() <= {name: scheme.order for name, scheme in SCHEMES.items()}.items()
    assert all(name == scheme.name for name, scheme in SCHEMES.items())


@ALL
def test_order_conditions_hold_exactly_up_to_the_order_and_not_beyond(name):
    scheme = get_scheme(name)
    for order in range(1, scheme.order + 1):
        assert not any(residues(scheme.a, scheme.b, order))
    assert any(residues(scheme.a, scheme.b, scheme.order + 1))


@ALL
def test_tableau_is_explicit_with_row_sums_as_stage_times(name):
    scheme = get_scheme(name)
    assert scheme.stages == len(scheme.a) == len(scheme.c)
    assert [len(row) for row in scheme.a] == list(range(scheme.stages))
    assert list(scheme.c) == [sum(row, Fraction(0)) for row in scheme.a]
    assert all(0 <= c <= 1 for c in scheme.c)  # a stage lies inside its step
    assert all(isinstance(x, Fraction) for x in (*scheme.c, *scheme.b, *sum(scheme.a, ())))
    assert scheme.fractions == tuple(float(x) for x in scheme.c)
    assert scheme.weights == tuple(float(x) for x in scheme.b)
    assert scheme.rows == tuple(tuple(float(x) for x in row) for row in scheme.a)


@pytest.mark.parametrize(
    ("name", "c", "b"),
    [
        ("midpoint", "0 1/2", "0 1"),
        ("heun", "0 1", "1/2 1/2"),
        ("kutta3", "0 1/2 1", "1/6 2/3 1/6"),
        ("rk4", "0 1/2 1/2 1", "1/6 1/3 1/3 1/6"),
        ("rk4_38", "0 1/3 2/3 1", "1/8 3/8 3/8 1/8"),
    ],
)
def test_names_mean_the_classical_schemes(name, c, b):
    """The order conditions alone would let ``rk4`` and ``rk4_38`` be swapped."""
    scheme = get_scheme(name)
    assert list(scheme.c) == [Fraction(x) for x in c.split()]
    assert list(scheme.b) == [Fraction(x) for x in b.split()]


def expected_stages(name):
    """With slopes 1, 10, 100, … whatever the state, from y = 2 at t = 3 with h = 1/2, in fractions.

    Returns the (time, state) of every stage, and the state after the step.
    """
    scheme, h = get_scheme(name), Fraction(1, 2)
    slopes = [Fraction(10) ** i for i in range(scheme.stages)]
    stages = [
        (float(3 + h * sum(row)), float(2 + h * dot(row, slopes[:i])))
        for i, row in enumerate(scheme.a)
    ]
    return stages, float(2 + h * dot(scheme.b, slopes))


BY_HAND = {
    "euler": ([(3.0, 2.0)], 2.5),
    "midpoint": ([(3.0, 2.0), (3.25, 2.25)], 7.0),
    "heun": ([(3.0, 2.0), (3.5, 2.5)], 4.75),
    "kutta3": ([(3.0, 2.0), (3.25, 2.25), (3.5, 11.5)], 2 + (1 + 40 + 100) / 12),
    "rk4": (
        [(3.0, 2.0), (3.25, 2.25), (3.25, 4.5), (3.5, 52.0)],
        2 + (1 + 20 + 200 + 1000) / 12,
    ),
    "rk4_38": (
        [(3.0, 2.0), (3 + 1 / 6, 2 + 1 / 6), (3 + 1 / 3, 2 - 1 / 6 + 5), (3.5, 2 + 0.5 - 5 + 50)],
        2 + (1 + 30 + 300 + 1000) / 16,
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_expected_stages_are_those_by_hand(name):
    stages, end = expected_stages(name)
    by_hand, last = BY_HAND[name]
    assert [t for t, _ in stages] == pytest.approx([t for t, _ in by_hand], abs=1e-15)
    assert [y for _, y in stages] == pytest.approx([y for _, y in by_hand], abs=1e-13)
    assert end == pytest.approx(last, abs=1e-13)


@ALL
@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
def test_stage_times_and_states(name, back, device, dtype):
    seen = []

    def field(t, y):
        assert t.shape == ()
        assert (t.dtype, t.device.type) == (dtype, device.type)
        seen.append((t.item(), y.item()))
        sign = -1.0 if back else 1.0
        return torch.full_like(y, sign * 10.0 ** ((len(seen) - 1) % get_scheme(name).stages))

    y0 = torch.tensor([2.0], device=device, dtype=dtype)
    sign = -1 if back else 1
    ys = odeint(field, y0, [sign * 3.0, sign * 3.5], method=name)
    stages, end = expected_stages(name)
    assert len(seen) == len(stages)
    assert [t for t, _ in seen] == pytest.approx([sign * t for t, _ in stages], abs=1e-15)
    assert [y for _, y in seen] == pytest.approx([y for _, y in stages], rel=1e-14, abs=1e-13)
    assert ys[-1].item() == pytest.approx(end, rel=1e-14, abs=1e-13)


@ALL
def test_every_step_of_every_interval_has_its_own_times(name, device, dtype):
    """Three uneven intervals of two steps: times must not restart, drift or repeat."""
    seen = []

    def field(t, y):
        seen.append(t.item())
        return torch.zeros_like(y)

    t = [1.0, 2.0, 2.5, 6.5]
    odeint(field, torch.zeros(1, device=device, dtype=dtype), t, method=name, steps=2)
    expected = [
        t0 + (n + float(c)) * (t1 - t0) / 2
        for t0, t1 in pairwise(t)
        for n in range(2)
        for c in get_scheme(name).c
    ]
    assert seen == pytest.approx(expected, abs=1e-15)


def problem(t, y):
    """Return f of a coupled, nonlinear, time-dependent system with the solution ``exact``."""
    u, v = y
    return torch.stack([u * torch.cos(t), torch.exp(torch.sin(t)) / u * torch.exp(-v) * (1 + t)])


def exact(t: float, device) -> torch.Tensor:
    """u = exp(sin t); then exp(v) grows by (1 + t): v = log(2 + t + t^2 / 2)."""
    return torch.tensor(
        [math.exp(math.sin(t)), math.log(2 + t + t * t / 2)], device=device, dtype=torch.float64
    )


def test_the_closed_form_solves_the_problem(device):
    """Central differences of ``exact`` equal the field: the reference is not taken on trust."""
    for t in (0.0, 0.7, 1.9):
        slope = (exact(t + 1e-5, device) - exact(t - 1e-5, device)) / 2e-5
        time = torch.tensor(t, device=device, dtype=torch.float64)
        torch.testing.assert_close(slope, problem(time, exact(t, device)), rtol=1e-9, atol=1e-9)


@ALL
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)], ids=["forward", "backward"])
def test_fitted_order_is_within_a_tenth_of_theory(name, span, device):
    order = get_scheme(name).order
    grid = [64, 96, 128, 192, 256] if order < 4 else [32, 48, 64, 96, 128]
    start, end = exact(span[0], device), exact(span[1], device)
    for component in (0, 1):
        errors = []
        for steps in grid:
            y = odeint(problem, start, list(span), method=name, steps=steps)[-1]
            errors.append((y - end)[component].abs().item())
        slope = fit_slope([1 / n for n in grid], errors)
        assert slope.value == pytest.approx(order, abs=0.1)
        assert slope.error < 0.1


@ALL
def test_round_trip_order_is_the_order_if_odd_and_one_more_if_even(name, device):
    """Q20-X0: the leading error terms of forward and back cancel for even orders."""
    start, order = exact(0.0, device), get_scheme(name).order
    grid = [32, 48, 64, 96, 128] if order < 4 else [16, 24, 32, 48, 64]
    errors = []
    for steps in grid:
        there = odeint(problem, start, [0.0, 2.0], method=name, steps=steps)[-1]
        back = odeint(problem, there, [2.0, 0.0], method=name, steps=steps)[-1]
        errors.append((back - start).norm().item())
    round_trip = order + 1 if order % 2 == 0 else order
    assert fit_slope(grid, errors).value == pytest.approx(-round_trip, abs=0.15)


@ALL
@pytest.mark.parametrize("traced", [False, True], ids=["float step", "tensor step"])
def test_step_equals_the_formula_from_the_fractions(name, traced, device, dtype):
    scheme = get_scheme(name)
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(3, 3, generator=generator, dtype=dtype).to(device)
    y = torch.randn(3, generator=generator, dtype=dtype).to(device)
    h = 0.3

    def f(i, y):
        return torch.sin(w @ y) + i

    slopes = []
    for i, row in enumerate(scheme.a):
        slopes.append(f(i, y + h * sum(float(a) * k for a, k in zip(row, slopes, strict=True))))
    expected = y + h * sum(float(b) * k for b, k in zip(scheme.b, slopes, strict=True))
    step = torch.tensor(h, dtype=dtype, device=device) if traced else h
    torch.testing.assert_close(scheme.step(f, y, step), expected, rtol=1e-14, atol=1e-14)


def test_an_euler_step_is_a_residual_layer_bit_for_bit(device):
    """Any other order of operations differs in some last bit of these many numbers."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        y, k = torch.randn(2, 10_000, generator=generator, dtype=dtype).to(device)
        for h in (0.1, 1 / 3, 1.0, -0.7):
            step = get_scheme("euler").step(lambda i, y, k=k: k, y, h)
            assert torch.equal(step, y + h * k)


def test_advance_skips_zero_coefficients(device):
    """A zero coefficient must not let an infinite slope in: 0 * inf is nan."""
    y = torch.ones(2, device=device)
    bad = torch.full_like(y, torch.inf)
    assert torch.equal(advance(y, [bad, y], [0.0, 1.0], 0.5), torch.full_like(y, 1.5))
    assert advance(y, [], [], 0.5) is y


@pytest.mark.parametrize("name", ["rk5", "", None, 4, ["rk4"]], ids=repr)
def test_unknown_scheme_is_refused_with_the_list_of_known_ones(name):
    with pytest.raises(ValueError, match=r"method: .* .* one of euler, midpoint") as caught:
        get_scheme(name)
    assert repr(name) in str(caught.value)
