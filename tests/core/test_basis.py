"""Bases of depth: exact locations, partitions of unity, refinement that keeps the function."""

from fractions import Fraction

import pytest
import torch
from examples import REPEATABLE
from hypothesis import example, given
from hypothesis import strategies as st

from companion import Constant, PiecewiseConstant, PiecewiseLinear
from companion.basis import Place, locate
from companion.schemes import SCHEMES

STAGE_TIMES = sorted({c for scheme in SCHEMES.values() for c in scheme.c})


@st.composite
def points(draw):
    steps = draw(st.integers(1, 60))
    step = draw(st.integers(0, steps - 1))
    denominator = draw(st.integers(1, 12))
    c = Fraction(draw(st.integers(0, denominator)), denominator)
    return step, steps, c, draw(st.integers(1, 60))


@REPEATABLE
@given(points())
@example((0, 1, Fraction(1), 1))
@example((48, 49, Fraction(1), 49))  # 49 * (1 / 49) is not 1 in floating point
@example((0, 2, Fraction(1, 2), 4))
def test_locate_agrees_with_a_search_through_all_cells(point):
    """By brute force on exact fractions: the cell that holds the point, seen from the step."""
    step, steps, c, cells = point
    s = (step + c) / Fraction(steps)
    if c == 1:  # the limit from inside the step: (k / M, (k + 1) / M]
        (cell,) = [k for k in range(cells) if Fraction(k, cells) < s <= Fraction(k + 1, cells)]
    else:  # [k / M, (k + 1) / M)
        (cell,) = [k for k in range(cells) if Fraction(k, cells) <= s < Fraction(k + 1, cells)]
    place = locate(step, steps, c, cells)
    assert place.cell == cell
    assert place.local == float(s * cells - cell)
    assert 0.0 <= place.local <= 1.0


@REPEATABLE
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_no_stage_leaves_its_cell_on_an_aligned_grid(cells, substeps, data):
    """With a whole number of steps in each cell, all stages of a step read that cell."""
    steps = cells * substeps
    step = data.draw(st.integers(0, steps - 1))
    for c in STAGE_TIMES:
        assert locate(step, steps, c, cells).cell == step // substeps


@REPEATABLE
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_locations_mirror_when_time_turns_round(steps, cells, data):
    """Step n read at 1 - c is the mirror image of step N - 1 - n read at c, inside cells."""
    step = data.draw(st.integers(0, steps - 1))
    for c in STAGE_TIMES:
        if c not in (0, 1):
            continue
        one = locate(step, steps, c, cells)
        other = locate(steps - 1 - step, steps, 1 - c, cells)
        assert one.cell == cells - 1 - other.cell
        assert one.local == pytest.approx(1 - other.local, abs=1e-15)


BASES = [Constant(), PiecewiseConstant(1), PiecewiseConstant(5), PiecewiseLinear(1),
         PiecewiseLinear(5)]  # fmt: skip


@pytest.mark.parametrize("basis", BASES, ids=repr)
def test_weights_are_a_partition_of_unity_with_indices_in_range(basis):
    for cell in range(basis.cells):
        for local in (0.0, 0.2, 0.5, 1.0):
            pairs = basis.at(Place(cell, local))
            assert sum(w for _, w in pairs) == 1.0
            assert all(0 <= k < basis.size for k, _ in pairs)
            assert len({k for k, _ in pairs}) == len(pairs)


def evaluate(basis, coefficients, cell, local):
    return sum(w * coefficients[k] for k, w in basis.at(Place(cell, local)))


def test_values_of_each_basis_by_hand(device, dtype):
    theta = torch.tensor([1.0, 5.0, 7.0], device=device, dtype=dtype)
    assert evaluate(Constant(), theta, 0, 0.7).item() == 1.0
    assert evaluate(PiecewiseConstant(3), theta, 1, 1.0).item() == 5.0
    assert evaluate(PiecewiseConstant(3), theta, 2, 0.0).item() == 7.0
    linear = PiecewiseLinear(2)
    ends = [evaluate(linear, theta, *place).item() for place in ((0, 0.0), (0, 1.0), (1, 1.0))]
    assert ends == [1.0, 5.0, 7.0]
    assert evaluate(linear, theta, 0, 0.25).item() == 2.0
    assert evaluate(linear, theta, 1, 0.75).item() == 6.5


@pytest.mark.parametrize("basis", [Constant(), PiecewiseConstant(4), PiecewiseLinear(4)], ids=repr)
def test_sizes(basis):
    expected = {Constant: (1, 1), PiecewiseConstant: (4, 4), PiecewiseLinear: (4, 5)}
    assert (basis.cells, basis.size) == expected[type(basis)]


@pytest.mark.parametrize("make", [PiecewiseConstant, PiecewiseLinear])
@REPEATABLE
@given(st.integers(1, 6), st.integers(0, 2**31), st.floats(0, 1))
def test_refining_keeps_the_function(make, cells, seed, local):
    """At every point of either half, for tensors of several axes; exactly where it is constant."""
    basis = make(cells)
    shape = (basis.size, 2, 3)
    theta = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    finer, refined = basis.refined(), basis.refine(theta)
    assert isinstance(finer, make)
    assert finer.cells == 2 * cells
    assert refined.shape == (finer.size, 2, 3)
    for cell in range(2 * cells):
        now = evaluate(finer, refined, cell, local)
        before = evaluate(basis, theta, cell // 2, (cell % 2 + local) / 2)
        if make is PiecewiseConstant:
            assert torch.equal(now, before)
        else:
            torch.testing.assert_close(now, before, rtol=1e-14, atol=1e-14)


def test_refined_coefficients_own_their_memory(device):
    """A split that shares memory would train two cells as one."""
    theta = torch.tensor([1.0, 2.0], device=device)
    refined = PiecewiseConstant(2).refine(theta)
    refined[0] = 9.0
    assert refined.tolist() == [9.0, 1.0, 2.0, 2.0]
    assert theta.tolist() == [1.0, 2.0]


def test_a_constant_cannot_be_refined():
    with pytest.raises(TypeError, match=r"Constant has no cells.*PiecewiseConstant\(cells=1\)"):
        Constant().refined()


@pytest.mark.parametrize("make", [PiecewiseConstant, PiecewiseLinear])
@pytest.mark.parametrize("cells", [0, -2, 1.0, "3", None, True], ids=repr)
def test_cells_must_be_a_positive_integer(make, cells):
    with pytest.raises(ValueError, match=r"cells: .* must be an integer") as caught:
        make(cells)
    assert repr(cells) in str(caught.value)
