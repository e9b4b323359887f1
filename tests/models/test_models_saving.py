"""Models in files: class, arguments, graph, basis and values, and files that hold none of them."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sample_nets import continuous_net as net
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
from companion.files import load_checkpoint, save_checkpoint
from companion.gradients import Adjoint, Checkpoint, Reconstruct
from companion.methods import get_solver
from companion.models import ContinuousMLP, ContinuousNet, ResNet, load, ode_blocks, save
from companion.train import seeded

KNOBS = ("solver", "gradient", "scale")


def own_unit(channels):
    return nn.Conv2d(channels, channels, 3, padding=1)


def as_made():
    return net(basis=PiecewiseConstant(4), steps=4, scale=2.0)


def refined():
    model = net(basis=PiecewiseConstant(1), steps=1)
    model.refine()
    model.refine()
    return model


def viewed():
    return net(steps=4).with_graph(method="rk4_38", steps=3, gradient=Adjoint("rk4", steps=5))


def projected():
    model = as_made()
    model.blocks[1] = model.blocks[1].project(Chebyshev(3, cells=2))
    return model


def several_changes():
    model = net(basis=PiecewiseLinear(2), method="heun", steps=2, scale=3.0)
    model.refine()
    model.blocks[0] = model.blocks[0].project(Fourier(5, cells=2))
    view = model.with_graph(gradient=Reconstruct(rule="predicted", order=2))
    view.blocks[1].steps, view.blocks[1].scale = 7, 0.5
    return view.double().eval()


def adaptive():
    model = net(basis=DiscontinuousLinear(2))
    return model.with_graph(method="dopri5", rtol=1e-1, atol=1e-2)


def tied():
    model = net(basis=Constant(), method="midpoint", steps=2)
    model.blocks[0] = model.blocks[0].project(PiecewiseConstant(2))
    return model


MADE = [as_made, refined, viewed, projected, several_changes, adaptive, tied]


@pytest.mark.parametrize("make", MADE)
def test_a_loaded_net_is_the_one_that_was_saved(make, tmp_path):
    model = make()
    save(model, tmp_path / "new" / "net.pt")
    again = load(tmp_path / "new" / "net.pt")
    assert type(again) is ContinuousNet
    assert again.arguments == model.arguments
    for block, other in zip(ode_blocks(model), ode_blocks(again), strict=True):
        assert other.weights.basis == block.weights.basis
        for knob in KNOBS:
            assert getattr(other, knob) == getattr(block, knob), knob
    assert [s.scale for s in again.stitches] == [s.scale for s in model.stitches]
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys()
    for name, tensor in state.items():
        assert tensor.dtype == loaded[name].dtype
        assert torch.equal(tensor, loaded[name]), name
    assert {m.training for m in again.modules()} == {model.training}
    x = torch.randn(3, 2, 6, 6, dtype=model.head.weight.dtype)
    assert torch.equal(again(x), model(x))  # in training mode too


def test_a_loaded_net_trains_and_refines(tmp_path):
    save(projected(), tmp_path / "net.pt")
    again = load(str(tmp_path / "net.pt"))
    again.refine()
    again(torch.randn(3, 2, 6, 6)).sum().backward()
    assert all(p.grad is not None for p in again.parameters())
    assert again.blocks[1].weights.basis == Chebyshev(6, cells=4)


def test_other_models_that_know_their_arguments(tmp_path):
    with seeded(0):
        model = ContinuousMLP(5, 2, width=3, basis=PiecewiseConstant(2), skip_init=True)
    model.refine()
    save(model, tmp_path / "mlp.pt")
    again, x = load(tmp_path / "mlp.pt"), torch.randn(4, 5)
    assert isinstance(again, ContinuousMLP)
    assert again.block.weights.basis == PiecewiseConstant(4)
    assert torch.equal(again(x), model(x))


def test_a_residual_of_ones_own_is_asked_for(tmp_path):
    model = net(residual=own_unit, basis=PiecewiseConstant(2))
    save(model, tmp_path / "net.pt")
    with pytest.raises(TypeError, match=r"\[\] is not allowed; the file asks for \['residual'\]"):
        load(tmp_path / "net.pt")
    again = load(tmp_path / "net.pt", residual=own_unit)
    x = torch.randn(2, 2, 5, 5)
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert again.arguments["residual"] is own_unit


def test_arguments_that_the_file_holds_are_refused(tmp_path):
    save(as_made(), tmp_path / "net.pt")
    with pytest.raises(TypeError, match=r"\['steps'\] is not allowed; the file asks for \[\]"):
        load(tmp_path / "net.pt", steps=3)


def test_loading_draws_no_random_numbers(tmp_path):
    save(as_made(), tmp_path / "net.pt")
    before = torch.get_rng_state()
    load(tmp_path / "net.pt")
    assert torch.equal(torch.get_rng_state(), before)


class Subclass(ContinuousNet):
    """Not a class that a file can name."""


def residual_network():
    return ResNet((2, 2), width=2)


def block():
    return OdeBlock(nn.Linear(3, 3), PiecewiseConstant(2), steps=2)


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(3, 2), block, residual_network, lambda: Subclass(channels=(2,))],
    ids=["Linear", "OdeBlock", "ResNet", "Subclass"],
)
def test_other_models_take_over_what_a_file_holds(make, tmp_path):
    with seeded(0):
        model = make().double().eval()
    for part in ode_blocks(model):
        part.refine()
        part.solver = get_solver("rk4", part.steps)
    save(model, tmp_path / "model.pt")
    with pytest.raises(TypeError, match=r"model: None is not allowed; .* load\(path, model\)"):
        load(tmp_path / "model.pt")
    with seeded(1):
        fresh = make()
    with pytest.raises(TypeError, match=r"\['steps'\] is not allowed; the file asks for \[\]"):
        load(tmp_path / "model.pt", fresh, steps=3)
    again = load(tmp_path / "model.pt", fresh)
    assert again is fresh
    assert not again.training
    for ours, wanted in zip(ode_blocks(again), ode_blocks(model), strict=True):
        assert ours.weights.basis == wanted.weights.basis
        assert (ours.method, ours.steps) == (wanted.method, wanted.steps)
    state = again.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value)


def test_blocks_inside_residuals_keep_their_graph(tmp_path):
    def nested(cells=2, **inner):
        def unit():
            return OdeBlock(nn.Linear(2, 2), PiecewiseConstant(cells), **inner)

        return OdeBlock(unit, PiecewiseConstant(2), steps=2)

    net, x = nested(method="rk4", steps=3, scale=2.0), torch.ones(1, 2)
    save(net, tmp_path / "net.pt")
    assert torch.equal(load(tmp_path / "net.pt", nested(steps=1))(x), net(x))
    with pytest.raises(ValueError, match=r"does not fit model: a block inside .*cells=4.*cells=2"):
        load(tmp_path / "net.pt", nested(cells=4))


def test_knobs_that_are_numbers_of_numpy(tmp_path):
    two = np.int64(2)
    net = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(two), steps=two, gradient=Checkpoint(two))
    save(net, tmp_path / "net.pt")
    again = load(tmp_path / "net.pt", OdeBlock(nn.Linear(2, 2)))
    assert repr(again) == repr(OdeBlock(
        nn.Linear(2, 2), PiecewiseConstant(2), steps=2, gradient=Checkpoint(2)
    ))  # fmt: skip
    with pytest.raises(TypeError, match="model: 3 is not allowed"):
        save(3, tmp_path / "three.pt")


def test_a_file_of_another_model_is_refused(tmp_path):
    save(block(), tmp_path / "block.pt")
    with pytest.raises(ValueError, match=r"does not fit model: .*1 blocks, the model 0"):
        load(tmp_path / "block.pt", nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"(?s)does not fit model: .*size mismatch"):
        load(tmp_path / "block.pt", OdeBlock(nn.Linear(4, 4)))


def test_a_gradient_with_tensors_is_refused(tmp_path):
    extra = torch.ones(1, requires_grad=True)
    model = as_made()
    model.blocks[1].params = (extra,)
    with pytest.raises(ValueError, match=r"block 1 has params=.*set block.params after loading"):
        save(model, tmp_path / "net.pt")


@dataclass(frozen=True)
class Legendre(Chebyshev):
    """A basis of one's own."""


class Steps:
    """A basis of one's own that is no data class and has no words for itself."""

    cells = size = 2
    continuity = -1

    def at(self, place):
        return ((place.cell, 1.0),)

    def refined(self):
        raise TypeError

    def refine(self, coefficients):
        raise TypeError

    def interpolate(self, values):
        return values


@pytest.mark.parametrize(("basis", "name"), [(Legendre(2), "Legendre"), (Steps(), "Steps")])
def test_a_basis_of_ones_own_is_named_as_the_reason(basis, name, tmp_path):
    model = nn.Sequential(block(), OdeBlock(nn.Linear(3, 3), basis))
    with pytest.raises(ValueError, match=rf"the basis .*{name}.* of block 1 .*block\.project") as e:
        save(model, tmp_path / "net.pt")
    assert "gradient" not in str(e.value)
    assert not list(tmp_path.iterdir())
    model[1] = model[1].project(PiecewiseConstant(2))
    save(model, tmp_path / "net.pt")


def test_an_argument_that_is_a_basis_of_ones_own_is_asked_for(tmp_path):
    model = net(basis=Legendre(2))
    for k, part in enumerate(model.blocks):
        model.blocks[k] = part.project(Chebyshev(2))
    save(model, tmp_path / "net.pt")
    again = load(tmp_path / "net.pt", basis=Legendre(2))
    assert again.blocks[0].weights.basis == Chebyshev(2)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    save(as_made(), path)
    old = path.read_bytes()

    def half(state, file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save(refined(), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


# Files that are none


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pt")


class Malicious:
    def __reduce__(self):
        return (eval, ("1",))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("no model"),
        lambda path: path.write_bytes(path.read_bytes()[:-300]),
        lambda path: torch.save({"format": Malicious()}, path),
        lambda path: torch.save(nn.Linear(2, 2), path),
        lambda path: torch.save([1, 2], path),
        lambda path: save_checkpoint(path, {"step": 3}),
        lambda path: torch.save(nn.Linear(2, 2).state_dict(), path),
    ],
    ids=["text", "truncated", "code", "module", "list", "checkpoint", "state"],
)
def test_foreign_and_damaged_files_are_named(write, tmp_path):
    path = tmp_path / "net.pt"
    save(as_made(), path)
    write(path)
    with pytest.raises(ValueError, match=f"path: {path} holds no model"):
        load(path)


def changed(state, *keys, value):
    """Set an entry deep inside; keep all else."""
    inner = state
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("class",), "Adam", "has no class 'Adam'"),
        (("class",), "load", "has no class 'load'"),
        (("arguments", "depth"), 3, "unexpected keyword argument 'depth'"),
        (("blocks", 0, "basis", "name"), "project", "neither a basis nor a gradient"),
        (("blocks", 0, "basis", "name"), "linear_maps", "has no public 'linear_maps'"),
        (("blocks", 0, "basis", "name"), "os.system", "has no public 'os.system'"),
        (("blocks", 0, "basis"), {"name": "resnet", "fields": {}}, "neither a basis nor"),
        (("blocks", 0, "basis", "fields", "cells"), 0, "cells: 0"),
        (("blocks", 0, "basis", "fields", "size"), 2, "argument 'size'"),
        (("blocks",), [], "0 blocks"),
        (("values", "head.bias"), torch.zeros(9), "head.bias"),
        (("values", "extra"), torch.zeros(9), "extra"),
    ],
)
def test_contents_that_do_not_fit_are_named(keys, value, message, tmp_path):
    path = tmp_path / "net.pt"
    save(as_made(), path)
    state = load_checkpoint(path)
    changed(state, *keys, value=value)
    save_checkpoint(path, state)
    with pytest.raises(ValueError, match=f"(?s){path} does not fit.*{message}") as found:
        load(path)
    assert found.value.__cause__ is not None
