"""S22-MEM on the CPU: counts against sums on paper, peaks against the allocator's own record."""

import gc
import math
from contextlib import contextmanager

import pytest
import torch
from torch.profiler import profile

from companion.experiments import Run, run
from companion.experiments.memory_free import s22_mem_training_memory as s22_mem
from companion.observe import Bytes

CPU = torch.device("cpu")
SMALL = {"channels": 3, "size": 5, "batch": 6, "counted": 2, "repeats": 2}
STATE = 2 * 3 * 5 * 5 * 4  # bytes of the state for two images


@contextmanager
def allocated(device):
    """The most bytes that were allocated at once on the CPU, from the profiler's events.

    Garbage of earlier tests that is collected meanwhile would count as freed, and its own as held.
    """
    result = Bytes()
    gc.collect()
    with profile(profile_memory=True) as record:
        gc.disable()
        try:
            yield result
        finally:
            gc.enable()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        result.total = max(result.total, held)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Let the experiment measure peaks and times, on the CPU."""
    monkeypatch.setattr(s22_mem, "peak_memory", allocated)
    monkeypatch.setattr(s22_mem, "_counts_memory", lambda device: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)


def problem(layers, channels=3, size=5):
    nothing = Run(0, CPU, None, 30.0, lambda fraction, name: None, None)
    return s22_mem._Problem(layers, channels, size, nothing)


def test_bytes_kept():
    """Of a layer: what enters a convolution or a norm; the norms' statistics, old and new."""
    result = run("S22-MEM", depths=(4, 9), **SMALL)
    norms = 2 * (2 + 2) * 3 * 4
    layer = 4 * STATE + norms
    assert list(result["saved_backprop"]) == [4 * layer, 9 * layer]
    assert list(result["saved_checkpoint"]) == [3 * STATE, 8 * STATE]
    for name in ("reverse", "corrected", "predicted_1", "predicted_2"):
        assert list(result[f"saved_{name}"]) == [STATE, STATE]
    for name in ("adjoint", "reversible"):  # both outputs; the last state and its velocity
        assert list(result[f"saved_{name}"]) == [2 * STATE, 2 * STATE]
    assert "peak_backprop" not in result.findings.curves
    assert all("need a CUDA device" in claim.note for claim in result.claims)
    parameters = 2 * (3 * 3 * 9 + 2 * 3) * 4
    assert result["ratio"] == pytest.approx((3 * 4 * STATE + norms) / parameters)


def test_steps(as_on_a_gpu):
    """Where peaks are measured, every gradient has them, and the claims decide by them."""
    result = run("S22-MEM", depths=(2, 14), **SMALL)
    peaks = {name: result[f"peak_{name}"] for name in s22_mem.GRADIENTS}
    assert all((peak > 0).all() for peak in peaks.values())
    assert peaks["backprop"][1] > 2 * peaks["backprop"][0]
    growth = max(peaks[name][1] / peaks[name][0] for name in s22_mem.CONSTANT)
    assert result.claims[2].observed == growth
    times = [claim.observed for claim in result.claims[3:]]
    base = result["seconds_backprop"][1]
    assert times == [result[f"seconds_{name}"][1] / base for name in s22_mem.TIMES]


@pytest.mark.parametrize("name", s22_mem.CONSTANT)
def test_peak_does_not_grow(as_on_a_gpu, name):
    """The allocator's record: what is added by 16 layers is gradients and running statistics.

    A step copies the running statistics of each layer, so that it leaves the module's alone. They
    are two norms of two numbers a channel, and a count of eight bytes.
    """
    # The backward pass has a thread of its own: how the two interleave moves a peak a little.
    few, many = (
        pick(problem(n, channels=8, size=6).step(name, 16, 1)["peak"] for _ in range(3))
        for n, pick in ((8, max), (24, min))
    )
    statistics = 16 * 2 * (2 * 8 * 4 + 8)
    # A rejected prediction, of which a shallow network has more, holds a guess and a value longer.
    state = 16 * 8 * 6 * 6 * 4
    assert few - 2 * state <= many <= few + statistics


@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_step_that_does_not_fit(as_on_a_gpu, monkeypatch, fails_at):
    """Out of memory in the warm-up or later: NaN, and the next step is measured again."""
    calls = []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) == fails_at + 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return backward(*args, **kwargs)

    backward, small = torch.Tensor.backward, problem(2)
    monkeypatch.setattr(torch.Tensor, "backward", full)
    found = small.step("backprop", 2, 1)
    assert all(math.isnan(number) for number in found.values())
    assert small.step("backprop", 2, 1)["peak"] > 0


def test_claims_of_what_does_not_fit():
    """Times are compared at the deepest network that backprop fits; a lost peak is a miss."""
    nan = math.nan
    curves = {f"peak_{name}": [100.0, 101.0, 104.0] for name in s22_mem.GRADIENTS}
    curves |= {f"seconds_{name}": [1.0, 1.5, 2.0] for name in s22_mem.GRADIENTS}
    curves["seconds_backprop"] = [1.0, 1.25, nan]
    peak, *times = s22_mem._of_steps((8, 16, 32), curves)
    assert peak.observed == 1.04
    assert peak.holds
    assert [claim.observed for claim in times] == [1.2] * 4
    assert [claim.holds for claim in times] == [True, True, False, False]
    assert all("16 layers" in claim.text for claim in times)
    curves["peak_corrected"] = [100.0, nan, nan]
    curves["seconds_backprop"] = [nan] * 3
    peak, *times = s22_mem._of_steps((8, 16, 32), curves)
    assert not peak.holds
    assert not any(claim.holds for claim in times)
