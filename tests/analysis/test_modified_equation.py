"""The inverse modified equation against fields whose perfect nets are known in closed form."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from companion.analysis.modified_equation import leading_correction, learnt_field, perfect_field
from companion.data import pendulum
from companion.ode import odeint
from companion.schemes import get_scheme

MATRIX = torch.tensor([[0.2, 1.0], [-1.5, -0.3]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)


def square_root(matrix):
    values, vectors = torch.linalg.eig(matrix)
    return (vectors @ torch.diag(values.sqrt()) @ torch.linalg.inv(vectors)).real


def perfect_matrix(method, h):
    """The matrix G whose step of the scheme is exp(hA)."""
    flow = torch.matrix_exp(h * MATRIX)
    if method == "euler":
        return (flow - EYE) / h
    return (square_root(2 * flow - EYE) - EYE) / h  # 1 + hG + (hG)^2/2, midpoint and Heun


def states():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_the_correction_gains_an_order_on_linear_fields(method, order):
    x, plain, corrected = states(), [], []
    for h in (0.1, 0.05, 0.025):
        learnt = x @ perfect_matrix(method, h).mT
        plain.append((learnt - x @ MATRIX.mT).norm().item())
        series = learnt_field(lambda x: x @ MATRIX.mT, method, h)(x)
        corrected.append((learnt - series).norm().item())
    assert np.diff(np.log2(plain)) == pytest.approx([-order] * 2, abs=0.1)
    assert np.diff(np.log2(corrected)) == pytest.approx([-order - 1] * 2, abs=0.1)


def test_corrections_of_a_curved_field_by_hand():
    """For f = x^2 the flow is x / (1 - hx); the terms of the schemes' steps are counted by hand."""
    x = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64)
    found = {m: leading_correction(torch.square, m)(x) for m in ("euler", "midpoint", "heun")}
    torch.testing.assert_close(found["euler"], x**3)
    torch.testing.assert_close(found["midpoint"], 0.75 * x**4)
    torch.testing.assert_close(found["heun"], 0.5 * x**4)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun"])
def test_the_correction_is_the_scheme_s_local_error(method):
    """On the pendulum, with all derivatives at work: (flow - step) / h is near h^p e_p."""
    x, order = pendulum.exact([0.1, 0.4, 1.0]), get_scheme(method).order
    wanted = leading_correction(pendulum.field, method)(x)
    errors = []
    for h in (2e-2, 1e-2):
        flow = odeint(lambda t, x: pendulum.field(x), x, [0.0, h], method="rk4", steps=40)[-1]
        step = get_scheme(method).step(lambda i, y: pendulum.field(y), x, h)
        errors.append((((flow - step) / h ** (order + 1)) - wanted).norm().item())
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)  # what is left is of order h
    assert errors[1] < 0.15 * wanted.norm().item()


def test_higher_orders_are_refused():
    with pytest.raises(ValueError, match=r"^method: 'rk4' has order 4; 1 and 2 are allowed"):
        leading_correction(torch.sin, "rk4")
    with pytest.raises(ValueError, match=r"^sweeps"):
        perfect_field(torch.sin, torch.sin, "euler", 0.1, sweeps=-1)


def test_perfect_field_of_a_linear_flow():
    h, x = 0.1, states()
    flow = torch.matrix_exp(h * MATRIX)

    def perfect(method, sweeps):
        return perfect_field(lambda x: x @ MATRIX.mT, lambda x: x @ flow.mT, method, h, sweeps)(x)

    exact = x @ perfect_matrix("euler", h).mT
    torch.testing.assert_close(perfect("euler", 1), exact, rtol=1e-13, atol=1e-14)
    exact = x @ perfect_matrix("midpoint", h).mT
    errors = [(perfect("midpoint", sweeps) - exact).norm().item() for sweeps in range(6)]
    assert all(after < 0.3 * before for before, after in pairwise(errors))
    assert errors[5] < 1e-4 * errors[0]
