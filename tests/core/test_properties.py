"""Random linear systems against the matrix exponential, and invariances of every solve."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from examples import REPEATABLE
from fields import knobs, randn
from hypothesis import given
from hypothesis import strategies as st

from companion import odeint
from companion.schemes import SCHEMES

SEEDS = st.integers(0, 2**31 - 1)


@st.composite
def systems(draw):
    """Draw A, y0 and increasing or decreasing times with ||A|| |t| <= 2."""
    d, seed = draw(st.integers(1, 5)), draw(SEEDS)
    a = randn(d, d, device="cpu", seed=seed)
    a = a / max(1.0, torch.linalg.matrix_norm(a, 2).item())
    gaps = draw(st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4))
    start, sign = draw(st.floats(-1, 1)), draw(st.sampled_from([-1.0, 1.0]))
    scale = sign * min(1.0, 2.0 / sum(gaps))
    t = [start]
    for gap in gaps:
        t.append(t[-1] + scale * gap)
    return a, randn(d, device="cpu", seed=seed + 1), t


def on(device, system):
    a, y0, t = system
    return a.to(device), y0.to(device), t


def stability(scheme) -> list[Fraction]:
    """Return the coefficients of R, the polynomial by which a step multiplies: 1, b.1, b.A1, ..."""
    values, found = [Fraction(1)] * scheme.stages, [Fraction(1)]
    for _ in range(scheme.stages):
        found.append(sum(b * x for b, x in zip(scheme.b, values, strict=True)))
        values = [sum(a * x for a, x in zip(row, values, strict=False)) for row in scheme.a]
    return found


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_stability_functions_are_taylor_polynomials_up_to_the_order(scheme):
    found = stability(scheme)
    assert len(found) == scheme.stages + 1
    for k in range(scheme.order + 1):
        assert found[k] == Fraction(1, math.factorial(k))


def bound(scheme, t, steps: int, a, y0) -> float:
    """Bound the error of ``steps`` steps of a scheme on y' = Ay.

    A step is R(hA). It misses exp(hA) by the difference of the coefficients up to the number s of
    stages and by a remainder of at most (h L)^(s+1) e^(h L) / (s+1)!. Errors grow at most by
    exp(h L) or by R with absolute coefficients, whichever is larger.
    """
    size = torch.linalg.matrix_norm(a, 2).item()
    coefficients, s = stability(scheme), scheme.stages
    total, growth = 0.0, 1.0
    for t0, t1 in pairwise(t):
        z = abs(t1 - t0) / steps * size
        missed = sum(abs(float(c - Fraction(1, math.factorial(k)))) * z**k
                     for k, c in enumerate(coefficients))  # fmt: skip
        total += steps * (missed + z ** (s + 1) * math.exp(z) / math.factorial(s + 1))
        growth *= (
            max(math.exp(z), sum(abs(float(c)) * z**k for k, c in enumerate(coefficients))) ** steps
        )
    return 1.01 * total * growth * y0.norm().item() + 1e-13


@pytest.mark.parametrize("name", list(SCHEMES))
@REPEATABLE
@given(systems(), st.integers(1, 12))
def test_linear_systems_stay_within_a_rigorous_bound(name, device, system, steps):
    a, y0, t = on(device, system)
    ys = odeint(lambda t, y: a @ y, y0, t, method=name, steps=steps)
    for i in range(1, len(t)):
        exact = torch.matrix_exp(a * (t[i] - t[0])) @ y0
        limit = bound(SCHEMES[name], t[: i + 1], steps, a, y0)
        assert (ys[i] - exact).norm().item() <= limit


@pytest.mark.parametrize("name", list(SCHEMES))
@REPEATABLE
@given(systems(), st.integers(1, 6))
def test_one_step_on_a_linear_system_is_its_stability_function(name, device, system, n):
    """It is known to the last digit; with as many stages as the order, a Taylor polynomial."""
    a, y0, t = on(device, system)
    h = (t[1] - t[0]) / n
    step = sum(
        torch.linalg.matrix_power(h * a, k) * float(c)
        for k, c in enumerate(stability(SCHEMES[name]))
    )
    expected = torch.linalg.matrix_power(step, n) @ y0
    y = odeint(lambda t, y: a @ y, y0, t[:2], method=name, steps=n)[-1]
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", ["rk4", "rk4_38", "dopri5"])
@REPEATABLE
@given(systems(), SEEDS)
def test_forced_linear_systems_against_the_augmented_exponential(method, device, system, seed):
    """y' = A y + b + c t is autonomous in (y, t, 1): one exponential gives the solution."""
    a, y0, t = on(device, system)
    d = len(y0)
    b, c = randn(2, d, device=device, seed=seed)
    block = torch.zeros(d + 2, d + 2, dtype=torch.float64, device=device)
    block[:d, :d], block[:d, d], block[:d, d + 1], block[d, d + 1] = a, c, b, 1.0
    start = torch.cat([y0, torch.tensor([t[0], 1.0], dtype=torch.float64, device=device)])
    ys = odeint(
        lambda t, y: a @ y + b + c * t,
        y0,
        t,
        method=method,
        **knobs(method, steps=30, rtol=1e-8, atol=1e-9),
    )
    for i in range(1, len(t)):
        exact = (torch.matrix_exp(block * (t[i] - t[0])) @ start)[:d]
        torch.testing.assert_close(ys[i], exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
@REPEATABLE
@given(systems(), SEEDS)
def test_gradients_of_linear_systems(gradient, device, system, seed):
    """d/dy0 of w . y(t_1) is exp(A (t_1 - t_0))^T w; d/dt_1 is w . A y(t_1), and minus for t_0."""
    a, y0, t = on(device, system)
    w = randn(len(y0), device=device, seed=seed)
    start = y0.clone().requires_grad_()
    times = torch.tensor(t[:2], dtype=torch.float64, device=device, requires_grad=True)
    y = odeint(lambda t, y: a @ y, start, times, method="rk4", steps=25, gradient=gradient)[-1]
    grad_y0, grad_t = torch.autograd.grad((w * y).sum(), [start, times])
    flow = torch.matrix_exp(a * (t[1] - t[0]))
    rate = (w @ a @ flow @ y0).item()
    torch.testing.assert_close(grad_y0, flow.T @ w, rtol=0, atol=1e-6)
    assert grad_t.tolist() == pytest.approx([-rate, rate], abs=1e-6)


@pytest.mark.parametrize("name", list(SCHEMES))
@REPEATABLE
@given(systems(), st.floats(-5, 5))
def test_time_can_be_shifted(name, device, system, shift):
    """f(t - s, y) from t_0 + s is f(t, y) from t_0."""
    a, y0, t = on(device, system)
    one = odeint(lambda t, y: torch.sin(a @ y + t), y0, t, method=name, steps=3)
    moved = [x + shift for x in t]
    other = odeint(lambda t, y: torch.sin(a @ y + t - shift), y0, moved, method=name, steps=3)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", list(SCHEMES))
@REPEATABLE
@given(systems(), SEEDS)
def test_a_change_of_coordinates_commutes_with_a_step(name, device, system, seed):
    """Runge-Kutta schemes are equivariant under linear maps: z = Q y with Q orthogonal."""
    a, y0, t = on(device, system)
    q = torch.linalg.qr(randn(len(y0), len(y0), device=device, seed=seed)).Q

    def field(t, y):
        return torch.cos(a @ y) * t

    one = odeint(field, y0, t, method=name, steps=2) @ q.T
    other = odeint(lambda t, z: q @ field(t, q.T @ z), q @ y0, t, method=name, steps=2)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
