"""Densities of the plane: each integrates to 1, and is that of its own samples."""

import math

import pytest
import torch
from scipy.integrate import dblquad, quad
from sklearn.datasets import make_circles, make_moons
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from companion.data.clouds import Checkerboard, Circles, Moons, Pinwheel
from companion.data.densities import NAMES, density
from companion.data.energies import Ring, TwoModes, Wave

SMOOTH = sorted(set(NAMES) - {"checkerboard"})


def draws(device="cpu"):
    return torch.Generator(device).manual_seed(5)


def grid(half, points):
    line = torch.linspace(-half, half, points, dtype=torch.float64)
    return torch.cartesian_prod(line, line), (2 * half / (points - 1)) ** 2


def in_cells(x, half=4.0, cells=8):
    """Return the share of points in each cell of a square."""
    index = ((x + half) * (cells / (2 * half))).floor().clamp(0, cells - 1).long()
    return torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2) / len(x)


@pytest.mark.parametrize("name", SMOOTH)
def test_integral_is_one(name):
    """A wave reaches far: its first coordinate has the standard deviation 2."""
    x, area = grid(16.0 if name == "wave" else 5.0, 1281 if name == "wave" else 401)
    total = sum(density(name).log_prob(part).exp().sum() for part in x.split(40_000))
    assert abs(float(total) * area - 1) < (1e-9 if name != "moons" else 1e-8)


def test_integral_of_the_checkerboard():
    x, area = grid(2 - 1 / 64, 128)  # the midpoints of 128 by 128 cells
    assert float(Checkerboard().log_prob(x).exp().sum()) * area == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_density(name):
    """The share of samples in each of 64 cells is the density's, within 5 standard errors."""
    n, law = 40_000, density(name)
    found = in_cells(law.sample(n, draws(), torch.float64))
    line = (torch.arange(240, dtype=torch.float64) + 0.5) / 30 - 4
    x = torch.cartesian_prod(line, line)
    mass = torch.cat([law.log_prob(part).exp() for part in x.split(20_000)]) / 900
    # Points beyond the square are counted in its outer cells, of the wave alone: compare inside.
    cell = ((x + 4).floor()[:, 0] * 8 + (x + 4).floor()[:, 1]).long()
    wanted = torch.zeros(64, dtype=torch.float64).index_add(0, cell, mass)
    inner = [8 * i + j for i in range(1, 7) for j in range(1, 7)]
    error = (wanted * (1 - wanted).clamp_min(0) / n).sqrt() + 1e-5
    assert ((found - wanted).abs() < 5 * error)[inner].all()
    assert wanted[inner].sum() > 0.85


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_generator(name):
    law = density(name)
    one, same, other = (law.sample(7, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one.dtype == torch.float32
    assert one.shape == (7, 2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert law.log_prob(one.view(7, 1, 2)).shape == (7, 1)


def test_moons_are_those_of_scikit_learn_standardised():
    """Mean, variance and the place of every noiseless point."""
    plain = torch.from_numpy(make_moons(20_000, noise=None, random_state=0)[0])
    law = Moons(noise=0.06)
    scaled = (plain - torch.tensor([0.5, 0.25])) / torch.tensor(
        [math.sqrt(0.7536), math.sqrt(0.5625 - 1 / math.pi + 0.0036)], dtype=torch.float64
    )
    # On an arc the density is about 1/(2 pi) over sqrt(2 pi) s, in the scaled plane.
    scale = math.sqrt(0.7536 * (0.5625 - 1 / math.pi + 0.0036))
    wanted = math.log(scale / (2 * math.pi * math.sqrt(2 * math.pi) * 0.06))
    assert float(law.log_prob(scaled).median()) == pytest.approx(wanted, abs=2e-3)
    x = law.sample(200_000, draws(), torch.float64)
    torch.testing.assert_close(x.mean(0), torch.zeros(2).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(x.var(0), torch.ones(2).double(), atol=0.01, rtol=0)


def test_moons_by_an_adaptive_quadrature():
    law, x = Moons(noise=0.1), torch.tensor([0.3, -0.2], dtype=torch.float64)
    deviation = (math.sqrt(0.76), math.sqrt(0.5725 - 1 / math.pi))
    a, b = 0.5 + deviation[0] * 0.3, 0.25 + deviation[1] * -0.2

    def normal(u, v):
        return math.exp(-(u**2 + v**2) / 0.02) / (0.02 * math.pi)

    def integrand(angle):
        c, s = math.cos(angle), math.sin(angle)
        return normal(a - c, b - s) + normal(a - 1 + c, b - 0.5 + s)

    value = quad(integrand, 0, math.pi, epsabs=1e-14)[0] / (2 * math.pi)
    wanted = math.log(value * deviation[0] * deviation[1])
    assert float(law.log_prob(x)) == pytest.approx(wanted, abs=1e-10)


def test_circles_are_those_of_scikit_learn_scaled():
    plain = torch.from_numpy(make_circles(1000, factor=0.5, noise=None)[0])
    values = Circles(noise=0.02).log_prob(1.8 * plain)
    # Far from the other circle, 1/(2 * 2 pi R) over sqrt(2 pi) s, up to curvature.
    for radius in (1.0, 0.5):
        on = (plain.norm(dim=1) - radius).abs() < 1e-9
        wanted = -math.log(4 * math.pi * radius * math.sqrt(2 * math.pi) * 0.02 * 1.8**2)
        assert on.sum() == 500
        torch.testing.assert_close(
            values[on], torch.full((500,), wanted, dtype=torch.float64), atol=1e-3, rtol=0
        )


def test_pinwheel_turns_without_a_change_of_area():
    """The density of one arm at the image of a point is that of the point."""
    straight = torch.tensor([1.2, 0.05], dtype=torch.float64)
    angle = straight.norm().exp() / 4
    turn = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )
    wanted = -0.5 * ((0.2 / 0.3) ** 2 + 0.5**2) - math.log(2 * math.pi * 0.03 * 1.69)
    found = Pinwheel(arms=1).log_prob(1.3 * turn @ straight)
    assert float(found) == pytest.approx(wanted, abs=1e-12)


def test_samples_of_an_arm_turn_by_their_distance():
    """Turned back, their mean lies on the axis: by the first coordinate it is 15 errors off."""
    x = Pinwheel(arms=1).sample(200_000, draws(), torch.float64) / 1.3
    angle = x.norm(dim=1).exp() / 4
    across = -angle.sin() * x[:, 0] + angle.cos() * x[:, 1]
    assert abs(float(across.mean())) < 4 * 0.1 / math.sqrt(200_000)


def test_checkerboard_has_the_entropy_log_8():
    x = Checkerboard().sample(4000, draws())
    assert (Checkerboard().log_prob(x) == torch.tensor(-math.log(8))).all()
    assert len(torch.unique(x.floor(), dim=0)) == 8
    outside = torch.tensor([[-2.5, 0.5], [2.0, 0.5], [-0.5, 0.5]])
    assert (Checkerboard().log_prob(outside) == -math.inf).all()


def test_normaliser_of_the_ring_by_another_quadrature():
    def unnormalised(y, x):
        r = math.hypot(x, y)
        modes = sum(math.exp(-0.5 * ((x - c) / 0.6) ** 2) for c in (2, -2))
        return math.exp(-0.5 * ((r - 2) / 0.4) ** 2) * modes

    total = 4 * dblquad(unnormalised, 0, 6, 0, 6, epsabs=1e-9)[0]
    at = torch.tensor([1.1, 0.7], dtype=torch.float64)
    wanted = math.log(unnormalised(0.7, 1.1) / total)
    assert float(Ring().log_prob(at)) == pytest.approx(wanted, abs=1e-8)


def test_samples_of_the_ring_between_its_modes():
    """There the proposals are rarest, and a bound that is too small cuts off samples."""
    x, area = grid(5.0, 2001)
    x = x[x[:, 0].abs() < 0.4975]  # cells are 0.005 wide
    share = (
        float(torch.cat([Ring().log_prob(part).exp() for part in x.split(100_000)]).sum()) * area
    )
    samples = Ring().sample(200_000, draws(), torch.float64)
    found = float((samples[:, 0].abs() < 0.4975).double().mean())
    assert abs(found - share) < 4 * math.sqrt(share / 200_000)


def test_wave_is_the_product_of_two_normals():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.4]], dtype=torch.float64)
    centre, deviation = (
        torch.tensor([[0.0, 0.0], [0.0, 1.0]]),
        torch.tensor([2.0, 0.4], dtype=torch.float64),
    )
    parts = Normal(centre.double(), deviation).log_prob(x)
    torch.testing.assert_close(Wave().log_prob(x), parts.sum(1), atol=1e-12, rtol=0)


def test_two_modes_are_a_mixture():
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.0]], dtype=torch.float64)
    parts = Independent(Normal(means, torch.full_like(means, 0.7)), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(2).double()), parts)
    x = torch.randn(20, 2, generator=draws(), dtype=torch.float64)
    found = TwoModes(distance=3.0, deviation=0.7).log_prob(x)
    torch.testing.assert_close(found, mixture.log_prob(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_bad_draws_are_named(name):
    for n in (0, 2.5):
        with pytest.raises(ValueError, match=f"n: {n} "):
            density(name).sample(n, draws())
    with pytest.raises(TypeError, match="generator: 3 "):
        density(name).sample(5, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Moons(noise=0), "noise: 0 "),
        (lambda: Circles(factor=1.5), "factor: 1.5 "),
        (lambda: Pinwheel(arms=0), "arms: 0 "),
        (lambda: TwoModes(distance=-1.0), "distance: -1.0 "),
        (lambda: density("torus"), "name: 'torus' "),
        (lambda: Ring().log_prob(torch.zeros(4, 3)), r"x: shape \(4, 3\) "),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
