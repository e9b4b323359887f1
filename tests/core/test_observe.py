"""Counters: slopes against hand-made data, evaluations, bytes by arithmetic."""

import math

import numpy as np
import pytest
import torch
from fields import Tanh, randn
from torch import nn

from companion import OdeBlock, PiecewiseConstant, counting, odeint
from companion.observe import (
    count_nfe,
    fit_line,
    fit_slope,
    geometric_mean,
    peak_memory,
    saved_bytes,
)


@pytest.mark.parametrize("slope", [-4.0, -0.5, 0.0, 1.0, 3.0])
def test_a_power_law_gives_its_exponent_and_no_error(slope):
    x = [0.5, 1.0, 3.0, 10.0, 64.0]
    found = fit_slope(x, [7 * v**slope for v in x])
    assert found.value == pytest.approx(slope, abs=1e-12)
    assert found.error == pytest.approx(0, abs=1e-12)


def test_slope_and_error_are_those_of_scipy():
    from scipy.stats import linregress

    draw = np.random.default_rng(0)
    x = draw.uniform(1, 100, 12)
    y = x**-2 * np.exp(0.3 * draw.standard_normal(12))
    reference = linregress(np.log(x), np.log(y))
    found = fit_slope(x.tolist(), y.tolist())
    assert found.value == pytest.approx(reference.slope, rel=1e-12)
    assert found.error == pytest.approx(reference.stderr, rel=1e-10)


def test_two_points_have_a_slope_without_an_error():
    value, error = fit_slope([1, 10], [5, 500])
    assert value == pytest.approx(2)
    assert math.isnan(error)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([1, 2], [1, 2, 3], "2 and 3 points"),
        ([1], [1], "1 and 1 points"),
        ([1, 2, 3], [1, 0, 2], "positive"),
        ([1, -2, 3], [1, 1, 2], "positive"),
        ([1, 2, 3], [1, math.nan, 2], "positive and finite"),
        ([1, 2, 3], [1, math.inf, 2], "positive and finite"),
        ([2, 2, 2], [1, 2, 3], "x must vary"),
    ],
)
def test_points_that_have_no_slope_are_refused(x, y, words):
    with pytest.raises(ValueError, match=words):
        fit_slope(x, y)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_evaluations_of_a_field_are_those_of_stats(gradient, device):
    field = Tanh(device)
    with count_nfe(field) as nfe, counting() as stats:
        ys = odeint(field, randn(3, device=device), [0.0, 1.0], method="kutta3", steps=4,
                    gradient=gradient)  # fmt: skip
        assert nfe.lap() == stats.nfe == 12
        ys.sum().backward()
        assert nfe.lap() == stats.nfe_backward == (0 if gradient == "backprop" else 12)
    assert nfe.total == 12 + stats.nfe_backward


def test_a_field_with_buffers_is_counted_in_recomputations_too(device):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3).to(device, torch.float64)

        def forward(self, t, y):
            return self.norm(y)

    field = Normed()
    with count_nfe(field) as nfe:
        ys = odeint(field, randn(4, 3, device=device), [0.0, 1.0], method="heun", steps=3,
                    gradient="checkpoint")  # fmt: skip
        assert nfe.lap() == 6
        ys.sum().backward()
        assert nfe.lap() == 6


def test_all_blocks_of_a_model_are_counted_and_nothing_else(device):
    shared = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(2), method="rk4", steps=2)
    model = nn.Sequential(
        nn.Linear(2, 2), shared, OdeBlock(nn.Linear(2, 2), method="euler", steps=5),
        shared.with_graph(method="euler", steps=3), nn.Tanh(),
    ).to(device)  # fmt: skip
    with count_nfe(model) as nfe:
        model(torch.zeros(1, 2, device=device))
    assert nfe.total == 8 + 5 + 3
    model(torch.zeros(1, 2, device=device))
    assert nfe.total == 16  # the hooks are gone


def test_hooks_are_removed_after_an_error(device):
    field = Tanh(device)
    with pytest.raises(KeyError), count_nfe(field):
        raise KeyError
    assert not field._forward_pre_hooks


def test_bytes_of_a_chain_by_arithmetic(device):
    """sin keeps its input, exp its output: two arrays of 1000 doubles, the input not counted."""
    x = randn(1000, device=device).requires_grad_()
    with saved_bytes(exclude=[x]) as saved:
        x.sin().exp()
    assert saved.total == 8000
    with saved_bytes() as saved:
        x.sin().exp()
    assert saved.total == 16_000


def test_a_storage_counts_once_with_its_full_size(device):
    x = randn(100, device=device).requires_grad_()
    with saved_bytes(exclude=[x]) as saved:
        y = x * 2
        (y * y, y[:10].sin(), y[50:].cos())
    assert saved.total == 800


@pytest.mark.parametrize("size", [10, 1000, 100_000])
def test_freed_addresses_are_not_mistaken_for_known_ones(size, device):
    """Each graph dies at once, so the next may reuse its memory: all count all the same."""
    x = randn(size, device=device).requires_grad_()
    with saved_bytes(exclude=[x]) as saved:
        for _ in range(50):
            x.exp()
    assert saved.total == 50 * size * 8


def test_nothing_is_kept_without_gradients(device):
    with saved_bytes() as saved, torch.no_grad():
        randn(10, device=device).requires_grad_().exp()
    assert saved.total == 0


def test_the_counter_leaves_gradients_alone(device):
    x = randn(5, device=device).requires_grad_()
    with saved_bytes():
        y = (x.sin() * x.exp()).sum()
    (found,) = torch.autograd.grad(y, x)
    torch.testing.assert_close(found, x.exp() * (x.sin() + x.cos()))


def test_peak_memory_is_for_cuda(device):
    if device.type != "cuda":
        with pytest.raises(ValueError, match="device: cpu is not allowed"), peak_memory("cpu"):
            pass
        return
    held = torch.zeros(2**20, device=device)
    with peak_memory(device) as peak:
        x = torch.zeros(2**22, device=device)
        del x
        torch.zeros(2**20, device=device)
    assert peak.total == 4 * 2**22
    del held


def test_a_line_has_the_slope_and_the_share_of_variance_of_others():
    x, noisy = [1.0, 2.0, 3.0, 4.0], [2.0, 4.1, 5.9, 8.2]
    line = fit_line(x, noisy)
    assert (line.slope, line.start) == pytest.approx(tuple(np.polyfit(x, noisy, 1)))
    assert line.r_squared == pytest.approx(np.corrcoef(x, noisy)[0, 1] ** 2)
    table = fit_line(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 4.1], [5.9, 8.2]]))
    assert table == line


def test_geometric_means_are_over_an_axis_or_all():
    values = [[1.0, 8.0], [4.0, 2.0]]
    assert geometric_mean(values).tolist() == pytest.approx([2.0, 4.0])
    assert float(geometric_mean(values, axis=None)) == pytest.approx(8.0**0.5)
