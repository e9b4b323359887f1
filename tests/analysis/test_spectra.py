"""Power iteration against eigenvalues of dense Jacobians."""

import pytest
import torch
from fields import Tanh, randn

from companion.analysis.spectra import leading_eigenvalue, spectral_radius_along


def draws():
    return torch.Generator().manual_seed(0)


def linear(*blocks):
    """A field whose Jacobian has these blocks, in a basis that is not orthogonal."""
    middle = torch.block_diag(*(torch.tensor(b, dtype=torch.float64) for b in blocks))
    basis = torch.eye(len(middle), dtype=torch.float64) + 0.3 * randn(
        *middle.shape, device="cpu", seed=7
    )
    matrix = basis @ middle @ torch.linalg.inv(basis)
    return lambda t, y: y @ matrix.T


@pytest.mark.parametrize(
    ("blocks", "wanted"),
    [
        ([[[-5.0]], [[2.0]], [[1.0]]], -5 + 0j),
        ([[[1.0, -4.0], [4.0, 1.0]], [[2.0]], [[-1.5]]], 1 + 4j),
        ([[[-1.0, -0.1], [0.1, -1.0]], [[0.5]]], -1 + 0.1j),
        ([[[0.0, 9.0], [-9.0, 0.0]]], 9j),
    ],
)
def test_real_and_complex_leading_eigenvalues(blocks, wanted):
    """A rotation as a block makes plain power iteration turn for ever."""
    y = randn(3, sum(map(len, blocks)), device="cpu")
    found = leading_eigenvalue(linear(*blocks), 0.0, y, generator=draws())
    torch.testing.assert_close(found.value, torch.full((3,), wanted, dtype=torch.complex128))
    torch.testing.assert_close(found.radius, found.value.abs())
    assert found.residual.max() < 1e-7


def test_a_pair_of_opposite_signs_has_one_radius():
    found = leading_eigenvalue(
        linear([[3.0]], [[-3.0]], [[1.0]]), 0.0, randn(2, 3, device="cpu"), generator=draws()
    )
    torch.testing.assert_close(found.radius, torch.full((2,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(found.value.real.abs(), found.radius)


def test_three_eigenvalues_of_one_modulus_are_owned_up_to():
    """1, and exp(+-2 pi i / 3): no two-term recurrence fits, and the residual says so."""
    cycle = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    found = leading_eigenvalue(
        lambda t, y: y @ cycle.T, 0.0, randn(4, 3, device="cpu"), generator=draws()
    )
    assert found.residual.min() > 0.01


def test_rows_have_jacobians_of_their_own_along_a_trajectory():
    field = Tanh("cpu")
    ys = randn(4, 5, 3, device="cpu")
    times = [0.0, 0.3, 0.7, 1.0]
    found = spectral_radius_along(field, times, ys, generator=draws(), iterations=400)
    for k, t in enumerate(times):
        for row in range(5):
            dense = torch.func.jacrev(lambda y, t=t: field(t, y))(ys[k, row]).detach()
            wanted = torch.linalg.eigvals(dense).abs().max()
            assert found[k, row].item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_time_is_a_tensor_of_the_dtype_of_the_state():
    found = leading_eigenvalue(
        lambda t, y: y * t.expand(len(y), 1), 2.0, torch.ones(2, 1).double(), generator=draws()
    )
    assert found.radius.tolist() == [2.0, 2.0]


def test_a_constant_field_has_radius_zero():
    found = leading_eigenvalue(lambda t, y: 0 * y + 1, 0.0, torch.ones(2, 3), generator=draws())
    assert found.radius.tolist() == [0.0, 0.0]


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"y: shape \(3,\)"):
        leading_eigenvalue(lambda t, y: y, 0.0, torch.ones(3), generator=draws())
    with pytest.raises(ValueError, match="iterations: 2 is not allowed"):
        leading_eigenvalue(lambda t, y: y, 0.0, torch.ones(1, 3), generator=draws(), iterations=2)
    with pytest.raises(ValueError, match="t: 1 times"):
        spectral_radius_along(lambda t, y: y, [0.0], torch.ones(2, 1, 1), generator=draws())
