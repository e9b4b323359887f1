"""Every benchmark runs at a tiny size, and what it compares agrees. Nothing here asserts a time."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import NAMES
from benchmarks.harness import Row, agree, cells, operations, report, save

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", NAMES)
def test_runs_tiny(name):
    module = import_module(f"benchmarks.{name}")
    rows = module.run(rounds=2, **module.TINY)
    assert rows
    assert all(row.ratio > 0 for row in rows)


def test_memory_of_the_adjoint():
    rows = import_module("benchmarks.memory").run(rounds=2, steps=2, outputs=5)
    barred = [row for row in rows if row.bar is not None]
    assert [row.ratio for row in barred] == pytest.approx([1.0, 1.0, 0.6])
    assert all(row.verdict == "within" for row in barred)


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
    row = Row("work", "a", "b", "time", 1.2, 1.1, 1.3, bar=1.1)
    assert row.verdict == "above"
    assert cells(row)[4:] == ("1.200", "1.10 to 1.30", "1.10", "above")
    assert Row("work", "a", "b", "bytes", 1.1, bar=1.1).verdict == "within"
    assert Row("work", "a", "b", "bytes", 1.1).verdict == ""


def test_the_page_shows_every_recorded_row(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    rows = [
        Row("work", "a", "b", "time", 1.234, 1.1, 1.3, bar=1.1, note="compiled in 9 s"),
        Row("work", "c", "b", "bytes", 0.5),
    ]
    save(tmp_path / "speed.json", [report("one", "What?", "Nothing.", rows)], rounds=7)
    content = json.loads((tmp_path / "speed.json").read_text())
    lines = list(import_module("speed").page(content))
    assert "| work | a | b | time | 1.234 | 1.10 to 1.30 | 1.10 | above |" in lines
    assert "| work | c | b | bytes | 0.500 |  |  |  |" in lines
    assert "- a: compiled in 9 s" in lines
    assert any("Rounds: 7." in line for line in lines)


def test_the_record_holds_every_benchmark():
    content = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())
    assert tuple(part["name"] for part in content["benchmarks"]) == NAMES
