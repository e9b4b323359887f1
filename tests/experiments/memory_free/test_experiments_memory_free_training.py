"""S22-F3b, S22-F4 and S22-T2 in small, and their parts by value."""

import copy
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from deciding import decided
from image_files import write_cifar, write_images
from torch.nn.functional import cross_entropy

from companion.data import load_digits
from companion.experiments import run
from companion.experiments.gradient_rules import (
    RULES,
)
from companion.experiments.memory_free import s22_f3b_shallow_failures as s22_f3b
from companion.experiments.memory_free import s22_f4_memory_free as s22_f4
from companion.experiments.memory_free import s22_t2_untied_tuning as s22_t2
from companion.experiments.recipes import classification_loss, sgd
from companion.gradients import Backprop
from companion.models import ResNet, train_only
from companion.train import fit

DIGITS = load_digits()
MEMORY_FREE = ("reverse", "corrected", "predicted")


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    return write_cifar(tmp_path, monkeypatch)


def test_claims_of_f4_look_at_the_right_depths_and_rules(make_study):
    study = make_study(
        (2, 8, 32, 64),
        backprop=[(0.03, 0.03)] * 4,
        reverse=[(0.5, 0.5), (0.2, 0.0), (0.03, 0.05), (0.9, 0.9)],
        heun_backprop=[(0.05, 0.05)] * 4,
        heun_reverse=[(0.2, 0.2), (0.04, 0.06), (0.02, 0.02), (0.9, 0.9)],
    )
    claims = decided("S22-F4", s22_f4.deciding(study), depths=study.depths)
    assert [c.id for c in claims] == ["CL59", "CL60", "CL61", "CL61", "CL61"]
    # shallow, the better seed of the better scheme; 32 layers; Heun's 8 against Euler's 8, against
    # backprop, and against the 16 layers of Euler's that are nearest to 8
    wanted = [0.15, 0.03, -0.05, 0.0, -0.05]
    assert [c.observed for c in claims] == pytest.approx(wanted)
    assert [c.holds for c in claims] == [True, False, True, True, True]
    assert "32 layers" in claims[1].text
    assert "8 layers" in claims[4].text


def test_f4_shallow_networks_fail_and_deep_ones_do_not():
    result = run("S22-F4", depths=(2, 12), seeds=1, epochs=4)
    assert result["error_reverse"].shape == (2, 1)
    assert result["error_reverse_2"] == result["error_reverse"][0, 0]
    assert result.claim("CL59").holds
    assert result["error_reverse_copied_2"] < result["error_reverse_2"]
    for rule in ("backprop", "reverse", "heun_backprop", "heun_reverse_copied"):
        assert result[f"error_{rule}_12"] < 0.1
        assert not result[f"diverged_{rule}"].any()
    assert result.findings.data == DIGITS.provenance


def test_f4_on_cifar(cifar_folder):
    """Every rule of the full tier on tiny files; the full recipe, and its seeds differ."""
    found = run("S22-F4", tier="full", data=cifar_folder, depths=(2, 3), seeds=2, epochs=1)
    assert found["error_heun_corrected"].shape == (2, 2)
    assert "not the official files" in found.findings.data
    assert {claim.id for claim in found.claims} == {"CL59", "CL60", "CL61"}


def test_f4_trains_the_papers_network_by_the_papers_recipe(cifar_folder, monkeypatch):
    seen = {}

    def caught(part, net, train, test, seed, *, optimiser, schedule, augment, **options):
        seen.update(options, net=net, schedule=[schedule(p) for p in (0.3, 0.4, 0.7)])
        seen.update(optimiser(net.parameters()).defaults)
        moved = augment(train[0], torch.Generator().manual_seed(0))
        black = -torch.tensor([0.4914 / 0.2470, 0.4822 / 0.2435, 0.4465 / 0.2616])
        seen["black"] = ((moved - black.view(3, 1, 1)).abs().amax(1) < 1e-6).any()
        seen["rows"] = len(train[1]), len(test[1])
        return [0.5, 0.0]

    monkeypatch.setattr(s22_f4, "trained_error", caught)
    run("S22-F4", tier="full", data=cifar_folder, depths=(4,), seeds=1, epochs=90)
    assert seen["epochs"] == 90
    assert seen["batch_size"] == 256
    assert (seen["lr"], seen["momentum"], seen["weight_decay"]) == (0.1, 0.9, 5e-4)
    assert seen["schedule"] == pytest.approx([1, 0.1, 0.01])
    assert seen["black"]
    assert seen["rows"] == (40, 8)
    assert seen["net"].block.steps == 4


def test_transfer_keeps_the_function_and_tuning_improves_it(monkeypatch):
    nets = []
    train = s22_t2._train

    def caught(part, task, net, options, seed):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        train(part, task, net, options, seed)
        nets.append((before, net))

    monkeypatch.setattr(s22_t2, "_train", caught)
    result = run(
        "S22-T2", depths=(4, 16), seeds=1, epochs=4, tuning_epochs=2,
        rules=("backprop", *MEMORY_FREE),
    )  # fmt: skip
    (_, tied), *tuned, (_, same_epochs), (_, same_work) = nets
    assert len(tied.block.weights.stacks.get_parameter("0.weight")) == 1
    for rule, (before, net) in zip(("backprop", "reverse", "corrected"), tuned, strict=False):
        after = dict(net.named_parameters())
        for name, value in tied.named_parameters():  # every layer starts from the tied weights
            assert torch.equal(before[name], value.expand_as(before[name]))
            assert torch.equal(before[name], after[name]) == (not name.startswith("block"))
        assert net.block.steps == 16
        assert net.block.gradient == RULES[rule].gradient
    for control, epochs in ((same_epochs, 2), (same_work, 2 * 16 // 4)):
        twin = copy.deepcopy(tied)
        recipe = {"batch_size": 64, "optimiser": sgd(0.02), "clip": 1.0, "epochs": epochs}
        train_only(twin, twin.block)
        fit(twin, classification_loss, (DIGITS.x_train, DIGITS.y_train),
            generator=torch.Generator().manual_seed(0), **recipe)  # fmt: skip
        for a, b in zip(twin.parameters(), control.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    shown = dict(zip(("error", "loss"), s22_t2._measure(tied, DIGITS), strict=True))
    for name, value in shown.items():
        assert result[f"transfer_{name}"][0, 0] == pytest.approx(value)
        assert result[f"{name}_reverse"][0] == result[f"mean_{name}_reverse"]
    logits = tied(DIGITS.x_test)
    wrong = (logits.argmax(1) != DIGITS.y_test).double().mean().item()
    assert shown["error"] == pytest.approx(wrong, rel=1e-12)
    loss = cross_entropy(tied(DIGITS.x_train), DIGITS.y_train).item()
    assert shown["loss"] == pytest.approx(loss, rel=1e-5)
    change = abs(result["transfer_error"][1] - result["transfer_error"][0]).max()
    assert result.claim("CL63").observed == result["largest_change"] == pytest.approx(change)
    assert result["loss_reverse"][0] < 0.95 * result["transfer_loss"][1, 0]
    off = [abs(result[f"loss_{rule}"][0] / result["loss_backprop"][0] - 1) for rule in MEMORY_FREE]
    assert 0.1 > off[0] > 2 * max(off[1:])  # the paper's rule is further off than ours


def test_memory_of_tuning_does_not_grow_with_depth():
    small, large = (
        run("S22-T2", depths=(2, depth), seeds=1, epochs=1, tuning_epochs=1) for depth in (8, 16)
    )
    for rule in ("reverse", "corrected"):
        assert small[f"bytes_{rule}"] == large[f"bytes_{rule}"] < small["bytes_backprop"] / 2
    assert (
        large["bytes_backprop"] - small["bytes_backprop"] > 8 * 64 * 16 * 4
    )  # a hidden state each


def test_claims_of_t2_by_value():
    tied, tuned = np.array([[0.03, 0.2], [0.12, 4.0]]), np.array([[0.05, 0.1], [0.09, 1.0]])
    control = np.array([[0.0, 0.1], [0.0, 4.0]])
    numbers = {"largest_change": 0.0, **s22_t2.deciding(tied, tuned, control)}
    _, added, loss, over = decided("S22-T2", numbers, dataset="digits")
    assert added.observed == pytest.approx(-0.005)
    assert loss.observed == pytest.approx(8**-0.5)  # 1/2 and 1/4
    assert over.observed == pytest.approx(0.5)  # 1 and 1/4


def test_tuning_that_diverges_is_counted(monkeypatch):
    result = run(
        "S22-T2", depths=(2, 4), seeds=1, epochs=1, tuning_epochs=1, tuning_rate=1e30,
        rules=("reverse",),
    )  # fmt: skip
    assert result["mean_error_reverse"] == 0.9
    assert result["mean_loss_reverse"] == math.inf
    assert not result.claim("CL62").holds
    assert result["loss_same_epochs"] == math.inf


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dataset": "mnist"}, "dataset must be digits or cifar10; got 'mnist'"),
        ({"depths": (4,)}, "depths must be two or more from 2, in rising order"),
        ({"depths": (8, 4)}, "depths must be two or more from 2, in rising order"),
        ({"depths": (1, 4)}, "depths must be two or more from 2, in rising order"),
        ({"rules": ("backprop",)}, "rules must be some of .*, and reverse"),
        ({"rules": ("reverse", "heun_reverse")}, "rules must be some of backprop, reverse"),
    ],
)
def test_bad_parameters_of_t2(overrides, message):
    with pytest.raises(ValueError, match=message):
        run("S22-T2", **overrides)


def test_f4_names_its_data_sets():
    with pytest.raises(ValueError, match="dataset must be digits or cifar10; got 'mnist'"):
        run("S22-F4", dataset="mnist")


def test_t2_on_cifar(cifar_folder, monkeypatch):
    """The full tier with narrow networks: the third stage alone gets deeper and is tuned."""
    narrow, nets = partial(ResNet, width=2), []

    def caught(net, *parts):
        nets.append(net)
        return train_only(net, *parts)

    monkeypatch.setattr(s22_t2, "ResNet", narrow)
    monkeypatch.setattr(s22_t2, "train_only", caught)
    result = run(
        "S22-T2", tier="full", data=cifar_folder, depths=(2, 3), seeds=1, epochs=1,
        rules=("backprop", "reverse"),
    )  # fmt: skip
    assert result["transfer_error"].shape == (2, 1)
    assert result["bytes_reverse"] < result["bytes_backprop"]
    assert {claim.id for claim in result.claims} == {"CL62", "CL63"}
    *nets, _, control = nets
    assert [stage.block.steps for stage in control.stages] == [1, 1, 1, 1]
    for net, rule in zip(nets, ("backprop", "reverse"), strict=True):
        assert [stage.block.steps for stage in net.stages] == [1, 1, 2, 1]
        sets = [len(next(stage.block.parameters())) for stage in net.stages]
        assert sets == [1, 1, 2, 1]
        assert net.stages[2].block.gradient == RULES[rule].gradient
        assert {n.split(".")[1] for n, p in net.named_parameters() if p.requires_grad} == {"2"}


def test_a_broken_t2_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    """Killed between two trainings of a part: the finished ones are read, not repeated."""
    tiny = {"depths": (2, 4), "seeds": 1, "epochs": 2, "tuning_epochs": 1}
    whole = run("S22-T2", **tiny)
    train, calls = s22_t2._train, []

    def failing(part, task, net, options, seed):
        calls.append(part.snapshot.path.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        train(part, task, net, options, seed)

    monkeypatch.setattr(s22_t2, "_train", failing)
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        run("S22-T2", folder=folder, **tiny)
    assert len(set(calls)) == 3
    assert len(list(folder.glob("*.pt"))) == 2
    again = run("S22-T2", folder=folder, resume=True, **tiny)
    assert json.loads(again.to_json())["curves"] == json.loads(whole.to_json())["curves"]


def test_f3b_shallow_networks_fail():
    result = run("S22-F3b", depths=(2, 3), seeds=1, epochs=3)
    assert result["error_corrected"].shape == (2, 1)
    assert result.claim("CL59").holds
    excess = result["error_reverse"] - result["error_backprop"]
    assert result.claim("CL59").observed == pytest.approx(excess.min())


@pytest.fixture
def image_folder(tmp_path):
    return write_images(tmp_path)


def test_f3b_on_image_folders(image_folder, monkeypatch):
    """The full tier with narrow networks: only the third stage has the rule's gradient."""
    nets, train = [], s22_f3b.trained_error

    def caught(part, net, *arguments, **options):
        nets.append(net)
        assert options["batch_size"] == 256
        assert options["chance"] == 0.5
        assert options["optimiser"](net.parameters()).defaults["weight_decay"] == 1e-4
        assert [round(options["schedule"](p), 6) for p in (0.2, 0.4, 0.8)] == [1, 0.1, 0.01]
        return train(part, net, *arguments, **options)

    monkeypatch.setattr(s22_f3b, "ResNet", partial(ResNet, width=2))
    monkeypatch.setattr(s22_f3b, "trained_error", caught)
    result = run("S22-F3b", tier="full", data=image_folder, epochs=1, depths=(3,))
    assert result["error_reverse"].shape == (1, 1)
    for net, rule in zip(nets, ("backprop", "reverse", "corrected"), strict=True):
        own = [stage.block.gradient for stage in net.stages]
        assert own == [Backprop(), Backprop(), RULES[rule].gradient, Backprop()]
        assert [stage.block.steps for stage in net.stages] == [2, 3, 2, 2]
        assert net.head.out_features == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dataset": "mnist"}, "dataset must be digits or imagenet; got 'mnist'"),
        ({"rules": ("backprop", "reverse", "heun_reverse")}, "rules must be some of backprop, .*"),
    ],
)
def test_bad_parameters_of_f3b(overrides, message):
    with pytest.raises(ValueError, match=message):
        run("S22-F3b", **overrides)
