"""S22-MEM: how much memory does a training step need, by gradient method and depth?

Two measures. Bytes kept between the forward and the backward pass are counted, on any device.
On a CUDA device the peak of a whole step is measured too, and its time.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from companion import OdeBlock, PiecewiseConstant
from companion.experiments import Claim, Findings, Part, Run, experiment, grids, named
from companion.gradients import NAMED_RULES, Gradient, get_gradient
from companion.models.layers import basic_branch
from companion.observe import peak_memory, saved_bytes
from companion.train import seeded

GRADIENTS: dict[str, Gradient] = {
    "backprop": get_gradient("backprop"),
    "checkpoint": get_gradient("checkpoint"),
    "adjoint": get_gradient("adjoint"),
    **{rule: NAMED_RULES[rule].gradient for rule in ("reversible", "reverse", "corrected")},
    "predicted_1": NAMED_RULES["predicted"].gradient,  # as it is recorded
    "predicted_2": NAMED_RULES["predicted_2"].gradient,
}
CONSTANT = tuple(name for name in GRADIENTS if name not in ("backprop", "checkpoint"))
TIMES = {"reverse": 1.40, "corrected": 1.42, "predicted_1": 1.15, "predicted_2": 1.15}
"""The largest step time over backprop's that was aimed at."""


@experiment(
    "S22-MEM",
    "Memory and time of a training step against depth, for every gradient",
    paper="Sander et al. 2022, section 4",
    claims=("CL65", "S22-MEM"),
    full={
        "depths": (8, 16, 32, 64, 128, 256, 512, 1024), "channels": 64, "size": 16, "batch": 256,
        "repeats": 5,
    },
    tiny={"depths": (2, 3), "size": 4, "batch": 4, "counted": 2},
)  # fmt: skip
def s22_mem(
    run: Run, *, depths: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256), channels: int = 4,
    size: int = 8, batch: int = 32, counted: int = 4, repeats: int = 3,
) -> Findings:  # fmt: skip
    """Measure residual networks of ReLU, convolution and batch norm, twice a layer.

    All layers have equal weights: the smoothest network, in which ``predicted`` needs one
    evaluation a layer. ``saved_METHOD`` are the bytes kept for a batch of ``counted``, over
    ``layers``. On a CUDA device ``peak_METHOD`` and ``seconds_METHOD`` belong to a whole step with
    ``batch`` images: the peak without parameters and their gradients, the median time. What does
    not fit is NaN. Scalars: ``growth_METHOD``, bytes kept by the deepest network over the
    shallowest, and ``ratio``, activations over parameters.
    """
    measured = _counts_memory(run.device)

    def measure(part: Part, name: str, layers: int) -> dict[str, float]:
        problem = _Problem(layers, channels, size, run)
        step = problem.step(name, batch, repeats) if measured else {}
        return {"saved": problem.saved(name, counted), **step}

    curves = named(grids(run, measure, name=GRADIENTS, layers=depths), "name")
    growth = {name: curves[f"saved_{name}"][-1] / curves[f"saved_{name}"][0] for name in GRADIENTS}
    shallow = _Problem(depths[0], channels, size, run)
    ratio = shallow.saved("backprop", batch) / shallow.parameter_bytes
    note = "" if measured else "counted; the peak and the time of a step need a CUDA device"
    claims = [
        Claim("CL65", f"bytes kept by backprop over those of parameters, batch {batch}",
              ratio, low=100, note=note),
        Claim("S22-MEM", f"bytes kept, {depths[0]} to {depths[-1]} layers: largest growth of a "
              "memory-free gradient",
              max(growth[name] for name in CONSTANT), low=1, high=1, note=note),
        *(_of_steps(depths, curves) if measured else ()),
    ]  # fmt: skip
    scalars = {"ratio": ratio, **{f"growth_{name}": value for name, value in growth.items()}}
    return Findings(scalars, {"layers": depths, **curves}, claims)


def _counts_memory(device: torch.device) -> bool:
    return device.type == "cuda"


class _Problem:
    """A network of equal layers, and what its training step costs by one method."""

    def __init__(self, layers: int, channels: int, size: int, run: Run) -> None:
        with seeded(run.seed):
            layer = nn.Sequential(nn.ReLU(), basic_branch(channels, channels))
        self.block = OdeBlock(layer, PiecewiseConstant(layers), steps=layers).to(run.device)
        self.shape = (channels, size, size)
        self.device = run.device
        self.parameter_bytes = sum(p.nbytes for p in self.block.parameters())

    def saved(self, name: str, batch: int) -> int:
        """Return the bytes kept for the backward pass, besides parameters and the input."""
        block, x = self._graph(name), self._images(batch)
        with saved_bytes(exclude=[x, *self.block.parameters()]) as saved:
            block(x)
        return saved.total

    def step(self, name: str, batch: int, repeats: int) -> dict[str, float]:
        """Return peak memory and time of a step, NaN if it does not fit the device's memory."""
        try:
            return self._step(self._graph(name), self._images(batch), repeats)
        except torch.cuda.OutOfMemoryError:
            pass  # and drop the traceback, which holds on to what did fit
        torch.cuda.empty_cache()
        return {"peak": math.nan, "seconds": math.nan}

    def _step(self, block: OdeBlock, x: Tensor, repeats: int) -> dict[str, float]:
        def step() -> None:
            self.block.zero_grad()
            block(x).square().mean().backward()

        step()
        self.block.zero_grad()
        with peak_memory(self.device) as peak:
            step()
        seconds = []
        for _ in range(repeats):
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            step()
            torch.cuda.synchronize(self.device)
            seconds.append(time.perf_counter() - start)
        return {"peak": float(peak.total - self.parameter_bytes), "seconds": median(seconds)}

    def _graph(self, name: str) -> OdeBlock:
        method = "async_leapfrog" if name == "reversible" else "euler"
        return self.block.with_graph(method=method, gradient=GRADIENTS[name])

    def _images(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, *self.shape, generator=generator).to(self.device).requires_grad_()


def _of_steps(depths: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Iterator[Claim]:
    """Yield what the measured steps decide; a peak that is NaN counts as infinite."""
    growths = (
        value / peak[0] for peak in (curves[f"peak_{n}"] for n in CONSTANT) for value in peak
    )
    yield Claim(
        "S22-MEM",
        f"peak of a step without parameters and gradients, {depths[0]} to {depths[-1]} layers: "
        "largest growth of a memory-free gradient",
        max(math.inf if math.isnan(growth) else growth for growth in growths),
        high=1.05,
    )
    base = curves["seconds_backprop"]
    deepest = max((i for i, value in enumerate(base) if not math.isnan(value)), default=0)
    for name, bar in TIMES.items():
        yield Claim(
            "S22-MEM",
            f"time of a step over backprop's, {name}, {depths[deepest]} layers",
            curves[f"seconds_{name}"][deepest] / base[deepest],
            high=bar,
            note="the backward half of a step does about twice the work of the forward half, so "
            "each further evaluation of all layers adds about a third",
        )
