"""Training by every gradient rule: the experiments in small, and their parts by value."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from companion.data import cifar, load_digits
from companion.experiments import Part, fw8_t, run, s22_f3b, s22_f4, s22_t2
from companion.experiments.gradient_rules import (
    RULES,
    Study,
    digits_error,
    digits_net,
    train_all,
)
from companion.experiments.grid import Grid
from companion.experiments.running import Run
from companion.gradients import Backprop, Reconstruct, Reversible
from companion.models import ResNet, train_only

DIGITS = load_digits()
MEMORY_FREE = ("reverse", "corrected", "predicted")
QUIET = Part(None, lambda fraction: None)


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    """CIFAR-10 files in the official format with 8 images each, and a catalogue that expects so."""
    draw = np.random.default_rng(0)
    files = []
    for file in cifar.CIFAR10.files:
        labels = draw.integers(0, 10, (8, 1), "u1")
        content = np.hstack([labels, draw.integers(0, 256, (8, 3072), "u1")]).tobytes()
        (tmp_path / file.name).write_bytes(content)
        files.append(replace(file, size=len(content)))
    monkeypatch.setattr(cifar, "CIFAR10", replace(cifar.CIFAR10, files=tuple(files)))
    return tmp_path


def make_study(depths, **errors):
    """A study of two seeds from a list of pairs for each rule."""
    table = np.zeros((len(errors), len(depths), 2, 2))
    table[..., 0] = list(errors.values())
    axes = {"rule": tuple(errors), "depth": depths, "seed": (0, 1)}
    return Study(Grid(axes, table[..., 0]), Grid(axes, table[..., 1]))


def test_rules_are_what_their_names_say():
    expected = {
        "backprop": ("euler", Backprop()),
        "reverse": ("euler", Reconstruct("reverse")),
        "sweeps": ("euler", Reconstruct("reverse", sweeps=2)),
        "corrected": ("euler", Reconstruct("corrected")),
        "predicted": ("euler", Reconstruct("predicted", order=1)),
        "predicted_2": ("euler", Reconstruct("predicted", order=2)),
        "heun_backprop": ("heun", Backprop()),
        "heun_reverse": ("heun", Reconstruct("reverse")),
        "heun_corrected": ("heun", Reconstruct("corrected")),
        "reversible": ("async_leapfrog", Reversible()),
    }
    assert {name: (rule.method, rule.gradient) for name, rule in RULES.items()} == expected
    for name, rule in RULES.items():
        assert rule.reference == ("heun_backprop" if name.startswith("heun") else "backprop")
        net = digits_net(name, 3, seed=0, gain=2.0)
        assert (net.block.method, net.block.gradient) == expected[name]
        assert net.block.steps == 3


def test_rules_of_one_scheme_start_from_the_same_network():
    one, same = (digits_net(rule, 3, seed=4, gain=2.0) for rule in ("backprop", "predicted"))
    other = digits_net("backprop", 3, seed=5, gain=2.0)
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a.any() or not torch.equal(a, c)


def test_one_step_of_training_is_written_out():
    """64 samples are one batch: clipped at 1, rate times the depth for the layers."""
    data = replace(DIGITS, x_train=DIGITS.x_train[:64], y_train=DIGITS.y_train[:64])
    net, twin = (digits_net("backprop", 5, seed=1, gain=2.0) for _ in range(2))
    cross_entropy(twin(data.x_train), data.y_train).backward()
    norm = torch.stack([p.grad.norm() for p in twin.parameters()]).norm()
    assert norm > 1.2
    digits_error(QUIET, data, net, seed=0, epochs=1, rate=0.01)
    before = dict(twin.named_parameters())
    for name, p in net.named_parameters():
        rate = 0.05 if name.startswith("block") else 0.01
        torch.testing.assert_close(p, before[name] - rate * before[name].grad / norm)


def test_training_learns_and_counts_what_diverges():
    learned = digits_error(
        QUIET, DIGITS, digits_net("corrected", 16, 0, 1.0), 0, epochs=4, rate=0.02
    )
    assert learned[0] < 0.1
    assert learned[1] == 0
    net = digits_net("backprop", 2, 0, 2.0)
    with torch.no_grad():
        net.stem.weight *= 1e38
    assert digits_error(QUIET, DIGITS, net, 0, epochs=1, rate=0.02) == [0.9, 1.0]


def test_a_study_keeps_rules_depths_and_seeds_apart():
    def train(part, rule, depth, seed):
        return [100 * list(RULES).index(rule) + depth + seed / 10, float(seed == 7)]

    whole = Run(6, torch.device("cpu"), None, 30.0, lambda fraction, name: None, None)
    rules = ("backprop", "reverse")
    study = train_all(whole, train, rules=rules, depths=(2, 8), seeds=2, needed=())
    np.testing.assert_allclose(
        study.errors.at(rule="reverse").values, [[102.6, 102.7], [108.6, 108.7]]
    )
    np.testing.assert_allclose(study.diverged.at(rule="backprop").values, [[0, 1], [0, 1]])
    assert study.mean("backprop", 8) == pytest.approx(8.65)
    assert study.scalars()["error_reverse_2"] == pytest.approx(102.65)
    assert set(study.curves()) == {
        "depths", "error_backprop", "error_reverse", "diverged_backprop", "diverged_reverse",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (("backprop", "adjoint"), "rules must be some of backprop, reverse, .*; got adjoint"),
        (("backprop",), "rules must include reverse; got backprop"),
        (("reverse",), "rules must include backprop; got reverse"),
        (("backprop", "reverse", "heun_corrected"), "rules must include heun_backprop; got"),
    ],
)
def test_rules_are_known_and_comparable(rules, message):
    with pytest.raises(ValueError, match=message):
        train_all(None, None, rules=rules, depths=(2,), seeds=1, needed=("reverse",))


def test_excess_is_over_backprop_of_the_same_scheme():
    study = make_study(
        (2, 8),
        backprop=[(0.02, 0.04), (0.02, 0.02)],
        reverse=[(0.5, 0.7), (0.03, 0.05)],
        heun_backprop=[(0.04, 0.06), (0.1, 0.1)],
        heun_reverse=[(0.2, 0.2), (0.11, 0.11)],
        reversible=[(0.04, 0.05), (0.05, 0.05)],
    )
    assert study.excess("reverse", 2) == pytest.approx(0.57)
    assert study.excess("heun_reverse", 2) == pytest.approx(0.15)
    assert study.excess("reversible", 8) == pytest.approx(0.03)
    assert [study.nearest(depth) for depth in (1, 5, 6, 32)] == [2, 2, 8, 8]
    assert fw8_t.enough(study, "reverse", np.mean) == 8
    assert fw8_t.enough(study, "backprop", np.mean) == 2
    assert fw8_t.enough(study, "reversible", np.mean) == 2
    assert fw8_t.enough(study, "reversible", np.max) == 2
    assert fw8_t.enough(study, "reverse", np.max) == math.inf


def test_claims_of_f4_look_at_the_right_depths_and_rules():
    study = make_study(
        (2, 8, 32, 64),
        backprop=[(0.03, 0.03)] * 4,
        reverse=[(0.5, 0.5), (0.2, 0.0), (0.03, 0.05), (0.9, 0.9)],
        heun_backprop=[(0.05, 0.05)] * 4,
        heun_reverse=[(0.2, 0.2), (0.04, 0.06), (0.02, 0.02), (0.9, 0.9)],
    )
    deep, order, heun = s22_f4._claims(study, digits=True)
    assert [c.id for c in (deep, order, heun)] == ["CL60", "CL61", "CL61"]
    assert deep.observed == pytest.approx(0.03)
    assert order.observed == pytest.approx(-0.05)
    assert heun.observed == pytest.approx(0.05)
    assert [c.holds for c in (deep, order, heun)] == [False, True, True]
    assert len(s22_f4._claims(study, digits=False)) == 2


def test_claims_of_fw8_t_split_the_depths_by_contraction():
    study = make_study(
        (4, 8, 16, 32),
        backprop=[(0.02, 0.02)] * 4,
        reverse=[(0.3, 0.3), (0.5, 0.5), (0.02, 0.02), (0.03, 0.03)],
        sweeps=[(0.42, 0.42), (0.03, 0.05), (0.01, 0.01), (0.035, 0.035)],
        reversible=[(0.02, 0.02), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)],
    )
    contraction = np.array([3.0, 1.5, 0.9, 0.4])
    sweeps = fw8_t._further_sweeps(study, contraction)
    flat, steep = fw8_t._excess(study, contraction)
    assert sweeps.id == "FW7"
    assert "1.50 on average" in sweeps.note
    assert sweeps.observed == pytest.approx(0.02)
    assert (flat, steep) == pytest.approx((0.015, 0.28))
    flat, steep = fw8_t._excess(study, np.array([1.5, 1.4, 1.3, 1.2]))
    assert (flat, steep) == pytest.approx((0.015, 0.28))


def test_steepest_layer_by_automatic_differentiation():
    net = digits_net("backprop", 3, seed=2, gain=2.0).double()
    x = DIGITS.x_test[:5].double()
    norms = []
    for start in net.stem(x).detach():
        state = start
        for n in range(3):
            w, b, v, c = (p[n].detach() for p in net.block.weights.parameters())

            def layer(y, w=w, b=b, v=v, c=c):
                return v @ torch.relu(w @ y + b) + c

            norms.append(torch.linalg.matrix_norm(torch.func.jacrev(layer)(state), 2).item())
            state = state + layer(state) / 3
    assert fw8_t.steepest(net, x) == pytest.approx(max(norms) / 3, rel=1e-12)


def test_f4_shallow_networks_fail_and_deep_ones_do_not():
    result = run("S22-F4", depths=(2, 24), seeds=1, epochs=5)
    assert result["error_reverse"].shape == (2, 1)
    assert result["error_reverse_2"] == result["error_reverse"][0, 0]
    assert result.claim("CL59").holds
    assert result["failing"] == result.claim("CL59").observed
    for rule in ("backprop", "reverse", "heun_backprop", "heun_reverse"):
        assert result[f"error_{rule}_24"] < 0.1
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


def test_fw8_t_compares_all_rules():
    result = run("FW8-T", depths=(2, 16), seeds=1, epochs=2, rules=tuple(RULES))
    assert {name for name in result.findings.curves if name.startswith("error_")} == {
        f"error_{rule}" for rule in RULES
    }
    assert result["enough_backprop"] == 2
    assert result["enough_reverse"] == 16
    assert result["median_reverse_16"] == result["error_reverse"][1, 0]
    assert result["contraction"].shape == (2, 1)
    assert result["contraction_2"] > 2 > 1 > result["contraction_16"]
    assert [claim.holds for claim in result.claims if claim.text.endswith(">= 2")] == [True]


def test_transfer_keeps_the_function_and_tuning_improves_it(monkeypatch):
    nets = []
    train = s22_t2._train

    def caught(part, task, net, options, seed):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        train(part, task, net, options, seed)
        nets.append((before, net))

    monkeypatch.setattr(s22_t2, "_train", caught)
    result = run("S22-T2", depths=(4, 16), seeds=1, epochs=4, tuning_epochs=2)
    (_, tied), *tuned = nets
    assert len(tied.block.weights.state_dict()["0.weight"]) == 1
    for rule, (before, net) in zip(("backprop", "reverse", "corrected"), tuned, strict=False):
        after = dict(net.named_parameters())
        for name, value in tied.named_parameters():  # every layer starts from the tied weights
            assert torch.equal(before[name], value.expand_as(before[name]))
            assert torch.equal(before[name], after[name]) == (not name.startswith("block"))
        assert net.block.steps == 16
        assert net.block.gradient == RULES[rule].gradient
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
    for rule in MEMORY_FREE:
        assert small[f"bytes_{rule}"] == large[f"bytes_{rule}"] < small["bytes_backprop"] / 2
    assert (
        large["bytes_backprop"] - small["bytes_backprop"] > 8 * 64 * 16 * 4
    )  # a hidden state each


def test_claims_of_t2_by_value():
    before, tuned = np.array([[0.03, 0.2], [0.12, 4.0]]), np.array([[0.05, 0.1], [0.09, 1.0]])
    assert s22_t2._helps(before, tuned, "digits").observed == pytest.approx(0.5)
    assert s22_t2._helps(before, tuned, "cifar10").observed == pytest.approx(-0.005)


def test_tuning_that_diverges_is_counted(monkeypatch):
    result = run(
        "S22-T2", depths=(2, 4), seeds=1, epochs=1, tuning_epochs=1, tuning_rate=1e30,
        rules=("reverse",),
    )  # fmt: skip
    assert result["mean_error_reverse"] == 0.9
    assert result["mean_loss_reverse"] == math.inf
    assert not result.claim("CL62").holds


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
    excess = [result[f"error_reverse_{n}"] - result[f"error_backprop_{n}"] for n in (2, 3)]
    assert result.claim("CL59").observed == pytest.approx(min(excess))


@pytest.fixture
def image_folder(tmp_path):
    """Three classes with images as ImageNet has them."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 2), ("val", 1)):
        for name in ("n01", "n02", "n03"):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = draw.integers(0, 256, (48, 64, 3), "u1")
                Image.fromarray(pixels).save(folder / f"{k}.JPEG")
    return tmp_path


def test_f3b_on_image_folders(image_folder, monkeypatch):
    """The full tier with narrow networks: only the third stage has the rule's gradient."""
    nets, train = [], s22_f3b.trained_error

    def caught(part, net, *arguments, **options):
        nets.append(net)
        assert options["batch_size"] == 256
        assert options["chance"] == pytest.approx(2 / 3)
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
        assert net.head.out_features == 3


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
