"""Views of a model under other graphs, and the summary that prints them."""

import math
from fractions import Fraction

import pytest
import torch
from sample_nets import continuous_net as net
from torch import nn

from companion import Chebyshev, OdeBlock, PiecewiseConstant
from companion.gradients import Checkpoint
from companion.models import ContinuousMLP, ContinuousNet, graph_summary, ode_blocks, with_graph
from companion.observe import count_nfe
from companion.schemes import SCHEMES


def images():
    return torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [True, False])
def test_a_view_is_the_model_with_its_blocks_under_another_graph(training):
    """Its outputs are those of a net of its own, made with that graph and loaded by name."""
    model = net(basis=PiecewiseConstant(2), steps=2, scale=2.0).train(training)
    other = net(basis=PiecewiseConstant(2), method="rk4", steps=3, scale=2.0).train(training)
    for stitch in other.stitches:
        stitch.scale = 1.0  # fixed when the net was made, with 2 steps
    other.load_state_dict(model.state_dict())
    view = model.with_graph(method="rk4", steps=3, gradient="checkpoint")
    assert torch.equal(view(images()), other(images()))
    assert type(view) is ContinuousNet
    assert [(b.method, b.steps, b.gradient) for b in ode_blocks(view)] == [
        ("rk4", 3, Checkpoint())
    ] * 2
    assert [(b.method, b.steps) for b in ode_blocks(model)] == [("euler", 2)] * 2


def test_a_view_shares_every_parameter_and_statistic():
    model = net(basis=PiecewiseConstant(2), steps=2)
    view = model.with_graph(method="heun")
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(m, kind)()) for m in (model, view))
        assert ours.keys() == theirs.keys()
        assert all(theirs[name] is tensor for name, tensor in ours.items())
    view.refine()
    assert {b.weights.basis for b in ode_blocks(model)} == {PiecewiseConstant(4)}
    assert {b.steps for b in ode_blocks(model)} == {2}  # steps belong to the graph
    before = model.blocks[0].weights.stacks.get_buffer("norm1.running_mean").clone()
    view(images())
    assert not torch.equal(model.blocks[0].weights.stacks.get_buffer("norm1.running_mean"), before)


@pytest.mark.parametrize("training", [True, False])
def test_a_view_keeps_the_mode_of_every_module(training):
    model = net().train(training)
    view = model.with_graph(steps=1)
    assert {m.training for m in [*model.modules(), *view.modules()]} == {training}
    assert {b.weights.template.training for b in ode_blocks(view)} == {training}


def test_what_is_none_stays():
    model = net(method="midpoint", steps=3, gradient="checkpoint")
    for block in ode_blocks(model.with_graph(steps=5)):
        assert (block.method, block.steps, block.gradient) == ("midpoint", 5, Checkpoint())


def test_any_model_with_blocks_has_views():
    block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(2), steps=2)
    tail = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.Sequential(block, nn.Sequential(nn.Tanh(), block), tail)
    view = with_graph(model, method="rk4")
    assert view[0] is view[1][1]  # used twice, and still one
    assert view[0] is not block
    assert view[2] is tail
    assert model[0] is model[1][1] is block
    assert with_graph(block, steps=7).steps == 7
    mlp = ContinuousMLP(3, 2, steps=2)
    assert with_graph(mlp, steps=4).block.weights is mlp.block.weights


@pytest.mark.parametrize("function", [with_graph, graph_summary])
def test_a_model_without_blocks_has_no_graph(function):
    with pytest.raises(ValueError, match="model: a Linear without an OdeBlock has no graph"):
        function(nn.Linear(2, 2))


def test_bad_graphs_are_refused_by_the_blocks():
    with pytest.raises(ValueError, match="steps: 0 is not allowed"):
        net().with_graph(steps=0)


# The summary


def lines_of_steps(block):
    """Return depths and cells of every step as the summary prints them."""
    rows = graph_summary(block).splitlines()[3:]
    found = []
    for row in rows:
        numbers = row.split()[1:]
        half = len(numbers) // 2
        found.append(([float(x) for x in numbers[:half]], [int(x) for x in numbers[half:]]))
    return found


@pytest.mark.parametrize("steps", [1, 3, 4, 8])
@pytest.mark.parametrize("method", SCHEMES)
def test_the_summary_prints_depths_and_cells(method, steps):
    """In exact fractions; both ends of a step are read from inside it."""
    block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(4), method=method, steps=steps)
    found = lines_of_steps(block)
    assert len(found) == steps
    for n, (depths, cells) in enumerate(found):
        exact = [(n + c) / Fraction(steps) for c in SCHEMES[method].c]
        assert depths == pytest.approx([float(s) for s in exact], rel=1e-3)
        inside = [s - Fraction(1, 10**6) * (s == Fraction(n + 1, steps)) for s in exact]
        assert cells == [math.floor(4 * s) for s in inside]


@pytest.mark.parametrize("method", ["euler", "rk4", "async_leapfrog"])
def test_the_cells_it_prints_are_those_that_get_a_gradient(method):
    block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(8), method=method, steps=3)
    block(torch.ones(1, 2)).sum().backward()
    used = {
        cell for cell in range(8) if block.weights.stacks.get_parameter("bias").grad[cell].any()
    }
    assert used == {cell for _, cells in lines_of_steps(block) for cell in cells}


@pytest.mark.parametrize("method", ["euler", "heun", "rk4_38", "async_leapfrog"])
def test_the_evaluations_it_prints_are_those_that_happen(method):
    model = net(method=method, steps=3, basis=PiecewiseConstant(2))
    with count_nfe(model) as nfe:
        model(images())
    first, second = graph_summary(model).splitlines()[:2]
    assert f"2 blocks, {nfe.total} evaluations of a residual, " in first
    assert f"blocks.0: {method}, 3 steps, {nfe.total // 2} evaluations; " in second


def test_the_parameters_it_prints_are_those_of_the_model():
    model = net(basis=Chebyshev(3, cells=2))
    text = graph_summary(model)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text.splitlines()[0]
    own = sum(p.numel() for p in model.blocks[1].parameters())
    assert f"Chebyshev(size=3, cells=2), {own:,} parameters; scale 1" in text


def test_an_adaptive_graph_has_a_line_a_cell():
    text = graph_summary(OdeBlock(nn.Linear(2, 2), PiecewiseConstant(4), method="dopri5"))
    assert "evaluations as the input asks" in text.splitlines()[0]
    assert text.splitlines()[3] == "  cell 1: depth 0.25 to 0.5, steps as the input asks"
    assert len(text.splitlines()) == 2 + 4


def test_a_compiled_model_is_refused_and_left_as_it_was() -> None:
    net = ContinuousMLP(3, 2)
    x, compiled = torch.ones(1, 3), torch.compile(net, backend="eager")
    before = net(x)
    with pytest.raises(ValueError, match="compile the view"):
        with_graph(compiled, method="rk4", steps=2)
    assert torch.equal(net(x), before)
