"""Members trained at once: each is what it is alone."""

import copy
import functools

import pytest
import torch
from torch import nn

from companion import OdeBlock, PiecewiseConstant, PiecewiseLinear, odeint
from companion.models import Members, SkipInit
from companion.train import clip_members, cosine, fit, fit_members, seeded

S = 4
SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3)
ADAM = functools.partial(torch.optim.Adam, lr=0.02)


def perceptron():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2, bias=False))


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.SiLU(), nn.Linear(3, 2))
    model[2].weight = model[0].weight
    return model


class Concatenating(nn.Module):
    """Code that knows of one batch axis only."""

    def __init__(self):
        super().__init__()
        self.first, self.last = SkipInit(nn.Linear(3, 3)), nn.Linear(4, 2)
        nn.init.normal_(self.first.skip)

    def forward(self, x):
        x = self.first(x)
        return self.last(torch.cat([x, x.sum(1, keepdim=True)], dim=1))


def normed():
    # Without a bias before the norm: its gradient is rounding alone, which Adam would blow up.
    return nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def convolution():
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 3, padding=1), nn.GELU(), nn.Flatten(),
        nn.Linear(12, 2),
    )  # fmt: skip


KINDS = [perceptron, tied, Concatenating, normed, convolution]
kinds = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)


def models(make, count=S):
    found = []
    for seed in range(count):
        with seeded(seed):
            found.append(make().double())
    return found


def data(rows=14):
    draw = torch.Generator().manual_seed(9)
    x = torch.randn(S, rows, 3, generator=draw, dtype=torch.float64)
    y = torch.randn(S, rows, 2, generator=draw, dtype=torch.float64)
    return x, y


def mse(model, x, y):
    return (model(x) - y).square().mean((1, 2))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds or range(S)]


def train(model, tensors, seeds=(), optimiser=SGD, **options):
    options = {"epochs": 3, "batch_size": 5, "clip": 0.3, "schedule": cosine} | options
    return fit_members(
        model, mse, tensors, optimiser=optimiser, generators=generators(*seeds), **options
    )


def close(ours, wanted, tolerance=1e-12):
    for (name, value), other in zip(
        ours.state_dict().items(), wanted.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=tolerance, atol=tolerance, msg=name)


@kinds
def test_members_compute_what_the_models_do(make):
    alone = models(make)
    members = Members(alone)
    x, _ = data()
    expected = torch.stack([model(row) for model, row in zip(alone, x, strict=True)])
    torch.testing.assert_close(members(x), expected, rtol=1e-13, atol=1e-13)
    for k, model in enumerate(alone):  # batch norm's statistics too
        close(members.member(k), model, 1e-13)
        own, same = members.eval().member(k)(x[0]), members(x[:1].expand_as(x))[k]
        torch.testing.assert_close(own, same, rtol=1e-13, atol=1e-13)
        members.train()


@kinds
@pytest.mark.parametrize("optimiser", [SGD, ADAM], ids=["momentum", "adam"])
def test_a_member_in_company_is_the_one_that_fit_trains_alone(make, optimiser):
    """To 1e-12: a product of many matrices may add in another order than that of one."""
    alone, (x, y) = models(make), data()
    members = Members(alone)
    history = train(members, (x, y), optimiser=optimiser)
    assert history.stopped == (None,) * S
    for k, model in enumerate(alone):
        wanted = fit(
            model, lambda m, x, y: (m(x) - y).square().mean(), (x[k], y[k]), optimiser=optimiser,
            epochs=3, batch_size=5, clip=0.3, schedule=cosine, generator=generators(k)[0],
        )  # fmt: skip
        close(members.member(k), model)
        torch.testing.assert_close(
            history.loss[:, k],
            torch.tensor(wanted["loss"], dtype=torch.float64),
            rtol=1e-12,
            atol=0,
        )


@kinds
def test_who_else_is_there_and_in_which_order_does_not_matter(make):
    others = models(make)
    first, second = Members(others), Members([others[0], *reversed(others[1:])])
    x, y = data()
    train(first, (x, y))
    swapped = [0, 3, 2, 1]
    train(second, (1.0 * x[swapped], y[swapped]), seeds=swapped)
    for k, place in enumerate(swapped):
        close(first.member(k), second.member(place))


def test_data_for_all_and_runs_twice_the_same():
    x, y = (tensor[:1].expand(S, *tensor.shape[1:]) for tensor in data())
    first, second = Members(models(perceptron)), Members(models(perceptron))
    one, two = train(first, (x, y)), train(second, [x.clone(), y.clone()])
    assert torch.equal(one.loss, two.loss)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert len({row.item() for row in one.loss[-1]}) == S


def test_each_member_is_clipped_by_its_own_norm():
    members = Members(models(perceptron))
    x, y = data()
    scale = torch.tensor([1e-3, 1.0, 30.0, 1e3], dtype=torch.float64)
    (mse(members, x, y) * scale).sum().backward()
    before = copy.deepcopy(members)
    for p, q in zip(before.parameters(), members.parameters(), strict=True):
        p.grad = q.grad.clone()
    norms = clip_members(members, S, most=0.5)
    for k in range(S):
        own = [nn.Parameter(p[k].detach()) for p in before.parameters()]
        for p, q in zip(own, before.parameters(), strict=True):
            p.grad = q.grad[k].clone()
        norm = nn.utils.clip_grad_norm_(own, 0.5)
        assert norms[k].item() == pytest.approx(norm.item(), rel=1e-14)
        for p, q in zip(own, members.parameters(), strict=True):
            torch.testing.assert_close(q.grad[k], p.grad, rtol=1e-13, atol=0)
    assert norms[0] < 0.5 < norms[3]


def unit():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "reconstruct", "adjoint"])
@pytest.mark.parametrize("basis", [PiecewiseConstant(2), PiecewiseLinear(2)], ids=str)
def test_members_inside_a_block_are_blocks_side_by_side(basis, gradient):
    """The parameters of a block have the axis of the layers first, that of the members second."""
    layers = [models(unit) for _ in range(basis.size)]
    alone = []
    for k in range(S):
        fresh = iter([row[k] for row in layers])
        alone.append(OdeBlock(lambda fresh=fresh: next(fresh), basis, "heun", 2, gradient))
    fresh = iter([Members(row) for row in layers])
    block = OdeBlock(lambda: next(fresh), basis, "heun", 2, gradient)
    x = data()[0]

    def loss(model, x):
        return model(x).square().mean((1, 2))

    history = fit_members(block, loss, [x], optimiser=SGD, epochs=2, batch_size=5, clip=0.1,
                          generators=generators())  # fmt: skip
    for k, model in enumerate(alone):
        wanted = fit(model, lambda m, x: m(x).square().mean(), [x[k]], optimiser=SGD, epochs=2,
                     batch_size=5, clip=0.1, generator=generators(k)[0])  # fmt: skip
        assert history.loss[:, k].tolist() == pytest.approx(wanted["loss"], rel=1e-12)
        for ours, own in zip(block.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours[:, k], own, rtol=1e-12, atol=1e-12)


def test_members_are_a_field_for_odeint():
    alone = models(unit)
    members, x = Members(alone), data()[0]
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    found = odeint(lambda t, y: members(y), x, t, method="rk4", steps=4)
    for k, model in enumerate(alone):
        wanted = odeint(lambda t, y, model=model: model(y), x[k], t, method="rk4", steps=4)
        torch.testing.assert_close(found[:, k], wanted, rtol=1e-13, atol=1e-13)


# A member that goes wrong


def spoilt(members, k, value=1e200):
    """Make one member overflow in its first loss."""
    with torch.no_grad():
        for p in members.parameters():
            p[k] = value
    return members


@pytest.mark.parametrize("lost", [[0], [2], [0, 3], [1, 2, 3]])
@pytest.mark.parametrize("value", [1e200, float("nan")])
def test_a_member_that_is_not_finite_leaves_the_others_alone(lost, value):
    x, y = data()
    good, bad = Members(models(perceptron)), Members(models(perceptron))
    for k in lost:
        spoilt(bad, k, value)
    kept = [copy.deepcopy(bad.member(k)) for k in range(S)]
    wanted, found = train(good, (x, y)), train(bad, (x, y))
    for k in range(S):
        if k in lost:
            assert found.stopped[k] == 0
            assert not found.loss[:, k].isfinite().any()
            for ours, old in zip(bad.member(k).parameters(), kept[k].parameters(), strict=True):
                torch.testing.assert_close(ours, old, rtol=0, atol=0, equal_nan=True)
        else:
            assert found.stopped[k] is None
            assert torch.equal(found.loss[:, k], wanted.loss[:, k])
            close(bad.member(k), good.member(k), 0)


def test_a_member_that_diverges_on_the_way_keeps_its_last_values():
    """Only the rate of growth differs: the member with the large data leaves the numbers."""
    x, y = data()
    x = x.clone()
    x[1] *= 1e60

    def loss(model, x, y):
        return (model(x) - y).square().mean((1, 2))

    linear = [nn.Linear(3, 2).double() for _ in range(S)]
    members = Members(linear)
    options = {"optimiser": functools.partial(torch.optim.SGD, lr=1.0), "epochs": 3}
    history = fit_members(members, loss, (x, y), batch_size=5, generators=generators(), **options)
    assert history.stopped[1] is not None
    assert [history.stopped[k] for k in (0, 2, 3)] == [None] * 3
    assert all(p.isfinite().all() for p in members.member(1).parameters())
    assert history.loss[:, [0, 2, 3]].isfinite().all()
    alone = Members([linear[1]])
    own = (x[1:2], y[1:2])
    single = fit_members(alone, loss, own, batch_size=5, generators=generators(1), **options)
    assert single.stopped[0] == history.stopped[1]
    close(alone.member(0), members.member(1), 1e-12)


def test_a_gradient_that_is_not_finite_stops_its_member_alone():
    class Root(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))

        def forward(self, x):
            return x * self.w.sqrt()  # infinite slope at 0

    members = Members([Root(1.0), Root(0.0), Root(2.0)])
    x = torch.ones(3, 4, 1, dtype=torch.float64)

    def loss(model, x):
        return (model(x).square() + model(x)).mean((1, 2))

    history = fit_members(members, loss, [x], optimiser=SGD, epochs=2, batch_size=2,
                          generators=generators(1, 2, 3))  # fmt: skip
    assert history.stopped == (None, 0, None)
    assert members.member(1).w.item() == 0.0
    assert members.stack.w.isfinite().all()


def test_a_solve_that_fails_for_one_member_goes_on_for_the_others():
    def block(rows):
        return OdeBlock(lambda: Members(rows), PiecewiseConstant(1), "euler", 3)

    class Square(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.w = nn.Parameter(torch.full((3,), w, dtype=torch.float64))

        def forward(self, x):
            return self.w * x**3

    start = [0.1, 1e80, -0.1, 0.2]
    model, x = block([Square(w) for w in start]), data()[0]

    def loss(model, x):
        return model(x).square().mean((1, 2))

    options = {"optimiser": SGD, "epochs": 2, "batch_size": 7, "clip": 0.1}
    history = fit_members(model, loss, [x], **options, generators=generators())
    assert history.stopped == (None, 0, None, None)
    others = block([Square(start[k]) for k in (0, 2, 3)])
    wanted = fit_members(others, loss, [x[[0, 2, 3]]], **options, generators=generators(0, 2, 3))
    torch.testing.assert_close(history.loss[:, [0, 2, 3]], wanted.loss, rtol=1e-12, atol=0)
    (found,), (expected,) = model.parameters(), others.parameters()
    torch.testing.assert_close(found[:, [0, 2, 3]], expected, rtol=1e-12, atol=1e-12)
    assert (found[:, 1] == 1e80).all()


def test_when_all_have_stopped_training_ends():
    members = Members(models(perceptron))
    for k in range(S):
        spoilt(members, k)
    history = train(members, data())
    assert history.stopped == (0,) * S
    assert history.loss.shape == (3, S)
    assert history.loss.isnan().all()


# What is refused


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs: 0 is not allowed"),
        ({"batch_size": 0}, ValueError, "batch_size: 0 is not allowed"),
        ({"clip": 0.0}, ValueError, r"clip: 0\.0 is not allowed"),
        ({"clip": float("nan")}, ValueError, "clip: nan is not allowed"),
        ({"generators": []}, TypeError, r"generators: \[\] is not allowed"),
        ({"generators": [1, 2, 3, 4]}, TypeError, r"generators: \[1, 2, 3, 4\] is not allowed"),
        ({"generators": generators(1, 2)}, ValueError, r"data: shapes .* begin with 2 members"),
        ({"data": data()[0]}, TypeError, "data: a Tensor is not allowed"),
        ({"data": [torch.zeros(S, 0, 3)]}, ValueError, "data: shapes .* at least 1"),
        ({"data": [torch.zeros(S)]}, ValueError, "data: shapes .* at least 1"),
        ({"data": [data()[0], data(13)[1]]}, ValueError, "data: shapes .* equally many rows"),
        ({"optimiser": torch.optim.Adafactor}, TypeError, "optimiser: Adafactor is not allowed"),
        ({"optimiser": torch.optim.LBFGS}, TypeError, "optimiser: LBFGS is not allowed"),
        ({"loss": lambda m, x, y: m(x).mean()}, ValueError, r"loss: .*\(\) .*must be \(4,\)"),
        ({"loss": lambda m, x, y: 3.0}, ValueError, r"loss: .*3\.0"),
        ({"model": perceptron()}, ValueError, r"model: .*\(8, 3\).* 4 members.* axis 0"),
    ],
)
def test_what_cannot_be_trained_together_is_refused(change, error, message):
    options = {
        "model": Members(models(perceptron)), "loss": mse, "data": data(), "optimiser": SGD,
        "epochs": 1, "batch_size": 5, "generators": generators(),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        fit_members(**options | change)


class Scaled(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        return self.k * x


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_members_draw_numbers_of_their_own_and_may_be_parametrised():
    x = torch.ones(2, 50, 4)
    members = Members([nn.Sequential(nn.Dropout(), nn.Identity()) for _ in range(2)])
    y = members(x)
    assert not torch.equal(y[0], y[1])
    assert set(y.unique().tolist()) == {0.0, 2.0}
    models = [nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)) for _ in range(2)]
    torch.testing.assert_close(Members(models)(x)[1], models[1](x[1]))


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        ([], TypeError, "models: .* at least one module"),
        ([nn.Linear(2, 2), 3], TypeError, "models: .*int"),
        ([nn.Linear(2, 2), nn.Linear(2, 3)], ValueError, "models: number 1 .* parameters"),
        ([Scaled(1.0), Scaled(2.0)], ValueError, r"models: number 1 .*\('k', 2.0\) against"),
        (nn.Linear(2, 2), TypeError, "models: Linear is not allowed"),
        ([nn.Dropout(0.1), nn.Dropout(0.2)], ValueError, "models: number 1 .* structure"),
        ([OdeBlock(nn.Linear(2, 2))], ValueError, r"models: a block in a member.*OdeBlock\(lambda"),
    ],
)
def test_what_cannot_be_put_side_by_side_is_refused(members, error, message):
    with pytest.raises(error, match=message):
        Members(members)


def test_inputs_and_indices_have_the_members():
    members = Members(models(perceptron))
    with pytest.raises(ValueError, match=r"x: shape \(3, 5, 3\).* 4 members"):
        members(torch.zeros(3, 5, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="index: 4 is not allowed"):
        members.member(4)


def test_values_are_copies_and_hooks_are_called():
    alone = models(perceptron)
    members, calls = Members(alone), []
    members.stack.weight = None
    members.member(0)[0].weight.data.zero_()
    assert (members.stack[0].weight != 0).any()
    assert (alone[0][0].weight != 0).any()
    members.stack[1].register_forward_hook(lambda *found: calls.append(1))
    members(data()[0])
    assert calls
