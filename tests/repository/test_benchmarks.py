"""Every benchmark runs at a tiny size, and what it compares agrees. Nothing here asserts a time."""

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks import depth, memory_free
from benchmarks.__main__ import NAMES
from benchmarks.harness import Row, agree, cells, compare, operations, report, save
from benchmarks.memory import held
from benchmarks.memory_free import conv_block
from benchmarks.peers import PEERS, installed
from benchmarks.problems import dopri5_loop, rk4_loop
from companion import PiecewiseConstant
from companion.gradients import Reconstruct

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", NAMES)
def test_runs_tiny(name):
    module = import_module(f"benchmarks.{name}")
    rows = module.run(rounds=2, **module.TINY)
    assert rows
    assert all(row.ratio > 0 for row in rows if row.ratio is not None)
    missing = {name for name in PEERS if not installed(name)}
    assert {row.candidate for row in rows if row.ratio is None} <= missing


def test_memory():
    memory = import_module("benchmarks.memory")
    rows = memory.run(rounds=2, **memory.TINY)
    barred = [row for row in rows if row.bar is not None]
    assert [row.ratio for row in barred] == pytest.approx([1.0, 1.0, 0.6, *[1.0] * 5])
    assert all(row.verdict == "within" for row in barred)


def test_memory_of_one_state():
    """What a memory-free block keeps is its output: 2 * 3 * 5 * 5 floats of 4 bytes."""
    block = conv_block(PiecewiseConstant(7), 3)
    for gradient in (Reconstruct(), Reconstruct("predicted", order=2)):
        assert held(block.with_graph(gradient=gradient), (2, 3, 5, 5)) == 600
    # A checkpoint keeps the inputs of all units but the first, which is the block's own input.
    assert held(block.with_graph(gradient="checkpoint"), (2, 3, 5, 5)) == 6 * 600


def test_evaluations_of_the_rules():
    """On paper: N forward; N, 2 N, 2 N, N + 1, N + 3 and N + 1 more on the way back."""
    block = conv_block(PiecewiseConstant(32), 4)
    solves = memory_free.graphs(block, memory_free.GRADIENTS) | memory_free.reversible(block)
    rows = memory_free.evaluations("work", solves, (8, 4, 6, 6))
    assert [(row.candidate, 32 * row.ratio) for row in rows] == [
        ("checkpoint", 64),
        ("reverse", 96),
        ("corrected", 96),
        ("predicted, order 1", 65),
        ("predicted, order 2", 67),
        ("reversible", 66),
    ]


def test_check_refuses_a_wrong_gradient(monkeypatch):
    """A rule that is not exact passes for a checkpoint."""
    block = conv_block(PiecewiseConstant(4), 2)
    memory_free.check(block, (3, 2, 4, 4))
    monkeypatch.setitem(memory_free.GRADIENTS, "checkpoint", Reconstruct())
    with pytest.raises(AssertionError, match="checkpoint: result 1"):
        memory_free.check(block, (3, 2, 4, 4))


def test_agree_refuses_a_wrong_candidate():
    right = {"one": lambda: (torch.ones(2),), "two": lambda: (torch.ones(2),)}
    agree(right, rtol=0)
    with pytest.raises(AssertionError, match="two: result 0"):
        agree({**right, "two": lambda: (torch.tensor([1.0, 1.1]),)}, rtol=1e-2)
    with pytest.raises(AssertionError, match="two: result 0"):
        agree({**right, "two": lambda: (torch.tensor([1.0, float("nan")]),)}, rtol=1e-2)


def test_operations_counts_kernels():
    x = torch.ones(3, 3)
    assert operations(lambda: (x.t()[:2].sin().cos(),)) == 2
    assert operations(lambda: (x.sin(),)) == 1


def test_verdict_and_cells():
    row = Row("work", "a", "b", "time", 1.2, 1.1, 1.3, 1.15, bar=1.1)
    assert row.verdict == "above"
    assert cells(row)[4:] == ("1.200", "1.10 to 1.30", "1.150", "1.10", "above")
    assert Row("work", "a", "b", "bytes", 1.1, bar=1.1).verdict == "within"
    assert Row("work", "a", "b", "bytes", 1.1).verdict == ""


def test_a_peer_that_is_not_installed_is_a_gap():
    works = {"plain": lambda: (torch.ones(1),), "peer": None, "ours": lambda: (torch.ones(1),)}
    agree(works, rtol=0)
    rows = compare("work", works, 2, {"peer": 1.0}, over={("ours", "peer"): 1.5})
    assert [(row.candidate, row.baseline, row.ratio is None) for row in rows] == [
        ("peer", "plain", True),
        ("ours", "plain", False),
        ("ours", "peer", True),
    ]
    assert cells(rows[0])[4:] == ("", "", "", "1.00", "not installed")


def test_the_loops_by_hand_agree():
    """The baselines are what they say: both schemes at tight settings, against y' = -y."""
    y = torch.ones(1, dtype=torch.float64)
    exact = torch.tensor([-2.0], dtype=torch.float64).exp()
    torch.testing.assert_close(rk4_loop(lambda t, y: -y, y, 400, 2.0), exact, rtol=1e-10, atol=0)
    found = dopri5_loop(lambda t, y: -y, y, 2.0, 1e-10)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)


def test_the_page_shows_every_recorded_row(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    rows = [
        Row("work", "a", "b", "time", 1.234, 1.1, 1.3, 1.2, bar=1.1, note="compiled in 9 s"),
        Row("work", "c", "b", "bytes", 0.5),
        Row("other", "c", "b", "bytes", 0.5),
    ]
    path, names = tmp_path / "speed.json", ("zero", "one")
    save(path, [report("one", "What?", "Nothing.", rows, rounds=7)], names)
    save(path, [report("zero", "Who?", "Nothing.", rows[:1], rounds=9)], names)  # keeps the other
    content = json.loads(path.read_text())
    assert [part["name"] for part in content["benchmarks"]] == ["zero", "one"]
    lines = list(import_module("speed").page(content))
    assert "| work | a | b | 1.234 | 1.10 to 1.30 | 1.200 | 1.10 | above |" in lines
    assert "|  | c | b, bytes | 0.500 |  |  |  |  |" in lines
    assert "| other | c | b, bytes | 0.500 |  |  |  |  |" in lines
    assert "- a: compiled in 9 s" in lines
    assert any("Rounds: 7." in line for line in lines)
    assert any("Rounds: 9." in line for line in lines)


def test_the_page_says_what_is_above_and_close(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    rows = [
        Row("loop", "a", "b", "time", 1.2, bar=1.1),
        Row("loop", "c", "b", "time", 1.3, bar=1.1),
        Row("net", "d", "b", "bytes", 1.01, bar=1.0),
        Row("net", "e", "b", "bytes", 1.0, bar=1.0),
        Row("net", "f", "b", "time", 1.08, bar=1.1),
        Row("net", "g", "b", "time", 1.0, bar=1.1),
        Row("net", "h", "b", "time", 9.0),
    ]
    lines = list(import_module("speed").summary([asdict(row) for row in rows]))
    assert lines[0] == "Of 6 ratios with a bar, 3 are within it."
    assert lines[2] == "Above: loop (a; c) · net (d)."
    assert lines[4] == "Close to it: net (f)."


def test_the_record_holds_every_benchmark():
    content = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())
    assert tuple(part["name"] for part in content["benchmarks"]) == NAMES


def test_evaluations_of_schemes_and_refinement():
    """On paper: as many as stages; 2 epochs at each of 1, 2, 4 steps and 4 at 8, of 10 at 8."""
    rows = depth.run(rounds=2, **depth.TINY)
    counted = {row.candidate: row.ratio for row in rows if row.quantity == "evaluations"}
    expected = {"midpoint": 2, "rk4": 4, "rk4_38": 4, "refined": (1 + 2 + 4 + 2 * 8) / (5 * 8)}
    assert counted == pytest.approx(expected)
