"""Distances between densities and samples, against closed forms."""

import math
from itertools import permutations

import pytest
import torch
from fields import randn
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance_nd

from companion.analysis.densities import (
    bits_per_dimension,
    frechet_distance,
    integral,
    kl_over_base,
    sliced_wasserstein,
)
from companion.data.clouds import Checkerboard
from companion.data.energies import Ring, TwoModes, Wave
from companion.models.planar_flow import PlanarFlow


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(mean, deviation):
    law = torch.distributions.Normal(
        torch.tensor(mean, dtype=torch.float64), torch.tensor(deviation, dtype=torch.float64)
    )
    return lambda x: law.log_prob(x).sum(-1)


def affine(shift, scales):
    shift, scales = (torch.tensor(v, dtype=torch.float64) for v in (shift, scales))
    return lambda z: (shift + scales * z, scales.log().sum().expand(len(z)))


def test_kl_of_two_normal_laws():
    """The closed form, in this direction: the other one is 1.8 here."""
    push, target = affine([0.5, -1.0], [0.5, 2.0]), normal([1.0, 0.0], [1.5, 0.8])
    wanted = sum(
        math.log(s / q) + (q**2 + (m - n) ** 2) / (2 * s**2) - 0.5
        for m, q, n, s in ((0.5, 0.5, 1.0, 1.5), (-1.0, 2.0, 0.0, 0.8))
    )
    assert kl_over_base(push, target, half_width=8.0) == pytest.approx(wanted, abs=1e-10)
    assert kl_over_base(push, target) == pytest.approx(wanted, abs=1e-6)


def test_kl_of_a_curved_map_is_zero():
    """Wave is exactly the image of a normal density."""

    def push(z):
        first = 2 * z[:, 0]
        second = torch.sin(math.pi / 2 * first) + 0.4 * z[:, 1]
        return torch.stack([first, second], 1), torch.full_like(first, math.log(0.8))

    assert kl_over_base(push, Wave().log_prob) == pytest.approx(0, abs=1e-12)


def test_kl_agrees_with_samples():
    flow = PlanarFlow(2, 4, generator=draws(), dtype=torch.float64)
    x, log_prob = flow.sample_and_log_prob(40_000, draws(1))
    gaps = (log_prob - Ring().log_prob(x)).detach()
    error = float(gaps.std()) / 200
    assert abs(kl_over_base(flow, Ring().log_prob) - float(gaps.mean())) < 4 * error


def test_integral_and_its_error():
    value, error = integral(TwoModes().log_prob, half_width=5.0, points=201)
    assert abs(value - 1) < 1e-12 > error
    # On too coarse a grid the estimate covers what is missing.
    value, error = integral(TwoModes(deviation=0.2).log_prob, half_width=5.0, points=21)
    assert 1e-4 < abs(value - 1) <= error
    # A density twice as large, and mass beyond the edge.
    double = integral(lambda x: TwoModes().log_prob(x) + math.log(2), half_width=5.0, points=201)
    assert double.value == pytest.approx(2, abs=1e-12)
    half = integral(normal([0.0, 0.0], [1.0, 1.0]), half_width=1.0, points=401)
    assert half.value == pytest.approx(math.erf(1 / math.sqrt(2)) ** 2, abs=2 * half.error)


def test_integral_of_a_density_that_jumps_has_a_large_error():
    value, error = integral(Checkerboard().log_prob, half_width=3.0, points=301)
    assert error > 1e-4
    assert value == pytest.approx(1, abs=0.05)


def test_sliced_distance_on_the_line():
    """A shift by 3 is a distance of 3, in any order of the samples."""
    x = randn(101, 1, device="cpu")
    assert sliced_wasserstein(x, x + 3, draws()) == pytest.approx(3, abs=1e-12)
    assert sliced_wasserstein(x, (x + 3).flip(0), draws()) == pytest.approx(3, abs=1e-12)
    assert sliced_wasserstein(x, x.flip(0), draws()) == 0


def test_sliced_distance_on_the_line_by_brute_force():
    """Of squares, not of absolute values: the optimal cost over all couplings of 5 points."""
    x, y = randn(5, 1, device="cpu"), 2 * randn(5, 1, device="cpu", seed=4)
    wanted = min(float((x - y[list(p)]).square().mean()) for p in permutations(range(5)))
    assert sliced_wasserstein(x, y, draws()) ** 2 == pytest.approx(wanted, abs=1e-12)


def test_sliced_distance_of_a_shift_in_space():
    """The mean of squared cosines is 1/d; within 5 standard errors of the directions."""
    x, shift = randn(40, 3, device="cpu"), torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64)
    found = sliced_wasserstein(x, x + shift, draws(), directions=20_000) ** 2
    assert found == pytest.approx(3, abs=5 * 9 * math.sqrt(4 / 45 / 20_000))
    assert found <= wasserstein_distance_nd(x.numpy(), (x + shift).numpy()) ** 2


def test_sliced_distance_follows_the_generator():
    x, y = randn(30, 2, device="cpu"), randn(30, 2, device="cpu", seed=2)
    one, same, other = (sliced_wasserstein(x, y, draws(s), directions=4) for s in (1, 1, 2))
    assert one == same != other


def test_frechet_distance_against_the_root_of_a_matrix():
    mix = randn(4, 4, device="cpu", seed=9)
    x, y = randn(50, 4, device="cpu"), randn(80, 4, device="cpu", seed=2) @ mix + 0.3
    a, b = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    wanted = float((x.mean(0) - y.mean(0)).square().sum())
    wanted += (a + b - 2 * sqrtm(a @ b).real).trace()
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-10)
    assert frechet_distance(y, x) == pytest.approx(wanted, rel=1e-10)


def test_frechet_distance_of_shift_and_scale():
    x = randn(50, 3, device="cpu")
    spread = float(torch.cov(x.T).trace())
    centred = x - x.mean(0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * spread, rel=1e-12)
    assert frechet_distance(x, x + 2) == pytest.approx(12, rel=1e-12)
    line = x[:, :1] - x[:, :1].mean()
    assert frechet_distance(line, 2 * line) == pytest.approx(float(line.var()), rel=1e-12)


def test_frechet_distance_with_a_singular_covariance():
    """More dimensions than samples."""
    x = randn(4, 10, device="cpu")
    assert frechet_distance(x, x + 1) == pytest.approx(10, abs=1e-6)


def test_bits_per_dimension():
    """Uniform grey levels cost exactly their binary logarithm, whatever the interval is."""
    for levels, length in ((16, 2.0), (17, 1.0), (256, 17.0)):
        log_prob = torch.full((3,), -5 * math.log(length), dtype=torch.float64)
        found = bits_per_dimension(log_prob, 5, levels=levels, length=length)
        torch.testing.assert_close(found, torch.full_like(found, math.log2(levels)))
    assert float(bits_per_dimension(torch.tensor(-math.log(8.0)), 3)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: integral(Ring().log_prob, half_width=1.0, points=10), "points: 10 .* odd"),
        (lambda: integral(Ring().log_prob, half_width=0.0, points=11), "half_width: 0.0 "),
        (lambda: kl_over_base(affine([0.0], [1.0]), Ring().log_prob, points=2), "points: 2 "),
        (lambda: sliced_wasserstein(torch.ones(3, 2), torch.ones(4, 2), draws()), "y: shape"),
        (lambda: sliced_wasserstein(torch.ones(3), torch.ones(3), draws()), "x: shape"),
        (lambda: frechet_distance(torch.ones(1, 2), torch.ones(3, 2)), "x: shape"),
        (lambda: frechet_distance(torch.ones(3, 2), torch.ones(3, 4)), "y: shape"),
        (lambda: bits_per_dimension(torch.ones(1), 0), "dimension: 0 "),
        (lambda: bits_per_dimension(torch.ones(1), 1, levels=2, length=-1.0), "length: -1.0 "),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
