"""`python -m benchmarks.gpu STAGE --device DEVICE --out FILE [--short]`: tables for one GPU.

`make gpu` runs the stages in turns, each with a time limit. A table is written anew after each row,
so that what was measured before a limit, or before a failure, is kept. Times are those of the wall
clock with the device idle before and after: the work is the device's.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.problems import seeded
from companion import OdeBlock, PiecewiseConstant
from companion.capture import captured
from companion.experiments import find
from companion.files import replacing
from companion.gradients import Reconstruct
from companion.machine import device_name, package_versions
from companion.models import ContinuousNet, SkipInit, pre_activation_unit

Row = dict[str, Any]


def memory(device: torch.device, short: bool) -> Iterator[Row]:
    """S22-MEM from shallow to deep, with batches that leave room for the time limit."""
    experiment = find("S22-MEM")
    depths = (4, 8) if short else (16, 64, 256, 1024)
    size: Row = {"batch": 4, "channels": 2, "size": 4} if short else {"batch": 64}
    for layers in depths:
        result = experiment(tier="full", device=device, depths=(layers,), repeats=3, **size)
        curves = result.findings.curves
        for name in (key.removeprefix("saved_") for key in curves if key.startswith("saved_")):
            numbers = {
                kind: float(curves[f"{kind}_{name}"][0])
                for kind in ("saved", "peak", "seconds")
                if f"{kind}_{name}" in curves  # the last two on a GPU only
            }
            yield {"layers": layers, "gradient": name, **result.provenance.parameters, **numbers}


class PlainNet(nn.Module):
    """The same layers as a ContinuousNet with as many cells as steps, in a plain loop."""

    def __init__(self, net: ContinuousNet, steps: int) -> None:
        super().__init__()
        self.stem, self.stitches, self.head = net.stem, net.stitches, net.head
        widths = net.arguments["channels"]
        self.stages = nn.ModuleList(
            nn.ModuleList(SkipInit(pre_activation_unit(width)) for _ in range(steps))
            for width in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for k, stage in enumerate(self.stages):
            if k > 0:
                x = self.stitches[k - 1](x)
            for unit in stage:
                x = x + unit(x) / len(stage)
        return self.head(x.mean((2, 3)))


def images(device: torch.device, short: bool) -> Iterator[Row]:
    """Training steps of ContinuousNet (Euler) beside a plain ResNet with the same layers."""
    steps, batch, size, channels = (2, 2, 8, (2, 4)) if short else (8, 128, 32, (16, 32, 64))
    x = torch.randn(batch, 3, size, size, device=device)
    y = torch.randint(10, (batch,), device=device)
    basis = PiecewiseConstant(steps)
    net = ContinuousNet(channels=channels, basis=basis, steps=steps).to(device)
    candidates = {
        "plain": PlainNet(net, steps).to(device),
        "backprop": net,
        "checkpoint": net.with_graph(gradient="checkpoint"),
        "predicted, order 2": net.with_graph(gradient=Reconstruct("predicted", order=2)),
    }
    for precision in ("float32", "bfloat16"):
        for name, model in candidates.items():
            context = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

            def step(model: nn.Module = model, context: torch.autocast = context) -> None:
                model.zero_grad()
                with context:
                    loss = nn.functional.cross_entropy(model(x).float(), y)
                loss.backward()

            row: Row = {"model": name, "precision": precision, "steps": steps, "batch": batch}
            yield row | attempt(lambda step=step: {"images a second": batch / timed(step, device)})


def solves(device: torch.device, short: bool) -> Iterator[Row]:
    """Forward and backward of a block: eager, captured as one CUDA graph, and compiled.

    All eager ones first, then all captured ones: what fails may leave the device unusable.
    """
    width, batch, steps = (4, 2, 2) if short else (64, 256, 32)
    x = torch.randn(batch, width, device=device, requires_grad=True)

    def unit() -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    field = seeded(unit, torch.float32)
    for how, (prepare, gradients) in HOW.items():
        for method in ("euler", "rk4", "dopri5"):
            fixed = method != "dopri5"
            for gradient in gradients:
                if (how != "eager" and (short or not fixed)) or (
                    gradient == "checkpoint" and not fixed
                ):
                    continue
                options: Row = {"steps": steps} if fixed else {}
                block = OdeBlock(field, method=method, gradient=gradient, **options).to(device)
                row = {"how": how, "method": method, "gradient": gradient, **options}

                def measure(
                    block: OdeBlock = block, prepare: Callable[..., Solve] = prepare
                ) -> Row:
                    return {"seconds": timed(differentiated(prepare(block, x), x), device)}

                yield row | {"width": width, "batch": batch} | attempt(measure)


Solve = Callable[[Tensor], Tensor]


EVERY = ("backprop", "checkpoint", "adjoint")
HOW: dict[str, tuple[Callable[[OdeBlock, Tensor], Solve], tuple[str, ...]]] = {
    "eager": (lambda block, x: block, EVERY),
    "captured": (captured, EVERY[:1]),
    "compiled": (lambda block, x: torch.compile(block, fullgraph=True), EVERY[:1]),
}
"""How a solve runs, for which gradients. What cannot be done yet becomes a row that says why."""


def differentiated(solve: Solve, x: Tensor) -> Callable[[], None]:
    """Return a step: the solve, and the gradient of its mean square."""

    def step() -> None:
        x.grad = None
        solve(x).square().mean().backward()

    return step


def attempt(measure: Callable[[], Row]) -> Row:
    """Return what `measure` returns, or why it failed in one line."""
    try:
        return measure()
    except Exception as error:  # whatever it is: the next row may work
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0]}"[:300]}


def timed(step: Callable[[], None], device: torch.device, rounds: int = 10) -> float:
    """Return the median time of a step in seconds, after three that do not count."""
    seconds = []
    for _ in range(3 + rounds):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return median(seconds[3:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


STAGES: dict[str, Callable[[torch.device, bool], Iterable[Row]]] = {
    "memory": memory,
    "images": images,
    "solves": solves,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--short", action="store_true", help="tiny sizes, to rehearse")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    content = {
        "stage": options.stage,
        "device": device_name(options.device),
        "versions": package_versions(),
        "rows": rows,
    }
    if options.short:
        torch.set_num_threads(1)
    for row in STAGES[options.stage](options.device, options.short):
        rows.append({key: _plain(value) for key, value in row.items()})
        with replacing(options.out) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        print(" ".join(f"{key}={_shown(value)}" for key, value in row.items()), flush=True)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
