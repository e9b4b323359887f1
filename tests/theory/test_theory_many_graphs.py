"""The theorems of chapter 14: how far two graphs of the same weights are apart."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from companion import OdeBlock, PiecewiseConstant, odeint
from companion.exercises import many_graphs as exercises
from companion.observe import fit_slope
from companion.schemes import SCHEMES
from companion.train import seeded

F64 = torch.float64


def perceptron(activation, dim=4, hidden=8):
    return nn.Sequential(nn.Linear(dim, hidden), activation(), nn.Linear(hidden, dim)).double()


def drawn_block(activation, cells, scale, seed=0):
    """A block with unrelated cells, its start, and its Lipschitz constant."""
    with seeded(seed):
        units = [perceptron(activation) for _ in range(cells)]
        x = torch.randn(16, 4, dtype=F64)
    block = OdeBlock.from_modules(units, scale=scale)
    norms = [[torch.linalg.matrix_norm(unit[k].weight, 2).item() for k in (0, 2)] for unit in units]
    return block, units, x, max(first * second for first, second in norms)


def fine_solution(units, x, scale, substeps=512):
    """Euler's explicit midpoint in a plain loop, cell by cell; return the end and the largest R."""
    h, largest = scale / len(units) / substeps, 0.0
    with torch.no_grad():
        for unit in units:
            for _ in range(substeps):
                slope = unit(x)
                largest = max(largest, slope.norm(dim=1).max().item())
                x = x + h * unit(x + h / 2 * slope)
            largest = max(largest, unit(x).norm(dim=1).max().item())
    return x, largest


def euler_bound(scale, largest, lipschitz, steps):
    q = 1 + scale * lipschitz / steps
    return scale * largest / (2 * steps) * (q**steps - 1)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0])
def test_euler_and_pairs_of_graphs_stay_within_the_bound(activation, scale):
    block, units, x, lipschitz = drawn_block(activation, 4, scale)
    flow, largest = fine_solution(units, x, scale)
    ends, bounds = [], []
    for steps in (4, 8, 12, 32):
        with torch.no_grad():
            ends.append(block.with_graph(steps=steps)(x))
        bounds.append(euler_bound(scale, 1.001 * largest, lipschitz, steps))
        assert (ends[-1] - flow).norm(dim=1).max().item() <= bounds[-1]
    for (one, b), (two, c) in pairwise(zip(ends, bounds, strict=True)):
        assert (one - two).norm(dim=1).max().item() <= b + c


def steep_layers(steps, scale, lipschitz=1.5, largest=2.0):
    """Layers whose field grows from C exp(-z) to C along the flow: the worst case of the proof."""
    z = scale * lipschitz / steps
    x, layers = 0.0, []
    for _ in range(steps):
        start = largest * math.exp(-z)
        layers.append((lipschitz, start - lipschitz * x))
        x += start * math.expm1(z) / lipschitz
    return layers, x


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_weights_exist_that_come_close_to_the_bound(scale):
    ratios = []
    for steps in (10, 100, 1000):
        layers, flow = steep_layers(steps, scale)
        x = 0.0
        for slope, offset in layers:
            x += scale / steps * (slope * x + offset)
        ratios.append(abs(x - flow) / euler_bound(scale, 2.0, 1.5, steps))
    assert ratios[0] < ratios[1] < ratios[2] <= 1 + 1e-9
    assert ratios[2] > 0.99


@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)]
)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_two_graphs_approach_each_other_with_the_order(method, order, scale):
    block, _, x, _ = drawn_block(nn.Tanh, 4, scale)
    counts = [16, 32, 64] if scale == 1 else [64, 128, 256]
    with torch.no_grad():
        gaps = [
            (
                block.with_graph(method=method, steps=n)(x)
                - block.with_graph(method=method, steps=2 * n)(x)
            )
            .norm()
            .item()
            for n in counts
        ]
    assert abs(fit_slope(counts, gaps).value + order) < 0.2


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "rk4_38"])
def test_the_scale_is_the_length_of_the_solve(method):
    """A block at scale e with step h solves over [0, e] with the step e h."""
    with seeded(0):
        unit, x = perceptron(nn.Tanh), torch.randn(4, 4, dtype=F64)
    block = OdeBlock(unit, method=method, steps=6, scale=5.0)
    end = odeint(lambda t, y: unit(y), x, [0.0, 5.0], method=method, steps=6)[-1]
    assert torch.allclose(block(x), end, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4", "rk4_38"])
def test_a_step_stretches_distances_by_at_most_its_constant(method):
    """The theorem's Lambda; Euler, midpoint, Heun and RK4 attain it on x' = L x."""
    scheme, z = SCHEMES[method], 0.7
    stages = len(scheme.b)
    A = np.zeros((stages, stages))
    for i, row in enumerate(scheme.a):
        A[i, : len(row)] = np.abs(np.array(row, dtype=float))
    b = np.abs(np.array(scheme.b, dtype=float))
    growth = z * b @ np.linalg.solve(np.eye(stages) - z * A, np.ones(stages))
    linear = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(linear.weight, z)
    ones = torch.ones(1, 1, dtype=F64)
    stretched = OdeBlock(linear, method=method)(ones).item() - 1
    if method == "rk4_38":  # one of its coefficients is negative
        assert stretched <= growth
    else:
        assert stretched == pytest.approx(growth, rel=1e-12)
    with seeded(3):
        x, y = 3 * torch.randn(2, 64, 4, dtype=F64)
        W = torch.linalg.qr(torch.randn(4, 4, dtype=F64))[0]
    turn = nn.Linear(4, 4, bias=False).double()
    turn.weight.data = z * W
    block = OdeBlock(nn.Sequential(turn, nn.Tanh()), method=method)
    ratio = (block(x) - block(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert 1 < ratio.max().item() <= 1 + growth


def line(thetas):
    """The residual network x + theta_n x on the line, as a block."""
    units = []
    for theta in thetas:
        units.append(nn.Linear(1, 1, bias=False).double())
        nn.init.constant_(units[-1].weight, theta)
    return OdeBlock.from_modules(units, scale=float(len(units)))


@pytest.mark.parametrize("target", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("factor", [3.0, 5.0, 8.0])
def test_one_map_belongs_to_many_flows(target, factor):
    """The Euler net is the target exactly; its flow is not, and has no bound."""
    block = line([factor - 1, target / factor - 1, 0.0])
    x = torch.linspace(-1, 1, 5, dtype=F64).unsqueeze(1).requires_grad_()
    loss = (block(x) - target * x).square().sum()
    loss.backward()
    assert loss.item() < 1e-28
    assert all(p.grad.abs().max() < 1e-13 for p in block.parameters())
    fine = block.with_graph(method="rk4", steps=600)(torch.ones(1, 1, dtype=F64)).item()
    assert fine == pytest.approx(math.exp(factor + target / factor - 2), rel=1e-5)


def test_equal_layers_come_nearest_to_the_flow():
    """Positive factors with a given product: the flow is at least exp(N (g^(1/N) - 1)) >= g."""
    generator = np.random.default_rng(0)
    for layers in (2, 5, 8):
        for target in (0.2, 1.0, 4.0):
            least = math.exp(layers * (target ** (1 / layers) - 1))
            assert least >= target
            logs = generator.normal(size=(200, layers))
            logs += (math.log(target) - logs.sum(1, keepdims=True)) / layers
            flows = np.exp((np.exp(logs) - 1).sum(1))
            assert (flows >= least).all()
            assert flows.min() < 4 * least
            equal = math.exp(sum([target ** (1 / layers) - 1] * layers))
            assert equal == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize(
    ("method", "steps"), [("euler", 8), ("euler", 9), ("rk4", 5), ("rk4_38", 3)]
)
def test_the_scale_is_a_gauge_to_the_last_bit(method, steps):
    """Scale 8 with V equals scale 1 with 8 V under every graph: powers of two round alike."""
    with seeded(0):
        units, x = [perceptron(nn.ReLU) for _ in range(8)], torch.randn(16, 4, dtype=F64)
    loud = OdeBlock.from_modules(units, scale=8.0).with_graph(method=method, steps=steps)
    with torch.no_grad():
        for unit in units:
            unit[2].weight.mul_(8)
            unit[2].bias.mul_(8)
    quiet = OdeBlock.from_modules(units, scale=1.0).with_graph(method=method, steps=steps)
    assert torch.equal(loud(x), quiet(x))


@pytest.mark.parametrize("scale", [8.0, 3.0])
def test_training_at_a_scale_is_training_at_one_with_other_settings(scale):
    """Start, rate and decay of V and c by e, e^2 and e^-2: the same network after every step."""
    ends = []
    for own in (scale, 1.0):
        factor = scale / own
        with seeded(0):
            block = OdeBlock(lambda: perceptron(nn.ReLU), PiecewiseConstant(4), steps=4, scale=own)
            x, target = torch.randn(2, 16, 4, dtype=F64)
        inner, outer = list(block.parameters())[:2], list(block.parameters())[2:]
        with torch.no_grad():
            for p in outer:
                p.mul_(factor)
        changed = {"lr": factor**2 * 2**-8, "weight_decay": 2**-4 / factor**2}
        groups = [{"params": inner}, {"params": outer, **changed}]
        optimiser = torch.optim.SGD(groups, lr=2**-8, momentum=0.9, weight_decay=2**-4)
        for _ in range(10):
            optimiser.zero_grad()
            (block(x) - target).square().mean().backward()
            optimiser.step()
        ends.append(block(x))
    if scale == 8:
        assert torch.equal(*ends)
    assert torch.allclose(*ends, rtol=1e-10)
    assert not torch.allclose(ends[0], x, rtol=0.1)


def test_a_margin_protects_the_class():
    """Logits that move by less than margin / sqrt 2 keep their class; one of that size flips it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 10, generator=generator, dtype=F64)
    top, order = logits.topk(2, dim=1)
    margin = top[:, 0] - top[:, 1]
    move = torch.randn(20, 500, 10, generator=generator, dtype=F64)
    move *= (0.999 * margin / 2**0.5).unsqueeze(1) / move.norm(dim=2, keepdim=True)
    assert ((logits + move).argmax(2) == order[:, 0]).all()
    worst = torch.zeros_like(logits)
    worst.scatter_(1, order, torch.tensor([[-1.0, 1.0]], dtype=F64).expand(500, 2).contiguous())
    worst *= (1.001 * margin / 2).unsqueeze(1)
    assert ((logits + worst).argmax(1) == order[:, 1]).all()


class Shear(nn.Module):
    """A coupling layer: the first number sets the speed of the second."""

    def __init__(self):
        super().__init__()
        self.speed = nn.Linear(1, 1)
        nn.init.constant_(self.speed.weight, 2.0)

    def forward(self, x):
        speed = 2 + torch.tanh(self.speed(x[:, :1])) ** 2
        return torch.cat([torch.zeros_like(speed), speed], dim=1)


def test_checkers_take_answers_in_single_precision():
    assert exercises.IDENTITY.check(torch.tensor([8.0, -8 / 9])).startswith("Right")
    field = Shear()
    assert exercises.EXACT.check((field, torch.randn(8, 2))).startswith("Right")
    assert field.speed.weight.dtype == torch.float32  # the reader's module stays as it is
