"""``--keep``: what experiments train stays, and does what the result says."""

import pytest
import torch

from companion.__main__ import main
from companion.data import load_digits
from companion.data.pendulum import pairs
from companion.experiments import Part, find
from companion.experiments.continuous_digits import net_error
from companion.experiments.pendulum.rollouts import DATA_TIME
from companion.experiments.pendulum.training import rms_error
from companion.models import OneStepNet, ResidualMLP, load, save
from companion.train import error_rate


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def kept(tmp_path):
    """A function that runs an experiment's tiny tier and returns the result and its models."""

    def run(id, **parameters):
        return find(id)(tier="tiny", seed=3, models=tmp_path / "models", **parameters), (
            tmp_path / "models"
        )

    return run


def test_the_command_line_keeps_models_and_says_where(tmp_path, capsys):
    command = ["run", "S22-F3a", "--tier", "tiny", "--out", str(tmp_path)]
    assert main([*command, "--set", "depths=[2]", "--keep"]) == 0
    folder = tmp_path / "S22-F3a.tiny.models"
    assert str(folder) in capsys.readouterr().out
    variants = ("tied_plain", "tied_scaled", "untied_plain", "untied_scaled")
    assert names(folder) == [f"variant_{v}_depth_2_seed_0.pt" for v in variants]
    assert main(["run", "Q20-ST", "--out", str(tmp_path), "--keep"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Q20-ST keeps no trained models"
    assert not (tmp_path / "Q20-ST.smoke.models").exists()


def test_a_kept_classifier_has_the_error_of_the_result(kept):
    result, folder = kept("S22-F3a", depths=(2,))
    made = ResidualMLP(64, 10, width=8, hidden=16, layers=2, tied=False, scaled=True)
    net = load(folder / "variant_untied_scaled_depth_2_seed_3.pt", made)
    data = load_digits()
    error = error_rate(net, (data.x_test, data.y_test))
    assert error == result["error_untied_scaled"][0, 0] < 0.8


def test_nets_trained_side_by_side_are_kept_one_by_one(kept):
    result, folder = kept("Q20-F8", seeds=2)
    data = load_digits(dtype=torch.float64)
    errors = [net_error(load(folder / f"rk4_eps8.seed_{k}.pt"), data) for k in (3, 4)]
    assert errors == result["error_rk4_eps8"].tolist()


def test_nets_of_the_pendulum_are_kept(kept):
    result, folder = kept("Q20-F3", steps=(0.8,), seeds=2)
    for row, seed in enumerate((3, 4)):
        made = OneStepNet("rk4", step=0.8, generator=torch.Generator())
        net = load(folder / f"rk4_step_0_8.seed_{seed}.pt", made)
        found = rms_error(net, pairs(0.8, DATA_TIME))
        assert found == pytest.approx(result["one_step_rk4"][0, row], rel=1e-9)


def test_every_training_of_a_part_is_kept(kept):
    trained = ("tied", "backprop", "corrected", "reverse", "same_epochs", "same_work")
    assert names(kept("S22-T2")[1]) == sorted(f"seed_0.{name}.pt" for name in trained)


def test_a_network_that_diverged_is_not_kept(kept):
    result, folder = kept("S22-F3a", depths=(400,))
    assert result["diverged_tied_plain"].tolist() == [[1.0]]
    assert "variant_tied_scaled_depth_400_seed_3.pt" in names(folder)
    assert "variant_tied_plain_depth_400_seed_3.pt" not in names(folder)


def test_keep_writes_one_file_a_name_or_none(tmp_path):
    net = torch.nn.Linear(1, 1)
    Part(None, print).keep(net, "a name")
    part = Part(None, print, model=tmp_path / "part.pt")
    part.keep(net)
    part.keep(net, "seed 3")
    part.named("rk4 1/2").keep(net, "seed 3")
    assert names(tmp_path) == ["part.pt", "part.rk4_1_2.seed_3.pt", "part.seed_3.pt"]
    save(net, tmp_path / "own.pt")
    with pytest.raises(TypeError, match="does not say how its Linear was made"):
        load(tmp_path / "own.pt")
