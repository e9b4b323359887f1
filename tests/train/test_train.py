import copy

import numpy as np
import pytest
import torch
from torch import nn

from companion import OdeBlock, PiecewiseConstant
from companion.files import save_checkpoint
from companion.train import (
    Snapshot,
    Team,
    cosine,
    error_rate,
    evaluating,
    fit,
    misclassified,
    seeded,
    step_decay,
)


def mse(model, x, y):
    return ((model(x) - y) ** 2).mean()


def problem(n=20, dropout=0.0):
    with seeded(1):
        x = torch.randn(n, 3, dtype=torch.float64)
        y = torch.sin(x.sum(1, keepdim=True))
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
    return model.double(), (x, y)


def train(model, data, epochs=4, **options):
    options = {
        "optimiser": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "batch_size": 6,
        "generator": torch.Generator().manual_seed(5),
        **options,
    }
    return fit(model, mse, data, epochs=epochs, **options)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_equals_a_loop_written_out():
    model, (x, y) = problem()
    other = copy.deepcopy(model)
    history = train(model, (x, y), schedule=step_decay(0.5, factor=0.2), clip=0.3)

    optimiser = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(5)
    losses = []
    for epoch in range(4):
        order = torch.randperm(20, generator=generator)
        total = 0.0
        for start in (0, 6, 12, 18):
            rows = order[start : start + 6]
            for group in optimiser.param_groups:
                group["lr"] = 0.1 if epoch < 2 else 0.02
            value = mse(other, x[rows], y[rows])
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(other.parameters(), 0.3)
            optimiser.step()
            total += value.item() * len(rows)
        losses.append(total / 20)
    torch.testing.assert_close(weights(model), weights(other), rtol=0, atol=1e-15)
    assert history["loss"] == pytest.approx(losses, rel=1e-14)


def test_the_last_smaller_batch_can_be_left_out():
    """20 rows in batches of 6: three steps an epoch, and a mean loss over 18 rows."""
    model, (x, y) = problem()
    other, seen = copy.deepcopy(model), []

    def schedule(fraction):
        seen.append(fraction)
        return 1 - fraction

    history = train(model, (x, y), epochs=2, drop_last=True, schedule=schedule)
    optimiser = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(5)
    losses = []
    for epoch in range(2):
        total = 0.0
        for step, rows in enumerate(torch.randperm(20, generator=generator)[:18].split(6)):
            optimiser.param_groups[0]["lr"] = 0.1 * (1 - (3 * epoch + step) / 6)
            optimiser.zero_grad()
            value = mse(other, x[rows], y[rows])
            value.backward()
            optimiser.step()
            total += value.item() * len(rows)
        losses.append(total / 18)
    assert seen == [step / 6 for step in range(6)]
    torch.testing.assert_close(weights(model), weights(other), rtol=0, atol=1e-15)
    assert history["loss"] == pytest.approx(losses, rel=1e-14)


def test_leaving_out_changes_nothing_where_the_batches_fit():
    model, data = problem(18)
    other = copy.deepcopy(model)
    assert train(model, data) == train(other, data, drop_last=True)
    assert torch.equal(weights(model), weights(other))


def test_samples_read_on_demand_leave_out_the_last_batch_too():
    model, data = problem()
    sizes = []

    def loss(model, x, y):
        sizes.append(len(x))
        return mse(model, x, y)

    fit(model, loss, Noisy(*data, noise=0.0), optimiser=make_adam, epochs=2, batch_size=6,
        drop_last=True, generator=torch.Generator())  # fmt: skip
    assert sizes == [6] * 6


def test_augmentation_changes_what_is_trained_on_and_nothing_else():
    """It draws after the order of the epoch, batch by batch, and sees the first tensor only."""
    model, (x, y) = problem()
    other, start = copy.deepcopy(model), x.clone()
    train(model, (x, y), epochs=2, augment=jitter)
    assert torch.equal(x, start)

    optimiser = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        order = torch.randperm(20, generator=generator)
        for rows in order.split(6):
            optimiser.zero_grad()
            mse(other, jitter(x[rows], generator), y[rows]).backward()
            optimiser.step()
    torch.testing.assert_close(weights(model), weights(other), rtol=0, atol=1e-15)


def test_the_schedule_multiplies_every_groups_own_rate():
    model, data = problem()
    made = []

    def optimiser(parameters):
        made.append(two_groups(parameters))
        return made[0]

    train(model, data, epochs=2, optimiser=optimiser, schedule=lambda fraction: 1 - fraction)
    assert [group["lr"] for group in made[0].param_groups] == pytest.approx([0.2 / 8, 0.1 / 8])


def test_the_schedules_of_the_papers():
    rate = step_decay(1 / 3, 2 / 3)
    factors = [rate(step / (90 * 196)) for step in range(90 * 196)]
    assert [factors.count(pytest.approx(f)) for f in (1.0, 0.1, 0.01)] == [30 * 196] * 3
    assert cosine(0.0) == 1
    assert cosine(1.0) == pytest.approx(0, abs=1e-15)
    assert cosine(1 / 3) == pytest.approx(0.75)


def test_the_schedule_sees_the_fraction_of_steps():
    model, data = problem()
    seen = []

    def schedule(fraction):
        seen.append(fraction)
        return 1.0

    train(model, data, epochs=2, schedule=schedule)
    assert seen == [i / 8 for i in range(8)]


def test_on_epoch_joins_the_history_and_report_ends_at_one():
    model, data = problem()
    reports = []
    history = train(
        model,
        data,
        epochs=3,
        on_epoch=lambda: {"norm": weights(model).norm().item()},
        report=reports.append,
    )
    assert len(history["norm"]) == len(history["loss"]) == 3
    assert history["norm"][-1] == weights(model).norm().item()
    assert reports == [1 / 3, 2 / 3, 1.0]


class Killed(BaseException):
    pass


def make_adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def two_groups(parameters):
    first, *rest = parameters
    return torch.optim.SGD([{"params": [first], "lr": 0.2}, {"params": rest}], 0.1, momentum=0.9)


def jitter(x, generator):
    return x + torch.randn(x.shape, generator=generator, dtype=x.dtype)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimiser": make_adam},
        {"optimiser": two_groups, "schedule": cosine, "augment": jitter},
    ],
    ids=["sgd", "adam", "groups"],
)
@pytest.mark.parametrize("stop", range(1, 16))
def test_a_run_stopped_at_any_step_resumes_to_the_same_bits(tmp_path, stop, options):
    """Also in the middle of an epoch, with dropout drawing from the global generator."""
    options = {"schedule": step_decay(0.6), "clip": 1.0} | options

    def run(path, stop=None):
        model, data = problem(dropout=0.3)
        calls = 0

        def loss(model, x, y):
            nonlocal calls
            calls += 1
            if calls == stop:
                raise Killed
            return mse(model, x, y)

        with seeded(7):
            history = fit(
                model,
                loss,
                data,
                epochs=4,
                batch_size=6,
                generator=(generator := torch.Generator().manual_seed(5)),
                on_epoch=lambda: {"norm": weights(model).norm().item()},
                snapshot=path and Snapshot(path, every=0),
                **{"optimiser": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), **options},
            )
            after = torch.rand(3), torch.rand(3, generator=generator)
        return weights(model), history, after

    path = tmp_path / "last.pt"
    with pytest.raises(Killed):
        run(path, stop)
    assert path.exists() == (stop > 1)
    resumed, unbroken = run(path), run(None)
    assert torch.equal(resumed[0], unbroken[0])
    assert resumed[1] == unbroken[1]
    # Whoever draws next gets the same numbers too.
    assert all(torch.equal(a, b) for a, b in zip(resumed[2], unbroken[2], strict=True))


@pytest.mark.parametrize("stop", [3, 4, 6, 12])
def test_a_run_that_leaves_out_batches_resumes_to_the_same_bits(tmp_path, stop):
    """Three steps an epoch: stopped inside one, at its end, and in the last step."""

    def run(path, stop=None):
        model, data = problem()
        calls = []

        def loss(model, x, y):
            calls.append(len(x))
            if len(calls) == stop:
                raise Killed
            return mse(model, x, y)

        history = fit(
            model,
            loss,
            data,
            optimiser=make_adam,
            epochs=4,
            batch_size=6,
            drop_last=True,
            generator=torch.Generator().manual_seed(5),
            snapshot=path and Snapshot(path, every=0),
        )
        return weights(model), history

    path = tmp_path / "last.pt"
    with pytest.raises(Killed):
        run(path, stop)
    resumed, unbroken = run(path), run(None)
    assert torch.equal(resumed[0], unbroken[0])
    assert resumed[1] == unbroken[1]


def test_a_finished_run_is_not_trained_again(tmp_path):
    model, data = problem()
    snapshot = Snapshot(tmp_path / "last.pt")
    train(model, data, snapshot=snapshot)
    other, _ = problem()
    calls = []
    history = fit(
        other,
        lambda *arguments: calls.append(1),
        data,
        optimiser=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        epochs=4,
        batch_size=6,
        generator=torch.Generator().manual_seed(5),
        snapshot=snapshot,
    )
    assert calls == []
    assert torch.equal(weights(other), weights(model))
    assert len(history["loss"]) == 4


def sgd(rate, **options):
    return lambda p: torch.optim.SGD(p, lr=rate, **options)


@pytest.mark.parametrize("epochs", [4, 5])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 5}, r"batch_size \(6 there, 5 here\)"),
        ({"clip": 0.5}, r"clip \(None there, 0\.5 here\)"),
        ({"drop_last": True}, r"drop_last \(None there, True here\)"),
        ({"optimiser": torch.optim.Adam}, r"optimiser \(SGD there, Adam here\)"),
        ({"optimiser": torch.optim.RMSprop}, r"optimiser \(SGD there, RMSprop here\)"),
        ({"optimiser": sgd(0.5, momentum=0.9)}, r"group\.0\.lr \(0\.1 there, 0\.5 here\);"),
        ({"optimiser": sgd(0.1)}, r"group\.0\.momentum \(0\.9 there, 0 here\)"),
        ({"optimiser": two_groups}, r"group\.0\.lr \(0\.1 there, 0\.2 here\).*group\.1"),
        ({"generator": torch.Generator().manual_seed(6)}, r"in generator \(a state"),
    ],
)
def test_a_snapshot_of_another_run_is_refused(tmp_path, change, message, epochs):
    """Whether the run is finished or has an epoch to go; and nothing is touched."""
    model, data = problem()
    snapshot = Snapshot(tmp_path / "last.pt")
    train(model, data, snapshot=snapshot)
    other, _ = problem()
    before, stored = weights(other), snapshot.path.read_bytes()
    with pytest.raises(
        ValueError, match=r"last\.pt does not fit this run: they differ.*" + message
    ):
        train(other, data, epochs=epochs, snapshot=snapshot, **change)
    assert torch.equal(weights(other), before)
    assert snapshot.path.read_bytes() == stored


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y + 1e-9), r"in data\.1 \(float64 \(20, 1\) with hash"),
        (lambda x, y: (x.flip(0), y), r"in data\.0 "),
        (lambda x, y: (x[1:], y[1:]), r"\(20, 3\).*there, float64 \(19, 3\)"),
        (lambda x, y: (x, y, y), r"in data\.2 \(None there"),
    ],
)
def test_a_snapshot_of_other_data_is_refused(tmp_path, change, message):
    model, data = problem()
    snapshot = Snapshot(tmp_path / "last.pt")
    train(model, data, snapshot=snapshot)
    with pytest.raises(ValueError, match=message):
        train(model, change(*data), epochs=5, snapshot=snapshot)


def test_a_snapshot_of_another_model_is_refused(tmp_path):
    model, data = problem()
    snapshot = Snapshot(tmp_path / "last.pt")
    train(model, data, snapshot=snapshot)
    with pytest.raises(ValueError, match=r"model\.weight \(None there.*and 3 more"):
        train(nn.Linear(3, 1).double(), data, snapshot=snapshot)
    with pytest.raises(ValueError, match=r"model\.0\.weight \(float64 \(8, 3\) there, float32"):
        train(problem()[0].float(), data, snapshot=snapshot)


def test_a_snapshot_that_names_no_run_is_refused(tmp_path):
    model, data = problem()
    save_checkpoint(tmp_path / "last.pt", {"epoch": 1})
    with pytest.raises(ValueError, match=r"last\.pt does not fit.*which run it belongs to"):
        train(model, data, snapshot=Snapshot(tmp_path / "last.pt"))


def test_more_epochs_lengthen_a_run_and_fewer_are_refused(tmp_path):
    """Without a schedule, 3 and then 5 epochs are 5 epochs; the decayed rate is not compared."""
    snapshot = Snapshot(tmp_path / "last.pt")
    model, data = problem()
    train(model, data, epochs=3, snapshot=snapshot)
    history = train(model, data, epochs=5, snapshot=snapshot)
    whole, _ = problem()
    assert train(whole, data, epochs=5) == history
    assert torch.equal(weights(whole), weights(model))
    with pytest.raises(
        ValueError, match=r"epochs: 3 is not allowed; it must be at least the 5 already done"
    ):
        train(model, data, epochs=3, snapshot=snapshot)


def test_an_unreadable_snapshot_is_named(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"PK\x03\x04 not really")
    model, data = problem()
    with pytest.raises(ValueError, match=r"last\.pt cannot be read"):
        train(model, data, snapshot=Snapshot(path))


def test_snapshots_keep_their_distance(tmp_path, monkeypatch):
    """With a clock that advances one second a look: written when 3 s are over, and at the end."""
    from companion.train import fitting, loop

    clock = iter(range(1000))
    writes = []
    monkeypatch.setattr(fitting.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(loop, "save_checkpoint", lambda path, state: writes.append(state))
    model, data = problem()
    train(model, data, epochs=2, snapshot=Snapshot(tmp_path / "a.pt", every=3.0))
    done = [(state["epoch"], state["position"]) for state in writes]
    assert done == [(0, 18), (1, 12), (2, 0)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs: 0 is not allowed; it must be at least 1"),
        ({"epochs": 2.0}, TypeError, r"epochs: 2\.0 is not allowed; it must be of type int"),
        ({"batch_size": 0}, ValueError, "batch_size: 0 is not allowed; it must be at least 1"),
        ({"workers": -1}, ValueError, "workers: -1 is not allowed; it must be at least 0"),
        ({"workers": 2}, ValueError, "workers: 2 is not allowed; it must be 0 for tensors"),
        ({"workers": 0.5}, TypeError, r"workers: 0\.5 is not allowed; it must be of type int"),
        (
            {"parallel": True},
            ValueError,
            "parallel: True is not allowed.*needs processes.*torchrun",
        ),
        ({"batch_size": 2.0}, TypeError, r"batch_size: 2\.0 is not allowed; .* type int"),
        ({"batch_size": True}, TypeError, r"batch_size: True is not allowed; .* type int"),
        ({"clip": -1.0}, ValueError, r"clip: -1\.0 is not allowed; it must be above 0, or None"),
        ({"clip": 0}, ValueError, "clip: 0 is not allowed; it must be above 0, or None"),
        (
            {"clip": float("nan")},
            ValueError,
            "clip: nan is not allowed; it must be above 0, or None",
        ),
        ({"clip": "1"}, TypeError, r"clip: '1' is not allowed; .* type int or float or None"),
        ({"generator": None}, TypeError, r"generator: None is not allowed; .* type Generator"),
        (
            {"schedule": 0.5},
            TypeError,
            r"schedule: 0\.5 is not allowed; it must be a function or None",
        ),
        ({"augment": 3}, TypeError, "augment: 3 is not allowed; it must be a function or None"),
        ({"on_epoch": {}}, TypeError, "on_epoch: {} is not allowed; it must be a function or None"),
        ({"drop_last": 1}, TypeError, "drop_last: 1 is not allowed; it must be True or False"),
        (
            {"drop_last": True, "batch_size": 21},
            ValueError,
            "batch_size: 21 .* drop_last.* 20 rows",
        ),
        ({"report": "x"}, TypeError, "report: 'x' is not allowed; it must be a function or None"),
        ({"snapshot": "x"}, TypeError, r"snapshot: 'x' is not allowed; .* type Snapshot or None"),
    ],
)
def test_bad_options(change, error, message):
    model, data = problem()
    before = weights(model)
    with pytest.raises(error, match=message):
        train(model, data, **change)
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize(("size", "error"), [(1, ZeroDivisionError), (2, RuntimeError)])
def test_an_error_in_one_of_several_processes_is_not_one_to_catch_and_go_on(size, error):
    with pytest.raises(error) as raised, Team(0, size).united():
        _ = 1 / 0
    if size > 1:
        assert "process 0 of 2 cannot go on, so the others cannot: division" in str(raised.value)
        assert isinstance(raised.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(("rows", "size"), [(8, 2), (7, 2), (5, 3), (2, 3), (1, 4)])
def test_the_weighted_mean_of_the_shares_is_the_mean_of_the_batch(rows, size):
    values = torch.rand(rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = [Team(rank, size).share(torch.arange(rows)) for rank in range(size)]
    mean = sum(weight * values[share].mean() for share, weight in shares) / size
    torch.testing.assert_close(mean, values.mean())
    taken = [row for share, weight in shares if weight for row in share.tolist()]
    assert sorted(taken) == list(range(rows))


def test_bad_snapshots(tmp_path):
    for every in (-1, float("nan")):
        with pytest.raises(
            ValueError, match=f"every: {every} is not allowed; it must be at least 0"
        ):
            Snapshot(tmp_path / "last.pt", every=every)
    with pytest.raises(TypeError, match=r"every: '3' is not allowed; .* type int or float"):
        Snapshot(tmp_path / "last.pt", every="3")
    with pytest.raises(TypeError, match=r"path: 'last\.pt' is not allowed; .* type Path"):
        Snapshot("last.pt")


def test_data_of_different_lengths():
    model, (x, y) = problem()
    with pytest.raises(ValueError, match=r"data: \[20, 19\] rows are not allowed.*equally many"):
        train(model, (x, y[1:]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(4, 3), r"data: a Tensor is not allowed.*such as \(x, y\)"),
        (None, "data: a NoneType is not allowed"),
        ({"x": torch.zeros(4, 3)}, "data: a dict is not allowed"),
        (np.zeros((4, 3)), "data: a ndarray is not allowed"),
        (
            (np.zeros((4, 3)), torch.zeros(4)),
            r"data: \(ndarray, Tensor\) is not allowed; it must hold tensors",
        ),
        ((torch.zeros(4, 3), torch.zeros(())), "one row per sample"),
    ],
)
def test_data_of_another_kind(data, message):
    with pytest.raises(TypeError, match=message):
        train(problem()[0], data)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (
            lambda m, x, y: 0.5,
            TypeError,
            r"loss: the value 0\.5 is not allowed; it must be a tensor",
        ),
        (
            lambda m, x, y: m(x).sum(1),
            ValueError,
            r"loss: .*shape \(6,\) is not allowed; it must be a scalar",
        ),
        (
            lambda m, x, y: m(x).sum().detach(),
            ValueError,
            "loss: a tensor that needs no gradient is not allowed",
        ),
        (lambda m, x, y: m(x).sum() * 1j, ValueError, "loss: a complex number is not allowed"),
        (
            None,
            TypeError,
            r"loss: None is not allowed; it must be a function loss\(model, \*batch\)",
        ),
    ],
)
def test_bad_losses(loss, error, message):
    model, data = problem()
    with pytest.raises(error, match=message):
        fit(model, loss, data, optimiser=torch.optim.SGD, epochs=1, batch_size=6,
            generator=torch.Generator())  # fmt: skip


def test_an_optimiser_is_made_by_fit():
    model, data = problem()
    made = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        TypeError, match=r"optimiser: SGD itself is not allowed; it must be a function"
    ):
        fit(model, lambda m, x, y: m(x).sum(), data, optimiser=made, epochs=1, batch_size=6,
            generator=torch.Generator())  # fmt: skip


class Noisy:
    """Samples that are read when needed: a row, plus noise from the sample's seed."""

    def __init__(self, x, y, noise):
        self.x, self.y, self.noise, self.sha256 = x, y, noise, "a" * 64

    def __len__(self):
        return len(self.x)

    def __getitem__(self, key):
        index, seed = key
        draw = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=self.x.dtype)
        return self.x[index] + self.noise * draw, self.y[index]


def test_samples_read_on_demand_train_as_tensors_do():
    model, data = problem()
    other = copy.deepcopy(model)
    history = train(model, data, epochs=1)
    assert train(other, Noisy(*data, noise=0.0), epochs=1) == history
    assert torch.equal(weights(other), weights(model))


def test_every_sample_gets_another_seed_in_every_epoch():
    model, (x, y) = problem()
    seen = []

    def loss(model, x, y):
        seen.append(x)
        return mse(model, x, y)

    fit(
        model,
        loss,
        Noisy(torch.zeros_like(x), y, noise=1.0),
        optimiser=sgd(0.1),
        epochs=2,
        batch_size=6,
        generator=torch.Generator().manual_seed(0),
    )
    assert len(torch.cat(seen).unique(dim=0)) == 40


def test_worker_processes_change_nothing():
    results = []
    for workers in (0, 2):
        model, data = problem(dropout=0.3)
        with seeded(1):
            train(model, Noisy(*data, noise=1.0), epochs=2, workers=workers)
        results.append(weights(model))
    assert torch.equal(*results)


@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_samples_read_on_demand_resume_to_the_same_bits(tmp_path, stop):
    def run(path, stop=None):
        model, data = problem(dropout=0.3)
        calls = []

        def loss(model, x, y):
            calls.append(1)
            if len(calls) == stop:
                raise Killed
            return mse(model, x, y)

        with seeded(7):
            history = fit(
                model,
                loss,
                Noisy(*data, noise=1.0),
                optimiser=sgd(0.1),
                epochs=2,
                batch_size=6,
                generator=torch.Generator().manual_seed(5),
                snapshot=path and Snapshot(path, every=0),
            )
        return weights(model), history

    with pytest.raises(Killed):
        run(tmp_path / "last.pt", stop)
    resumed, unbroken = run(tmp_path / "last.pt"), run(None)
    assert torch.equal(resumed[0], unbroken[0])
    assert resumed[1] == unbroken[1]


def test_a_snapshot_of_other_samples_is_refused(tmp_path):
    model, data = problem()
    snapshot = Snapshot(tmp_path / "last.pt")
    train(model, Noisy(*data, noise=0.0), snapshot=snapshot)
    others = Noisy(*data, noise=0.0)
    others.sha256 = "b" * 64
    with pytest.raises(ValueError, match=r"data\.0 \(20 samples with hash a+ there, 20.*b+ here"):
        train(model, others, epochs=5, snapshot=snapshot)


def test_samples_read_on_demand_refuse_what_is_for_tensors():
    model, (x, y) = problem()
    with pytest.raises(ValueError, match=r"augment: .* it must be None for samples that are read"):
        train(model, Noisy(x, y, 0.0), augment=jitter)
    with pytest.raises(ValueError, match=r"data: .* at least (one|1)"):
        train(model, Noisy(x[:0], y[:0], 0.0))


def classifier():
    """Scores that only evaluation mode gets right, with one part that is in it already."""
    layers = (nn.BatchNorm1d(3, affine=False), nn.Dropout(0.9), nn.Linear(3, 3, bias=False))
    model = nn.Sequential(*layers).double()
    model[0].running_mean[:] = torch.tensor([0.0, 0.0, 1.0])
    model[2].weight.data = torch.eye(3, dtype=torch.float64)
    model[1].eval()
    return model


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("on_demand", [False, True])
def test_the_error_rate_is_that_of_the_model_in_evaluation_mode(batch_size, on_demand):
    model = classifier()
    scores = torch.tensor([[3.0, 1, 2], [1, 2, 2.5], [0, 1, 1.5], [0, 0, 9], [5, 0, 0]]).double()
    classes = torch.tensor([0, 1, 2, 0, 0])  # the last score counts one less: 0, 1, 1, 2, 0
    data = Noisy(scores, classes, 0.0) if on_demand else (scores, classes)
    before = copy.deepcopy(model.state_dict())
    assert error_rate(model, data, batch_size=batch_size) == pytest.approx(2 / 5)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_error_rate_of_nothing():
    with pytest.raises(ValueError, match=r"data: .* at least (one|1)"):
        error_rate(classifier(), (torch.zeros(0, 3).double(), torch.zeros(0, dtype=torch.int64)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_and_lists_of_tensors_are_compared(dtype):
    scores, labels = torch.eye(3), torch.tensor([0, 1, 0], dtype=dtype)
    assert error_rate(nn.Identity(), [scores, labels]) == 1 / 3
    assert misclassified(scores, labels).tolist() == [False, False, True]
    assert error_rate(nn.Identity(), Noisy(scores, labels, 0.0)) == 1 / 3  # no parameter, no device


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([[0], [1], [2]]), ValueError, r"labels: shape \(3, 1\).*\(3,\).*squeeze"),
        (torch.tensor([[0, 1, 2]]), ValueError, r"labels: shape|data: \[3, 1\] rows"),
        (torch.eye(3, dtype=torch.int64), ValueError, r"labels: shape \(3, 3\) .*\(3,\)"),
        (torch.eye(3), TypeError, r"labels: torch\.float32 .* classes' numbers"),
        (torch.tensor([0.0, 1.0, 2.0]), TypeError, r"labels: torch\.float32 .* classes' numbers"),
        (torch.tensor([True, False, True]), TypeError, r"labels: torch\.bool"),
        (torch.tensor([0, 1, 3]), ValueError, "labels: 3 is not allowed.*0 to 2"),
        (torch.tensor([0, -1, 2]), ValueError, "labels: -1 is not allowed.*0 to 2"),
        (torch.tensor([0, 1]), ValueError, r"data: \[3, 2\] rows are not allowed"),
        (torch.tensor(1), TypeError, "data: .*one row per sample"),
        ([0, 1, 2], TypeError, r"data: \(Tensor, list\)"),
    ],
)
def test_labels_that_would_be_compared_wrongly_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        error_rate(nn.Identity(), (torch.eye(3), labels))


@pytest.mark.parametrize("shape", [(3,), (3, 1, 2), (3, 2, 4, 4), (3, 0)])
def test_scores_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"scores: shape .* must be \(samples, classes\)"):
        error_rate(nn.Identity(), (torch.zeros(shape), torch.zeros(3, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([(torch.eye(3), torch.arange(3))], TypeError, r"data: \(tuple\) is not allowed"),
        ((torch.eye(3),), ValueError, "data: 1 tensors are not allowed"),
        ((torch.eye(3), torch.arange(3), torch.arange(3)), ValueError, "data: 3 tensors"),
        (torch.eye(3), TypeError, "data: a Tensor is not allowed"),
        (iter([(torch.eye(3), torch.arange(3))]), TypeError, "data: a list_iterator is not"),
        (
            torch.utils.data.DataLoader([(torch.zeros(3), 0)]),
            TypeError,
            "data: a DataLoader is not allowed",
        ),
        (None, TypeError, "data: a NoneType is not allowed"),
    ],
)
def test_data_that_are_not_samples_and_labels(data, error, message):
    with pytest.raises(error, match=message):
        error_rate(nn.Identity(), data)


def test_scores_and_labels_are_tensors():
    for pair, name in (((None, torch.arange(3)), "scores"), ((torch.eye(3), [0, 1, 2]), "labels")):
        with pytest.raises(TypeError, match=rf"{name}: a \w+ is not allowed; give a tensor"):
            misclassified(*pair)


@pytest.mark.parametrize("name", ["batch_size", "workers"])
def test_bad_options_of_the_error_rate(name):
    with pytest.raises(ValueError, match=f"{name}: -1 is not allowed"):
        error_rate(nn.Identity(), (torch.eye(3), torch.arange(3)), **{name: -1})


def test_modes_come_back_after_an_error():
    model = classifier()
    with pytest.raises(ValueError, match="expected 2D or 3D"):
        error_rate(model, (torch.zeros(2), torch.zeros(2, dtype=torch.int64)))
    assert model.training


def test_seeded_leaves_the_global_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with seeded(8):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    assert not torch.equal(inside, expected)


def test_evaluation_gives_the_residuals_inside_blocks_their_mode_back():
    """Their code runs in a module that a block does not register: its mode must return too."""
    block = OdeBlock(nn.BatchNorm1d(3), PiecewiseConstant(cells=2), steps=2)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    before = block(x)
    error_rate(block, (x, torch.zeros(8, dtype=torch.int64)))
    assert block.weights.template.training
    assert torch.equal(block(x), before)  # the batch's statistics again, not the running ones
    block.weights.template.eval()
    with evaluating(block):
        assert not block.training
    assert block.training
    assert not block.weights.template.training
