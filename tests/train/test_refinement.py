import copy
import functools
from functools import partial

import pytest
import torch
from torch import nn

from companion import Chebyshev, Constant, OdeBlock, PiecewiseConstant, PiecewiseLinear
from companion.files import load_checkpoint
from companion.train import Refinement, Snapshot, fit, seeded, split_optimiser_state, step_decay

SGD = partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=1e-3)
ADAM = partial(torch.optim.Adam, lr=0.01, amsgrad=True)


def unit():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3))


class Net(nn.Module):
    """Two blocks that share their weights, one with its own, and a head without any block."""

    def __init__(self, basis):
        super().__init__()
        self.first = OdeBlock(unit, basis, method="rk4", steps=1)
        self.again = self.first.with_graph(method="euler", steps=3)
        self.other = OdeBlock(nn.Linear(3, 3), PiecewiseConstant(2), steps=2)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.other(self.again(self.first(x))))


def net(basis=None):
    with seeded(1):
        return Net(basis or PiecewiseConstant(1)).double()


def data():
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(20, 3, generator=draw, dtype=torch.float64)
    return x, x.sum(1, keepdim=True).sin()


def mse(model, x, y):
    return ((model(x) - y) ** 2).mean()


def train(model, epochs=6, momentum="split", optimiser=SGD, at=(2, 4), **options):
    options = {
        "optimiser": optimiser,
        "batch_size": 6,
        "generator": torch.Generator().manual_seed(5),
        "schedule": step_decay(0.5, factor=0.2),
        "refinement": Refinement(at, momentum),
        **options,
    }
    return fit(model, mse, data(), epochs=epochs, **options)


def same(model, other):
    left, right = model.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_cells_and_steps_double_at_their_epochs_and_shared_weights_once():
    model, seen = net(), []

    def note():
        blocks = (model.first, model.again, model.other)
        seen.append([(b.weights.basis.cells, b.steps) for b in blocks])
        return {"cells": model.first.weights.basis.cells}

    history = train(model, on_epoch=note)
    coarse, middle, fine = [
        [(k, k), (k, 3 * k), (2 * k, 2 * k)] for k in (1, 2, 4)
    ]  # cells of the first two are the same weights
    assert seen == [coarse, coarse, middle, middle, middle, fine, fine, fine]
    assert history["cells"] == [1, 1, 2, 2, 4, 4]
    assert history["refined_cells"] == [2, 4]
    assert len(history["loss"]) == 6
    assert model.again.weights is model.first.weights


@pytest.mark.parametrize("momentum", ["split", "drop"])
@pytest.mark.parametrize("optimiser", [SGD, ADAM], ids=["momentum", "adam"])
def test_equals_training_stage_by_stage(momentum, optimiser):
    """Against a loop written out: refine, split the state or make a new optimiser, go on."""
    model, other = net(), net()
    train(model, momentum=momentum, optimiser=optimiser)

    x, y = data()
    made, generator = optimiser(other.parameters()), torch.Generator().manual_seed(5)
    rate = made.param_groups[0]["lr"]
    for epoch in range(6):
        if epoch in (2, 4):
            old = {p: dict(made.state[p]) for p in other.parameters()}
            other.first.refine()
            other.other.refine()
            other.again.steps *= 2
            made = optimiser(other.parameters())
            if momentum == "split":
                stacked = {*other.first.parameters(), *other.other.parameters()}
                for p, state in old.items():
                    made.state[p] = {
                        name: value.repeat_interleave(2, 0)
                        if p in stacked and value.ndim
                        else value
                        for name, value in state.items()
                    }
        made.param_groups[0]["lr"] = rate * (0.2 if epoch >= 3 else 1.0)
        for batch in torch.randperm(20, generator=generator).split(6):
            made.zero_grad()
            mse(other, x[batch], y[batch]).backward()
            made.step()
    assert same(model, other)
    assert model.first.steps == other.first.steps == 4


@functools.cache
def unbroken(momentum, optimiser):
    """Return a network after a run that nothing interrupts, and the history."""
    whole = net()
    return whole, train(whole, momentum=momentum, optimiser=optimiser, on_epoch=one)


def one():
    return {"one": 1.0}


@pytest.mark.parametrize(
    ("momentum", "optimiser"),
    [("split", SGD), ("split", ADAM), ("drop", SGD)],
    ids=["momentum", "adam", "drop"],
)
@pytest.mark.parametrize("killed_at", [3, 8, 9])
def test_resumes_bit_for_bit_in_every_stage(tmp_path, momentum, optimiser, killed_at):
    """Killed in an epoch before a refinement, at that epoch's end, and in the next one."""
    whole, expected = unbroken(momentum, optimiser)
    calls = 0

    def killing(model, x, y):
        nonlocal calls
        calls += 1
        if calls > killed_at:
            raise KeyboardInterrupt
        return mse(model, x, y)

    options = {
        "momentum": momentum,
        "optimiser": optimiser,
        "snapshot": Snapshot(tmp_path / "last.pt", every=0),
        "on_epoch": one,
    }
    with pytest.raises(KeyboardInterrupt):
        fit_with(killing, **options)
    stored = load_checkpoint(tmp_path / "last.pt")
    batches = 4 * stored["epoch"] + -(-stored["position"] // 6)
    assert (batches, stored["refined"]) == (killed_at, int(killed_at > 8))

    resumed = net()
    assert train(resumed, **options) == expected
    assert same(resumed, whole)
    assert [b.steps for b in (resumed.first, resumed.again, resumed.other)] == [4, 12, 8]


def fit_with(loss, momentum, optimiser, **options):
    return fit(
        net(), loss, data(), optimiser=optimiser, batch_size=6, epochs=6,
        generator=torch.Generator().manual_seed(5), schedule=step_decay(0.5, factor=0.2),
        refinement=Refinement((2, 4), momentum), **options,
    )  # fmt: skip


@pytest.mark.parametrize("momentum", ["split", "drop"])
def test_a_run_that_ended_at_a_refinement_is_lengthened(tmp_path, momentum):
    """The end of a run does not refine; the run that goes on does so before its first step."""
    whole, short, longer = net(), net(), net()
    train(whole, momentum=momentum, schedule=None)
    snapshot = Snapshot(tmp_path / "last.pt")
    train(short, epochs=4, momentum=momentum, schedule=None, snapshot=snapshot)
    assert short.first.steps == 2
    train(longer, momentum=momentum, schedule=None, snapshot=snapshot)
    assert same(longer, whole)


def test_a_finished_run_gives_its_network_back(tmp_path):
    again, snapshot = net(), Snapshot(tmp_path / "last.pt")
    train(net(), snapshot=snapshot)
    train(again, snapshot=snapshot)
    assert same(again, unbroken("split", SGD)[0])
    assert again.first.steps == 4


def test_the_optimiser_made_anew_is_as_if_momentum_was_dropped():
    """The two ways end with different weights, or the tests above would show nothing."""
    assert not same(unbroken("split", SGD)[0], unbroken("drop", SGD)[0])


def test_snapshots_know_the_refinement(tmp_path):
    snapshot = Snapshot(tmp_path / "last.pt")
    train(net(), epochs=1, snapshot=snapshot)
    model = net()
    with pytest.raises(ValueError, match=r"differ in refinement .*\(2, 4\).* there.*\(2, 5\)"):
        train(model, at=(2, 5), snapshot=snapshot)
    with pytest.raises(ValueError, match=r"refinement .*None here"):
        train(model, snapshot=snapshot, refinement=None)
    assert model.first.steps == 1


def test_models_that_cannot_be_refined_are_refused_before_training():
    with pytest.raises(ValueError, match="model: Linear without an OdeBlock"):
        train(nn.Linear(3, 1).double())
    model = net(Constant())
    before = copy.deepcopy(model)
    with pytest.raises(TypeError, match="Constant has no cells"):
        train(model)
    assert same(model, before)
    with pytest.raises(TypeError, match=r"refinement: .* .* type Refinement or None"):
        train(net(), refinement=(2, 4))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([2, 4],), TypeError, r"at: \[2, 4\] is not allowed; it must be a tuple"),
        (((0, 2),), ValueError, r"at: \(0, 2\) is not allowed; it must hold integers from 1"),
        (((4, 2),), ValueError, r"at: \(4, 2\) .* rising order"),
        (((2, 2),), ValueError, r"at: \(2, 2\) .* rising order"),
        (((1.5,),), ValueError, r"at: \(1\.5,\) .* must hold integers"),
        (
            ((2,), "keep"),
            ValueError,
            "momentum: 'keep' is not allowed; it must be one of .*split.*drop",
        ),
    ],
)
def test_bad_refinements(arguments, error, message):
    with pytest.raises(error, match=message):
        Refinement(*arguments)


def stepped(basis, optimiser):
    """Return a small block and its optimiser after a step from different gradients everywhere."""
    with seeded(0):
        block = OdeBlock(unit, basis, steps=2).double()
    made = optimiser(block.parameters())
    draw = torch.Generator().manual_seed(1)
    for parameter in block.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    made.step()
    return block, made


BASES = [PiecewiseConstant(3), PiecewiseLinear(2), Chebyshev(3, cells=2), Chebyshev(3)]


@pytest.mark.parametrize("basis", BASES, ids=str)
def test_momentum_carries_the_refined_function_as_the_coarse_one(basis):
    """A step on momentum alone commutes with refinement, as it is linear in the velocity."""
    moved = []
    for refined_first in (True, False):
        block, made = stepped(basis, partial(torch.optim.SGD, lr=0.1, momentum=0.9))
        before = block.weights.bases()
        if refined_first:
            block.refine()
            split_optimiser_state(made, before)
        for parameter in block.parameters():
            parameter.grad = torch.zeros_like(parameter)
        made.step()
        if not refined_first:
            block.refine()
        moved.append(torch.cat([p.detach().flatten() for p in block.parameters()]))
    torch.testing.assert_close(*moved, rtol=0, atol=1e-14)


@pytest.mark.parametrize("basis", BASES, ids=str)
def test_second_moments_stay_above_zero_and_bound_the_next_step(basis):
    """Adam's |m| / sqrt(v) grows by sqrt(max row sum of |R|) at most, where R mixes signs too."""
    block, made = stepped(basis, ADAM)
    before = block.weights.bases()
    old = {p: dict(made.state[p]) for p in block.parameters()}
    block.refine()
    split_optimiser_state(made, before)
    for p in block.parameters():
        matrix = before[p].refine(torch.eye(before[p].size, dtype=torch.float64))
        new = made.state[p]
        assert torch.equal(new["step"], torch.tensor(1.0))
        torch.testing.assert_close(new["exp_avg"], torch.tensordot(matrix, old[p]["exp_avg"], 1))
        squares = torch.tensordot(matrix.abs(), old[p]["exp_avg_sq"], 1)
        torch.testing.assert_close(new["exp_avg_sq"], squares)
        used = matrix.abs().sum(1) > 0  # Chebyshev on one cell pads with zeros
        after = new["exp_avg"][used].abs() / new["exp_avg_sq"][used].sqrt()
        start = old[p]["exp_avg"].abs() / old[p]["exp_avg_sq"].sqrt()
        growth = matrix.abs().sum(1).max().sqrt()
        assert after.max() <= start.max() * growth * (1 + 1e-12)


@pytest.mark.parametrize("optimiser", [SGD, ADAM], ids=["momentum", "adam"])
def test_copies_move_as_the_original_did(optimiser):
    """Split cells in their order: the next step from equal gradients keeps copies equal."""
    block, made = stepped(PiecewiseConstant(3), optimiser)
    coarse, other = copy.deepcopy((block, made))
    before = block.weights.bases()
    block.refine()
    split_optimiser_state(made, before)
    for model, stepper in ((block, made), (coarse, other)):
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone()
        stepper.step()
    coarse.refine()
    assert same(block, coarse)


def test_state_that_does_not_fit():
    block, made = stepped(PiecewiseConstant(3), SGD)
    before = block.weights.bases()
    pattern = r"'momentum_buffer' of shape \(3, 3, 3\) cannot be split from PiecewiseConstant"
    with pytest.raises(ValueError, match=pattern):  # not refined yet
        split_optimiser_state(made, before)
    block.refine()
    split_optimiser_state(made, before)
    with pytest.raises(ValueError, match=r"of shape \(6, 3, 3\) cannot be split from .*cells=3"):
        split_optimiser_state(made, before)  # twice


def test_parameters_without_state_or_basis_are_left_alone():
    block, _ = stepped(PiecewiseConstant(2), SGD)
    head = nn.Linear(2, 2).double()
    made = SGD([*block.parameters(), *head.parameters()])
    head(torch.ones(1, 2).double()).sum().backward()
    for parameter in block.parameters():
        parameter.grad = None
    made.step()
    kept = made.state[head.weight]["momentum_buffer"]
    before = block.weights.bases()
    block.refine()
    split_optimiser_state(made, before)
    assert made.state[head.weight]["momentum_buffer"] is kept
    assert set(made.state) == set(head.parameters())


def test_state_that_will_not_split_is_refused_before_training():
    """Adafactor keeps sums over rows and columns; of a vector it keeps what can be split."""
    model = net()
    start, state = copy.deepcopy(model), torch.get_rng_state()
    adafactor = partial(torch.optim.Adafactor, lr=0.01)
    with pytest.raises(ValueError, match=r"optimiser: Adafactor is not allowed.*momentum='drop'"):
        train(model, optimiser=adafactor)
    assert same(model, start)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    train(model, optimiser=adafactor, momentum="drop")
    assert not same(model, start)


@pytest.mark.parametrize(
    "optimiser",
    [
        SGD,
        ADAM,
        torch.optim.SGD,
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        torch.optim.ASGD,
        torch.optim.Adadelta,
        torch.optim.Rprop,
        torch.optim.NAdam,
        torch.optim.RAdam,
    ],
)
def test_state_that_will_split_passes_and_nothing_is_touched(optimiser):
    model = net()
    start = copy.deepcopy(model)
    made = optimiser(model.parameters())
    state = copy.deepcopy(made.state_dict())
    for parameter in model.parameters():  # left from before: the copies must not step along it
        parameter.grad = torch.ones_like(parameter)
    Refinement((1,)).check_optimiser(model, made)
    assert same(model, start)
    assert made.state_dict().keys() == state.keys()
    assert len(made.state_dict()["state"]) == len(state["state"])
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
