import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from deciding import decided
from image_files import write_cifar, write_images
from torch.nn.functional import cross_entropy

from companion.__main__ import main
from companion.basis import PiecewiseConstant
from companion.data import crop_and_flip, load_cifar10, load_cifar100
from companion.experiments import recipes, run
from companion.experiments.continuous_digits import SCHEMES
from companion.experiments.continuous_net import q20_t1a_cifar_10 as q20_t1a
from companion.experiments.images import Images
from companion.experiments.many_graphs import q20_f10_t_tiny_imagenet as q20_f10_t
from companion.experiments.many_graphs import q20_t1b_cifar_100 as q20_t1b
from companion.experiments.many_graphs.image_nets import (
    PlainResNet,
    Settings,
    Study,
    make_network,
    train_and_swap,
)
from companion.experiments.running import Part
from companion.models import ContinuousNet
from companion.results import Findings, Result
from companion.solve import NonFiniteError
from companion.train import seeded

SETTINGS = Settings((2, 3), (1,), 2, autocast=False, compiled=False)


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield write_cifar(tmp_path_factory.mktemp("cifar"), patch, "CIFAR10", 1, number=26)


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    return write_cifar(tmp_path, monkeypatch, "CIFAR100", 2, number=20)


@pytest.fixture(scope="module")
def whole(cifar10, tmp_path_factory):
    """A run of the full tier of Q20-T1a that nothing interrupts."""
    return full("Q20-T1a", cifar10, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def tiny_imagenet(tmp_path):
    return write_images(tmp_path, "tiny-imagenet", (64, 64))


def arguments(id, data, out):
    """Return the command line that runs the full tier of two or three tiny networks."""
    names = {"Q20-T1a": ["resnet", "euler", "rk4"], "Q20-T1b": ["euler", "rk4"]}
    networks = names.get(id, ["euler", "midpoint"])
    settings = {"channels": "[2, 3]", "refine_at": "[1]", "epochs": 2, "autocast": "false"}
    settings["networks"] = json.dumps(networks)
    changes = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    places = ["--data", str(data), "--out", str(out)]
    return ["run", id, "--tier", "full", "--seed", "3", *places, *changes, "--resume"]


def full(id, data, out):
    """Run that through the command line, and read the result."""
    assert main(arguments(id, data, out)) == 0
    return Result.load(out / f"{id}.full.json")


def test_the_refined_network_on_cifar_is_trained_as_a_plain_loop_does(cifar10, whole):
    """Values, order, augmentation, rate, decay, momentum through the split, and the swaps."""
    found = whole
    data = load_cifar10(cifar10)
    with seeded(3):
        net = ContinuousNet(
            channels=(2, 3), basis=PiecewiseConstant(1), method="rk4", steps=1, scale=1.0
        )
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    generator, losses = torch.Generator().manual_seed(3), []
    for epoch in range(2):
        if epoch == 1:
            net.refine()
            for p in net.blocks.parameters():
                state = optimiser.state[p]
                state["momentum_buffer"] = state["momentum_buffer"].repeat_interleave(2, 0)
        total = 0.0
        for k, rows in enumerate(torch.randperm(130, generator=generator).split(128)):
            x = crop_and_flip(data.x_train[rows], generator, fill=data.black)
            done = (2 * epoch + k) / 4
            optimiser.param_groups[0]["lr"] = 0.1 * 0.1 ** ((done >= 2 / 3) + (done >= 13 / 15))
            loss = cross_entropy(net(x), data.y_train[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(rows)
        losses.append(total / 130)
    np.testing.assert_allclose(found["loss_rk4"][0], losses, rtol=1e-5)
    net.eval()
    with torch.no_grad():
        own = net(data.x_test)
        other = net.with_graph(method="rk4_38", steps=3)(data.x_test)
    wrong = (own.argmax(1) != data.y_test).double().mean().item()
    assert found["mean_error_rk4"] == found["error_rk4"][0, -1] == wrong
    place = (0, SCHEMES.index("rk4_38"), found["steps"].tolist().index(3))
    deviation = float((other - own).norm() / own.norm())
    assert found["deviation_rk4"][place] == pytest.approx(deviation, rel=1e-4)
    assert found["swap_error_rk4"][place] == (other.argmax(1) != data.y_test).double().mean()
    assert found["deviation_rk4"][0, SCHEMES.index("rk4"), 1] == 0.0  # its own graph
    assert found.findings.data == data.provenance


def test_the_full_tier_resumes_where_it_was_stopped(cifar10, whole, tmp_path, monkeypatch):
    """Stopped in the third network's training; the first two are not trained again."""
    fit, calls = recipes.fit, []

    def stopping(*given, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(*given, **options)

    monkeypatch.setattr(recipes, "fit", stopping)
    command = arguments("Q20-T1a", cifar10, tmp_path)
    assert main(command) == 130
    assert main(command) == 0
    assert len(calls) == 3 + 1  # three networks, one of them begun twice
    found = Result.load(tmp_path / "Q20-T1a.full.json").findings
    assert str(found.curves) == str(whole.findings.curves)
    same = {k: v for k, v in whole.findings.scalars.items() if "second" not in k}
    assert {k: v for k, v in found.scalars.items() if "second" not in k} == same


def test_cifar100_trains_through_the_command_line(cifar100, tmp_path):
    found = full("Q20-T1b", cifar100, tmp_path / "out")
    assert found.findings.data == load_cifar100(cifar100).provenance
    assert found["loss_rk4"][0, 0] == pytest.approx(math.log(100), rel=0.2)
    assert [claim.high for claim in found.claims] == [0.232, 0.24, 0.02, 0.02]


def test_tiny_imagenet_trains_through_the_command_line(tiny_imagenet, tmp_path):
    found = full("Q20-F10-T", tiny_imagenet, tmp_path / "out")
    assert found["error_midpoint"][0, -1] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert found["loss_midpoint"][0, 0] == pytest.approx(math.log(2), abs=0.7)
    assert found["images_per_second_midpoint"] > 0


def few_images(size=8):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 1, size, size, generator=draw)
    y = torch.arange(40) % 10
    return Images((x, y), (x[:20], y[:20]), None, 1, 10, 16, "made here")


def test_the_plain_network_is_the_continuous_one_with_euler():
    """The same weights, copied over by hand, give the same logits: a residual network."""
    data = few_images()
    with seeded(0):
        continuous = ContinuousNet(
            inputs=1, channels=(2, 3), basis=PiecewiseConstant(2), steps=2, scale=2.0,
            skip_init=False,
        )  # fmt: skip
    plain = PlainResNet(10, 1, (2, 3), layers=2)
    values = iter(continuous.stem.state_dict().values())
    stem = {**plain.layers[:3].state_dict()}
    plain.layers[:3].load_state_dict(dict(zip(stem, values, strict=True)))
    plain.layers[5].load_state_dict(continuous.stitches[0].state_dict())
    for block, first in zip(continuous.blocks, (3, 6), strict=True):
        for k in range(2):
            state = {name: value[k] for name, value in block.weights.stacks.state_dict().items()}
            plain.layers[first + k].unit.load_state_dict(state)
    plain.head.load_state_dict(continuous.head.state_dict())
    x = data.test[0]
    torch.testing.assert_close(plain(x), continuous(x), rtol=1e-5, atol=1e-6)


def test_networks_have_the_size_and_the_scale_of_their_kind():
    data, settings = few_images(), replace(SETTINGS, refine_at=(1, 2, 3))
    euler = make_network("euler", data, settings, 0, full=False)
    assert (euler.blocks[0].steps, euler.blocks[0].scale) == (8, 8.0)
    for name in ("rk4", "midpoint"):
        small = make_network(name, data, settings, 0, full=False)
        assert (small.blocks[1].steps, small.blocks[1].scale) == (1, 1.0)
        grown = make_network(name, data, settings, 0, full=True)
        assert grown.blocks[1].weights.basis == PiecewiseConstant(8)
    deep = make_network("rk4_deep", data, settings, 0, full=False)
    assert (deep.blocks[0].method, deep.blocks[0].steps, deep.blocks[0].scale) == ("rk4", 8, 8.0)


def test_depths_hold_the_paper_s():
    assert replace(SETTINGS, refine_at=(1, 2, 3)).steps == (1, 2, 3, 4, 8, 9, 16, 32)
    deep = replace(SETTINGS, refine_at=(1, 2, 3, 4, 5))
    assert {6, 11, 32, 33} <= set(deep.steps)
    assert (deep.cells, deep.third) == (32, 11)


def test_autocast_changes_only_digits_of_the_numbers():
    data = few_images()
    plain, rounded = (
        train_and_swap(Part(None, lambda x: None), "rk4", 0, data, replace(SETTINGS, autocast=on))
        for on in (False, True)
    )
    assert plain["loss"] != rounded["loss"]
    np.testing.assert_allclose(rounded["loss"], plain["loss"], rtol=0.02)


def test_a_compiled_network_trains_and_the_swapped_graphs_are_not_it(monkeypatch):
    """Compilation itself takes half a minute: a stand-in counts the calls of the network."""
    calls = []

    def compiled(net):
        return lambda x: calls.append(net.training) or net(x)

    data, part = few_images(), Part(None, lambda x: None)
    plain = train_and_swap(part, "rk4", 0, data, SETTINGS)
    monkeypatch.setattr(torch, "compile", compiled)
    found = train_and_swap(part, "rk4", 0, data, replace(SETTINGS, compiled=True))
    assert calls == [True] * 6  # two epochs of three batches, and no evaluation
    assert found == plain


def test_a_network_that_leaves_the_finite_numbers_counts_as_guessing(monkeypatch):
    def diverge(*arguments, **options):
        raise NonFiniteError("too large")

    data, part = few_images(), Part(None, lambda x: None)
    trained = {n: train_and_swap(part, n, 0, data, SETTINGS) for n in ("resnet", "euler", "rk4")}
    monkeypatch.setattr(recipes, "fit", diverge)
    for name, row in trained.items():
        lost = train_and_swap(part, name, 0, data, SETTINGS)
        assert lost["error"] == [0.9, 0.9]
        assert {k: np.shape(v) for k, v in lost.items()} == {k: np.shape(v) for k, v in row.items()}


def made_up(errors, swaps, refine_at=(1, 2, 3)):
    """A study of two seeds with errors by network and errors by (network, method, steps)."""
    settings = replace(SETTINGS, refine_at=refine_at)
    found = {}
    for name, error in errors.items():
        table = np.full((len(SCHEMES), len(settings.steps)), error)
        for (net, method, steps), value in swaps.items():
            if net == name:
                table[SCHEMES.index(method), settings.steps.index(steps)] = value
        pair = np.array([-0.01, 0.01])
        found[name] = {
            "error": np.stack([np.ones(2), error + pair], axis=1),
            "swap_error": table + pair[:, None, None],
            "deviation": table + 5 * pair[:, None, None],
        }
    return Study(settings, found, Findings({}))


def claims_of(id, module, found, dataset):
    """Return the claims of an experiment that has found this on a data set."""
    errors = {f"mean_error_{name}": found.error(name) for name in found.tables}
    return decided(id, errors | module.deciding(found), dataset=dataset, seeds=2)


def test_claims_of_cifar10():
    errors = {"resnet": 0.08, "euler": 0.09, "rk4": 0.12}
    swaps = {
        ("rk4", "euler", 8): 0.125,
        ("rk4", "rk4_38", 3): 0.14,
        ("euler", "rk4", 8): 0.19,
    }
    claims = claims_of("Q20-T1a", q20_t1a, made_up(errors, swaps), "cifar10")
    assert [c.id for c in claims] == ["CL36", "CL37", "CL38", "CL39", "CL41"]
    assert [c.observed for c in claims] == pytest.approx([0.01, 0.03, 0.005, 0.02, 0.1])
    assert [c.holds for c in claims] == [True, False, False, False, True]
    assert "3 of 8 steps" in claims[3].text
    better = {**errors, "rk4": 0.09}  # equal is not "slightly worse"
    claims = claims_of("Q20-T1a", q20_t1a, made_up(better, {("rk4", "euler", 8): 0.084}), "cifar10")
    assert [c.holds for c in claims] == [True, False, False, True, False]


def test_on_digits_the_logits_show_what_breaks():
    """RK4 with four times the steps, against 0.25; the error is no matter there."""
    swaps = {("euler", "rk4", 8): 0.9, ("euler", "rk4", 32): 0.2}
    found = made_up({"resnet": 0.08, "euler": 0.09, "rk4": 0.1, "midpoint": 0.1}, swaps)
    for claims in (
        claims_of("Q20-T1a", q20_t1a, found, "digits"),
        claims_of("Q20-F10-T", q20_f10_t, found, "digits"),
    ):
        assert claims[-1].observed == pytest.approx(0.2)
        assert claims[-1].low == 0.25
        assert "32 steps" in claims[-1].text


def test_claims_of_the_wide_networks():
    errors = {"euler": 0.23, "rk4": 0.2499, "midpoint": 0.2}
    swaps = {("rk4", "rk4_38", 4): 0.265, ("midpoint", "rk4", 8): 0.205, ("euler", "rk4", 8): 0.25}
    found = made_up(errors, swaps)
    claims = claims_of("Q20-T1b", q20_t1b, found, "cifar100")
    assert [c.observed for c in claims] == pytest.approx([0.23, 0.2499, 0.0199, 0.0151])
    assert [c.holds for c in claims] == [True, False, True, True]
    claims = claims_of("Q20-T1b", q20_t1b, found, "digits")
    assert [c.observed for c in claims] == pytest.approx([0.0199, 0.0151])
    assert [c.holds for c in claims] == [True, False]
    claims = claims_of("Q20-F10-T", q20_f10_t, found, "tiny-imagenet")
    assert [c.observed for c in claims] == pytest.approx([0.005, 0.02])
    assert [c.holds for c in claims] == [True, False]


@pytest.mark.parametrize(
    ("id", "changes", "message"),
    [
        ("Q20-T1a", {"dataset": "mnist"}, "dataset must be one of digits, cifar10; got 'mnist'"),
        ("Q20-T1b", {"dataset": "cifar10"}, "dataset must be one of digits, cifar100"),
        ("Q20-T1a", {"networks": ("euler", "rk4")}, "with resnet, euler, rk4"),
        (
            "Q20-T1b",
            {"networks": ("euler", "rk4", "heun")},
            "it must hold some of resnet",
        ),
    ],
)
def test_bad_arguments(id, changes, message):
    with pytest.raises(ValueError, match=message):
        run(id, **changes)
