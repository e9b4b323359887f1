"""Small inputs that failed, and what is right: hooks, buffers, chance, names, odd arguments."""

import copy
import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
import torch.utils.checkpoint
from fields import Tanh, knobs, largest_difference, randn
from torch import nn

from companion import OdeBlock, PiecewiseConstant, counting, odeint, refine
from companion.gradients import GRADIENTS, Adjoint, Checkpoint, Reconstruct
from companion.gradients.randomness import SeededField
from companion.solve import NonFiniteError, Stage

F64 = torch.float64
RECOMPUTING = [name for name in GRADIENTS if name != "backprop"]
EXACT = ["backprop", "checkpoint", Checkpoint(every=2), Reconstruct(every=1)]
LAYERED = pytest.mark.parametrize("gradient", EXACT, ids=str)


def method_of(gradient, otherwise="euler"):
    return "async_leapfrog" if gradient == "reversible" else otherwise


def one():
    return torch.ones(1, dtype=F64)


class Linear(nn.Module):
    """y' = w y."""

    def __init__(self, w=1.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=F64))

    def forward(self, t, y):
        return self.w * y


# --- hooks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_hook_sees_the_whole_gradient_once(gradient):
    """It may change it, too: a field's terms are not its business."""
    grads, seen = [], []
    for hooked in (False, True):
        field = Linear()
        if hooked:
            field.w.register_hook(lambda g: -g)
            field.w.register_hook(lambda g: seen.append(g.item()))
            field.w.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.item()))
        ys = odeint(
            field, one(), [0.0, 1.0], method=method_of(gradient), steps=2, gradient=gradient
        )
        ys[-1].sum().backward()
        grads.append(field.w.grad.item())
    assert grads[1] == -grads[0]
    assert seen == [grads[1], grads[1]]
    if gradient in ("backprop", "checkpoint"):
        assert grads[0] == 1.5  # of (1 + w / 2)^2


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_hooks_of_named_tensors_and_of_the_start(gradient):
    """``w`` is no leaf and keeps its gradient; a closure reads it."""
    leaf = torch.tensor(1.0, dtype=F64, requires_grad=True)
    start = one().requires_grad_()
    w, y0, seen = leaf * 1.0, start * 1.0, []
    for tensor in (w, y0):
        tensor.register_hook(lambda g: seen.append(1))
        tensor.retain_grad()
    options = {"method": method_of(gradient), "steps": 2, "gradient": gradient}
    odeint(lambda t, y: w * y, y0, [0.0, 1.0], params=[w], **options)[-1].sum().backward()
    assert len(seen) == 2
    assert w.grad == leaf.grad
    assert torch.equal(y0.grad, start.grad)
    other = Linear()
    odeint(other, one(), [0.0, 1.0], **options)[-1].sum().backward()
    assert leaf.grad == other.w.grad


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_hook_with_parts_of_the_field_shared(method):
    """Tied parameters, of which one hook is one; a module inside; an adaptive adjoint."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, dtype=F64), nn.Linear(2, 2, dtype=F64)
            self.b.weight = self.a.weight

        def forward(self, t, y):
            return torch.tanh(self.b(torch.tanh(self.a(y))))

    torch.manual_seed(0)
    plain = Twice()
    hooked = copy.deepcopy(plain)
    hooked.b.weight.register_hook(lambda g: 2 * g)
    for field in (plain, hooked):
        y0 = torch.ones(1, 2, dtype=F64)
        odeint(field, y0, [0.0, 1.0], method=method, gradient="adjoint")[-1].sum().backward()
    torch.testing.assert_close(hooked.a.weight.grad, 2 * plain.a.weight.grad)
    torch.testing.assert_close(hooked.b.bias.grad, plain.b.bias.grad)


# --- buffers --------------------------------------------------------------------------------------


class Counts(nn.Module):
    """A field that multiplies the state by the number of its evaluations."""

    def __init__(self, in_place=True, read=True):
        super().__init__()
        self.register_buffer("n", torch.zeros((), dtype=F64))
        self.in_place, self.read = in_place, read

    def forward(self, *arguments):
        if self.in_place:
            self.n += 1
        else:
            self.n = self.n + 1
        return (self.n.clone() if self.read else 1.0) * arguments[-1]


class Behind(nn.Module):
    """A moving average whose changes no version tells of, or that is one tensor of two names."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(3, 3, dtype=F64), how
        self.register_buffer("mean", torch.zeros(3, dtype=F64))
        self.other = nn.Module()
        self.other.register_buffer("mean", self.mean)

    def forward(self, *arguments):
        x = arguments[-1]
        mean = x.detach().mean(0)
        if self.how == "data":
            self.mean.data.mul_(0.5).add_(mean)
        elif self.how == "data replaced":
            self.mean.data = 0.5 * self.mean + mean
        else:  # tied; the product keeps the buffer for the backward pass
            self.mean += mean
            return torch.tanh(self.layer(x)) * self.other.mean
        return torch.tanh(self.layer(x)) * self.mean.clone()


@LAYERED
@pytest.mark.parametrize("how", ["data", "data replaced", "tied"])
def test_buffers_that_change_unseen(gradient, how):
    torch.manual_seed(0)
    units = [Behind(how) for _ in range(3)]
    plain = copy.deepcopy(units)
    block = OdeBlock.from_modules(units, gradient=gradient)
    x = randn(2, 3, device="cpu").requires_grad_()
    z = start = x.detach().clone().requires_grad_()
    for _ in range(2):  # the second begins with what the first has left
        y = block(x)
        for unit in plain:
            z = z + unit(z) / 3
        torch.testing.assert_close(y, z)
        y.sum().backward()
        z.sum().backward()
        z = start
    torch.testing.assert_close(x.grad, start.grad)
    for name, stack in block.weights.stacks.named_parameters():
        grads = torch.stack([unit.get_parameter(name).grad for unit in plain])
        torch.testing.assert_close(stack.grad, grads)
    torch.testing.assert_close(block.weights.stacks.mean[2], plain[2].mean)


@pytest.mark.parametrize("gradient", EXACT[1:], ids=str)
def test_buffers_that_change_unseen_in_a_field(gradient):
    grads = []
    for g in ("backprop", gradient):
        torch.manual_seed(0)
        field, y0 = Behind("data"), randn(2, 3, device="cpu")
        odeint(field, y0, [0.0, 1.0], method="rk4", steps=3, gradient=g)[-1].sum().backward()
        grads.append(field.layer.weight.grad)
    torch.testing.assert_close(*grads)
    field = Behind("tied")
    y0.requires_grad_()
    odeint(field, y0, [0.0, 1.0], method="euler", steps=3, gradient=gradient)[-1].sum().backward()
    y, mean = (start := y0.detach().requires_grad_()), 0.0
    for _ in range(3):
        mean = mean + y.detach().mean(0)
        y = y + torch.tanh(field.layer(y)) * mean / 3
    torch.testing.assert_close(y0.grad, torch.autograd.grad(y.sum(), start)[0])


def test_a_buffer_without_a_value_is_named():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("start", None)

        def forward(self, x):
            if self.start is None:
                self.start = x.detach()
            return x - self.start

    with pytest.raises(ValueError, match="residual: gave its buffer 'start' a value"):
        OdeBlock(Lazy(), PiecewiseConstant(2), steps=2)(one())


@LAYERED
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "replaced"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["odeint", "block"])
def test_every_evaluation_reads_its_own_buffers(gradient, in_place, wrapped):
    """(1 + 1/2)(1 + 2/2) = 3."""
    field, y0 = Counts(in_place), one().requires_grad_()
    if wrapped:
        block = OdeBlock(field, steps=2, gradient=gradient)
        block(y0).sum().backward()
        count = block.weights.stacks.n
    else:
        ys = odeint(field, y0, [0.0, 1.0], method="euler", steps=2, gradient=gradient)
        ys[-1].sum().backward()
        count = field.n
    assert y0.grad.item() == 3.0
    assert count.item() == 2  # a recomputation counts nothing


@pytest.mark.parametrize("method", ["euler", "dopri5"])
def test_the_adjoint_refuses_buffers_that_it_cannot_follow_by_name(method):
    """A counter that nobody reads, as flows keep one, is no such buffer."""
    y0 = one().requires_grad_()
    options = knobs(method, steps=2, rtol=1e-2, atol=1e-2)
    field = Counts(read=False)
    ys = odeint(field, y0, [0.0, 1.0], method=method, gradient="adjoint", **options)
    ys[-1].sum().backward()
    assert field.n > 1

    class Slow(Counts):
        def forward(self, t, y):
            return super().forward(t, y) * 1e-3

    with pytest.raises(ValueError, match=r"'adjoint' needs .* reads its buffer 'n'"):
        odeint(Slow(), y0, [0.0, 1.0], method=method, gradient="adjoint", **options)
    with pytest.raises(ValueError, match=r"'adjoint' needs .* reads its buffer 'n'"):
        OdeBlock(Counts(), PiecewiseConstant(2), steps=4, gradient="adjoint")(y0)


@LAYERED
@pytest.mark.parametrize("kind", ["old", "parametrised"])
def test_spectral_norm_in_training(gradient, kind):
    """Two stages of rk4 stand at the same place, and still find other vectors."""
    make = {
        "old": nn.utils.spectral_norm, "parametrised": nn.utils.parametrizations.spectral_norm
    }[kind]  # fmt: skip

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make(nn.Linear(3, 3, dtype=F64))

        def forward(self, t, y):
            return torch.tanh(self.layer(y))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = Field()
    grads, y0 = [], randn(2, 3, device="cpu")
    for method in (gradient, "backprop"):
        own = copy.deepcopy(field)
        odeint(own, y0, [0.0, 1.0], method="rk4", steps=3, gradient=method)[-1].sum().backward()
        grads.append([p.grad for p in own.parameters()])
    assert largest_difference(*grads) < 1e-13


# --- kinds of parameters --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["euler", "rk4", "dopri5", "implicit_adams", "explicit_adams", "scipy_solver"]
)
def test_complex_parameters_in_the_adjoint(method):
    """y(1) = y0 + Im w."""

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.3 + 0.2j, 1.0 - 1.0j], dtype=torch.complex128))

        def forward(self, t, y):
            return self.w.imag[0] * torch.ones_like(y)

    field = Field()
    odeint(field, one(), [0.0, 1.0], method=method, gradient="adjoint")[-1].sum().backward()
    expected = torch.tensor([1j, 0], dtype=torch.complex128)
    torch.testing.assert_close(field.w.grad, expected, rtol=0, atol=1e-6)


# --- inference mode -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["euler", "dopri5"])
def test_checks_hold_in_inference_mode(method):
    with torch.inference_mode():
        y0 = one()
        with pytest.raises(ValueError, match="changed its input in place"):
            odeint(lambda t, y: y.mul_(-1), y0, [0.0, 1.0], method=method)
        assert y0 == 1
        block = OdeBlock(nn.ReLU(inplace=True))
        with pytest.raises(ValueError, match="changed its input in place"):
            block(-torch.ones(2))
        assert odeint(lambda t, y: -y, y0, [0.0, 1.0], method=method).shape == (2, 1)


# --- what a block may be made of, and what may be done to it --------------------------------------


def test_memory_formats_are_those_of_the_layers():
    unit = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    block = OdeBlock(unit, PiecewiseConstant(3), steps=3)
    x, last = torch.randn(2, 4, 5, 5), torch.channels_last
    expected, states = block(x), {n: p.clone() for n, p in block.named_parameters()}
    block.to(memory_format=last)
    kernel = block.weights.stacks.get_parameter("0.weight")
    assert all(k.is_contiguous(memory_format=last) for k in kernel)
    assert isinstance(kernel, nn.Parameter)
    for name, p in block.named_parameters():
        assert torch.equal(p, states[name])
    torch.testing.assert_close(block(x.to(memory_format=last)), expected)
    block.to(memory_format=torch.contiguous_format).double()
    assert block.weights.stacks.get_parameter("2.weight").dtype == F64
    tokens = OdeBlock(nn.Conv1d(2, 2, 3, padding=1), PiecewiseConstant(2))
    tokens.to(memory_format=last)  # one axis more makes it four: of no layer
    assert tokens.weights.stacks.weight.is_contiguous()


def is_last(kernel):
    return kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "reconstruct"])
def test_a_memory_format_lasts_and_trains(gradient):
    """Through steps, refinement, projection, copies, saved states; the state takes it over."""
    last = torch.channels_last
    unit = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, dtype=F64), nn.Tanh())
    blocks = [OdeBlock(unit, PiecewiseConstant(2), steps=4, gradient=gradient) for _ in range(2)]
    blocks[1].to(memory_format=last)
    x = randn(2, 3, 5, 5, device="cpu")
    for _ in range(2):
        for block in blocks:
            sgd = torch.optim.SGD(block.parameters(), lr=0.1, momentum=0.9)
            for _ in range(2):
                sgd.zero_grad()
                y = block(x)
                y.square().mean().backward()
                sgd.step()
            block.refine()
        assert is_last(y)
        torch.testing.assert_close(*(b.state_dict() for b in blocks), rtol=1e-12, atol=1e-14)
    changed = [blocks[1], copy.deepcopy(blocks[1]), blocks[1].project(PiecewiseConstant(3))]
    changed[1].load_state_dict(blocks[0].state_dict())
    blocks[0].load_state_dict(blocks[1].state_dict())
    for block in changed:
        assert all(map(is_last, block.weights.stacks.get_parameter("0.weight")))
    assert not is_last(blocks[0](x))
    torch.testing.assert_close(blocks[0](x), blocks[1](x), rtol=1e-12, atol=1e-12)


def test_a_memory_format_reaches_blocks_inside_blocks():
    layer = nn.Conv2d(2, 2, 3, padding=1)
    inner = OdeBlock(nn.Sequential(layer, nn.Tanh()), PiecewiseConstant(2), steps=2)
    outer, x = OdeBlock(inner, PiecewiseConstant(3), steps=3), torch.randn(2, 2, 4, 4)
    expected = outer(x)
    expected.sum().backward()
    outer.to(memory_format=torch.channels_last)
    (stack, _) = outer.parameters()
    for tensor in (stack, stack.grad):
        assert all(map(is_last, tensor.flatten(0, 1)))
    torch.testing.assert_close(outer(x), expected)
    solid = nn.Conv3d(1, 1, 3)
    for block in (solid, OdeBlock(solid)):  # refused as by the plain layer
        with pytest.raises(RuntimeError, match="required rank 4"):
            block.to(memory_format=torch.channels_last)
        block.to(memory_format=torch.channels_last_3d)


NAMES = ["project", "refine", "basis", "weights", "template", "stacks", "at", "bases", "per_cell"]


@pytest.mark.parametrize("name", [*NAMES, "steps", "method", "states", "solver", "params", "scale"])
def test_a_layer_may_have_any_name(name):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(name, nn.Linear(2, 2))

        def forward(self, x):
            return torch.tanh(getattr(self, name)(x))

    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_parameter(name, nn.Parameter(torch.ones(2)))
            self.register_buffer(f"{name}_", torch.ones(2))

        def forward(self, x):
            return getattr(self, name) * x * getattr(self, f"{name}_")

    for make in (Named, Held):
        block, x = OdeBlock(make, PiecewiseConstant(2), steps=2), torch.ones(1, 2)
        y = block(x)
        assert torch.equal(copy.deepcopy(block)(x), y)
        assert all(f"weights.stacks.{name}" in key for key in block.state_dict())
        y.sum().backward()
        block.refine(steps=False)
        assert torch.equal(block(x), y)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint", "reconstruct"])
def test_torchs_checkpoint_inside_a_residual_is_explained(gradient):
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=False)

    y = OdeBlock(Unit(), steps=2, gradient=gradient)(torch.ones(1, 2)).sum()
    with pytest.raises(ValueError, match=r"residual: .*gradient='checkpoint' instead"):
        y.backward()


@LAYERED
@pytest.mark.parametrize("inner", RECOMPUTING)
def test_a_solve_inside_a_residual(gradient, inner):
    """Its module holds the weights of a layer only while that layer is evaluated."""

    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = Tanh("cpu")

        def forward(self, x):
            method = method_of(inner, "rk4")
            return odeint(self.field, x, [0.0, 1.0], method=method, steps=3, gradient=inner)[-1]

    units, x = [Unit() for _ in range(2)], randn(2, 3, device="cpu")
    for k, unit in enumerate(units):
        unit.field = Tanh("cpu", seed=k)
    block = OdeBlock.from_modules(units, gradient=gradient)
    block(x).square().sum().backward()
    y = x
    for unit in units:
        y = y + unit(y) / 2
    y.square().sum().backward()
    for name, stack in block.weights.stacks.named_parameters():
        for unit, grad in zip(units, stack.grad, strict=True):
            torch.testing.assert_close(grad, unit.get_parameter(name).grad, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_in_both_forms():
    for make in (nn.utils.weight_norm, nn.utils.parametrizations.weight_norm):
        layer = make(nn.Linear(3, 3))
        layer(torch.ones(3))  # leaves a computed tensor behind
        block, x = OdeBlock(layer, PiecewiseConstant(2), steps=2), torch.ones(1, 3)
        y = block(x)
        torch.testing.assert_close(y, (z := x + layer(x) / 2) + layer(z) / 2)
        y.sum().backward()
        assert all(p.grad is not None for p in block.parameters())
        assert torch.equal(copy.deepcopy(block)(x), y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_stacked_is_named():
    for module, cause in (
        (nn.Sequential(nn.LazyLinear(3)), "residual: 0 has parameters without a shape yet"),
        (nn.LazyBatchNorm1d(), "residual: LazyBatchNorm1d has parameters without a shape yet"),
        (nn.Sequential(torch.jit.script(nn.Linear(3, 3))), "residual: 0 is a torch.jit.Script"),
    ):
        with pytest.raises(ValueError, match=cause):
            OdeBlock(module)
    with pytest.raises(ValueError, match=r"torch.jit.trace cannot follow .*torch.compile"):
        torch.jit.trace(OdeBlock(nn.Linear(3, 3)), torch.ones(1, 3))


def test_stacks_under_other_names_are_named():
    """Pruning and parametrising rename a parameter: its residual would look for the old one."""
    block = OdeBlock(nn.Sequential(nn.Linear(3, 3)), PiecewiseConstant(2), steps=2)
    nn.utils.prune.l1_unstructured(block.weights.stacks.get_submodule("0"), "weight", 0.5)
    with pytest.raises(ValueError, match=r"block: .*'0.weight', '0.weight_orig'.* before the bl"):
        block(torch.ones(1, 3))
    pruned = nn.Sequential(nn.Linear(3, 3))
    nn.utils.prune.l1_unstructured(pruned[0], "weight", 0.5)
    x = torch.ones(1, 3)
    torch.testing.assert_close(OdeBlock(pruned)(x), x + pruned(x))


def test_what_makes_no_residual_is_said_to_be_so():
    for bad in (nn.Linear, lambda x: x):
        with pytest.raises(TypeError, match=r"residual: a function that cannot be called without"):
            OdeBlock(bad)
    with pytest.raises(TypeError, match=r"residual: made a NoneType; it must make an nn.Module"):
        OdeBlock(lambda: None)
    with pytest.raises(ValueError, match=r"time: 'yes' is not allowed"):
        OdeBlock(nn.Identity(), time="yes")
    block = OdeBlock(nn.Identity())
    block.gradient = "checkpoint"
    assert block.gradient == Checkpoint()
    with pytest.raises(ValueError, match=r"gradient: 'exact' is not allowed"):
        block.gradient = "exact"


@pytest.mark.parametrize("method", ["euler", "dopri5"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_an_operation_in_place_may_follow(gradient, method):
    if method == "dopri5" and gradient not in ("backprop", "adjoint", "checkpoint"):
        pytest.skip("needs a fixed grid")
    grads = []
    for in_place in (False, True):
        torch.manual_seed(0)
        block = OdeBlock(nn.Linear(3, 3), method=method_of(gradient, method), gradient=gradient)
        net = nn.Sequential(block, nn.ReLU(inplace=in_place), nn.Linear(3, 1))
        net(torch.ones(2, 3)).sum().backward()
        grads.append(block.weights.stacks.weight.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("gradient", ["backprop", "adjoint", "checkpoint", "reconstruct"])
def test_refining_between_forward_and_backward_is_named(gradient):
    block = OdeBlock(nn.Linear(3, 3), PiecewiseConstant(2), steps=2, gradient=gradient)
    y = nn.Sequential(block, nn.ReLU(), nn.Linear(3, 1))(torch.ones(1, 3)).sum()
    block.refine()
    with pytest.raises(ValueError, match=r"block: its weights were refined .*cells=2.*cells=4"):
        y.backward()


def test_a_model_is_refined_as_a_whole_or_not_at_all():
    first = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(2), method="dopri5")
    net = nn.Sequential(first, first.with_graph(method="rk4", steps=3), OdeBlock(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="no cells to refine"):
        refine(net)
    assert first.weights.basis == PiecewiseConstant(2)
    before = refine(net[:2])
    assert (first.weights.basis, net[1].steps) == (PiecewiseConstant(4), 6)
    assert set(before.values()) == {PiecewiseConstant(2)}
    with pytest.raises(ValueError, match="model: Linear without an OdeBlock is not allowed"):
        refine(nn.Linear(2, 2))


# --- transforms, hints ----------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", RECOMPUTING)
def test_transforms_of_functions_are_refused_with_a_way_out(gradient):
    def loss(y, gradient):
        options = {"method": method_of(gradient, "rk4"), "steps": 2, "gradient": gradient}
        return odeint(Linear(), y, [0.0, 1.0], **options)[-1].sum()

    with pytest.raises(ValueError, match=f"'{gradient}' goes back .*gradient='backprop'"):
        torch.func.grad(lambda y: loss(y, gradient))(one())
    with pytest.raises(ValueError, match=f"'{gradient}' goes back .*gradient='backprop'"):
        torch.func.vmap(lambda y: loss(y, gradient))(one().unsqueeze(0))
    found = torch.func.grad(lambda y: loss(y, "backprop"))(one())
    assert found.item() == pytest.approx(math.e, rel=1e-3)


def test_a_field_that_needs_gradients_inside_is_told_how():
    def potential(t, y):
        return -torch.autograd.grad((y**2).sum() / 2, y, create_graph=True)[0]

    class Force(nn.Module):
        def forward(self, x):
            return potential(0.0, x)

    y0 = one().requires_grad_()
    with pytest.raises(ValueError, match=r"func: differentiates .*torch.enable_grad\(\)"):
        odeint(potential, y0, [0.0, 1.0], method="euler", steps=2, gradient="adjoint")
    with torch.no_grad(), pytest.raises(ValueError, match=r"residual: differentiates .*enable_gr"):
        OdeBlock(Force(), steps=2)(y0)
    assert odeint(potential, y0, [0.0, 1.0], method="euler", steps=2)[-1].item() == 0.25


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_tensors_of_other_modes(gradient):
    """Inference mode's are taken; a tangent is followed by backprop, and refused by the others."""
    options = {"method": method_of(gradient, "rk4"), "steps": 3, "gradient": gradient}
    with torch.inference_mode():
        y0 = one()
    field = Linear()
    odeint(field, y0, [0.0, 1.0], **options)[-1].sum().backward()
    other = Linear()
    odeint(other, one(), [0.0, 1.0], **options)[-1].sum().backward()
    assert field.w.grad == other.w.grad
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(one(), one())
        if gradient == "backprop":
            y = odeint(Linear(), dual, [0.0, 1.0], **options)[-1]
            y, tangent = torch.autograd.forward_ad.unpack_dual(y)
            torch.testing.assert_close(tangent, y)
        else:
            with pytest.raises(ValueError, match=r"forward_ad cannot follow; use gradient='back"):
                odeint(Linear(), dual, [0.0, 1.0], **options)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_part_of_a_tuple_may_be_changed_in_place(gradient):
    a, b = one().requires_grad_(), torch.ones(2, dtype=F64)
    options = {"method": method_of(gradient, "rk4"), "steps": 40, "gradient": gradient}
    ya, yb = odeint(lambda t, y: (-y[0], y[1]), (a, b), [0.0, 1.0], **options)
    last = (ya if gradient != "adjoint" else ya.clone())[-1]
    last.mul_(3.0)
    (last.sum() + yb[-1].sum()).backward()
    assert a.grad.item() == pytest.approx(3 * math.exp(-1), rel=1e-3)


def test_parameters_that_are_not_finite_are_named():
    field = Linear(math.nan)
    with pytest.raises(NonFiniteError, match=r"y0: .* reads a tensor of shape \(\) with values"):
        odeint(field, one(), [0.0, 1.0], method="rk4")
    block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(2), steps=2, gradient="adjoint")
    with torch.no_grad():
        block.weights.stacks.weight[1, 0, 0] = math.inf
    with pytest.raises(NonFiniteError, match=r"x: .* reads a tensor of shape \(2, 2\) with values"):
        block(torch.ones(1, 2))


# --- arguments ------------------------------------------------------------------------------------


def test_numbers_of_other_libraries_are_numbers():
    y = odeint(lambda t, y: -y, one(), (x for x in (0.0, 1.0)), method="rk4", steps=np.int64(4))
    assert y[-1].item() == pytest.approx(math.exp(-1), abs=1e-4)
    odeint(lambda t, y: -y, one(), range(2), rtol=np.float32(1e-3), atol=1)
    basis = PiecewiseConstant(np.uint8(200))
    assert repr(basis) == "PiecewiseConstant(cells=200)"
    assert basis.refined().cells == 400
    gradient = Reconstruct(rule="predicted", order=np.int64(2), sweeps=np.int8(1), every=np.int8(3))
    assert repr(gradient) == "Reconstruct(rule='predicted', order=2, sweeps=1, every=3)"
    assert OdeBlock(nn.Linear(2, 2), PiecewiseConstant(np.int32(2)), steps=np.uint8(2)).steps == 2
    for times in (["0", "1"], b"01", [False, True], [0.0, np.bool_(True)]):
        with pytest.raises(TypeError, match=r"t: .* is not allowed; pass a 1-D tensor or floats"):
            odeint(lambda t, y: -y, one(), times, method="rk4")
    with pytest.raises(ValueError, match=r"y0: layout torch.sparse_coo is not allowed"):
        odeint(lambda t, y: -y, one().to_sparse(), [0.0, 1.0], method="rk4")
    for bad in (np.bool_(True), True, np.float64(2.0), "2", -1):
        with pytest.raises(ValueError, match=r"steps: .* is not allowed; it must be an integer"):
            odeint(lambda t, y: -y, one(), [0.0, 1.0], method="rk4", steps=bad)
    for bad in (True, np.bool_(False), "1e-3", torch.tensor(1e-3)):
        with pytest.raises(TypeError, match=r"rtol: .* is not allowed; it must be a finite number"):
            odeint(lambda t, y: -y, one(), [0.0, 1.0], rtol=bad)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "implicit_adams"])
@pytest.mark.parametrize("gradient", ["backprop", "adjoint"])
def test_a_start_that_is_not_finite_is_said_to_be(method, gradient):
    for bad in (math.nan, math.inf):
        y0 = torch.tensor([1.0, bad], requires_grad=True)
        with pytest.raises(NonFiniteError, match="y0: 1 of 2 values are not finite before"):
            odeint(lambda t, y: -y, y0, [0.0, 1.0], method=method, gradient=gradient)
        block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(2), method, gradient=gradient)
        with pytest.raises(NonFiniteError, match="x: 1 of 2 values are not finite before"):
            block(y0)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_one_output_time_is_the_start(gradient):
    y0 = one().requires_grad_()
    ys = odeint(Linear(), y0, [1.0], gradient=gradient, method=method_of(gradient, "rk4"))
    assert ys.shape == (1, 1)
    ys.sum().backward()
    assert y0.grad == 1
    pair = odeint(lambda t, y: y, (one(), torch.ones(2, dtype=F64)), torch.tensor([3.0]))
    assert [part.shape for part in pair] == [(1, 1), (1, 2)]


# --- chance ---------------------------------------------------------------------------------------


@pytest.fixture
def drawing():
    """Another thread that draws random numbers all the time."""
    stop = threading.Event()

    def draw():
        while not stop.is_set():
            torch.rand(16)

    thread = threading.Thread(target=draw)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.parametrize("gradient", RECOMPUTING)
def test_another_thread_may_draw(gradient, drawing):
    grads = []
    for _ in range(6):
        field = Tanh("cpu")
        ys = odeint(
            field, randn(64, 3, device="cpu"), [0.0, 1.0], method=method_of(gradient, "rk4"),
            steps=20, gradient=gradient,
        )  # fmt: skip
        ys.sum().backward()
        grads.append(field.w.grad)
    assert all(torch.equal(grad, grads[0]) for grad in grads)


class Noisy(nn.Module):
    """Draws its noise in the first evaluation of a solve and keeps it."""

    def __init__(self):
        super().__init__()
        self.field, self.noise = Tanh("cpu"), None

    def forward(self, t, y):
        if self.noise is None:
            self.noise = torch.randn_like(y)
        return self.field(t, y) * self.noise


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("gradient", ["adjoint", "checkpoint", Reconstruct(every=1)], ids=str)
def test_noise_that_is_drawn_once_is_no_chance(gradient, method):
    if method == "dopri5" and isinstance(gradient, Reconstruct):
        pytest.skip("needs a fixed grid")
    torch.manual_seed(0)
    field, y0 = Noisy(), randn(2, 3, device="cpu")
    options = {"method": method, **knobs(method, steps=20)}
    odeint(field, y0, [0.0, 1.0], gradient=gradient, **options)[-1].sum().backward()
    first, found = field.noise, field.field.w.grad
    field.zero_grad()
    odeint(field, y0, [0.0, 1.0], **options)[-1].sum().backward()
    torch.testing.assert_close(found, field.field.w.grad, rtol=0, atol=1e-5)
    field.noise = None  # the next solve draws anew
    odeint(field, y0, [0.0, 1.0], gradient=gradient, **options)
    assert not torch.equal(field.noise, first)


def test_a_generator_of_ones_own_is_chance_too():
    draw = torch.Generator().manual_seed(0)

    def noisy(t, y):
        torch.rand(1)  # moves the global generator, which makes the field suspicious
        return -y + torch.randn(y.shape, generator=draw, dtype=y.dtype)

    with pytest.raises(ValueError, match="'adjoint' needs a deterministic field"):
        odeint(noisy, one().requires_grad_(), [0.0, 1.0], method="rk4", gradient="adjoint")


class Draws:
    """A field whose value is one random number."""

    params, module, knots, stats = (), None, (), None
    uses = follows = None

    def __call__(self, stage, y):
        return torch.rand_like(y)


def test_a_mask_belongs_to_a_depth():
    """Stages at other depths differ, also those that are no twelfths; the same depth, the same."""
    from fractions import Fraction as F

    field, y = SeededField(Draws(), 7), one()
    places = [(n, c) for n in (0, 1) for c in (F(0), F(1, 25), F(1, 5), F(1, 3), F(4, 5), F(8, 9))]
    with torch.random.fork_rng():
        values = [field(Stage(0.0, n, 2, c), y).item() for n, c in places]
        assert len(set(values)) == len(values)
        assert field(Stage(0.0, 0, 2, F(1)), y) == field(Stage(0.0, 1, 2, F(0)), y)
        assert field(Stage(0.0, 1, 2, F(1, 5)), y) == values[places.index((1, F(1, 5)))]
        assert field(Stage(0.0, 0, 2, F(0), output=1), y).item() not in values


# --- what is new ----------------------------------------------------------------------------------


class Conditioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, dtype=F64)

    def forward(self, x, context, sign):
        return sign * torch.tanh(self.layer(x) * context)


@pytest.mark.parametrize("gradient", [*EXACT, "adjoint", "reversible"], ids=str)
@pytest.mark.parametrize("hooked", [False, True])
def test_a_residual_may_take_further_arguments(gradient, hooked):
    torch.manual_seed(0)
    units = [Conditioned() for _ in range(2)]
    context = torch.tensor([0.5, 1.0, 2.0], dtype=F64, requires_grad=True)
    if hooked:
        context.register_hook(lambda g: 2 * g)
    method = method_of(gradient, "rk4")
    steps = {"adjoint": 60, "reversible": 400}.get(gradient, 2)
    block = OdeBlock.from_modules(units, method=method, steps=steps, gradient=gradient)
    x = randn(2, 3, device="cpu")
    block(x, context, -1.0).sum().backward()
    exact = block.with_graph(method="rk4", gradient="backprop")
    (grad,) = torch.autograd.grad(exact(x, context, -1.0).sum(), context)
    exactly = gradient not in ("adjoint", "reversible")
    torch.testing.assert_close(context.grad, grad, rtol=1e-12 if exactly else 1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["euler", "rk4", "async_leapfrog"])
def test_the_states_between_input_and_output(method):
    gradient = Adjoint("midpoint")
    block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(3), method, steps=6, gradient=gradient)
    x = torch.ones(1, 2, requires_grad=True)
    states = block.states(x)
    assert states.shape == (7, 1, 2)
    assert torch.equal(states[0], x)
    assert torch.equal(states[-1], block(x))
    (grad,) = torch.autograd.grad(states[3].sum(), x)
    assert grad.any()
    if method == "euler":
        stacks = block.weights.stacks
        slope = states[2] @ stacks.weight[1].T + stacks.bias[1]
        torch.testing.assert_close(states[3], states[2] + slope / 6)
    adaptive = block.with_graph(method="dopri5", gradient="backprop")
    assert adaptive.states(x).shape == (4, 1, 2)
    torch.testing.assert_close(adaptive.states(x)[-1], adaptive(x))
    with counting() as stats:
        block.states(x)
    assert stats.steps == 6


@pytest.mark.parametrize("scale", [0.0, -1.0, 2.5])
@pytest.mark.parametrize("method", ["euler", "rk4", "async_leapfrog", "dopri5", "explicit_adams"])
def test_a_scale_is_the_length_of_the_interval(scale, method):
    """x' = scale * s x over the depth s: x(1) = exp(scale / 2); the residual sees s."""

    class Timed(nn.Module):
        def forward(self, s, x):
            return s * x

    options = knobs(method, steps=400)
    block = OdeBlock(Timed(), PiecewiseConstant(2), method, scale=scale, time=True, **options)
    tolerance = 1e-2 if method == "euler" else 1e-4
    assert block(one()).item() == pytest.approx(math.exp(scale / 2), rel=tolerance)


def test_counts_are_the_same_for_a_block_and_for_odeint():
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x)

    unit, x = Unit(), torch.ones(1, 2)
    with counting() as one_way:
        odeint(lambda t, y: unit(y), x, [0.0, 1.0], method="rk4", steps=5)
    with counting() as other:
        y = OdeBlock(unit, method="rk4", steps=5, gradient="checkpoint")(x)
    assert one_way == other
    y.sum().backward()
    assert (other.nfe, other.nfe_backward) == (20, 20)
