"""The theorems of chapter 10, each against numbers that do not come from a trained net."""

import math

import pytest
import torch

from companion.data import pendulum
from companion.observe import fit_slope
from companion.schemes import SCHEMES, get_scheme

F64 = torch.float64


def step(method, field, x, h):
    return get_scheme(method).step(lambda i, y: field(y), x, h)


def flow(x, h, substeps=4):
    """The exact flow, nearly to rounding: steps of order 4 inside one that is short already."""
    for _ in range(substeps):
        x = step("rk4", pendulum.field, x, h / substeps)
    return x


def inverted(method, h):
    """The field f - (Phi_h - phi_h) / h, the inverse modified one but for O(h^(p+1))."""

    def field(x):
        f = pendulum.field
        return f(x) - (step(method, f, x, h) - flow(x, h)) / h

    return field


def jet(x):
    """The field, its derivative along itself once and twice, and f''(f, f)."""
    f, gamma = pendulum.field(x), pendulum.GRAVITY

    def times_jacobian(u):
        return torch.stack([u[..., 1], -gamma * torch.cos(x[..., 0]) * u[..., 0]], -1)

    bend = torch.stack(
        [torch.zeros_like(f[..., 0]), gamma * torch.sin(x[..., 0]) * f[..., 0] ** 2], -1
    )
    return f, times_jacobian(f), times_jacobian(times_jacobian(f)), bend


TERMS = {
    "euler": (1, lambda f, df, ddf, bend: df / 2),
    "midpoint": (2, lambda f, df, ddf, bend: bend / 24 + ddf / 6),
    "heun": (2, lambda f, df, ddf, bend: -bend / 12 + ddf / 6),
}


@pytest.fixture(scope="module")
def states():
    return pendulum.region(40, 0.1, amplitude=2.5, generator=torch.Generator().manual_seed(0))[0]


def test_closed_form_solves_the_equation():
    t, h = torch.linspace(0, 7, 101, dtype=F64), 1e-3
    for rho0 in (-1.0, 0.3, pendulum.START, 3.0):
        after = [pendulum.exact(t + k * h, rho0) for k in (-2, -1, 1, 2)]
        slope = (after[0] - 8 * after[1] + 8 * after[2] - after[3]) / (12 * h)
        states = pendulum.exact(t, rho0)
        torch.testing.assert_close(slope, pendulum.field(states), rtol=0, atol=1e-8)
        torch.testing.assert_close(states[0], torch.tensor([rho0, 0.0], dtype=F64))
        back = pendulum.exact(t + pendulum.period(rho0), rho0)
        torch.testing.assert_close(back, states, rtol=0, atol=1e-9)
        half = pendulum.exact(t + pendulum.period(rho0) / 2, rho0)
        torch.testing.assert_close(half, -states, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", TERMS)
def test_leading_terms_of_the_inverse_modified_equation(method, states):
    order, term = TERMS[method]
    sizes = (0.02, 0.01, 0.005)
    plain, corrected = [], []
    for h in sizes:
        parts = jet(states)
        found = inverted(method, h)(states)
        plain.append(float((found - parts[0]).norm()))
        corrected.append(float((found - parts[0] - h**order * term(*parts)).norm()))
    assert fit_slope(sizes, plain).value == pytest.approx(order, abs=0.15)
    assert fit_slope(sizes, corrected).value == pytest.approx(order + 1, abs=0.15)


def test_of_eulers_method_the_field_is_known_exactly(states):
    found = step("euler", inverted("euler", 0.1), states, 0.1)
    torch.testing.assert_close(found, flow(states, 0.1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", ["midpoint", "heun", "kutta3", "rk4"])
def test_the_inverted_field_makes_one_step_exact_to_a_higher_order(method, states):
    order, sizes = SCHEMES[method].order, (0.08, 0.04, 0.02)
    errors = [
        float((step(method, inverted(method, h), states, h) - flow(states, h)).norm())
        for h in sizes
    ]
    assert fit_slope(sizes, errors).value == pytest.approx(order + 2, abs=0.35)


def rollout_error(method, field, h, time):
    x = pendulum.exact(0.0)
    for _ in range(round(time / h)):
        x = step(method, field, x, h)
    return x - pendulum.exact(time)


@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_the_error_of_a_rollout_has_the_shape_of_the_dip(method):
    time, order, gaps = 0.8, SCHEMES[method].order, []
    for h in (0.02, 0.01):
        leading = rollout_error(method, pendulum.field, h, time)  # h_d^p c
        bias = torch.tensor([0.3, -0.2], dtype=F64) * leading.norm()
        model = inverted(method, h)

        def trained(x, model=model, bias=bias):
            return model(x) + bias * torch.cos(x.flip(-1))

        left = rollout_error(method, trained, h, time)  # R
        worst = 0.0
        for factor in (0.5, 2):
            found = rollout_error(method, trained, factor * h, time)
            predicted = (factor**order - 1) * leading + left
            worst = max(worst, float((found - predicted).norm() / leading.norm()))
        gaps.append(worst / 2**order)
    assert gaps[0] < 0.3
    assert gaps[1] < 0.65 * gaps[0]


FINER = (2, 4, 16)


@pytest.fixture(scope="module", params=["euler", "midpoint"])
def nets(request):
    """For three steps of the data: 24 fields, well and badly trained, and their errors.

    These are the errors at the end with the step of the data and with finer ones, and that of the
    scheme on the true equation; then the order.
    """
    time, rows = 0.8, {}
    turns = 2 * math.pi * torch.arange(8, dtype=F64) / 8
    circle = torch.stack([torch.cos(turns), torch.sin(turns)], -1)
    for h in (0.04, 0.02, 0.01):
        own = rollout_error(request.param, pendulum.field, h, time)
        bias = own.norm() * torch.cat([size * circle for size in (0.03, 0.3, 3.0)])
        model = inverted(request.param, h)

        def trained(x, model=model, bias=bias):
            return model(x) + bias

        at_data = rollout_error(request.param, trained, h, time)
        finer = [rollout_error(request.param, trained, h / r, time) for r in FINER]
        rows[h] = at_data, torch.stack(finer), own
    return rows, SCHEMES[request.param].order


def test_the_dip_ratio_is_that_of_truncation_to_optimisation_error(nets):
    """With the finer step that has the largest error."""
    for at_data, finer, _ in nets[0].values():
        optimisation = at_data.norm(dim=-1)
        errors = finer.norm(dim=-1) / optimisation
        dip, worst = errors.max(0)
        moved = (finer - at_data).norm(dim=-1) / optimisation  # of the scheme on the field itself
        ratio = moved.gather(0, worst[None])[0]
        assert ((dip - ratio).abs() <= 1 + 1e-9).all()
        assert (dip[ratio <= 1] <= 2).all()
        assert (dip[ratio >= 11] >= 10).all()
        assert ratio.min() < 1
    assert ratio.max() > 11


def test_the_truncation_error_is_nearly_that_on_the_true_equation(nets):
    rows, order = nets
    for k, r in enumerate(FINER):
        for h, (at_data, finer, own) in rows.items():
            share = (1 - r**-order) * own.norm()
            factor = (at_data - finer[k]).norm(dim=-1) / share
            gap = float((factor[:16] - 1).abs().max())  # those with a bias of up to 0.3 own
            assert gap < 6 * h


def test_what_is_left_at_the_step_of_the_data_is_not_the_first_order_term():
    time, h = 0.8, 0.02
    own = rollout_error("euler", pendulum.field, h, time).norm()
    field = inverted("euler", h)  # the perfect field, exactly
    left = rollout_error("euler", field, h, time).norm()
    assert left < 1e-6 * own

    def higher_orders(x):
        f, df, _, _ = jet(x)
        return field(x) - f - h / 2 * df

    x, moved, substeps = pendulum.exact(0.0), torch.zeros(2, dtype=F64), 100
    for _ in range(substeps):  # the integral R, by its own differential equation
        pair = torch.stack([x, moved])

        def slopes(pair):
            y, z = pair
            bent = torch.stack([z[1], -pendulum.GRAVITY * torch.cos(y[0]) * z[0]])
            return torch.stack([pendulum.field(y), bent + higher_orders(y)])

        x, moved = step("rk4", slopes, pair, time / substeps)
    assert moved.norm() > 1e3 * left
