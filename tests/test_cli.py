import json
import subprocess
import sys

import pytest
import torch

from companion.__main__ import main
from companion.experiments import experiments
from companion.results import Result

TINY = ["--set", "depths=[2]", "--set", "seeds=1", "--set", "epochs=1"]


def test_list_names_every_experiment_and_its_parameters(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for entry in experiments().values():
        assert entry.id in out
        assert entry.title in out
        for values in entry.tiers.values():
            assert all(f"{name}={value}" in out for name, value in values.items())


def test_run_writes_the_result_and_reports_the_claims(tmp_path, capsys):
    assert main(["run", "S22-F3a", "--out", str(tmp_path), "--seed", "2", *TINY]) == 0
    path = tmp_path / "S22-F3a.smoke.json"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    result = Result.load(path)
    assert result.experiment == "S22-F3a"
    assert result.provenance.seed == 2
    assert result.provenance.parameters["depths"] == (2,)
    captured = capsys.readouterr()
    # Two layers train without 1/N, so the claim that deep ones do not must miss here.
    assert "CL58 MISSES" in captured.out
    assert str(path) in captured.out
    assert "100%" in captured.err


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    for name in ("a", "b"):
        main(["run", "S22-F3a", "--out", str(tmp_path / name), *TINY])
    first, second = (Result.load(tmp_path / n / "S22-F3a.smoke.json").findings for n in "ab")
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["S22-F9"], "'S22-F3a'"),
        (["S22-F3a", "--tier", "huge"], "['smoke', 'full']"),
        (["S22-F3a", "--set", "depth=[2]"], "'depths'"),
        (["S22-F3a", "--set", "depths=two"], "--set must be NAME=JSON"),
        (["S22-F3a", "--set", "depths"], "the = is missing"),
        (["S22-F3a", "--set", 'depths="two"'], "'depths' must be a tuple"),
        (["S22-F3a", "--device", "gpu"], "device must be one of ['cpu'"),
        (["S22-F3a", "--every", "120"], "every must lie between 0 and 60"),
    ],
)
def test_unknown_names_exit_with_the_known_ones(tmp_path, capsys, arguments, message):
    assert main(["run", "--out", str(tmp_path), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_no_command_shows_the_usage(capsys):
    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 2
    assert "{list,run}" in capsys.readouterr().err


def test_the_exit_status_reaches_the_shell():
    command = [sys.executable, "-m", "companion", "run", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "S22-F3a" in done.stderr


def test_global_settings_come_back(tmp_path):
    before = torch.are_deterministic_algorithms_enabled()
    main(["run", "S22-F3a", "--out", str(tmp_path), *TINY])
    assert torch.are_deterministic_algorithms_enabled() == before


def test_a_finished_result_of_another_seed_is_not_taken_for_this_one(tmp_path, capsys):
    for seed in ("0", "0", "1"):
        main(["run", "S22-F3a", "--out", str(tmp_path), "--seed", seed, "--resume", *TINY])
    assert capsys.readouterr().out.count("is complete") == 1
    content = json.loads((tmp_path / "S22-F3a.smoke.json").read_text())
    assert content["provenance"]["seed"] == 1
