"""The theorems of chapter 2, each by numbers that no solver of the package computes."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from companion import odeint
from companion.schemes import SCHEMES, Tableau


def scheme(a, b):
    rows = tuple(tuple(Fraction(x) for x in row) for row in a)
    return Tableau(name="drawn", order=0, a=rows, b=tuple(Fraction(x) for x in b))


def local_slope(method):
    """The power of the step that the local error shrinks with, on x' = x sin(t) + 1/x."""

    def field(t, x):
        return x * torch.sin(t) + 1 / x

    x0 = torch.tensor([1.3], dtype=torch.float64)
    errors = []
    for h in (2**-9, 2**-10):
        times = [method.fractions[i] * h + 0.4 for i in range(method.stages)]
        end = method.step(lambda i, y, at=times: field(torch.tensor(at[i]), y), x0, h)
        fine = odeint(field, x0, [0.4, 0.4 + h], method="rk4", steps=10)[-1]
        errors.append(float((end - fine).abs()))
    return math.log2(errors[0] / errors[1])


def test_two_conditions_decide_order_two():
    """Drawn tableaux of two and three stages: those that meet both conditions, and near misses."""
    draw = np.random.default_rng(0).integers
    for _ in range(4):
        c2, a31, a32 = (Fraction(int(draw(1, 9)), 8) for _ in range(3))
        rows, c3 = [(), (c2,), (a31, a32)], a31 + a32
        b3 = Fraction(int(draw(1, 5)), 8)
        b2 = (Fraction(1, 2) - b3 * c3) / c2
        right = scheme(rows, (1 - b2 - b3, b2, b3))
        assert sum(right.b) == 1
        assert sum(b * c for b, c in zip(right.b, right.c, strict=True)) == Fraction(1, 2)
        assert local_slope(right) > 2.8
        late = scheme(rows, (1 - b2 - b3 - Fraction(1, 8), b2 + Fraction(1, 8), b3))  # second fails
        assert 1.9 < local_slope(late) < 2.2
        heavy = scheme(rows, (Fraction(9, 8) - b2 - b3, b2, b3))  # the first fails
        assert 0.9 < local_slope(heavy) < 1.1


def test_the_number_of_steps_is_the_integral():
    """For x' = g(t), bosh3's estimate is C g''(t) h^3: count its steps against the integral."""
    c, weights = (0, 1 / 2, 3 / 4, 1), (-5 / 72, 1 / 12, 1 / 9, -1 / 8)
    constant = abs(sum(e * place**2 / 2 for e, place in zip(weights, c, strict=True)))

    def count(tolerance):
        """The controller of the chapter, on exp(t): every step has a positive estimate."""
        t, h, steps = 0.0, 1e-4, 0
        while t < 1:
            error = abs(h * sum(e * math.exp(t + p * h) for e, p in zip(weights, c, strict=True)))
            if error < tolerance:
                t, steps = t + h, steps + 1
            h *= 0.9 * (error / tolerance) ** (-1 / 3)
        return steps

    integral = (constant / 0.9**3) ** (1 / 3) * 3 * (math.exp(1 / 3) - 1)
    found = [tolerance ** (1 / 3) * count(tolerance) / integral for tolerance in (1e-8, 1e-11)]
    assert found[0] == pytest.approx(1, abs=0.05)
    assert found[1] == pytest.approx(1, abs=0.005)


def polynomial(tableau):
    """The coefficients of the stability function, from the powers of the matrix a."""
    stages = tableau.stages
    a = np.zeros((stages, stages))
    for i, row in enumerate(tableau.rows):
        a[i, : len(row)] = row
    gathered, found = np.ones(stages), [1.0]
    for _ in range(stages):
        found.append(float(np.array(tableau.weights) @ gathered))
        gathered = a @ gathered
    assert not gathered.any()  # a is nilpotent: no further terms
    return found


def test_explicit_methods_are_stable_on_bounded_sets():
    """The polynomial by powers of a, by a step on x' = zx, and by the exponential series."""
    for name, tableau in SCHEMES.items():
        r = polynomial(tableau)
        assert r[: tableau.order + 1] == pytest.approx(
            [1 / math.factorial(k) for k in range(tableau.order + 1)]
        )
        for z in (-0.7, -3.1):
            x = torch.ones(1, dtype=torch.float64)
            stepped = tableau.step(lambda i, y, z=z: z * y, x, 1.0).item()
            assert stepped == pytest.approx(np.polyval(r[::-1], z))
        z = np.linspace(0, 100, 100_001)
        unstable = np.abs(np.polyval(r[::-1], -z)) > 1 + 1e-12
        limit = z[~unstable][-1]
        assert unstable[z > limit + 1e-9].all()
        wanted = {"euler": 2, "midpoint": 2, "heun": 2, "kutta3": 2.513, "rk4": 2.785}
        assert limit == pytest.approx(wanted.get(name, 2.785), abs=1e-3)
        steps = {True: math.ceil(50 * 1.01 / limit), False: math.floor(50 * 0.99 / limit)}
        for stable, n in steps.items():  # a decay of rate 50 up to time 1
            x = torch.ones(1, dtype=torch.float64)
            end = odeint(lambda t, x: -50 * x, x, [0.0, 1.0], method=name, steps=n)[-1]
            assert (end.abs() <= 1).item() == stable


def test_the_derivative_of_an_event():
    """A ball that falls with drag reaches the floor: the formula against differences."""

    def field(x):
        return np.array([x[1], -9.81 - 0.3 * x[1]])

    def step(x, h):
        k1 = field(x)
        k2 = field(x + h / 2 * k1)
        k3 = field(x + h / 2 * k2)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(x + h * k3))

    def state_at(speed, time, n=100):
        x = np.array([1.0, speed])
        for _ in range(n):
            x = step(x, time / n)
        return x

    def landing(speed):
        """When the height is 0, by bisection."""
        low, high = 0.1, 2.0
        for _ in range(45):
            middle = (low + high) / 2
            low, high = (middle, high) if state_at(speed, middle)[0] > 0 else (low, middle)
        return low

    d = 1e-4
    when = landing(1.5)
    moved = (state_at(1.5 + d, when) - state_at(1.5 - d, when)) / (2 * d)
    formula = -moved[0] / field(state_at(1.5, when))[0]
    differences = (landing(1.5 + d) - landing(1.5 - d)) / (2 * d)
    assert formula == pytest.approx(differences, rel=1e-6)
