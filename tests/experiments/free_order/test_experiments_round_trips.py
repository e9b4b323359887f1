"""Q20-X0 against the closed forms of a linear field."""

import math

import pytest
import torch

from companion.experiments import run
from companion.experiments.free_order.q20_x0_round_trips import round_trip

SERIES = {  # a step multiplies by this polynomial of z = rate h
    "euler": (1, 1),
    "midpoint": (1, 1, 1 / 2),
    "heun": (1, 1, 1 / 2),
    "kutta3": (1, 1, 1 / 2, 1 / 6),
    "rk4": (1, 1, 1 / 2, 1 / 6, 1 / 24),
}


@pytest.mark.parametrize("method", SERIES)
def test_a_round_trip_on_the_line_is_a_product_of_polynomials(method):
    start, h, rate = torch.tensor([2.0], dtype=torch.float64), 0.5, -0.8
    there, back = (
        math.fsum(c * (sign * rate * h) ** k for k, c in enumerate(SERIES[method]))
        for sign in (1, -1)
    )
    found = round_trip(lambda t, y: rate * y, start, method, h)
    assert found == pytest.approx(2 * abs(there * back - 1), rel=1e-9)


def test_orders_in_small():
    result = run("Q20-X0", steps=(16, 32), fields=2, dim=3, seed=9)
    for method, order in (("euler", 2), ("midpoint", 4), ("heun", 4), ("kutta3", 4), ("rk4", 6)):
        assert result[f"slope_{method}"] == pytest.approx(order, abs=0.25)
        assert result[f"error_{method}"].shape == (2, 2)
