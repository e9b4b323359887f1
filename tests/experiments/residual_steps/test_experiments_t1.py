import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from image_files import write_cifar, write_images
from torch.nn.functional import cross_entropy

from companion.__main__ import main
from companion.data import crop_and_flip, load_cifar10, load_digits, load_image_folder
from companion.experiments.residual_steps import s22_t1_standard_resnets as module
from companion.models import ResNet
from companion.results import Result
from companion.solve import NonFiniteError
from companion.train import seeded

run, RECIPES = module.s22_t1, module.RECIPES
TINY = {"layers": (2, 3), "width": 2, "kind": "basic", "seeds": 1, "epochs": 1}


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    return write_cifar(tmp_path, monkeypatch, number=40)


@pytest.fixture
def imagenet(tmp_path):
    return write_images(tmp_path)


def trained_by_hand(dataset, folder, seed, epochs, batch_size):
    """Train the network of the rule "scaled" in a plain loop; return its error and its losses."""
    data = load_digits(as_images=True) if dataset == "digits" else load_cifar10(folder)
    with seeded(seed):
        net = ResNet((2, 3), inputs=data.x_train.shape[1], width=2, rule="scaled")
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(seed)
    rows, done, losses = len(data.x_train), 0, []
    steps = epochs * math.ceil(rows / batch_size)
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(rows, generator=generator).split(batch_size):
            x = data.x_train[batch]
            if dataset == "cifar10":
                x = crop_and_flip(x, generator, fill=data.black)
            optimiser.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * done / steps)) / 2
            loss = cross_entropy(net(x), data.y_train[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total, done = total + loss.item() * len(batch), done + 1
        losses.append(total / rows)
    net.eval()
    with torch.no_grad():
        wrong = net(data.x_test).argmax(1) != data.y_test
    return wrong.double().mean().item(), losses, data


@pytest.mark.parametrize(
    ("dataset", "batch_size", "epochs"), [("digits", 64, 1), ("cifar10", 128, 2)]
)
def test_a_network_is_trained_by_the_recipe(dataset, batch_size, epochs, cifar10):
    """Initial values, order, augmentation, rate, decay and the error, against a plain loop."""
    options = {**TINY, "seeds": 2, "epochs": epochs, "rules": ("classic", "scaled")}
    found = run(dataset=dataset, data=cifar10, seed=3, **options)
    for k in range(2):
        error, losses, data = trained_by_hand(dataset, cifar10, 3 + k, epochs, batch_size)
        assert found["error_scaled"][k] == error
        np.testing.assert_allclose(found["loss_scaled"][k], losses, rtol=1e-5)
    assert found["mean_error_scaled"] == found["error_scaled"].mean()
    assert found["loss_classic"].shape == (2, epochs)
    assert (found["loss_classic"] != found["loss_scaled"]).all()
    assert found["diverged_scaled"].tolist() == [0.0, 0.0]
    assert found.findings.data == data.provenance


def test_a_resnet_with_the_factor_reads_digits_as_well_as_one_without():
    found = run(rules=("original", "scaled"), seeds=1)
    assert found.claim("CL57").holds
    assert found["mean_error_original"] < 0.08


def test_stages_train_with_any_gradient():
    """Stored or recomputed states: the same numbers. Reconstructed ones: nearly."""
    rules = ("classic", "scaled")
    losses = {
        gradient: run(rules=rules, gradient=gradient, **TINY)["loss_scaled"][0]
        for gradient in ("backprop", "checkpoint", "reconstruct")
    }
    np.testing.assert_allclose(losses["checkpoint"], losses["backprop"], rtol=1e-5)
    np.testing.assert_allclose(losses["reconstruct"], losses["backprop"], rtol=0.05)
    assert losses["reconstruct"] != losses["backprop"]


def test_autocast_changes_only_digits_of_the_numbers():
    rules = ("classic", "scaled")
    plain, rounded = (
        run(rules=rules, autocast=autocast, **TINY)["loss_scaled"][0] for autocast in (False, True)
    )
    assert plain != rounded
    np.testing.assert_allclose(rounded, plain, rtol=0.02)


def image_run(imagenet, out):
    """Arguments of the command line for a tiny network on an image folder."""
    settings = {**TINY, "dataset": '"imagenet"', "kind": '"basic"', "layers": "[2, 3]"}
    changes = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    places = ["--data", str(imagenet), "--out", str(out)]
    return ["run", "S22-T1", "--tier", "full", *places, *changes]


def test_image_folders_train_through_the_command_line(imagenet, tmp_path):
    """Images of 224 pixels in as many classes as the folder has, with ImageNet's stem."""
    assert main(image_run(imagenet, tmp_path / "out")) == 0
    found = Result.load(tmp_path / "out" / "S22-T1.full.json")
    train, val = load_image_folder(imagenet)
    assert found.findings.data == f"{train.sha256} {val.sha256}"
    for rule in ("original", "scaled"):
        assert found[f"error_{rule}"][0] in (0.0, 0.25, 0.5, 0.75, 1.0)
        assert found[f"loss_{rule}"][0, 0] == pytest.approx(math.log(2), abs=0.7)


@pytest.mark.slow
def test_processes_share_the_batches_of_an_image_folder(imagenet, tmp_path):
    """Each norm sees its own half of a batch, so the loss is near that of one process, no more."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [*launch, "-m", "companion", *image_run(imagenet, tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert main(image_run(imagenet, tmp_path / "one")) == 0
    two, one = (
        Result.load(tmp_path / name / "S22-T1.full.json")["loss_scaled"][0, 0]
        for name in ("two", "one")
    )
    assert two != one
    assert two == pytest.approx(one, rel=0.3)


def test_recipes_are_the_paper_s(monkeypatch, cifar10, imagenet):
    """Batches of 128 and of 256 images, weight decay, stem and schedule."""
    seen = []

    def train(part, net, data, seed, *, batch_size, schedule, optimiser, **options):
        decay = optimiser(net.parameters()).defaults["weight_decay"]
        factors = [round(schedule(p), 6) for p in (0.0, 0.29, 0.3, 0.6, 0.9)]
        seen.append((batch_size, decay, factors))

    monkeypatch.setattr(module.recipes, "train", train)
    for dataset in ("cifar10", "imagenet"):
        run(dataset=dataset, data=imagenet, rules=("classic", "scaled"), **TINY)
    cosine = [round((1 + math.cos(math.pi * p)) / 2, 6) for p in (0.0, 0.29, 0.3, 0.6, 0.9)]
    steps = [1.0, 1.0, 0.1, 0.01, 0.001]
    assert seen == [(128, 5e-4, cosine)] * 2 + [(256, 1e-4, steps)] * 2
    assert (RECIPES["cifar10"].stem, RECIPES["imagenet"].stem) == ("cifar", "imagenet")


def test_a_network_that_leaves_the_finite_numbers_counts_as_guessing(monkeypatch):
    def diverge(*arguments, **options):
        raise NonFiniteError("too large")

    monkeypatch.setattr(module.recipes, "fit", diverge)
    found = run(rules=("classic", "scaled"), **TINY)
    assert found["error_scaled"].tolist() == [0.9]
    assert found["diverged_scaled"].tolist() == [1.0]
    assert np.isnan(found["loss_scaled"]).all()


def test_claims_compare_with_the_best_rule_without_the_factor(monkeypatch):
    told = iter((0.05, 0.03, 0.06))
    monkeypatch.setattr(module.recipes, "train", lambda *args, **kwargs: {"loss": [1.0]})
    monkeypatch.setattr(module, "error_rate", lambda *args, **kwargs: next(told))
    level, excess = run(**TINY).claims
    assert (level.observed, level.high) == (0.06, 0.08)
    assert (excess.observed, excess.high) == (pytest.approx(0.03), 0.02)
    assert level.holds
    assert not excess.holds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "mnist"}, "dataset must be one of digits, cifar10, imagenet; got 'mnist'"),
        ({"rules": ("classic",)}, "rules must hold 'scaled' and another"),
        ({"rules": ("scaled",)}, "rules must hold 'scaled' and another"),
        ({"rules": ("plain", "scaled")}, r"rule: 'plain' .* one of scaled, classic, original"),
        ({"gradient": "reconstruct"}, "rule: 'original' with gradient='reconstruct'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(**{**TINY, **arguments})
