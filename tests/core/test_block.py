"""The block: a residual stack bit for bit, orders over jumping weights, refinement, state."""

import copy
import gc
import io
import math

import pytest
import torch
from fields import gradients, knobs, largest_difference, needs_compile, randn
from loops import loop
from torch import nn

from companion import Constant, OdeBlock, PiecewiseConstant, PiecewiseLinear, odeint
from companion.basis import Place
from companion.block import DepthField
from companion.gradients import Adjoint, Checkpoint
from companion.observe import count_nfe, fit_slope, saved_bytes
from companion.schemes import SCHEMES

FIXED = pytest.mark.parametrize("method", list(SCHEMES))
BEST = max(SCHEMES, key=lambda name: SCHEMES[name].order)  # what references are computed with
EVERY = pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint", "reconstruct"])
TRAIN = loop("train", [True, False])


class Unit(nn.Module):
    """A convolutional residual unit with batch norm."""

    def __init__(self, channels=3, norm=True):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv2(torch.relu(self.conv1(self.norm(x))))


class Smooth(nn.Module):
    """A small smooth residual that depends on time: tanh(W x + b) (1 + t / 2)."""

    def __init__(self, width=3, dtype=torch.float64):
        super().__init__()
        self.linear = nn.Linear(width, width, dtype=dtype)

    def forward(self, t, x):
        return torch.tanh(self.linear(x)) * (1 + t / 2)


def seeded(make, count, device, dtype=torch.float64, seed=0):
    """Return modules with fresh values and, where they have any, fresh running statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules = [make() for _ in range(count)]
        for module in modules:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    buffer.uniform_(0.5, 1.5)
    return [m.to(device, dtype) for m in modules]


def jumping(basis, device, method="rk4", steps=4, gradient="backprop", seed=0, **keywords):
    """Return a block of smooth time-dependent residuals with unrelated weights everywhere."""
    return OdeBlock.from_modules(
        seeded(Smooth, basis.size, device, seed=seed), basis, method=method,
        gradient=gradient, time=True, **knobs(method, steps=steps), **keywords,
    )  # fmt: skip


# --- a residual network, bit for bit --------------------------------------------------------------


@loop("scale", [1.0, 5.0, 0.3])  # 1, N, another
@pytest.mark.parametrize("low", [torch.float32, torch.float64], ids=str)
@TRAIN
def test_euler_with_a_cell_a_step_is_the_plain_stack_bit_for_bit(scale, low, train, device):
    """Outputs, the gradients of the input and of every parameter, and the statistics."""
    n = 5
    units = [u.train(train) for u in seeded(Unit, n, device, low)]
    block = OdeBlock.from_modules(copy.deepcopy(units), scale=scale).train(train)
    data = randn(4, 3, 6, 6, device=device, dtype=low)
    x, z = data.clone().requires_grad_(), data.clone().requires_grad_()
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        y = x
        for unit in units:
            y = y + (scale / n) * unit(y)
        out = block(z)
        assert torch.equal(out, y)
        weights = randn(*y.shape, device=device, dtype=low, seed=2)
        (y * weights).sum().backward()
        (out * weights).sum().backward()
    assert torch.equal(z.grad, x.grad)
    stacked = dict(block.weights.stacks.named_parameters())
    for name, _ in units[0].named_parameters():
        plain = torch.stack([unit.get_parameter(name).grad for unit in units])
        assert torch.equal(stacked[name].grad, plain)
    for name, buffer in block.weights.stacks.named_buffers():
        assert torch.equal(buffer, torch.stack([unit.get_buffer(name) for unit in units]))


def test_the_classic_residual_network_is_scale_n(device):
    """x + R(x), without a factor, for a number of layers whose reciprocal is not exact."""
    units = seeded(lambda: Unit(norm=False), 7, device)
    block = OdeBlock.from_modules(units, scale=7)
    x = y = randn(2, 3, 5, 5, device=device)
    for unit in units:
        y = y + unit(y)
    assert torch.equal(block(x), y)


@FIXED
@loop("basis", [Constant(), PiecewiseConstant(3)])
def test_every_scheme_is_odeint_over_a_hand_written_field(method, basis, device):
    """``scale`` multiplies the field and not the time, which runs over [0, 1]."""
    block = jumping(basis, device, method=method, steps=6, scale=2.5)
    modules = seeded(Smooth, basis.size, device)
    y = x = randn(4, 3, device=device)
    cells = basis.cells
    for k, module in enumerate(modules):
        y = odeint(
            lambda t, y, f=module: 2.5 * f(t, y), y, [k / cells, (k + 1) / cells], method=method,
            steps=6 // cells,
        )[-1]  # fmt: skip
    torch.testing.assert_close(block(x), y, rtol=1e-13, atol=1e-13)


def test_without_time_the_residual_gets_the_state_alone(device):
    block = OdeBlock(nn.Linear(3, 3).to(device, torch.float64), method="rk4", steps=3)
    x = randn(2, 3, device=device)
    assert block(x).shape == x.shape
    block.time = True
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        block(x)


# --- orders over weights that jump ----------------------------------------------------------------


def errors(block, grid, reference, x, wanted="value"):
    """Return the errors of a block's value, or of its gradients, over numbers of steps."""
    found = []
    for steps in grid:
        view = block.with_graph(steps=steps)
        if wanted == "value":
            found.append((view(x) - reference).norm().item())
        else:
            pairs = zip(block_gradients(view, x), reference, strict=True)
            found.append(sum((a - b).norm().item() for a, b in pairs))
    return found


def block_gradients(block, x):
    z = x.clone().requires_grad_()
    y = block(z)
    return gradients((y * randn(*y.shape, device=x.device, seed=9)).sum(), [z, *block.parameters()])


CELLS = 4
COARSE = [32, 48, 64]


def aligned(order):
    """Steps that fit the cells, where a scheme of this order errs by more than rounding."""
    if order == 1:
        return [64, 96, 128]
    return COARSE if order < 4 else [16, 24, 32]


@FIXED
def test_orders_survive_jumping_weights_on_an_aligned_grid(method, device):
    block = jumping(PiecewiseConstant(CELLS), device, method=method)
    x = randn(4, 3, device=device)
    reference = block.with_graph(method=BEST, steps=512)(x)
    order = SCHEMES[method].order
    grid = aligned(order)
    slope = fit_slope(grid, errors(block, grid, reference, x))
    assert slope.value == pytest.approx(-order, abs=0.1)


@pytest.mark.parametrize("method", ["heun", "kutta3", "rk4", "rk4_38"])
def test_naive_stages_lose_the_order(method, device, monkeypatch):
    """Read right-continuously, the stage at a step's far end mixes the next cell's weights in."""

    def naive(self, stage):
        s = (stage.step + stage.c) * self.basis.cells / stage.steps
        cell = min(math.floor(s), self.basis.cells - 1)
        return Place(cell, float(s - cell))

    block = jumping(PiecewiseConstant(CELLS), device, method=method)
    x = randn(4, 3, device=device)
    reference = block.with_graph(method=BEST, steps=512)(x)
    monkeypatch.setattr(DepthField, "_place", naive)
    slope = fit_slope(aligned(4), errors(block, aligned(4), reference, x))
    assert slope.value == pytest.approx(-1, abs=0.1)


@FIXED
def test_the_adjoint_keeps_the_order_over_jumping_weights(method, device):
    """Its backward solve meets every knot from the other side."""
    block = jumping(PiecewiseConstant(CELLS), device, method=method, gradient="adjoint")
    x = randn(4, 3, device=device)
    reference = block_gradients(block.with_graph(method=BEST, steps=512, gradient="backprop"), x)
    order = SCHEMES[method].order
    grid = aligned(order)
    slope = fit_slope(grid, errors(block, grid, reference, x, "gradients"))
    assert slope.value == pytest.approx(-order, abs=0.1)


@pytest.mark.parametrize("method", ["midpoint", "heun", "rk4", "rk4_38"])
def test_every_scheme_is_first_order_on_an_unaligned_grid(method, device):
    """A knot inside a step: N = 3 k + 1 puts both of them a third into theirs."""
    block = jumping(PiecewiseConstant(3), device, method=method)
    x = randn(4, 3, device=device)
    reference = block.with_graph(method=BEST, steps=768)(x)
    grid = [16, 25, 40, 64, 100, 160]
    slope = fit_slope(grid, errors(block, grid, reference, x))
    assert slope.value == pytest.approx(-1, abs=0.15)


@FIXED
def test_nodal_weights_cost_orders_above_two_on_an_unaligned_grid(method, device):
    """Knots k / 5 into a step; at a third Simpson's weights would meet a kink exactly."""
    block = jumping(PiecewiseLinear(5), device, method=method)
    x = randn(4, 3, device=device)
    reference = block.with_graph(method=BEST, steps=768)(x)
    grid = [16, 26, 41, 66, 101, 161]
    slope = fit_slope(grid, errors(block, grid, reference, x))
    assert slope.value == pytest.approx(-min(SCHEMES[method].order, 2), abs=0.15)


@FIXED
def test_nodal_weights_keep_every_order_on_an_aligned_grid(method, device):
    block = jumping(PiecewiseLinear(CELLS), device, method=method)
    x = randn(4, 3, device=device)
    reference = block.with_graph(method=BEST, steps=512)(x)
    order = SCHEMES[method].order
    grid = aligned(1) if order == 1 else COARSE
    slope = fit_slope(grid, errors(block, grid, reference, x))
    assert slope.value == pytest.approx(-order, abs=0.15)


# --- gradients ------------------------------------------------------------------------------------

BASES = [Constant(), PiecewiseConstant(3), PiecewiseLinear(3)]


@FIXED
@loop("basis", BASES)
@loop("gradient", ["checkpoint", Checkpoint(every=4)])
def test_checkpoint_is_backprop(method, basis, gradient, device):
    block = jumping(basis, device, method=method, steps=5)
    x = randn(4, 3, device=device)
    found = block_gradients(block.with_graph(gradient=gradient), x)
    for one, other in zip(found, block_gradients(block, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@FIXED
@loop("basis", BASES)
def test_backprop_is_right_by_finite_differences(method, basis, device):
    """Steps that do not divide the cells; every entry of every stacked parameter."""
    block = jumping(basis, device, method=method, steps=4)
    x = randn(2, 3, device=device)
    names = [name for name, _ in block.named_parameters()]

    def solve(x, *values):
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

    values = [p.detach().clone().requires_grad_() for p in block.parameters()]
    assert torch.autograd.gradcheck(solve, (x.requires_grad_(), *values), fast_mode=True)


ADAPTIVE = {
    "dopri5": {"rtol": 1e-9, "atol": 1e-10},
    "implicit_adams": {"rtol": 1e-9, "atol": 1e-10, "steps": 20},
    "scipy_solver": {"rtol": 1e-9, "atol": 1e-10},
}


@pytest.mark.parametrize("method", list(ADAPTIVE))
@loop("basis", BASES)
def test_library_methods_solve_cell_by_cell(method, basis, device):
    """Values and adjoint gradients meet a fine rk4: both nodes of a cell get their share."""
    options = ADAPTIVE[method]
    block = jumping(basis, device, method=method, gradient="adjoint", **options)
    fine = block.with_graph(method="rk4", steps=240, gradient="backprop")
    x = randn(4, 3, device=device)
    torch.testing.assert_close(block(x), fine(x), rtol=0, atol=1e-7)
    for one, other in zip(block_gradients(block, x), block_gradients(fine, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_backprop_through_an_adaptive_block(device):
    block = jumping(PiecewiseConstant(3), device, method="dopri5", rtol=1e-9, atol=1e-10)
    fine = block.with_graph(method="rk4", steps=240)
    x = randn(4, 3, device=device)
    for one, other in zip(block_gradients(block, x), block_gradients(fine, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


@loop("basis", BASES)
@pytest.mark.parametrize(
    ("forward", "backward"), [("dopri5", "rk4"), ("rk4", "rk4_38"), ("dopri5", "implicit_adams")]
)
def test_the_adjoint_may_use_another_method_backwards(basis, forward, backward, device):
    """A fixed grid inside each cell of an adaptive solve must read that cell."""
    gradient = Adjoint(method=backward, steps=120)
    options = knobs(forward, rtol=1e-8, atol=1e-9)
    block = jumping(basis, device, method=forward, steps=120, gradient=gradient, **options)
    fine = block.with_graph(method="rk4", steps=240, gradient="backprop")
    x = randn(4, 3, device=device)
    for one, other in zip(block_gradients(block, x), block_gradients(fine, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_an_adaptive_adjoint_of_a_fixed_grid_needs_one_cell(device):
    """Over several it would step across the jumps; over one there is nothing to cross."""
    x = randn(4, 3, device=device)
    block = jumping(Constant(), device, steps=120, gradient=Adjoint(method="dopri5"))
    found = block_gradients(block, x)
    expected = block_gradients(block.with_graph(gradient="backprop"), x)
    assert largest_difference(found, expected) < 1e-6
    block = jumping(PiecewiseConstant(2), device, steps=120, gradient=Adjoint(method="dopri5"))
    with pytest.raises(ValueError, match=r"Adjoint\(method='dopri5'\) would step across"):
        block(x)


@EVERY
def test_cells_no_stage_reads_get_zero_gradients(gradient, device):
    """Two Euler steps over four cells read the first and the third only.

    The adjoint's steps start from the other end: it reads the second and the fourth.
    """
    block = jumping(PiecewiseConstant(4), device, method="euler", steps=2, gradient=gradient)
    block(randn(2, 3, device=device)).sum().backward()
    touched = block.weights.stacks.linear.weight.grad.flatten(1).any(dim=1)
    expected = [True, False, True, False]
    assert touched.tolist() == (expected[::-1] if gradient == "adjoint" else expected)


class Tied(nn.Module):
    """One parameter under two names, one frozen, one unused, one non-persistent buffer."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("shift", torch.full((3,), 0.5), persistent=False)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x * self.frozen) + self.shift))


@EVERY
def test_tied_frozen_and_unused_parameters(gradient, device):
    n = 3
    units = seeded(Tied, n, device)
    block = OdeBlock.from_modules(copy.deepcopy(units), gradient=gradient)
    x = randn(2, 3, device=device)
    y = x
    for unit in units:
        y = y + (1 / n) * unit(y)
    out = block(x)
    assert torch.equal(out, y)
    y.sum().backward()
    out.sum().backward()
    if gradient in ("adjoint", "reconstruct"):
        return  # its values differ by O(1 / N); tied weights are compared in the next test
    for name in ("a.weight", "b.weight", "b.bias"):
        expected = torch.stack([unit.get_parameter(name).grad for unit in units])
        found = block.weights.stacks.get_parameter(name).grad
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert block.weights.stacks.a.weight is block.weights.stacks.b.weight
    assert block.weights.stacks.frozen.grad is None
    assert block.weights.stacks.unused.grad is None or not block.weights.stacks.unused.grad.any()


def test_the_adjoint_sums_the_uses_of_a_tied_parameter(device):
    block = OdeBlock.from_modules(seeded(Tied, 3, device), method="rk4", steps=60)
    x = randn(2, 3, device=device)
    pair = []
    for gradient in ("backprop", "adjoint"):
        y = block.with_graph(gradient=gradient)(x)
        pair.append(
            gradients(y.sum(), [block.weights.stacks.a.weight, block.weights.stacks.b.bias])
        )
    assert largest_difference(*pair) < 1e-7


@FIXED
def test_batch_norm_sees_the_forward_sweep_only(method, device):
    """Statistics bit for bit as under backprop, one update for each evaluation of its cell."""
    found, stages = {}, SCHEMES[method].stages
    for name in ("backprop", "checkpoint", "adjoint", "reconstruct"):
        block = OdeBlock.from_modules(
            seeded(Unit, 2, device), method=method, steps=4, gradient=name
        )
        for key, buffer in block.named_buffers():
            if key.endswith("num_batches_tracked"):
                buffer.zero_()
        y = block(randn(4, 3, 6, 6, device=device))
        before = {k: v.clone() for k, v in block.named_buffers()}
        y.sum().backward()
        for key, buffer in block.named_buffers():
            assert torch.equal(buffer, before[key]), (name, key)
        found[name] = before
    for name, buffers in found.items():
        for key, buffer in found["backprop"].items():
            assert torch.equal(buffers[key], buffer), (name, key)
        counts = buffers["weights.stacks.norm.num_batches_tracked"]
        assert counts.tolist() == [2 * stages] * 2, name


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint", "reconstruct"])
def test_batch_norm_gradients_are_those_of_batch_statistics(gradient, device):
    """A recomputation in eval mode would use running statistics instead."""
    block = OdeBlock.from_modules(
        seeded(lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Tanh()), 2, device),
        method="rk4", steps=40,
    )  # fmt: skip
    x = randn(8, 3, device=device)
    pair = [block_gradients(block.with_graph(gradient=g), x) for g in ("backprop", gradient)]
    assert largest_difference(*pair) < (1e-11 if gradient == "checkpoint" else 1e-6)


@pytest.mark.parametrize("every", [1, 3])
def test_dropout_under_checkpoint_is_backprops(every, device):
    layers = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), 4, device)
    block = OdeBlock.from_modules(layers, method="heun")
    x = randn(4, 3, device=device)
    pair = []
    for gradient in ("backprop", Checkpoint(every=every)):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            pair.append(block_gradients(block.with_graph(gradient=gradient), x))
    assert largest_difference(*pair) < 1e-12
    with pytest.raises(ValueError, match="draws random numbers"):
        block.with_graph(gradient="adjoint")(x)
    block.eval()
    block.with_graph(gradient="adjoint")(x)


@EVERY
def test_autocast_trains_weights_and_what_follows(gradient, device):
    """bfloat16 inside, float32 outside, and the same weights used again in the same context."""
    found = {}
    for name in ("backprop", gradient):
        block = OdeBlock.from_modules(
            seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh()), 4, device, torch.float32),
            method="rk4", gradient=name,
        )  # fmt: skip
        x = randn(8, 3, device=device, dtype=torch.float32).requires_grad_()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            y = block(x)
            (weight, _) = block.parameters()
            again = (y @ weight[0].T).float()
        assert y.dtype == torch.float32
        found[name] = gradients(again.square().sum(), [x, *block.parameters()])
    for one, other in zip(found[gradient], found["backprop"], strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=5e-2, atol=5e-2)


def test_the_adjoint_keeps_the_output_alone(device):
    """Bytes beside input and weights: the same for every number of steps."""
    x = randn(64, 3, device=device).requires_grad_()
    totals = []
    for steps in (4, 16, 256):
        block = jumping(PiecewiseConstant(4), device, steps=steps, gradient="adjoint")
        with saved_bytes(exclude=[x, *block.parameters()]) as saved:
            block(x)
        totals.append(saved.total)
    assert totals[0] == totals[1] == totals[2] <= 4 * 64 * 3 * 8


# --- refinement -----------------------------------------------------------------------------------


@FIXED
@TRAIN
def test_splitting_constant_cells_changes_no_bit(method, train, device):
    """At a fixed number of steps; the gradients of the halves add up to those of the whole."""
    block = OdeBlock.from_modules(seeded(Unit, 3, device), method=method, steps=12).train(train)
    x = randn(4, 3, 6, 6, device=device)
    before = copy.deepcopy(block)
    y = block(x)
    block = copy.deepcopy(before)
    block.refine(steps=False)
    assert (block.weights.basis, block.steps) == (PiecewiseConstant(6), 12)
    z = block(x)
    assert torch.equal(z, y)
    whole = before(x)
    y = gradients(whole.sum(), list(before.parameters()))
    z = gradients(z.sum(), list(block.parameters()))
    for one, halves in zip(y, z, strict=True):
        torch.testing.assert_close(halves[::2] + halves[1::2], one, rtol=1e-10, atol=1e-11)


@FIXED
def test_splitting_nodal_weights_changes_rounding_only(method, device):
    block = jumping(PiecewiseLinear(3), device, method=method, steps=8)
    x = randn(4, 3, device=device)
    y = block(x)
    block.refine(steps=False)
    assert block.weights.basis == PiecewiseLinear(6)
    torch.testing.assert_close(block(x), y, rtol=0, atol=1e-12)


def test_refining_doubles_cells_and_this_blocks_steps(device):
    block = jumping(PiecewiseConstant(2), device, method="heun", steps=2)
    x = randn(4, 3, device=device)
    finer = block.with_graph(steps=4)(x)
    view = block.with_graph(method="rk4")
    block.refine()
    assert (block.steps, view.steps) == (4, 2)
    assert torch.equal(block(x), finer)
    assert view.weights is block.weights
    assert view.weights.basis == PiecewiseConstant(4)
    view(x)


def test_parameters_keep_their_identity_and_train_on(device):
    """Also under a graph that is still alive: autograd remembers shapes."""
    block = jumping(PiecewiseConstant(2), device)
    parameters, x = list(block.parameters()), randn(4, 3, device=device)
    y = block(x)
    y.sum().backward(retain_graph=True)
    block.refine()
    assert all(p is q for p, q in zip(parameters, block.parameters(), strict=True))
    assert all(p.grad is None for p in parameters)
    z = block(x)
    z.sum().backward()
    assert [p.grad.shape for p in parameters] == [(4, 3, 3), (4, 3)]
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    optimizer.step()
    halves = block.weights.stacks.linear.weight
    assert not torch.equal(halves[0], halves[1])  # the halves are free of each other
    assert y.requires_grad  # the old graph was alive all along


@pytest.mark.parametrize("low", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_refining_keeps_dtype_and_requirement(low, device):
    block = OdeBlock(nn.Linear(2, 2).to(device, low), PiecewiseConstant(1))
    block.weights.stacks.bias.requires_grad_(False)
    block.refine()
    assert [p.dtype for p in block.parameters()] == [low, low]
    assert [p.requires_grad for p in block.parameters()] == [True, False]


def test_statistics_of_the_halves_are_copies_that_part(device):
    block = OdeBlock.from_modules(seeded(Unit, 2, device))
    before = block.weights.stacks.norm.running_mean.clone()
    block.refine()
    means = block.weights.stacks.norm.running_mean
    assert torch.equal(means, before.repeat_interleave(2, dim=0))
    block(randn(4, 3, 6, 6, device=device))
    means = block.weights.stacks.norm.running_mean
    assert not torch.equal(means[0], means[1])
    assert not torch.equal(means[2], means[3])
    assert set(dict(block.named_buffers())) == set(block.state_dict()) - set(
        dict(block.named_parameters())
    )


def test_tied_parameters_and_hidden_buffers_survive_refinement(device):
    block = OdeBlock.from_modules(seeded(Tied, 2, device), steps=4)
    x = randn(2, 3, device=device)
    y = block(x)
    block.refine(steps=False)
    assert torch.equal(block(x), y)
    assert block.weights.stacks.a.weight is block.weights.stacks.b.weight
    assert "weights.stacks.shift" not in block.state_dict()
    block(x).sum().backward()


def test_a_constant_cannot_be_refined(device):
    block = jumping(Constant(), device)
    with pytest.raises(TypeError, match=r"Constant has no cells to refine"):
        block.refine()
    assert block.steps == 4


# --- views, copies, files -------------------------------------------------------------------------


def test_a_view_shares_weights_and_changes_only_what_it_names(device):
    block = jumping(PiecewiseConstant(2), device, steps=2, gradient="checkpoint", scale=3)
    view = block.with_graph(method="rk4_38", steps=3)
    assert (view.method, view.steps, view.scale, view.time) == ("rk4_38", 3, 3, True)
    assert view.gradient == block.gradient == Checkpoint()
    assert (block.method, block.steps) == ("rk4", 2)
    assert all(p is q for p, q in zip(view.parameters(), block.parameters(), strict=True))
    x = randn(4, 3, device=device)
    before = view(x)
    with torch.no_grad():
        block.weights.stacks.linear.bias.add_(1.0)
    assert not torch.equal(view(x), before)
    view.zero_grad()
    view(x).sum().backward()
    assert block.weights.stacks.linear.bias.grad.any()


def test_training_mode_reaches_the_evaluations_of_views_too(device):
    block = OdeBlock.from_modules(seeded(Unit, 2, device))
    view, x = block.with_graph(method="heun"), randn(4, 3, 6, 6, device=device)
    nn.Sequential(block).eval()
    before = {k: v.clone() for k, v in block.named_buffers()}
    assert torch.equal(view(x), view(x))
    assert all(torch.equal(before[k], v) for k, v in block.named_buffers())
    block.train()
    view(x)
    assert not torch.equal(
        before["weights.stacks.norm.running_mean"], block.weights.stacks.norm.running_mean
    )


def test_names_and_shapes_of_the_state(device):
    block = OdeBlock(Unit(2).to(device), PiecewiseConstant(3))
    shapes = {name: tuple(v.shape) for name, v in block.state_dict().items()}
    expected = {f"weights.stacks.{name}": (3, *v.shape) for name, v in Unit(2).state_dict().items()}
    assert shapes == expected
    nodal = OdeBlock(Unit(2).to(device), PiecewiseLinear(3))
    for name, value in nodal.state_dict().items():
        cells = 3 if "norm" in name else 4  # a norm is kept one a cell
        assert len(value) == cells
    assert len(list(block.parameters())) == len(list(Unit(2).parameters()))


def test_an_instance_is_copied_a_factory_called(device):
    residual = nn.Linear(3, 3).to(device)
    block = OdeBlock(residual, PiecewiseConstant(3))
    for k in range(3):
        assert torch.equal(block.weights.stacks.weight[k], residual.weight)
    with torch.no_grad():
        residual.weight.zero_()
    assert block.weights.stacks.weight.all()
    fresh = OdeBlock(lambda: nn.Linear(3, 3).to(device), PiecewiseLinear(2))
    w = fresh.weights.stacks.weight
    assert len(w) == 3
    assert not torch.equal(w[0], w[1])
    assert not torch.equal(w[1], w[2])
    layers = seeded(lambda: nn.Linear(3, 3), 3, device)
    stacked = OdeBlock.from_modules(layers)
    assert torch.equal(stacked.weights.stacks.bias, torch.stack([m.bias for m in layers]))
    assert (stacked.weights.basis, stacked.steps) == (PiecewiseConstant(3), 3)
    nodal = OdeBlock.from_modules(layers, PiecewiseLinear(2))
    assert nodal.steps == 2


def save_and_load(block):
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, save_and_load], ids=["deepcopy", "file"])
def test_copies_are_equal_and_independent(again, device):
    block = OdeBlock.from_modules(
        seeded(Unit, 2, device), method="heun", steps=4, gradient="checkpoint", scale=2
    ).eval()
    x = randn(4, 3, 6, 6, device=device)
    other = again(block)
    assert torch.equal(other(x), block(x))
    assert repr(other) == repr(block)
    other.train()
    with torch.no_grad():
        other.weights.stacks.conv2.bias.add_(1.0)
    other(x)
    assert torch.equal(block(x), again(block)(x))
    assert not torch.equal(
        other.weights.stacks.norm.running_mean, block.weights.stacks.norm.running_mean
    )
    other.refine()
    assert block.weights.basis == PiecewiseConstant(2)


def test_state_is_saved_and_loaded_by_name(device):
    one, two = (OdeBlock.from_modules(seeded(Unit, 2, device, seed=s)).eval() for s in (0, 1))
    x = randn(4, 3, 6, 6, device=device)
    assert not torch.equal(one(x), two(x))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(one(x), two(x))


def test_conversion_to_another_dtype(device):
    block = OdeBlock.from_modules(seeded(Tied, 2, device), method="rk4")
    x = randn(2, 3, device=device)
    y = block(x)
    low = copy.deepcopy(block).to(torch.float32)
    out = low(x.float())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), y, rtol=1e-5, atol=1e-5)
    out.sum().backward()
    assert low.weights.stacks.a.weight.grad.dtype == torch.float32


def test_a_residual_with_a_parametrised_weight(device):
    """Weight norm computes its weight from two others at every evaluation."""

    def make():
        return nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

    units = seeded(make, 2, device)
    block = OdeBlock.from_modules(copy.deepcopy(units))
    y = x = randn(2, 3, device=device)
    for unit in units:
        y = y + (1 / 2) * unit(y)
    assert torch.equal(block(x), y)


def test_a_residual_without_parameters(device):
    block = OdeBlock(nn.Tanh(), PiecewiseConstant(3), method="rk4", steps=3)
    x = randn(2, 3, device=device).requires_grad_()
    block.with_graph(gradient="adjoint")(x).sum().backward()
    assert x.grad.all()
    block.refine()
    block(x)


def test_evaluations_are_stages_times_steps_whatever_the_cells(device):
    for basis in (Constant(), PiecewiseConstant(3), PiecewiseLinear(3)):
        block = jumping(basis, device, method="kutta3", steps=5)
        with count_nfe(block) as nfe:
            block(randn(2, 3, device=device))
        assert nfe.total == 15


def test_the_knobs_are_shown(device):
    block = jumping(PiecewiseConstant(2), device, gradient=Checkpoint(every=2), scale=2)
    assert repr(block) == (
        "OdeBlock(PiecewiseConstant(cells=2), method='rk4', steps=4, "
        "gradient=Checkpoint(every=2), scale=2)"
    )


# --- several processes ----------------------------------------------------------------------------


def train_step(gradient, x):
    """Return a small model around a block, and its mean loss on ``x``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = OdeBlock(
            lambda: nn.Sequential(nn.Linear(3, 3, dtype=torch.float64), nn.Tanh()),
            PiecewiseConstant(2), method="rk4", steps=4, gradient=gradient,
        )  # fmt: skip
        model = nn.Sequential(nn.Linear(3, 3, dtype=torch.float64), block)
    return model, lambda m: m(x).square().mean()


@needs_compile
@pytest.mark.parametrize("method", ["euler", "heun", "async_leapfrog"])
def test_a_traced_block_is_the_same_network(method, device):
    """What Dynamo traces must find out, as eager code does, that all cells lie on one grid."""
    layers = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh()), 2, device)
    block = OdeBlock.from_modules(layers, method=method, steps=4)
    x = randn(4, 3, device=device)
    traced = torch.compile(block, backend="eager", fullgraph=True)
    pair = []
    for one in (block, traced):
        y = one(x)
        pair.append([y, *gradients(y.square().sum(), list(block.parameters()))])
    assert largest_difference(*pair) < 1e-14


DISTRIBUTED = ("backprop", "checkpoint", "adjoint", "reconstruct")


def worker(rank, world, file, results):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    data = randn(8, 3, device="cpu")
    for gradient in DISTRIBUTED:
        model, loss = train_step(gradient, data.chunk(world)[rank])
        model = DistributedDataParallel(model)
        loss(model).backward()
        found = [p.grad.clone() for p in model.parameters()]
        torch.save(found, f"{results}/{gradient}-{rank}.pt")
        del model
    gc.collect()  # a process group that is torn down under a live model aborts now and then
    dist.barrier()
    dist.destroy_process_group()


def test_distributed_gradients_are_the_mean_over_processes(tmp_path):
    """Two processes over gloo, for every gradient method."""
    world = 2
    torch.multiprocessing.spawn(worker, (world, tmp_path / "store", tmp_path), nprocs=world)
    data = randn(8, 3, device="cpu")
    for gradient in DISTRIBUTED:
        model, loss = train_step(gradient, data)
        expected = gradients(loss(model), list(model.parameters()))
        for rank in range(world):
            found = torch.load(tmp_path / f"{gradient}-{rank}.pt", weights_only=True)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
