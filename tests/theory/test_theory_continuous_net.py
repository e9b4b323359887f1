"""The propositions of chapter 12, against loops that share no code with us."""

import pytest
import torch
from loops import loop
from torch import nn

from companion import OdeBlock
from companion.basis import Chebyshev, PiecewiseConstant, PiecewiseLinear, locate
from companion.schemes import SCHEMES

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# Batch norm


@loop("calls", [1, 4, 8])
@loop("momentum", [0.1, 0.3])
def test_running_statistics_are_weighted_means_of_the_calls(calls, momentum):
    """After P equal passes, and in the limit; means, and unbiased variances."""
    norm = nn.BatchNorm1d(2, momentum=momentum, dtype=F64)
    batches = [randn(16, 2, seed=k) * (k + 1) + k for k in range(calls)]
    passes = 200
    for count in range(1, passes + 1):
        for batch in batches:
            norm(batch)
        if count not in (1, passes):
            continue
        decay = (1 - momentum) ** (calls * count)
        weights = [
            momentum * (1 - momentum) ** (calls - 1 - i) / (1 - (1 - momentum) ** calls)
            for i in range(calls)
        ]
        assert sum(weights) == pytest.approx(1)
        mean = sum(w * b.mean(0) for w, b in zip(weights, batches, strict=True))
        var = sum(w * b.var(0) for w, b in zip(weights, batches, strict=True))
        torch.testing.assert_close(norm.running_mean, (1 - decay) * mean)
        torch.testing.assert_close(norm.running_var, decay + (1 - decay) * var)


@pytest.mark.parametrize("name", ["euler", "heun", "rk4"])
def test_a_block_updates_the_norm_of_a_cell_at_every_stage(name):
    """Statistics of a cell are the weighted mean of what its stages saw, in their order."""
    seen = []

    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 3, dtype=F64), nn.BatchNorm1d(3, dtype=F64)

        def forward(self, x):
            y = self.linear(x)
            seen.append(y.detach().mean(0))
            return torch.tanh(self.norm(y))

    block = OdeBlock(Unit, PiecewiseConstant(2), method=name, steps=4)
    x = randn(16, 3)
    block(x)
    passes = 150
    for _ in range(passes):
        first = len(seen)
        block(x)
    per_cell = (len(seen) - first) // 2
    for cell in range(2):
        calls = seen[first + cell * per_cell : first + (cell + 1) * per_cell]
        weights = [0.1 * 0.9 ** (per_cell - 1 - i) / (1 - 0.9**per_cell) for i in range(per_cell)]
        wanted = sum(w * mean for w, mean in zip(weights, calls, strict=True))
        found = dict(block.weights.stacks.named_buffers())["norm.running_mean"][cell]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


# Skip initialisation and the stitch


@pytest.mark.parametrize("name", SCHEMES)
@loop("basis", [PiecewiseConstant(3), PiecewiseLinear(3), Chebyshev(4)])
def test_a_silent_skip_leaves_the_identity_and_one_gradient(name, basis):
    """dL/ds_k = scale * a . sum_n sum_i h b_i phi_k(t_n + c_i h) g(x); all others are zero."""

    class Skipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3, dtype=F64)
            self.skip = nn.Parameter(torch.zeros((), dtype=F64))

        def forward(self, x):
            return self.skip * torch.tanh(self.linear(x))

    block = OdeBlock(Skipped, basis, method=name, steps=6, scale=2.0)
    x, a = randn(5, 3), randn(5, 3, seed=1)
    y = block(x)
    assert torch.equal(y, x)
    params = dict(block.weights.stacks.named_parameters())
    gradients = dict(zip(params, torch.autograd.grad(y, list(params.values()), a), strict=True))
    assert not gradients["linear.weight"].any()
    assert not gradients["linear.bias"].any()
    wanted, scheme = torch.zeros(basis.size, dtype=F64), SCHEMES[name]
    for n in range(6):
        for b, c in zip(scheme.b, scheme.c, strict=True):
            pairs = basis.at(locate(n, 6, c, basis.cells))
            w = sum(phi * params["linear.weight"][k] for k, phi in pairs)
            bias = sum(phi * params["linear.bias"][k] for k, phi in pairs)
            value = 2.0 / 6 * float(b) * (a * torch.tanh(x @ w.T + bias)).sum()
            for k, phi in pairs:
                wanted[k] += phi * value.detach()
    torch.testing.assert_close(gradients["skip"], wanted, rtol=1e-11, atol=1e-12)
    assert wanted.abs().min() > 1e-6
