"""Two processes that ``torchrun`` starts, connected by gloo, against one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchrun_worker as worker
from arrivals import COMPARED, compared, data, in_turn, loss

from companion.__main__ import main

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
pytestmark = pytest.mark.slow
TINY = ["--set", "depths=[2]", "--set", "seeds=1", "--set", "epochs=1"]


def torchrun(*arguments):
    done = subprocess.run([*LAUNCH, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found; two of the seven parts were stored by one before."""
    folder = tmp_path_factory.mktemp("ranks")
    worker.THIRDS(folder=folder / "parts")
    finished = [p for p in (folder / "parts").glob("*.json") if p.name != "run.json"]
    for path in finished:
        if json.loads(path.read_text())["part"] not in ("1", "4"):
            path.unlink()
    torchrun(Path(worker.__file__), folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_the_processes_divide_the_parts_that_are_left(ranks):
    assert [found["size"] for found in ranks] == [2, 2]
    assert ranks[0]["computed"] == [0, 3, 6]
    assert ranks[1]["computed"] == [2, 5]
    for found in ranks:
        assert found["scalars"] == {str(x): x / 3 for x in range(7)}


def close(left, right):
    """Equal up to rounding, in every number of nested lists and dicts."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[k], right[k]) for k in left)
    return np.allclose(left, right, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "case", ["tensors", "on demand", "checkpoint", "reconstruct", "single rows", "refinement"]
)
def test_training_together_is_training_alone(ranks, case):
    """Also where the shares differ in size or one process has no row of a batch."""
    alone = worker.train(case, parallel=False)
    assert alone["loss"][1] != pytest.approx(alone["loss"][0], rel=1e-3)
    for found in ranks:
        assert close(found["cases"][case], alone)
    assert ranks[0]["cases"][case] == ranks[1]["cases"][case]


def test_running_statistics_are_those_of_the_first_process(ranks):
    """Batch norm sees its process's rows only, so that the result is not that of one process."""
    first, second = (found["cases"]["batch norm"] for found in ranks)
    assert first == second
    alone = worker.train("batch norm", parallel=False)
    assert not close(first["state"], alone["state"])
    assert all(np.isfinite(value).all() for value in first["state"].values())


def test_only_the_first_process_writes_snapshots_and_all_resume_from_them(ranks):
    assert [found["wrote a snapshot"] for found in ranks] == [True, False]
    assert ranks[0]["resumed"] == ranks[1]["resumed"]
    unbroken = ranks[0]["cases"]["tensors"]
    assert ranks[0]["resumed"]["loss"][0] == unbroken["loss"][0]


def test_a_run_killed_after_a_refinement_ends_with_the_bits_of_an_unbroken_one(ranks):
    """The network whose gradients are averaged is wrapped anew, here and when resumed."""
    for found in ranks:
        assert found["killed after"] == 1
        assert found["refined and resumed"] == found["cases"]["refinement"]
    shapes = {len(value) for name, value in worker.model().state_dict().items() if name[0] == "0"}
    refined = ranks[0]["cases"]["refinement"]["state"]
    assert shapes == {2}
    assert {len(value) for name, value in refined.items() if name[0] == "0"} == {4}


@pytest.mark.parametrize("name", COMPARED)
def test_a_row_is_averaged_before_the_layer_below_is_passed(ranks, name):
    """The order in which DDP's hooks are called; a stack waits for all of its rows."""
    alone = compared(name)
    loss(alone, data()).backward()
    for found in ranks:
        grads, events = found["arrivals"][name]
        for grad, p in zip(grads, alone.parameters(), strict=True):
            torch.testing.assert_close(
                torch.tensor(grad, dtype=p.dtype), p.grad, rtol=1e-12, atol=1e-14
            )
        if name == "stacks":
            assert events.index("stack") > events.index("layer 1")
        elif name != "sparse":
            assert in_turn(events)


def test_the_command_line_gives_the_same_result_and_leaves_no_parts(tmp_path):
    command = ["run", "S22-F3a", *TINY, "--out"]
    out = torchrun("-m", "companion", *command, tmp_path / "two", "--resume")
    assert out.count("CL57") == 2  # the first process alone reports the two claims
    assert main([*command, str(tmp_path / "one")]) == 0
    numbers = []
    for name in ("one", "two"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["S22-F3a.smoke.json"]
        content = json.loads((tmp_path / name / "S22-F3a.smoke.json").read_text())
        for field in ("seconds", "processor_seconds", "finished"):
            del content["provenance"][field]
        numbers.append(content)
    assert numbers[0] == numbers[1]
