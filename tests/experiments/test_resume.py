"""A run killed with SIGKILL and resumed ends with the bits of one that was never interrupted."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from companion.experiments import Part
from companion.experiments.running import Run, open_folder
from companion.files import load_checkpoint

TINY = ["--set", "depths=[2]", "--set", "seeds=1", "--set", "epochs=1", "--seed", "5"]
NAME = "S22-F3a.smoke"


def start(out, *options):
    command = [sys.executable, "-m", "companion", "run", "S22-F3a", "--out", str(out), *TINY]
    return subprocess.Popen([*command, *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def finish(process):
    _, err = process.communicate()
    assert process.returncode == 0, err.decode()


def numbers(path):
    content = json.loads(path.read_text())
    for name in ("seconds", "processor_seconds", "finished"):
        del content["provenance"][name]
    return content


def kill_in_the_middle(out, parts):
    """Resume, and kill once ``parts`` parts are finished and another is being trained."""
    folder = out / f"{NAME}.parts"
    process = start(out, "--resume", "--every", "0")
    while process.poll() is None:
        finished = [p for p in folder.glob("*.json") if p.name != "run.json"]
        if len(finished) >= parts and list(folder.glob("*.pt")):
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err.decode()
    return [load_checkpoint(path) for path in folder.glob("*.pt")]


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(tmp_path):
    finish(start(tmp_path / "unbroken"))
    broken, caught = tmp_path / "broken", []
    for parts in (1, 2):
        caught += kill_in_the_middle(broken, parts)
        assert not (broken / f"{NAME}.json").exists()
    # The kill fell into the training of a part: an epoch or some batches were done, not all.
    assert any(0 < state["epoch"] + state["position"] < 1297 for state in caught)
    finish(start(broken, "--resume"))
    assert numbers(broken / f"{NAME}.json") == numbers(tmp_path / "unbroken" / f"{NAME}.json")
    assert [path.name for path in broken.iterdir()] == [f"{NAME}.json"]


def squares(folder, resume, identity, fail_at=None):
    """Map over four parts; return the values and which were computed."""
    computed = []

    def compute(part: Part, x: int) -> dict[str, float]:
        if x == fail_at:
            raise KeyboardInterrupt
        computed.append(x)
        return {"square": x**2 / 3, "nan": float("nan")}

    open_folder(folder, identity, resume)
    run = Run(0, "cpu", folder, 30.0, lambda fraction, name: None, None)
    return run.map(compute, {f"x = {x}": (x,) for x in range(4)}), computed


def test_finished_parts_are_not_computed_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        squares(tmp_path / "parts", False, {"seed": 0}, fail_at=2)
    values, computed = squares(tmp_path / "parts", True, {"seed": 0})
    assert computed == [2, 3]
    assert [value["square"] for value in values.values()] == [0, 1 / 3, 4 / 3, 3]
    assert values["x = 0"]["nan"] != values["x = 0"]["nan"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_part_has_the_same_value_computed_and_read(tmp_path):
    """Whatever JSON makes of it: tuples become lists, keys become strings."""

    def compute(part, x):
        return {x: (x, np.float64(x) / 3, float("inf"))}

    for folder in (None, tmp_path / "parts", tmp_path / "parts"):
        run = Run(0, "cpu", folder, 30.0, lambda fraction, name: None, None)
        assert run.map(compute, {"a": (1,)}) == {"a": {"1": [1, 1 / 3, float("inf")]}}


@pytest.mark.parametrize("keep", [True, False])
def test_a_part_must_return_plain_values(tmp_path, keep):
    run = Run(0, "cpu", tmp_path if keep else None, 30.0, lambda fraction, name: None, None)
    with pytest.raises(TypeError, match=r"part 'a' must return numbers.*Tensor"):
        run.map(lambda part: torch.zeros(1), {"a": ()})
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_the_parts_that_were_stored(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        squares(tmp_path / "parts", False, {"seed": 0}, fail_at=2)
    seen = []
    run = Run(
        0,
        "cpu",
        tmp_path / "parts",
        30.0,
        lambda fraction, name: seen.append((fraction, name)),
        None,
    )

    def compute(part, x):
        part.report(0.5)
        return x

    run.map(compute, {f"x = {x}": (x,) for x in range(4)})
    assert seen == [
        (0.5, "x = 2"),
        (0.625, "x = 2"),
        (0.75, "x = 3"),
        (0.875, "x = 3"),
        (1.0, "done"),
    ]


def test_without_resume_the_parts_are_refused_and_kept(tmp_path):
    folder = tmp_path / "parts"
    squares(folder, False, {"seed": 0})
    before = contents(folder)
    with pytest.raises(ValueError, match=r"an interrupted run is in .*parts: add --resume"):
        squares(folder, False, {"seed": 0})
    assert contents(folder) == before


def test_a_run_that_finished_no_part_does_not_stand_in_the_way(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        squares(tmp_path / "parts", False, {"seed": 0}, fail_at=0)
    _, computed = squares(tmp_path / "parts", False, {"seed": 1})
    assert computed == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"differs in seed \(1 there, 0 here\)"):
        squares(tmp_path / "parts", True, {"seed": 0})


@pytest.mark.parametrize("resume", [True, False])
def test_files_of_others_are_never_deleted(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds files that are none; remove it"):
        squares(tmp_path, resume, {"seed": 0})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_parts_of_another_run_are_refused(tmp_path):
    squares(tmp_path / "parts", False, {"seed": 0, "source": "a"})
    with pytest.raises(
        ValueError, match=r"another run, which differs in seed \(0 there, 1 here\);"
    ):
        squares(tmp_path / "parts", True, {"seed": 1, "source": "a"})
    with pytest.raises(ValueError, match=r"differs in source \(a there, b here\);"):
        squares(tmp_path / "parts", True, {"seed": 0, "source": "b"})


def test_a_damaged_part_is_named(tmp_path):
    squares(tmp_path / "parts", False, {"seed": 0})
    part = next(p for p in (tmp_path / "parts").glob("*.json") if p.name != "run.json")
    part.write_text(part.read_text()[:-5])
    with pytest.raises(ValueError, match=rf"{part.name} cannot be read"):
        squares(tmp_path / "parts", True, {"seed": 0})
