"""The pendulum's exact motion against an independent solver, its field, and its data."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import ellipkinc

from companion.data import pendulum
from companion.data.pendulum import GRAVITY, START, exact, field, pairs, period, region


def _reference(t, rho0):
    """The motion from an explicit Runge-Kutta method of order 8, written without the package."""

    def rate(t, x):
        return [x[1], -9.81 * math.sin(x[0])]

    solved = solve_ivp(rate, (0, t[-1]), [rho0, 0.0], "DOP853", t, rtol=1e-13, atol=1e-13)
    return solved.y.T


@pytest.mark.parametrize("rho0", [START, -1.0, 0.3, 3.0])
def test_exact_motion_solves_the_equation(rho0):
    t = np.linspace(0, 20, 401)
    found = exact(t, rho0)
    assert found.shape == (401, 2)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), _reference(t, rho0), rtol=0, atol=5e-10)


def test_exact_motion_on_twenty_seconds_to_eleven_digits():
    t = np.linspace(0, 20, 401)
    difference = np.abs(exact(t, 3 * np.pi / 4).numpy() - _reference(t, 3 * np.pi / 4))
    assert difference[:, 0].max() <= 2e-11
    assert difference[:, 1].max() <= 4e-11


def test_velocity_is_the_derivative_of_the_angle():
    """By central differences: the sign of v, and its factor omega."""
    t, h = np.linspace(0.05, 3, 60), 1e-5
    slope = (exact(t + h)[:, 0] - exact(t - h)[:, 0]) / (2 * h)
    torch.testing.assert_close(exact(t)[:, 1], slope, rtol=0, atol=1e-8)
    assert exact(0.1)[1] < 0  # it falls back from a positive angle


def test_energy_is_constant():
    state = exact(np.linspace(-50, 50, 1001), 2.9)
    energy = state[:, 1] ** 2 / 2 - GRAVITY * torch.cos(state[:, 0])
    torch.testing.assert_close(energy, torch.full_like(energy, -9.81 * math.cos(2.9)), rtol=1e-12,
                               atol=1e-12)  # fmt: skip


def test_motion_starts_at_rest_and_repeats():
    for rho0 in (START, -2.0, 0.0):
        start = torch.tensor([rho0, 0.0], dtype=torch.float64)
        torch.testing.assert_close(exact(0.0, rho0), start, rtol=0, atol=1e-14)
        torch.testing.assert_close(exact(period(rho0), rho0), start, rtol=0, atol=1e-12)
        torch.testing.assert_close(exact(period(rho0) / 2, rho0), -start, rtol=0, atol=1e-12)
    torch.testing.assert_close(exact([-0.7]), exact([0.7]) * torch.tensor([1.0, -1.0]))


def test_period_by_another_formula():
    """A quarter period is an incomplete integral, at the parameter and not the modulus."""
    integral = ellipkinc(math.pi / 2, math.sin(3 * math.pi / 8) ** 2)
    assert period() == pytest.approx(4 * integral / math.sqrt(9.81), rel=1e-14)
    assert period(3 * math.pi / 4) == pytest.approx(3.065165, abs=5e-7)
    assert period(-1.2) == period(1.2)


def test_times_and_angles_in_every_form():
    grid = [0.0, 0.25, 1.5]
    wanted = exact(np.array(grid))
    for form in (grid, torch.tensor(grid), torch.tensor(grid, dtype=torch.float64)):
        torch.testing.assert_close(exact(form, START), wanted, rtol=0, atol=0)
    angles = torch.tensor([0.5, 1.0], dtype=torch.float64)
    table = exact(np.array(grid)[:, None], angles)
    assert table.shape == (3, 2, 2)
    torch.testing.assert_close(table[:, 1], exact(grid, 1.0), rtol=0, atol=0)


def test_field_is_the_derivative_of_the_motion():
    t, h = np.linspace(0, 3, 31), 1e-5
    slope = (exact(t + h) - exact(t - h)) / (2 * h)
    torch.testing.assert_close(field(exact(t)), slope, rtol=0, atol=1e-7)
    assert field(torch.zeros(4, 3, 2)).shape == (4, 3, 2)
    assert field(torch.ones(2, dtype=torch.float32)).dtype == torch.float32


def test_pairs_are_one_step_apart():
    now, later = pairs(0.1, 6.4)
    assert now.shape == later.shape == (64, 2)
    torch.testing.assert_close(now, exact(0.1 * np.arange(64)), rtol=0, atol=0)
    torch.testing.assert_close(later, exact(0.1 * np.arange(1, 65)), rtol=0, atol=0)
    assert len(pairs(0.05, 6.4)[0]) == 128


def test_region_steps_with_the_flow_and_fills_a_region():
    now, later = region(300, 0.2, amplitude=2.0, generator=torch.Generator().manual_seed(3))
    for start, end in zip(now[:4].tolist(), later[:4].tolist(), strict=True):
        solved = solve_ivp(
            lambda t, x: [x[1], -9.81 * np.sin(x[0])], (0, 0.2), start, "DOP853",
            rtol=1e-12, atol=1e-12,
        )  # fmt: skip
        np.testing.assert_allclose(end, solved.y[:, -1], rtol=0, atol=1e-10)
    assert now[:, 0].min() < -1.4
    assert now[:, 0].max() > 1.4
    assert now[:, 1].min() < -3.5
    assert now[:, 1].max() > 3.5
    signs = set(map(tuple, now.sign().long().tolist()))
    assert signs == {(1, 1), (1, -1), (-1, 1), (-1, -1)}
    inner = torch.linalg.vector_norm(now / now.abs().amax(0), dim=1) < 0.5
    assert 0.15 < inner.double().mean() < 0.4  # as area has it: a quarter
    again, _ = region(300, 0.2, amplitude=2.0, generator=torch.Generator().manual_seed(3))
    assert torch.equal(now, again)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: exact([0.0], math.pi), "rho0"),
        (lambda: exact([math.inf]), "t"),
        (lambda: period(-4.0), "rho0"),
        (lambda: period(math.nan), "rho0"),
        (lambda: pairs(0.0, 1.0), "step"),
        (lambda: pairs(0.3, 1.0), "time"),
        (lambda: pairs(0.1, -1.0), "time"),
        (lambda: region(0, 0.1, amplitude=1.0, generator=torch.Generator()), "points"),
        (lambda: region(3, -0.1, amplitude=1.0, generator=torch.Generator()), "step"),
        (lambda: region(3, 0.1, amplitude=3.2, generator=torch.Generator()), "amplitude"),
        (lambda: field(torch.zeros(3)), "x"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()


def test_the_module_is_reached_as_an_attribute():
    import companion.data

    assert companion.data.pendulum is pendulum


@pytest.mark.parametrize("gap", [1e-9, -1e-9])
def test_an_angle_that_rounds_to_the_upright_one_is_refused(gap: float) -> None:
    angle = math.copysign(math.pi, gap) - gap
    for call in (lambda: pendulum.exact([0.5], angle), lambda: pendulum.period(angle)):
        with pytest.raises(ValueError, match=r"rho0: .* stands"):
            call()


def test_half_precision_times_are_read_as_they_are() -> None:
    assert torch.equal(pendulum.exact(torch.tensor([0.5]).bfloat16()), pendulum.exact([0.5]))


@pytest.mark.parametrize("gap", [0.3, 0.15, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 2e-7])
def test_near_the_upright_position_no_digit_is_lost(gap):
    """Against 50 digits, on more than a period; an error of the start grows like exp(3 t)."""
    angles = [math.pi - gap, gap - math.pi]
    with mpmath.workdps(50):
        omega, reference, times = mpmath.sqrt(mpmath.mpf(GRAVITY)), [], []
        k = mpmath.sin(mpmath.mpf(angles[0]) / 2)
        quarter = mpmath.ellipk(k**2)
        for share in (-0.3, 0.0, 0.1, 0.24, 0.25, 0.26, 0.5, 0.73, 1.0, 1.2):
            times.append(float(4 * share * quarter / omega))
            u = quarter - omega * mpmath.mpf(times[-1])
            sn, cn = (mpmath.ellipfun(name, u, m=k**2) for name in ("sn", "cn"))
            reference.append([float(2 * mpmath.asin(k * sn)), float(-2 * k * omega * cn)])
        whole = float(4 * quarter / omega)
    for sign, angle in zip((1, -1), angles, strict=True):
        found = exact(times, angle).numpy()
        np.testing.assert_allclose(found, sign * np.array(reference), rtol=0, atol=3e-13)
        assert period(angle) == pytest.approx(whole, rel=1e-14)


def test_angles_near_and_far_from_the_top_are_one_call():
    angles, times = [0.5, 3.1415, -2.0, -3.14], [[0.1], [0.7], [3.0]]
    found = exact(times, angles)
    assert found.shape == (3, 4, 2)
    for column, angle in enumerate(angles):
        for row, (time,) in enumerate(times):
            assert torch.equal(found[row, column], exact(time, angle))
