"""Batch-norm statistics of blocks: estimated anew, averaged over models, over processes."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.optim.swa_utils import update_bn as torch_update_bn

from companion import Chebyshev, Constant, OdeBlock, PiecewiseConstant, PiecewiseLinear
from companion.models import ContinuousNet
from companion.plain_layers import all_modules
from companion.train import convert_sync_batchnorm, seeded, update_bn


def unit():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=0.3), nn.Tanh())


def batches():
    draw = torch.Generator().manual_seed(3)
    return [torch.randn(5, 3, generator=draw, dtype=torch.float64) for _ in range(4)]


class Layers(nn.Module):
    """The same network as a stack of layers, which torch's own recipe is for."""

    def __init__(self, layers, head):
        super().__init__()
        self.layers, self.head = nn.ModuleList(layers), head

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x) / len(self.layers)
        return self.head(x)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_re_estimation_equals_torchs_of_the_stack_of_layers(gradient):
    with seeded(0):
        layers = [unit() for _ in range(4)]
        head = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    block = OdeBlock.from_modules(layers, method="euler", gradient=gradient)
    ours = nn.Sequential(block, copy.deepcopy(head)).double()
    theirs = Layers(copy.deepcopy(layers), head).double()
    for net in (ours, theirs):
        with seeded(1):
            for x in batches():
                net(3 * x + 1)  # statistics of something else
    update_bn(batches(), ours)
    torch_update_bn(batches(), theirs)
    for leaf in ("running_mean", "running_var", "num_batches_tracked"):
        stack = next(b for n, b in ours[0].named_buffers() if n.endswith(leaf))
        expected = torch.stack([layer.get_buffer(f"1.{leaf}") for layer in theirs.layers])
        torch.testing.assert_close(stack, expected, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(
            ours[1].get_buffer(f"0.{leaf}"), theirs.head.get_buffer(f"0.{leaf}")
        )


@pytest.mark.parametrize(
    "basis", [Constant(), PiecewiseConstant(2), PiecewiseLinear(2), Chebyshev(3, cells=2)], ids=str
)
def test_re_estimation_is_the_mean_over_all_evaluations_of_a_cell(basis):
    """A scheme reads a cell several times a step; every evaluation counts the same."""
    with seeded(0):
        block = OdeBlock(unit(), basis, method="rk4", steps=2).double()
    seen = {cell: [] for cell in range(basis.cells)}
    template, calls = block.weights.template, []

    def note(module, arguments):
        calls.append(arguments[0].detach())

    handle = template[1].register_forward_pre_hook(note)
    update_bn(batches(), block)
    handle.remove()
    evaluations = 4 * 2
    assert len(calls) == evaluations * len(batches())
    for k, x in enumerate(calls):
        seen[(k % evaluations) * basis.cells // evaluations].append(x.mean(0))
    mean = next(b for n, b in block.named_buffers() if n.endswith("running_mean"))
    for cell, means in seen.items():
        torch.testing.assert_close(mean[cell], torch.stack(means).mean(0), rtol=1e-12, atol=1e-12)


def test_modes_momenta_and_parameters_come_back():
    model = nn.Sequential(OdeBlock(unit(), PiecewiseConstant(2), steps=2), nn.Dropout()).double()
    model.eval()
    model[0].weights.template[2].train()
    modes = [module.training for module in all_modules(model)]
    params = copy.deepcopy(list(model.parameters()))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.cat(batches()), torch.arange(20)), 5
    )
    update_bn(loader, model)
    assert [module.training for module in all_modules(model)] == modes
    assert model[0].weights.template[1].momentum == 0.3
    assert all(torch.equal(a, b) for a, b in zip(params, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="batches: none is not allowed"):
        update_bn([], model)
    assert model[0].weights.template[1].momentum == 0.3


def test_statistics_in_nested_blocks_are_estimated_anew():
    inner = OdeBlock(unit(), PiecewiseConstant(2), steps=2)
    outer = OdeBlock(nn.Sequential(inner, nn.Tanh()), PiecewiseConstant(3), steps=3).double()
    fresh = copy.deepcopy(outer)
    for x in batches():
        outer(5 * x + 1)
    update_bn(batches(), outer)
    update_bn(batches(), fresh)
    for ours, wanted in zip(outer.buffers(), fresh.buffers(), strict=True):
        assert torch.equal(ours, wanted)
        assert ours.numel() % 6 == 0


def test_averages_with_buffers_take_their_mean_too():
    with seeded(0):
        model = OdeBlock(unit(), PiecewiseConstant(2), steps=2).double()
    averaged, seen = AveragedModel(model, use_buffers=True), []
    for x in batches():
        model(x)
        averaged.update_parameters(model)
        seen.append([b.clone().double() for b in model.buffers()])
    for buffer, values in zip(averaged.module.buffers(), zip(*seen, strict=True), strict=True):
        if buffer.is_floating_point():
            torch.testing.assert_close(buffer, torch.stack(values).mean(0), rtol=1e-12, atol=1e-12)


def test_averaged_weights_of_a_block_are_the_means_of_its_coefficients():
    """torch's AveragedModel works on stacks as on any parameter; the statistics then follow."""
    with seeded(0):
        model = nn.Sequential(OdeBlock(unit(), PiecewiseLinear(2), steps=2), nn.Linear(3, 1))
    model.double()
    averaged, seen = AveragedModel(model), []
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in batches():
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
        averaged.update_parameters(model)
        seen.append([p.detach().clone() for p in model.parameters()])
    for param, values in zip(averaged.module.parameters(), zip(*seen, strict=True), strict=True):
        torch.testing.assert_close(param, torch.stack(values).mean(0), rtol=1e-12, atol=1e-12)
    expected = copy.deepcopy(averaged.module)
    update_bn(batches(), averaged)
    update_bn(batches(), expected)
    assert all(
        torch.equal(a, b)
        for a, b in zip(averaged.module.buffers(), expected.buffers(), strict=True)
    )
    assert averaged.module[0].weights is not model[0].weights


def test_sync_norms_are_inside_blocks_and_around_them():
    net = ContinuousNet(channels=(4, 8), basis=PiecewiseConstant(2), method="rk4", steps=2)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, state = net(x), copy.deepcopy(net.state_dict())
    params = list(net.parameters())
    other = copy.deepcopy(net)
    assert convert_sync_batchnorm(net) is net
    kinds = [type(m) for m in all_modules(net)]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.SyncBatchNorm) == 1 + 2 * 2 + 1 * sum(
        isinstance(m, nn.BatchNorm2d) for m in other.stitches.modules()
    )
    assert all(a is b for a, b in zip(params, net.parameters(), strict=True))
    assert net.state_dict().keys() == state.keys()
    torch.testing.assert_close(net(x), other(x))  # a process on its own
    torch.testing.assert_close(net(x).shape, expected.shape)
    assert isinstance(convert_sync_batchnorm(nn.BatchNorm2d(3)), nn.SyncBatchNorm)


def test_a_bare_norm_as_residual_has_a_way_out():
    with pytest.raises(ValueError, match=r"bare batch norm.*nn\.Sequential"):
        convert_sync_batchnorm(OdeBlock(nn.BatchNorm1d(3)))
    block = convert_sync_batchnorm(OdeBlock(nn.Sequential(nn.BatchNorm1d(3))))
    assert isinstance(block.weights.template[0], nn.SyncBatchNorm)
