"""Traces against each other, torch.func's Jacobians and the theory of Hutchinson's estimate."""

import math

import pytest
import torch
from fields import gradients, largest_difference, randn
from torch import nn

from companion import odeint
from companion.models.planar_fields import PlanarField
from companion.models.row_check import check_rows
from companion.models.tanh_mlp import TanhMLP
from companion.models.traces import (
    batched_trace,
    exact_trace,
    hutchinson_trace,
    one_by_one_trace,
    random_normals,
)
from companion.running_costs import Moment, random_signs, solve_with_costs

T = torch.tensor(0.3, dtype=torch.float64)
EXACT = {"one by one": one_by_one_trace, "batched": batched_trace, "exact": exact_trace}


def tanh_field(d, hidden, **knobs):
    torch.manual_seed(0)
    return strong(TanhMLP(d, hidden, **knobs))


def strong(field):
    """Return a field in double precision with large weights, far from linear."""
    field = field.double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(2)
    return field


FIELDS = {
    "one layer": lambda d: tanh_field(d, (7,)),
    "two layers": lambda d: tanh_field(d, (7, 5)),
    "one layer, no time": lambda d: tanh_field(d, (7,), time=False, bias=False),
    "two layers, no time": lambda d: tanh_field(d, (5, 7), time=False),
    "planar": lambda d: strong(PlanarField(d, 6)),
}


def jacobians(field, x):
    """Return the Jacobian of each row by torch.func, and the trace of each."""
    found = torch.func.vmap(torch.func.jacrev(lambda row: field(T, row[None])[0]))(x)
    return found, found.diagonal(dim1=1, dim2=2).sum(1)


def moment(field, x):
    """Return what a running cost sees of a field, with a pull that can be differentiated."""
    y = x.detach().requires_grad_()
    velocity = field(T, y)

    def pull(v):
        return torch.autograd.grad(velocity, y, v, create_graph=True, retain_graph=True)[0]

    return Moment(T, y, velocity, pull)


@pytest.mark.parametrize("d", [1, 2, 5, 16, 20])
@pytest.mark.parametrize("name", FIELDS)
def test_all_traces_agree_and_have_the_same_gradients(name, d):
    torch.manual_seed(d)
    field, x = FIELDS[name](d), randn(4, d, device="cpu")
    wanted = jacobians(field, x)[1]
    assert wanted.abs().min() > 1e-3
    velocity, own = field.velocity_and_trace(T, x)
    torch.testing.assert_close(velocity, field(T, x), rtol=0, atol=1e-13)
    weights = randn(4, device="cpu", seed=5)
    slopes = gradients((own * weights).sum(), list(field.parameters()))
    wanted_slopes = gradients((wanted * weights).sum(), list(field.parameters()))
    torch.testing.assert_close(own, wanted, rtol=0, atol=1e-12)
    assert largest_difference(slopes, wanted_slopes) < 1e-12
    for trace in EXACT.values():
        found = trace(moment(field, x))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        found_slopes = gradients((found * weights).sum(), list(field.parameters()))
        assert largest_difference(found_slopes, wanted_slopes) < 1e-12


def test_states_of_several_axes():
    kernel = randn(2, 2, 3, 3, device="cpu")

    def field(t, x):
        return torch.tanh(nn.functional.conv2d(x, kernel, padding=1))

    x = randn(3, 2, 4, 3, device="cpu")
    full = torch.func.vmap(torch.func.jacrev(lambda row: field(T, row[None])[0].flatten()))(x)
    wanted = full.reshape(3, 24, 24).diagonal(dim1=1, dim2=2).sum(1)
    for trace in EXACT.values():
        torch.testing.assert_close(trace(moment(field, x)), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint", "reconstruct"])
@pytest.mark.parametrize("name", EXACT)
def test_traces_in_a_solve_with_any_gradient(name, gradient):
    """Batched products work where torch.func refuses: under the hooks of a first evaluation."""
    field, x = tanh_field(2, (4,)), randn(3, 2, device="cpu")
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(0.3)
    losses, slopes = [], []
    for used in ("backprop", gradient):
        ys, paid = solve_with_costs(
            field, x, [0.0, 1.0], {"trace": EXACT[name]}, method="rk4", steps=40, gradient=used
        )
        loss = paid["trace"][-1].sum() + ys[-1].square().sum()
        losses.append(loss.item())
        slopes.append(gradients(loss, list(field.parameters())))
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert largest_difference(*slopes) < (1e-6 if gradient in ("adjoint", "reconstruct") else 1e-12)


def matrix_moment(matrix, y):
    return Moment(T, y, y @ matrix.T, lambda v: v @ matrix)


@pytest.mark.parametrize("kind", ["signs", "normals"])
def test_hutchinson_is_unbiased_with_the_variance_of_theory(kind):
    n, matrix = 200_000, randn(4, 4, device="cpu", seed=7)
    y = torch.zeros(n, 4, dtype=torch.float64)
    draw = random_signs if kind == "signs" else random_normals
    values = hutchinson_trace(draw(y, torch.Generator().manual_seed(0)))(matrix_moment(matrix, y))
    s = (matrix + matrix.T) / 2
    variance = 2 * (s.square().sum() - (s.diagonal().square().sum() if kind == "signs" else 0))
    assert abs(values.mean() - matrix.trace()) < 4 * math.sqrt(variance / n)
    assert values.var().item() == pytest.approx(variance.item(), rel=0.05)


def test_signs_are_exact_for_diagonal_and_skew_jacobians():
    y = torch.zeros(5, 4, dtype=torch.float64)
    skew = randn(4, 4, device="cpu")
    matrix = torch.diag(randn(4, device="cpu", seed=2)) + skew - skew.T
    probe = random_signs(y, torch.Generator().manual_seed(1))
    found = hutchinson_trace(probe)(matrix_moment(matrix, y))
    torch.testing.assert_close(found, matrix.trace().expand(5), rtol=0, atol=1e-13)


def test_probes_follow_their_generator_and_the_state():
    y = torch.zeros(3, 2, dtype=torch.float64)
    one, same = (random_normals(y, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, same)
    assert one.dtype == torch.float64
    with pytest.raises(ValueError, match=r"probe: shape \(3, 1\) is not allowed"):
        hutchinson_trace(one[:, :1])(matrix_moment(torch.eye(2, dtype=torch.float64), y))


class Named(nn.Module):
    """A module of the state alone as a field of time and state."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, t, x):
        return self.inner(x)


class Next(nn.Module):
    """One row, and only that one, reads one other."""

    def __init__(self, reader, read):
        super().__init__()
        self.reader, self.read = reader, read

    def forward(self, t, x):
        kept = torch.zeros_like(x)
        kept[self.reader] = x[self.read]
        return x + kept


@pytest.mark.parametrize("rows", [2, 3, 6])
def test_any_single_dependence_of_rows_is_found(rows):
    x = randn(rows, 2, device="cpu")
    for reader in range(rows):
        for read in range(rows):
            if reader == read:
                check_rows(Next(reader, read), T, x)
                continue
            with pytest.raises(ValueError, match="field: rows depend on each other"):
                check_rows(Next(reader, read), T, x)


def test_batch_norm_is_refused_in_training_only_and_left_as_it_was():
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).double()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = randn(5, 2, device="cpu")
    with pytest.raises(ValueError, match="batch norm in training mode"):
        check_rows(Named(net), T, x)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    check_rows(Named(net.eval()), T, x)


def test_a_dependence_that_sums_to_zero_over_a_row_is_found():
    """A combination with equal weights would not see it."""

    def field(t, x):
        shared = x[:, 0].mean().expand(len(x))
        return torch.stack([shared, -shared], 1)

    with pytest.raises(ValueError, match="rows depend"):
        check_rows(field, T, randn(4, 2, device="cpu"))


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Identity()])
def test_norms_of_single_rows_pass(norm):
    check_rows(Named(norm.double()), T, randn(6, 4, device="cpu"))


def test_noise_from_any_generator_is_refused():
    draw, x = torch.Generator().manual_seed(0), randn(3, 2, device="cpu")
    for field in (
        lambda t, x: x + torch.randn(x.shape, generator=draw, dtype=x.dtype),
        Named(nn.Dropout(0.5)),
    ):
        with pytest.raises(ValueError, match="field: two evaluations at one place differ"):
            check_rows(field, T, x)
    check_rows(Named(nn.Dropout(0.5).eval()), T, x)


def test_fields_without_a_graph_pass():
    check_rows(lambda t, x: torch.ones_like(x), T, randn(3, 2, device="cpu"))
    check_rows(lambda t, x: -x, T, torch.zeros(0, 2))


def test_planar_field_is_the_sum_that_the_paper_writes():
    field = strong(PlanarField(3, 4))
    x = randn(2, 3, device="cpu")
    made = field.weights(T.reshape(1, 1)).reshape(4, 8)
    wanted = torch.zeros_like(x)
    for unit in made:
        w, u, b, gate = unit[:3], unit[3:6], unit[6], unit[7]
        wanted += torch.sigmoid(gate) * u * torch.tanh(x @ w + b)[:, None]
    torch.testing.assert_close(field(T, x), wanted, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"t: shape \(2, 1\) is not allowed"):
        field(torch.zeros(2, 1, dtype=torch.float64), x)


def test_planar_gates_switch_units_off():
    field = PlanarField(2, 3).double()
    with torch.no_grad():
        field.weights[2].weight.zero_()
        field.weights[2].bias.reshape(3, 6)[:, 5] = -1e3
    velocity, trace = field.velocity_and_trace(T, randn(4, 2, device="cpu"))
    assert not velocity.any()
    assert not trace.any()


def test_parameter_counts_and_bad_sizes():
    def count(field):
        return sum(p.numel() for p in field.parameters())

    assert [count(PlanarField(2, units)) for units in (2, 8, 32)] == [236, 848, 3296]
    assert count(TanhMLP(2, (32,), time=False, bias=False)) == 5 * 32  # M planar units
    with pytest.raises(ValueError, match="units: 0 is not allowed"):
        PlanarField(2, 0)
    for hidden in ((), (3, 3, 3)):
        with pytest.raises(ValueError, match="it must hold one or two sizes"):
            TanhMLP(2, hidden)
    with pytest.raises(ValueError, match="hidden: 0 is not allowed"):
        TanhMLP(2, (3, 0))


def test_fields_run_in_single_precision():
    for field in (TanhMLP(3, (4, 4)), PlanarField(3, 4)):
        x = randn(5, 3, device="cpu", dtype=torch.float32)
        assert odeint(field, x, [0.0, 1.0], method="rk4", steps=2).dtype == torch.float32
        assert field.velocity_and_trace(T.float(), x)[1].dtype == torch.float32
