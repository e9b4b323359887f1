"""Power iteration against eigenvalues of dense Jacobians."""

import pytest
import torch
from fields import Tanh, randn

from companion.analysis.spectra import leading_eigenvalue, spectral_radius_along
from companion.models import TanhMLP
from companion.train import seeded


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


@pytest.mark.parametrize(
    ("dtype", "apart", "most"), [(torch.float32, 0.95, 1e-3), (torch.bfloat16, 0.7, 0.1)]
)
def test_rounding_makes_no_eigenvalue(dtype, apart, most):
    """In low precision a converged vector leaves noise, whose root may be the larger one."""
    for seed in (0, 12, 15, 31):
        with seeded(seed):
            field = TanhMLP(4, (32, 32)).requires_grad_(False)
        for p in field.parameters():
            p *= 3
        y = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
        generator = torch.Generator().manual_seed(1)
        found = leading_eigenvalue(field.to(dtype), 0.3, y, generator=generator, iterations=200)
        t, exact = torch.tensor(0.3, dtype=dtype).double(), field.double()
        dense = torch.func.vmap(torch.func.jacrev(lambda z, t=t, f=exact: f(t, z[None])[0]))
        for row, values in enumerate(torch.linalg.eigvals(dense(y.double()))):
            values = values[values.abs().argsort(descending=True)]
            next_one = values[1 if values[0].imag == 0 else 2]
            if next_one.abs() < apart * values[0].abs():
                wanted = torch.complex(values[0].real, values[0].imag.abs())
                assert abs(found.value[row] - wanted) < most * found.radius[row], (seed, row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("factor", [-3.3, 1e30, -1e-30])
def test_a_multiple_of_the_state_whatever_its_size(dtype, factor):
    y = torch.randn(5, 7, generator=draws()).to(dtype)
    found = leading_eigenvalue(lambda t, y: factor * y, 0.0, y, generator=draws())
    wanted = torch.full((5,), factor, dtype=torch.complex128)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.value, wanted, rtol=4 * eps, atol=0.0)
    assert found.residual.max() < 8 * eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rotation_in_low_precision(dtype):
    turn = torch.tensor([[0.0, -3.0], [3.0, 0.0]], dtype=dtype)
    y = torch.ones(4, 2, dtype=dtype)
    found = leading_eigenvalue(lambda t, y: y @ turn.T, 0.0, y, generator=draws())
    assert (found.value - 3j).abs().max() < 8 * torch.finfo(dtype).eps
