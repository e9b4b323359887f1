"""`make gpu`, rehearsed on a CPU with nothing but what the GPU machine has."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import torch

from benchmarks import gpu as tables
from companion import PiecewiseConstant
from companion.models import ContinuousNet
from companion.plain_layers import apply_to_layers

ROOT = Path(__file__).parents[2]
BARE = """
import sys

ABSENT = (
    "PIL axe_playwright_python bs4 hypothesis jupytext matplotlib nbclient nbformat nbval "
    "papermill playwright pooch sphinx tqdm xdist yaml"
).split()


class Without:
    # A finder that does not find them, as if they were not there.

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            return None
        return self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


@pytest.mark.slow
def test_rehearsal_on_a_cpu(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BARE)
    out = tmp_path / "out"
    ours = ("MAKE", "PYTEST_", "PYTHONPATH", "COMPANION_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment |= {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    settings = ["DEVICE=cpu", "SHORT=1", "LIMIT=1200", f"OUT={out}", f"PYTHON={sys.executable}"]
    done = subprocess.run(
        ["make", "gpu", *settings], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert [stage["stage"] for stage in summary["stages"]] == list(gpu.SHARES)
    assert summary["stages"][-1]["passed"] > 5
    for stage in tables.STAGES:
        rows = json.loads((out / f"{stage}.json").read_text())["rows"]
        assert rows, stage
        assert not [row for row in rows if "error" in row]
    assert len(list(out.iterdir())) <= 8  # as many as a lent machine hands back


def test_a_plain_net_has_the_layers_of_the_continuous_one():
    net = ContinuousNet(channels=(2, 3), basis=PiecewiseConstant(4), steps=4)
    plain = tables.PlainNet(net, 4)
    # All draws differ, and a skip that starts at zero would let no layer count.
    draws = torch.Generator().manual_seed(0)
    for p in net.blocks.parameters():
        p.data = torch.randn(p.shape, generator=draws)
    for stage, block in zip(plain.stages, net.blocks, strict=True):
        units = iter(stage)
        apply_to_layers(block, lambda layer, u=units: next(u).load_state_dict(layer.state_dict()))
    x = torch.randn(2, 3, 8, 8, generator=draws)
    torch.testing.assert_close(plain(x), net(x))


def test_a_process_is_stopped_at_its_limit_with_its_children(tmp_path):
    note = tmp_path / "pid"
    ended = gpu.run(["sh", "-c", f"echo begun; sleep 600 & echo $! > {note}; wait"], 2)
    assert (ended.status, ended.output) == (None, "begun\n")
    child = Path("/proc") / note.read_text().strip() / "stat"
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"


def test_what_fails_is_reported_and_the_next_stage_runs(tmp_path, monkeypatch, capsys):
    def fail(options, limit):
        raise RuntimeError("no such device")

    outcomes = iter([gpu.Ended(None, "", 9.0), gpu.Ended(1, "first\nlast line", 1.0)])

    def run(command, limit):
        if "images" in command:  # a row was written before the limit
            (tmp_path / "images.json").write_text(json.dumps({"rows": [{"error": "x"}, {}]}))
        return next(outcomes, gpu.Ended(0, "", 1.0))

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "tests", fail)
    assert gpu.main(["--out", str(tmp_path)]) == 1
    images, solves, memory, tests = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert images == {
        "stage": "images", "result": "stopped at its limit", "seconds": 9.0, "rows": 2,
        "failed rows": 1,
    }  # fmt: skip
    assert (solves["result"], solves["tail"]) == ("failed", ["first", "last line"])
    assert memory["result"] == "passed"
    assert tests["result"] == "failed: RuntimeError: no such device"
    assert "written to" in capsys.readouterr().out


def test_the_limits_add_up_to_five_minutes_at_most():
    *tables_first, last = gpu.SHARES.values()
    assert sum(tables_first) < 0.7  # the tests get a third at least
    assert last == 1
    makefile = (ROOT / "Makefile").read_text()
    assert int(re.search(r"^LIMIT \?= (\d+)$", makefile, re.MULTILINE)[1]) <= 300 - 5 * 5


def test_lines_of_pytest_are_counted():
    done = gpu.Ended(1, "..F\nFAILED tests/a.py::b - no\n1 failed, 2 passed, 3 skipped in 1s\n", 1)
    assert gpu.counts(done) == {
        "result": "failed", "failed": 1, "passed": 2, "skipped": 3,
        "failures": ["FAILED tests/a.py::b - no"],
    }  # fmt: skip
    stopped = gpu.Ended(None, "....F.  [ 50%]\n..", 1)
    found = gpu.counts(stopped)
    assert (found["result"], found["passed"], found["failed"]) == ("stopped at its limit", 7, 1)
    assert gpu.counts(gpu.Ended(5, "no tests ran in 0.01s", 1))["result"] == "no tests"


def test_a_row_that_fails_says_why_in_one_line():
    def fail():
        raise RuntimeError("CUDA error\nand a long trace")

    assert tables.attempt(fail) == {"error": "RuntimeError: CUDA error"}
    assert tables.attempt(lambda: {"seconds": 1.0}) == {"seconds": 1.0}
