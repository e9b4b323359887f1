"""Recipes written for stacks of layers, on blocks that keep their layers in one stack."""

import copy
import math

import pytest
import torch
from torch import nn

from companion import (
    Chebyshev,
    Constant,
    DiscontinuousLinear,
    Fourier,
    OdeBlock,
    PiecewiseConstant,
    PiecewiseLinear,
)
from companion.basis import evaluate
from companion.models import ContinuousNet, apply_to_layers
from companion.plain_layers import all_modules, own_rank
from companion.train import decay_groups

BASES = [
    Constant(),
    PiecewiseConstant(1),
    PiecewiseConstant(5),
    PiecewiseLinear(1),
    PiecewiseLinear(4),
    DiscontinuousLinear(3),
    Chebyshev(4),
    Chebyshev(3, cells=8),
    Chebyshev(5, cells=2),
    Fourier(5, cells=3),
]
bases = pytest.mark.parametrize("basis", BASES, ids=str)


def unit():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3)).double()


def stack(block, name):
    """The stack of a parameter or a buffer, wherever a block keeps it."""
    named = [*block.named_parameters(), *block.named_buffers()]
    return next(tensor for own, tensor in named if own.endswith(name))


def drawing(seed):
    """Return a function that gives a layer values from one stream: no two layers the same."""
    generator = torch.Generator().manual_seed(seed)

    def draw(layer):
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
            else:
                tensor.data.fill_(int(torch.randint(99, (), generator=generator)))
        return layer

    return draw


@bases
def test_layers_that_are_changed_are_those_that_a_factory_would_have_made(basis):
    draw = drawing(0)
    made = OdeBlock(lambda: draw(unit()), basis)
    block = OdeBlock(unit(), basis)
    before = dict(block.named_parameters())
    apply_to_layers(block, drawing(0))
    for (name, ours), theirs in zip(
        block.state_dict().items(), made.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert all(before[name] is param for name, param in block.named_parameters())


@bases
def test_a_function_that_only_looks_sees_the_values_at_the_nodes_and_changes_no_bit(basis):
    draw, seen = drawing(1), []
    wanted = [copy.deepcopy(draw(unit())) for _ in range(basis.size)]
    fresh = iter(wanted)
    block = OdeBlock(lambda: next(fresh), basis)
    before = copy.deepcopy(block.state_dict())
    apply_to_layers(block, seen.append)
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name])
    assert len(seen) == basis.size
    for layer, made in zip(seen, wanted, strict=True):
        for name in ("0.weight", "0.bias", "3.weight"):
            torch.testing.assert_close(
                layer.get_parameter(name), made.get_parameter(name), rtol=0, atol=1e-13
            )


@bases
def test_every_cell_is_shown_by_the_layer_that_it_takes_changes_from(basis):
    """Buffers of all cells change by what the layers change, none is lost."""
    block = OdeBlock(unit(), basis)
    mean = stack(block, "1.running_mean")
    mean.copy_(torch.arange(basis.cells).view(-1, 1).expand(-1, 3))
    apply_to_layers(block, lambda layer: layer[1].running_mean.add_(100))
    if basis.size >= basis.cells:
        assert torch.equal(mean[:, 0], 100 + torch.arange(basis.cells).double())
    assert (mean >= 100).all()


@pytest.mark.parametrize("cells", [1, 2, 16])
def test_xavier_by_rank_gives_the_spread_of_one_layer(cells):
    block = OdeBlock(nn.Linear(64, 64), PiecewiseConstant(cells))

    def init(layer):
        for p in layer.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p, generator=generator)

    generator = torch.Generator().manual_seed(0)
    before = stack(block, "bias").clone()
    apply_to_layers(block, init)
    assert stack(block, "weight").std().item() == pytest.approx(0.125, rel=0.02)
    assert stack(block, "weight").abs().max() <= math.sqrt(6 / 128)
    assert torch.equal(stack(block, "bias"), before)


def test_orthogonal_layers_of_a_polynomial_are_orthogonal_at_its_nodes():
    block = OdeBlock(nn.Linear(4, 4).double(), Chebyshev(3))
    generator = torch.Generator().manual_seed(0)
    apply_to_layers(block, lambda layer: nn.init.orthogonal_(layer.weight, generator=generator))
    nodes = torch.tensor([0.5 - 0.5 * math.cos(math.pi * (j + 0.5) / 3) for j in range(3)])
    values = evaluate(Chebyshev(3), stack(block, "weight").detach(), nodes.double())
    for value in values:
        torch.testing.assert_close(value @ value.T, torch.eye(4).double(), rtol=0, atol=1e-6)


def test_the_layers_of_a_whole_net_and_nothing_else():
    net = ContinuousNet(channels=(4, 8), basis=PiecewiseConstant(2), steps=2)
    start = copy.deepcopy(net.state_dict())
    seen = []

    def init(layer):
        seen.append(layer)
        layer.apply(lambda m: nn.init.ones_(m.weight) if isinstance(m, nn.Conv2d) else None)

    apply_to_layers(net, init)
    assert len(seen) == 4
    changed = {n for n, value in net.state_dict().items() if not torch.equal(value, start[n])}
    assert len(changed) == 4
    assert all(name.startswith("blocks.") and "conv" in name for name in changed)


def test_blocks_that_share_weights_are_changed_once():
    block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(3))
    seen = []
    apply_to_layers(nn.Sequential(block, block.with_graph(steps=2)), seen.append)
    assert len(seen) == 3


def test_tied_layers_stay_tied_and_modes_are_shown():
    tied = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    tied[2].weight = tied[0].weight
    block = OdeBlock(tied, PiecewiseConstant(2)).eval()

    def init(layer):
        assert layer[0].weight is layer[2].weight
        assert not layer.training
        assert not torch.is_grad_enabled()
        nn.init.ones_(layer[2].weight)

    apply_to_layers(block, init)
    weights = dict(block.named_parameters(remove_duplicate=False))
    first, last = (next(p for n, p in weights.items() if n.endswith(f"{k}.weight")) for k in (0, 2))
    assert first is last
    assert (first == 1).all()


def test_freezing_reaches_the_stack():
    block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(2))
    apply_to_layers(block, lambda layer: layer.bias.requires_grad_(False))
    assert not stack(block, "bias").requires_grad
    assert stack(block, "weight").requires_grad
    layers = iter(range(2))
    with pytest.raises(ValueError, match="fn: freezing weight in some layers"):
        apply_to_layers(block, lambda layer: layer.weight.requires_grad_(next(layers) == 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: layer.half(), r"fn: .*torch\.float16"),
        (lambda layer: nn.utils.parametrizations.weight_norm(layer[0]), "fn: .*original0"),
        (lambda layer: setattr(layer[2], "p", 0.9), r"fn: .*p=0\.9"),
        (lambda layer: setattr(layer[1], "gain", 0.9), r"fn: .*'1.gain', 0\.9"),
        (lambda layer: layer[1].eval(), r"fn: .*'1.training', False"),
        (lambda layer: layer.append(nn.ReLU()), "fn: .*ReLU"),
        (lambda layer: setattr(layer[0], "bias", None), r"fn: .*bias=False"),
        (lambda layer: layer.__delitem__(2), "fn: .*fewer parts"),
    ],
)
def test_what_a_stack_cannot_keep_is_refused(change, message):
    block = OdeBlock(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Dropout(0.5)))
    before = copy.deepcopy(block.state_dict())
    with pytest.raises(ValueError, match=message):
        apply_to_layers(block, change)
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


def test_a_net_without_blocks_is_refused():
    with pytest.raises(ValueError, match="net: Linear without an OdeBlock"):
        apply_to_layers(nn.Linear(2, 2), print)


def test_modules_and_ranks_inside_nested_blocks():
    inner = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(2))
    outer = OdeBlock(nn.Sequential(inner, nn.BatchNorm1d(2)), PiecewiseConstant(3))
    assert [type(m).__name__ for m in all_modules(outer)].count("Linear") == 1
    shapes = {tuple(p.shape): rank for p, rank in own_rank(outer).items()}
    assert shapes == {(3, 2, 2, 2): 2, (3, 2, 2): 1, (3, 2): 1}


def test_weight_decay_by_rank_is_for_matrices_and_kernels():
    net = ContinuousNet(channels=(4, 8), basis=PiecewiseConstant(2), steps=2)
    net.head.bias.requires_grad_(False)
    decayed, others = decay_groups(net, 0.01)
    names = {param: name for name, param in net.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    for param in decayed["params"]:
        assert "conv" in names[param] or param.dim() in (2, 4), names[param]
    plain = {names[p] for p in others["params"]}
    assert any("skip" in name for name in plain)
    assert any("norm" in name for name in plain)
    assert not any("conv" in name for name in plain)
    assert len(decayed["params"]) + len(others["params"]) == len(names) - 1
    with pytest.raises(ValueError, match=r"weight_decay: -1\.0 is not allowed"):
        decay_groups(net, -1.0)


@pytest.mark.parametrize("basis", [PiecewiseConstant(3), Chebyshev(3), PiecewiseLinear(2)], ids=str)
def test_weight_decay_of_a_block_is_that_of_its_layers_one_by_one(basis):
    """One step of decay alone: a module a layer, with the usual rule, ends with the same values."""
    layers = [drawing(k)(unit()) for k in range(3)]
    fresh = iter(copy.deepcopy(layers))
    block = OdeBlock(lambda: next(fresh), basis)
    start = copy.deepcopy(block)
    for param in block.parameters():
        param.grad = torch.zeros_like(param)
    torch.optim.SGD(decay_groups(block, 0.25), lr=1.0).step()
    for (name, param), old in zip(block.named_parameters(), start.parameters(), strict=True):
        factor = 0.75 if name.endswith("weight") and ".1." not in f".{name}" else 1.0
        torch.testing.assert_close(param, factor * old, rtol=1e-15, atol=1e-15)
