"""Smooth and discontinuous bases, projection between all of them, and blocks that use them."""

import itertools
import math

import numpy as np
import pytest
import torch
from bases import SMALL_BASES, exported, written
from loops import loop
from numpy.polynomial import chebyshev
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from torch import nn

from companion import (
    Chebyshev,
    Constant,
    DiscontinuousLinear,
    Fourier,
    OdeBlock,
    PiecewiseConstant,
    PiecewiseLinear,
)
from companion.basis import Basis, Place, evaluate, project
from companion.block import ode_blocks
from companion.gradients import Reconstruct
from companion.schemes import SCHEMES

ALL = SMALL_BASES
NEW = [b for b in ALL if not isinstance(b, Constant | PiecewiseConstant | PiecewiseLinear)]
REFINABLE = [b for b in ALL if not isinstance(b, Constant)]
MORE = [Chebyshev(4), Fourier(7, cells=2)]  # an even size, a basis larger than its cells
NAMES = {"ids": repr}
DEPTHS = torch.tensor([0.0, 0.13, 0.25, 1 / 3, 0.5, 0.77, 0.999, 1.0], dtype=torch.float64)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- what every basis must be ---------------------------------------------------------------------


def test_every_basis_that_is_written_is_exported():
    assert {kind.__name__ for kind in written()} == {kind.__name__ for kind in exported()}
    assert {type(basis) for basis in ALL} == set(exported())


@pytest.mark.parametrize("basis", ALL, **NAMES)
def test_a_basis_is_what_the_block_asks_for(basis):
    """All names of the protocol, and a value: comparable, hashable, spelled as it is made."""
    assert {name for name in vars(Basis) if not name.startswith("_")} <= set(dir(basis))
    again = eval(repr(basis), {kind.__name__: kind for kind in exported()})
    assert again == basis
    assert hash(again) == hash(basis)


@pytest.mark.parametrize("basis", [*ALL, *MORE], **NAMES)
def test_every_coefficient_is_read_once_at_a_place_and_does_something(basis):
    used = set()
    for cell in range(basis.cells):
        for local in (0.0, 0.2, 0.5, 1.0):
            pairs = basis.at(Place(cell, local))
            indices = [k for k, _ in pairs]
            assert len(set(indices)) == len(indices)
            used |= {k for k, weight in pairs if weight}
    assert used == set(range(basis.size))


# --- the functions --------------------------------------------------------------------------------


@loop("size", [1, 2, 3, 8])
def test_chebyshev_values_are_numpys(size):
    theta = randn(size)
    expected = chebyshev.chebval(2 * DEPTHS.numpy() - 1, theta.numpy())
    for cells in (1, 4):
        found = evaluate(Chebyshev(size, cells), theta, DEPTHS)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_fourier_values_by_hand():
    theta = torch.tensor([2.0, 3.0, 5.0, 7.0, 11.0], dtype=torch.float64)
    for s in DEPTHS.tolist():
        a, b = 2 * math.pi * s, 4 * math.pi * s
        wanted = 2 + 3 * math.cos(a) + 5 * math.sin(a) + 7 * math.cos(b) + 11 * math.sin(b)
        found = evaluate(Fourier(5, cells=4), theta, torch.tensor([s], dtype=torch.float64))
        assert found.item() == pytest.approx(wanted, abs=1e-12)


def test_discontinuous_linear_values_by_hand():
    """Each cell has its own ends: the knot between cells 0 and 1 has two values."""
    basis, theta = DiscontinuousLinear(2), torch.tensor([1.0, 5.0, 7.0, 3.0], dtype=torch.float64)

    def value(cell, local):
        return sum(w * theta[k].item() for k, w in basis.at(Place(cell, local)))

    assert [value(0, 0.0), value(0, 0.25), value(0, 1.0)] == [1.0, 2.0, 5.0]
    assert [value(1, 0.0), value(1, 0.75), value(1, 1.0)] == [7.0, 4.0, 3.0]


def test_evaluate_reads_knots_from_the_right_and_depth_one_from_the_left():
    theta = torch.arange(100, dtype=torch.float64)
    knots = torch.tensor([k / 100 for k in range(101)], dtype=torch.float64)  # 0.29 * 100 < 29
    expected = [*range(100), 99]
    assert evaluate(PiecewiseConstant(100), theta, knots).tolist() == expected


@pytest.mark.parametrize(
    ("basis", "continuity"),
    [(PiecewiseConstant(2), -1), (DiscontinuousLinear(2), -1), (PiecewiseLinear(2), 0),
     (Chebyshev(3), math.inf), (Fourier(3), math.inf), (Constant(), math.inf)], **NAMES,
)  # fmt: skip
def test_continuity(basis, continuity):
    assert basis.continuity == continuity


def at_place(basis, theta, cell, local):
    return sum(weight * theta[k] for k, weight in basis.at(Place(cell, local)))


@pytest.mark.parametrize("basis", [b for b in ALL if b.cells > 1], **NAMES)
def test_continuity_is_what_both_sides_of_a_knot_show(basis):
    """Jumps of the function, and of its derivative by differences of second order on each side."""
    theta, h = randn(basis.size), 1e-3
    jumps, bends = [], []
    for knot in range(1, basis.cells):
        left = [at_place(basis, theta, knot - 1, 1 - k * h) for k in range(3)]
        right = [at_place(basis, theta, knot, k * h) for k in range(3)]
        jumps.append(abs(right[0] - left[0]).item())
        slopes = [(4 * v[1] - 3 * v[0] - v[2]) / (2 * h) for v in (right, left)]
        bends.append(abs(slopes[0] + slopes[1]).item())
    assert (max(jumps) < 1e-12) == (basis.continuity >= 0)
    if basis.continuity >= 0:
        assert (max(bends) < 1e-2) == (basis.continuity >= 1)


@pytest.mark.parametrize("basis", [*REFINABLE, *MORE], **NAMES)
def test_refining_keeps_the_function(basis):
    theta = randn(basis.size, 2, 3)
    finer, refined = basis.refined(), basis.refine(theta)
    assert (finer.cells, type(finer)) == (2 * basis.cells, type(basis))
    assert refined.shape == (finer.size, 2, 3)
    assert finer.size > basis.size
    torch.testing.assert_close(
        evaluate(finer, refined, DEPTHS), evaluate(basis, theta, DEPTHS), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("basis", [*ALL, *MORE], **NAMES)
def test_interpolation_takes_values_at_depths(basis):
    """Back from coefficients to values: each row must be the functions at some depth, in order."""
    rows = torch.linalg.inv(basis.interpolate(torch.eye(basis.size, dtype=torch.float64)))

    def distance(local, cell, row):
        phi = torch.zeros(basis.size, dtype=torch.float64)
        for k, weight in basis.at(Place(cell, local)):
            phi[k] = weight
        return (phi - row).norm().item()

    grid, depths = np.linspace(0, 1, 65).tolist(), []
    for row in rows:
        nearest, cell, local = min(
            (distance(local, cell, row), cell, local)
            for cell in range(basis.cells)
            for local in grid
        )
        if nearest > 1e-12:
            around = max(local - grid[1], 0.0), min(local + grid[1], 1.0)
            found = minimize_scalar(
                distance, bounds=around, args=(cell, row), method="bounded", options={"xatol": 1e-9}
            )
            nearest, local = found.fun, found.x
        assert nearest < 1e-6
        depths.append(cell + local)
    assert depths == sorted(depths)


NODES = {
    Constant: lambda basis: [0.5],
    PiecewiseConstant: lambda basis: [(k + 0.5) / basis.size for k in range(basis.size)],
    PiecewiseLinear: lambda basis: [k / basis.cells for k in range(basis.size)],
    Chebyshev: lambda basis: [
        0.5 - 0.5 * math.cos(math.pi * (j + 0.5) / basis.size) for j in range(basis.size)
    ],
    Fourier: lambda basis: [j / basis.size for j in range(basis.size)],
}


@pytest.mark.parametrize("basis", [b for b in (*ALL, *MORE) if type(b) in NODES], **NAMES)
def test_interpolation_takes_the_values_at_the_nodes_of_the_docstring(basis):
    values = randn(basis.size, 2)
    at = torch.tensor(NODES[type(basis)](basis), dtype=torch.float64)
    found = evaluate(basis, basis.interpolate(values), at)
    torch.testing.assert_close(found, values, rtol=0, atol=1e-13)


# --- projection -----------------------------------------------------------------------------------


@loop("old", ALL)
@pytest.mark.parametrize("new", ALL, **NAMES)
def test_projection_leaves_an_error_orthogonal_to_the_new_basis(old, new):
    """By scipy's adaptive quadrature between the knots: what makes a projection the nearest."""
    theta = randn(old.size, seed=1)
    found = project(theta, old, new)
    assert found.shape == (new.size,)
    knots = sorted({k / b.cells for b in (old, new) for k in range(b.cells + 1)})

    def at(basis, coefficients, s):
        return evaluate(basis, coefficients, torch.tensor([s], dtype=torch.float64)).item()

    k = new.size // 2  # one function of the new basis; all of them would take minutes
    phi = torch.eye(new.size, dtype=torch.float64)[k]
    total = sum(
        quad(lambda s: (at(old, theta, s) - at(new, found, s)) * at(new, phi, s), a, b - 1e-12,
             epsabs=1e-9)[0] for a, b in itertools.pairwise(knots)
    )  # fmt: skip
    assert total == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("basis", ALL, **NAMES)
def test_projection_onto_itself_changes_nothing(basis):
    theta = randn(basis.size, 2, 3)
    torch.testing.assert_close(project(theta, basis, basis), theta, rtol=0, atol=1e-13)


@pytest.mark.parametrize("basis", [*REFINABLE, *MORE], **NAMES)
def test_projection_undoes_refinement(basis):
    theta = randn(basis.size, 2)
    back = project(basis.refine(theta), basis.refined(), basis)
    torch.testing.assert_close(back, theta, rtol=0, atol=1e-12)


def test_projection_by_hand():
    theta = torch.tensor([1.0, 3.0, 4.0, 8.0], dtype=torch.float64)
    merged = project(theta, PiecewiseConstant(4), PiecewiseConstant(2))
    assert merged.tolist() == pytest.approx([2.0, 6.0], abs=1e-13)
    # Cells that do not fit: the middle third reads half of cell 0 and half of cell 1.
    thirds = project(theta[:2], PiecewiseConstant(2), PiecewiseConstant(3))
    assert thirds.tolist() == pytest.approx([1.0, 2.0, 3.0], abs=1e-13)
    # The line nearest to s^2 is s - 1/6.
    square = torch.tensor([3 / 8, 1 / 2, 1 / 8], dtype=torch.float64)  # s^2 in T_0, T_1, T_2
    line = project(square, Chebyshev(3), PiecewiseLinear(1))
    assert line.tolist() == pytest.approx([-1 / 6, 5 / 6], abs=1e-13)


def test_projection_keeps_dtype():
    theta = randn(5, 3, dtype=torch.float32)
    assert project(theta, Fourier(5), Fourier(7)).dtype == torch.float32


@loop("size", [17, 65, 129])
def test_projection_of_a_ramp_onto_many_waves(size):
    """s = 1/2 - sum over k of sin(2 pi k s) / (pi k): in closed form, for waves short and long."""
    ramp = torch.tensor([0.0, 1.0], dtype=torch.float64)
    expected = torch.zeros(size, dtype=torch.float64)
    expected[0] = 0.5
    for k in range(1, size // 2 + 1):
        expected[2 * k] = -1 / (math.pi * k)
    found = project(ramp, PiecewiseLinear(1), Fourier(size))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


# --- blocks ---------------------------------------------------------------------------------------


class Unit(nn.Module):
    """A smooth residual with a batch norm whose weight and bias are not trivial."""

    def __init__(self, width=3, norm=True):
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.linear = nn.Linear(width, width)
        if norm:
            nn.init.uniform_(self.norm.weight, 0.5, 1.5)
            nn.init.uniform_(self.norm.bias, -1, 1)
            nn.init.uniform_(self.norm.running_var, 0.5, 1.5)

    def forward(self, x):
        return torch.tanh(self.linear(self.norm(x)))


def block_of(basis, norm=True, seed=0, **knobs):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return OdeBlock(lambda: Unit(norm=norm), basis, **knobs).double()


def gradients(block, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])


@pytest.mark.parametrize("basis", NEW, **NAMES)
@loop("method", SCHEMES)
def test_a_block_is_a_loop_by_hand(basis, method):
    """The weights at every stage from ``evaluate``, one cell's interior at a time."""
    block = block_of(basis, norm=False, method=method, steps=12)
    scheme, h, x = SCHEMES[method], 1 / 12, randn(4, 3)

    def weight(name, s):
        return evaluate(
            basis, block.weights.stacks.get_parameter(name), torch.tensor([s], dtype=torch.float64)
        )[0]

    y = x
    for n in range(12):
        slopes = []
        for row, c in zip(scheme.a, scheme.c, strict=True):
            # A hair inside the step: both of its ends are read from within.
            s = (n + min(max(float(c), 1e-7), 1 - 1e-7)) * h
            z = y + h * sum(float(a) * k for a, k in zip(row, slopes, strict=False))
            slopes.append(torch.tanh(z @ weight("linear.weight", s).T + weight("linear.bias", s)))
        y = y + h * sum(float(b) * k for b, k in zip(scheme.b, slopes, strict=True))
    torch.testing.assert_close(block(x), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("basis", NEW, **NAMES)
@loop("train", [True, False])
def test_gradients_of_every_method(basis, train):
    """Checkpoint and an exact reconstruction are backprop; the norms' parameters take part."""
    block = block_of(basis, method="heun", steps=6).train(train)
    x = randn(8, 3, seed=3)
    expected = gradients(block, x)
    assert all(g.abs().max() > 0 for g in expected)
    for gradient in ("checkpoint", Reconstruct(every=1), Reconstruct(sweeps=40)):
        found = gradients(block.with_graph(gradient=gradient), x)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("basis", NEW, **NAMES)
def test_adjoint_converges_to_backprop(basis):
    block = block_of(basis, method="rk4", steps=96).eval()
    x = randn(8, 3, seed=3)
    found = gradients(block.with_graph(gradient="adjoint"), x)
    for one, other in zip(found, gradients(block, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("basis", NEW, **NAMES)
def test_dopri5_meets_a_fine_rk4(basis):
    block = block_of(basis, norm=False).with_graph(method="dopri5", rtol=1e-9, atol=1e-10)
    x = randn(4, 3)
    fine = block.with_graph(method="rk4", steps=240)
    torch.testing.assert_close(block(x), fine(x), rtol=0, atol=1e-7)


@pytest.mark.parametrize("basis", [*NEW, PiecewiseLinear(3)], **NAMES)
@loop("train", [True, False])
def test_refining_a_block_keeps_its_function(basis, train):
    """Norms too: one a cell, with the statistics of the cell, also while they are updated."""
    block = block_of(basis, method="rk4", steps=12).train(train)
    x = randn(8, 3, seed=4)
    before = block(x).detach()
    block = block_of(basis, method="rk4", steps=12).train(train)
    block.refine(steps=False)
    assert len(block.weights.stacks.norm.weight) == len(block.weights.stacks.norm.running_mean)
    assert len(block.weights.stacks.norm.weight) == 2 * basis.cells
    torch.testing.assert_close(block(x), before, rtol=0, atol=1e-12)


def test_norms_have_a_basis_of_their_own():
    block = block_of(Chebyshev(4, cells=3), steps=6)
    bases = {name: block.weights.bases()[p] for name, p in block.weights.stacks.named_parameters()}
    assert bases == {
        "norm.weight": PiecewiseConstant(3),
        "norm.bias": PiecewiseConstant(3),
        "linear.weight": Chebyshev(4, cells=3),
        "linear.bias": Chebyshev(4, cells=3),
    }
    plain = block_of(PiecewiseConstant(3), steps=6).weights
    assert set(plain.bases().values()) == {PiecewiseConstant(3)}
    untracked = OdeBlock(nn.BatchNorm1d(3, track_running_stats=False), PiecewiseLinear(2))
    assert set(untracked.weights.bases().values()) == {PiecewiseLinear(2)}


def test_a_norm_reads_the_cell_of_its_stage():
    """A field that is a norm's bias alone, over smooth weights: x(1) is its mean."""

    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(1)
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.norm(0 * x) + self.unused

    block = OdeBlock(Bias(), Chebyshev(2, cells=4), method="rk4", steps=8).double().eval()
    with torch.no_grad():
        block.weights.stacks.norm.bias.copy_(torch.tensor([1.0, 2.0, 4.0, 9.0]).unsqueeze(1))
        block.weights.stacks.unused.copy_(torch.tensor([5.0, 100.0]).unsqueeze(1))  # mean 5
    x = torch.zeros(1, 1, dtype=torch.float64)
    assert block(x).item() == pytest.approx(4.0 + 5.0, abs=1e-12)


@pytest.mark.parametrize("basis", ALL, **NAMES)
def test_an_instance_is_the_same_at_all_depths(basis):
    unit = Unit().double()
    weights = OdeBlock(unit, basis).weights
    for cell in range(basis.cells):
        found = weights.at(Place(cell, 0.3))
        for name, value in unit.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-14)


def test_projecting_a_block():
    """Weights are projected; norms and statistics are averaged; nothing is shared."""
    block = block_of(PiecewiseConstant(4), steps=4)
    block.weights.stacks.norm.num_batches_tracked.copy_(torch.tensor([5, 6, 7, 8]))
    fewer = block.project(PiecewiseConstant(2))
    assert (fewer.weights.basis, fewer.steps) == (PiecewiseConstant(2), 4)
    for name, value in block.weights.state_dict().items():
        now = fewer.weights.state_dict()[name]
        if value.is_floating_point():
            wanted = value.unflatten(0, (2, 2)).mean(1)
            torch.testing.assert_close(now, wanted, rtol=0, atol=1e-13)
    assert fewer.weights.stacks.norm.num_batches_tracked.tolist() == [5, 7]
    assert block.weights.basis == PiecewiseConstant(4)
    ids = {p.data_ptr() for p in block.parameters()}
    assert not ids & {p.data_ptr() for p in fewer.parameters()}
    fewer(randn(8, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in fewer.parameters())


def test_projection_into_a_finer_basis_keeps_the_function():
    block = block_of(PiecewiseLinear(2), method="rk4", steps=8).eval()
    x = randn(8, 3)
    for finer in (DiscontinuousLinear(4), PiecewiseLinear(6)):
        torch.testing.assert_close(block.project(finer)(x), block(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [PiecewiseConstant, 3, "hat"], **NAMES)
def test_projection_needs_a_basis(value):
    with pytest.raises(TypeError, match=r"basis: .* is not allowed; pass a basis"):
        block_of(PiecewiseConstant(2)).project(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chebyshev(0), "size: 0 is not allowed"),
        (lambda: Chebyshev(3, cells=0), "cells: 0 is not allowed"),
        (lambda: Fourier(4), "size: 4 is not allowed; it must be odd"),
        (lambda: DiscontinuousLinear(1.5), r"cells: 1\.5 is not allowed"),
        (lambda: evaluate(Chebyshev(3), randn(2), DEPTHS), r"coefficients: shape \(2,\)"),
        (lambda: evaluate(Chebyshev(2), randn(2), torch.tensor([1.1])), "s: .*1.1"),
        (lambda: project(randn(2), Chebyshev(3), Chebyshev(2)), r"coefficients: shape \(2,\)"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_blocks_of_a_model_in_order():
    first, second = block_of(Chebyshev(2)), block_of(Fourier(3))
    assert ode_blocks(nn.Sequential(first, nn.Sequential(second))) == [first, second]


@loop("cells", [3, 10, 100])
def test_single_precision_knots_belong_to_the_cell_on_their_right(cells: int) -> None:
    values = torch.arange(float(cells))
    found = evaluate(PiecewiseConstant(cells), values, torch.linspace(0, 1, cells + 1))
    assert torch.equal(found, torch.cat([values, values[-1:]]))


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"coefficients: torch\.int64 is not allowed"):
        evaluate(PiecewiseLinear(1), torch.tensor([0, 1]), DEPTHS)
    with pytest.raises(TypeError, match=r"coefficients: torch\.int64 is not allowed"):
        project(torch.tensor([0, 1]), PiecewiseLinear(1), PiecewiseConstant(2))


def test_a_norm_tied_to_another_parameter_is_one_a_cell_under_both_names():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.gain = self.norm.weight

        def forward(self, x):
            return self.gain * self.norm(x)

    block = OdeBlock(Tied(), Chebyshev(4, cells=2), steps=4)
    assert block.weights.stacks.gain.shape == (2, 3)
    block(randn(8, 3, dtype=torch.float32)).sum().backward()
    assert block.weights.stacks.gain.grad.abs().max() > 0
