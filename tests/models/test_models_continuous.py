"""ContinuousNet, skip initialisation, stitches and batch norm in depth, against plain functions."""

import copy

import pytest
import torch
from sample_nets import images, scrambled
from torch import nn
from torch.nn import functional

from companion import Chebyshev, OdeBlock, PiecewiseConstant, PiecewiseLinear
from companion.gradients import Checkpoint
from companion.models import (
    ContinuousNet,
    SkipInit,
    Stitch,
    ode_blocks,
    pre_activation_unit,
    wide_continuous_net,
)
from companion.models.layers import basic_branch, pre_activation
from companion.observe import count_nfe
from companion.schemes import SCHEMES
from companion.train import seeded

SMALL = {"classes": 3, "inputs": 2, "channels": (4, 6)}


def small_net(**options):
    with seeded(0):
        return scrambled(ContinuousNet(**SMALL, **options))


def euler(f, x, h):
    return x + h * f(x)


def rk4(f, x, h):
    k1 = f(x)
    k2 = f(x + h / 2 * k1)
    k3 = f(x + h / 2 * k2)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(x + h * k3))


class Written:
    """A ContinuousNet from functions alone, on copies of its tensors, which its norms update."""

    def __init__(self, net, step, cells, steps, scale):
        self.tensors = {name: t.detach().clone() for name, t in net.state_dict().items()}
        self.training = net.training
        self.step, self.cells, self.steps, self.scale = step, cells, steps, scale

    def get(self, name, row):
        tensor = self.tensors[name]
        return tensor if row is None else tensor[row]

    def conv(self, x, prefix, row=None, stride=1, padding=1):
        return functional.conv2d(x, self.get(f"{prefix}.weight", row), None, stride, padding)

    def norm(self, x, prefix, row=None):
        leaves = ("running_mean", "running_var", "weight", "bias")
        if self.training:
            self.get(f"{prefix}.num_batches_tracked", row).add_(1)
        values = [self.get(f"{prefix}.{leaf}", row) for leaf in leaves]
        return functional.batch_norm(x, *values, self.training, 0.1, 1e-5)

    def unit(self, x, prefix, row):
        for k in "12":
            x = torch.relu(self.norm(x, f"{prefix}.residual.norm{k}", row))
            x = self.conv(x, f"{prefix}.residual.conv{k}", row)
        return self.get(f"{prefix}.skip", row) * x

    def stitch(self, x, prefix):
        r = self.conv(x, f"{prefix}.residual.residual.conv1", stride=2)
        r = torch.relu(self.norm(r, f"{prefix}.residual.residual.norm1"))
        r = self.conv(r, f"{prefix}.residual.residual.conv2")
        r = self.norm(r, f"{prefix}.residual.residual.norm2")
        down = self.conv(x, f"{prefix}.down", stride=2, padding=0)
        return down + self.scale / self.steps * self.tensors[f"{prefix}.residual.skip"] * r

    def __call__(self, x):
        x = torch.relu(self.norm(self.conv(x, "stem.0"), "stem.1"))
        for k in range(2):
            x = self.stitch(x, "stitches.0") if k == 1 else x
            for n in range(self.steps):
                cell = n * self.cells // self.steps
                unit = f"blocks.{k}.weights.stacks"
                field = lambda x, unit=unit, cell=cell: self.scale * self.unit(x, unit, cell)  # noqa: E731
                x = self.step(field, x, 1 / self.steps)
        return x.mean((2, 3)) @ self.tensors["head.weight"].T + self.tensors["head.bias"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("method", "step", "cells", "steps"),
    [("euler", euler, 3, 3), ("euler", euler, 2, 4), ("rk4", rk4, 2, 2)],
)
def test_continuous_net_is_the_written_out_network(method, step, cells, steps, training):
    net = small_net(basis=PiecewiseConstant(cells), method=method, steps=steps, scale=1.7)
    net.train(training)
    written = Written(net, step, cells, steps, 1.7)
    x = images(5, 2, 7, 7)
    torch.testing.assert_close(net(x), written(x), rtol=0, atol=1e-11)
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, written.tensors[name], rtol=0, atol=1e-12, msg=name)


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("cells", "count", "printed"),
    [
        (1, 170_399, "0.2"),
        (2, 267_618, "0.3"),
        (8, 850_932, "0.9"),
    ],
)
def test_parameters_are_the_papers(cells, count, printed):
    with torch.device("meta"):
        net = ContinuousNet(basis=PiecewiseConstant(cells), steps=cells)
    assert parameters(net) == count == 97_219 * cells + 73_180
    assert f"{count / 1e6:.1f}" == printed


def test_parameters_of_the_wide_nets_and_of_one_without_scalars():
    with torch.device("meta"):
        wide, tiny = wide_continuous_net(), wide_continuous_net(classes=200)
        plain = ContinuousNet(skip_init=False)
        smooth = ContinuousNet(basis=Chebyshev(8, cells=2))
    assert parameters(wide) == 13_576_638
    assert f"{parameters(wide) / 1e6:.2f}" == "13.58"
    assert parameters(tiny) - parameters(wide) == 100 * (256 + 1)
    assert 850_932 - parameters(plain) == 3 * 8 + 2
    assert 850_932 - parameters(smooth) == (8 - 2) * 4 * (16 + 32 + 64)  # norms: one a cell


def test_wide_nets_take_images_of_any_size():
    net = ContinuousNet(7, channels=(2, 3, 4), basis=PiecewiseConstant(1), steps=1)
    assert net(torch.zeros(1, 3, 64, 64)).shape == net(torch.zeros(1, 3, 9, 7)).shape == (1, 7)


def test_convolutions_start_with_the_variance_of_he():
    with seeded(0):
        net = ContinuousNet(channels=(32, 48), basis=PiecewiseConstant(4))
    named = dict(net.named_parameters())
    for name, fan_out in (
        ("stem.0.weight", 9 * 32),
        ("blocks.0.weights.stacks.residual.conv2.weight", 9 * 32),
        ("blocks.1.weights.stacks.residual.conv1.weight", 9 * 48),
        ("stitches.0.residual.residual.conv1.weight", 9 * 48),
        ("stitches.0.down.weight", 48),
    ):
        assert named[name].var().item() == pytest.approx(2 / fan_out, rel=0.1), name
    first, second = named["blocks.0.weights.stacks.residual.conv1.weight"][:2]
    assert not torch.equal(first, second)


def test_any_residual_unit():
    def unit(channels):
        return nn.Sequential(nn.GroupNorm(1, channels), nn.Conv2d(channels, channels, 1), nn.Tanh())

    net = small_net(residual=unit, basis=PiecewiseLinear(2), method="heun", steps=2)
    assert net.blocks[1].weights.stacks.get_parameter("residual.1.weight").shape == (3, 6, 6, 1, 1)
    assert net(images(1, 2, 5, 5)).shape == (1, 3)


def test_knobs_reach_every_block():
    net = small_net(method="heun", steps=5, scale=2.0, gradient=Checkpoint(every=2))
    for block in ode_blocks(net):
        assert (block.method, block.steps, block.scale) == ("heun", 5, 2.0)
        assert block.gradient == Checkpoint(every=2)


def test_refining_splits_all_cells_and_leaves_the_stitch_alone():
    net = small_net(basis=PiecewiseConstant(2), steps=2, scale=3.0)
    assert net.stitches[0].scale == 1.5
    x = images(4, 2, 6, 6)
    net.eval()
    coarse = net.with_graph(steps=4)(x)
    net.refine()
    assert [(b.weights.basis, b.steps) for b in ode_blocks(net)] == [(PiecewiseConstant(4), 4)] * 2
    assert torch.equal(net(x), coarse)  # so the stitch kept its factor
    assert net.stitches[0].scale == net.with_graph(steps=64).stitches[0].scale == 1.5


def test_the_state_keeps_full_precision_under_autocast():
    net = ContinuousNet(**SMALL, basis=PiecewiseConstant(2), steps=2, skip_init=False)
    seen = []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda block, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(4, 2, 6, 6)).sum().backward()
    assert seen == [torch.float32] * 2
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": 0}, ValueError, "classes: 0 is not allowed"),
        ({"inputs": 1.5}, ValueError, "inputs: 1.5 is not allowed"),
        ({"channels": ()}, ValueError, r"channels: \(\) is not allowed"),
        ({"channels": (4, 0)}, ValueError, r"channels: \(4, 0\) is not allowed"),
        ({"channels": 16}, TypeError, "channels: 16 is not allowed; give one number for each"),
        ({"steps": 0}, ValueError, "steps: 0 is not allowed"),
        ({"method": "rk5"}, ValueError, "method: 'rk5' is not allowed; it must be one of"),
        ({"basis": 8}, TypeError, "basis: 8 is not allowed"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        ContinuousNet(**options)


# Skip initialisation


def test_the_scalars_gradient_is_the_step_times_the_residual():
    """Euler from x: every state is x, so ds_n = eps h <dL/dy, R_n(x)>, and no other gradient."""
    with seeded(0):
        block = OdeBlock(
            lambda: SkipInit(nn.Linear(3, 3)), PiecewiseConstant(4), steps=4, scale=1.5
        ).double()
    x, weight = images(6, 3), images(6, 3, seed=3)
    y = block(x)
    assert torch.equal(y, x)
    named = dict(block.named_parameters())
    grads = dict(zip(named, torch.autograd.grad((weight * y).sum(), named.values()), strict=True))
    w, b = named["weights.stacks.residual.weight"], named["weights.stacks.residual.bias"]
    expected = [1.5 / 4 * (weight * (x @ w[n].T + b[n])).sum() for n in range(4)]
    torch.testing.assert_close(
        grads["weights.stacks.skip"], torch.stack(expected), rtol=1e-12, atol=0
    )
    assert not grads["weights.stacks.residual.weight"].any()
    assert not grads["weights.stacks.residual.bias"].any()


def test_skip_init_passes_the_time_on():
    class Field(nn.Module):
        def forward(self, t, x):
            return t * torch.ones_like(x)

    block = OdeBlock(SkipInit(Field()), method="midpoint", steps=3, time=True)
    block.weights.stacks.get_parameter("skip").data.fill_(4.0)
    torch.testing.assert_close(block(torch.zeros(2)), torch.full((2,), 2.0))


def test_a_silent_residual_would_never_wake():
    block = OdeBlock(SkipInit(pre_activation(basic_branch(2, 2))), PiecewiseConstant(2), steps=2)
    y = block(torch.randn(3, 2, 4, 4))
    assert not any(g.any() for g in torch.autograd.grad(y.square().sum(), [*block.parameters()]))


# Stitch


def test_stitch_is_its_formula():
    with seeded(0):
        residual = basic_branch(3, 5, stride=2)
        stitch = Stitch(3, 5, residual, scale=0.25).double().eval()
    x = images(2, 3, 6, 6)
    shortcut = x[:, :, ::2, ::2]  # a 1 by 1 convolution with stride 2 sees no other pixel
    shortcut = torch.einsum("oi,bihw->bohw", stitch.down.weight[:, :, 0, 0], shortcut)
    torch.testing.assert_close(stitch(x), shortcut + 0.25 * residual(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["inputs", "outputs"])
def test_a_stitch_needs_channels(name):
    with pytest.raises(ValueError, match=f"{name}: 0 is not allowed"):
        Stitch(**{"inputs": 2, "outputs": 2, name: 0}, residual=nn.Identity())


@pytest.mark.parametrize(("scale", "steps", "factor"), [(1.0, 8, 1 / 8), (8.0, 8, 1.0)])
def test_the_factor_of_the_stitches_is_that_of_a_step(scale, steps, factor):
    net = small_net(scale=scale, steps=steps)
    assert [stitch.scale for stitch in net.stitches] == [factor]


# Batch norm in depth


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", SCHEMES)
def test_a_split_keeps_every_bit_of_a_net_with_norms(method, training):
    net = small_net(basis=PiecewiseConstant(2), method=method, steps=3).float()  # unaligned
    net.train(training)
    x = images(3, 2, 5, 5).float()
    split = copy.deepcopy(net)
    for block in ode_blocks(split):
        block.refine(steps=False)
    assert torch.equal(split(x), net(x))


@pytest.mark.parametrize("basis", [PiecewiseConstant(2), Chebyshev(3, cells=2)], ids=str)
def test_a_norm_belongs_to_its_cell(basis):
    """Affine values and statistics are one a cell in every basis; a step reads its own cell's."""
    with seeded(0):
        block = OdeBlock(lambda: pre_activation_unit(2), basis, steps=4)
    assert block.weights.stacks.get_parameter("conv1.weight").shape[0] == basis.size
    assert block.weights.stacks.get_parameter("norm1.weight").shape == (2, 2)
    block(torch.randn(4, 2, 5, 5))
    first, second = block.weights.stacks.get_buffer("norm1.running_mean")
    assert not torch.equal(first, second)
    fresh = OdeBlock(lambda: pre_activation_unit(2), basis, steps=1)
    fresh(torch.randn(4, 2, 5, 5))  # one step, which starts in the first cell
    assert fresh.weights.stacks.get_buffer("norm1.num_batches_tracked").tolist() == [1, 0]
    assert fresh.weights.stacks.get_buffer("norm1.running_mean")[1].tolist() == [0, 0]


@pytest.mark.parametrize("method", SCHEMES)
def test_statistics_are_updated_once_a_call_and_part_after_a_split(method):
    with seeded(0):
        block = OdeBlock(lambda: pre_activation_unit(2), PiecewiseConstant(2), method, steps=4)
        x = torch.randn(4, 2, 5, 5)
    with count_nfe(block) as nfe:
        block(x)
    counts = block.weights.stacks.get_buffer("norm2.num_batches_tracked")
    assert counts.tolist() == [nfe.total // 2] * 2
    block.refine(steps=False)
    means = block.weights.stacks.get_buffer("norm2.running_mean")
    assert torch.equal(means[::2], means[1::2])
    block(x)
    means = block.weights.stacks.get_buffer("norm2.running_mean")
    assert all(not torch.equal(means[2 * k], means[2 * k + 1]) for k in range(2))
