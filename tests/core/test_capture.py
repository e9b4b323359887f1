"""A solve as CUDA graphs: a replay is the eager solve."""

import copy

import pytest
import torch
from torch import nn

from companion import OdeBlock, PiecewiseConstant
from companion.capture import captured

needs_cuda = pytest.mark.cuda


@pytest.fixture
def cuda(device):
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a CUDA GPU: run with --device cuda")
    return device


def conv_block(**graph):
    def unit():
        return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OdeBlock(unit, PiecewiseConstant(4), **graph)


def gradients(solve, block, x):
    x = x.clone().requires_grad_()
    y = solve(x)
    return [y.detach(), *torch.autograd.grad(y.square().mean(), [x, *block.parameters()])]


@needs_cuda
@pytest.mark.parametrize("steps", [4, 8])
def test_a_replay_is_the_eager_solve(cuda, steps):
    block = conv_block(method="euler", steps=steps).to(cuda)
    twin = copy.deepcopy(block)
    inputs = torch.randn(3, 5, 3, 6, 6, device=cuda)
    solve = captured(block, inputs[0].clone().requires_grad_())
    for buffer, other in zip(block.buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other)  # the warm-up left no trace
    kept = []
    for x in inputs:
        found, expected = gradients(solve, block, x), gradients(twin, twin, x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        kept.append((found[0], expected[0]))
        for buffer, other in zip(block.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(buffer, other, rtol=1e-5, atol=1e-6)
    for found, expected in kept:  # no replay has written over an earlier one's result
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_cuda
def test_weights_are_read_where_they_lie(cuda):
    block = OdeBlock(nn.Linear(4, 4), method="rk4", steps=10).to(cuda)
    x = torch.randn(6, 4, device=cuda)
    solve = captured(block, x)
    with torch.no_grad():
        for p in block.parameters():
            p.mul_(0.5)
    torch.testing.assert_close(solve(x), block(x), rtol=1e-5, atol=1e-6)


@needs_cuda
def test_replays_allocate_nothing_that_stays(cuda):
    block = OdeBlock(nn.Linear(4, 4), method="rk4", steps=10).to(cuda)
    x = torch.randn(6, 4, device=cuda)
    solve = captured(block, x)
    solve(x)
    before = torch.cuda.memory_allocated(cuda)
    for _ in range(100):
        solve(x)
    assert torch.cuda.memory_allocated(cuda) == before


@needs_cuda
def test_dropout_draws_anew(cuda):
    net = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5))
    block = OdeBlock(net, method="euler", steps=2).to(cuda)
    x = torch.randn(6, 64, device=cuda)
    solve = captured(block, x)
    assert not torch.equal(solve(x), solve(x))


@needs_cuda
def test_another_shape_is_refused(cuda):
    block = OdeBlock(nn.Linear(4, 4), method="rk4", steps=2).to(cuda)
    solve = captured(block, torch.zeros(6, 4, device=cuda))
    with pytest.raises(ValueError, match=r"x: shape \(5, 4\).* made for shape \(6, 4\)"):
        solve(torch.zeros(5, 4, device=cuda))


def test_what_cannot_be_captured_is_refused(monkeypatch):
    block = OdeBlock(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="example: a tensor on cpu is not allowed"):
        captured(block, torch.zeros(2, 4))
    # The blocks are looked at before anything touches a device.
    example = torch.zeros(2, 4)
    monkeypatch.setattr(torch.Tensor, "device", property(lambda self: torch.device("cuda")))
    adaptive = nn.Sequential(block, block.with_graph(method="dopri5"))
    with pytest.raises(ValueError, match="method='dopri5' cannot be captured"):
        captured(adaptive, example)
    with pytest.raises(ValueError, match=r"gradient=Checkpoint\(every=1\) cannot be captured"):
        captured(block.with_graph(gradient="checkpoint"), example)
