"""Train the nets whose trajectories the slider of chapter 10 shows, and draw its picture for paper.

Run `python -m figures.pendulum.slider` in `book` after a change, a minute or two; the two files it
writes are committed. The slider's script steps the nets itself.
"""

from typing import Any

import torch
from figures.writing import write_slider
from matplotlib.figure import Figure
from torch import Tensor

from companion.analysis.convergence import graph_errors
from companion.data import pendulum
from companion.experiments.pendulum.training import train_nets
from companion.figures import use_style
from companion.models import OneStepNet
from companion.schemes import get_scheme

STEP, TIME, SHOWN = 0.1, 3.2, 6.4
COUNTS = (512, 256, 128, 96, 64, 48, 40, 36, 34, 33, 32, 31, 30, 28, 24, 20, 16, 12, 10, 8)
METHODS = {"euler": "Euler", "midpoint": "midpoint", "rk4": "RK4"}
PANELS = (("euler", 32), ("euler", 64), ("rk4", 64))


def train() -> dict[str, OneStepNet]:
    """Return one net for each scheme, trained on one motion."""
    data = pendulum.pairs(STEP, SHOWN)
    return {m: train_nets(m, STEP, data, [0], adam=4000, lbfgs=200)[0] for m in METHODS}


def data(nets: dict[str, OneStepNet]) -> dict[str, Any]:
    """Return all that the slider needs."""
    times = torch.arange(129, dtype=torch.float64) * (SHOWN / 128)
    schemes = {name: get_scheme(name) for name in METHODS}
    return {
        "step": STEP,
        "time": TIME,
        "shown": SHOWN,
        "counts": list(COUNTS),
        "gravity": pendulum.GRAVITY,
        "labels": METHODS,
        "schemes": {n: {"rows": s.rows, "weights": s.weights} for n, s in schemes.items()},
        "truth": rounded(pendulum.exact(times)[:, 0], 5),
        "start": pendulum.exact(0.0).tolist(),
        "end": pendulum.exact(TIME).tolist(),
        "nets": {name: parameters(net) for name, net in nets.items()},
    }


def parameters(net: OneStepNet) -> dict[str, Any]:
    """Return a net's weights, with enough digits for its errors."""
    return {name: rounded(p.detach(), 10) for name, p in net.field.named_parameters()}


def rounded(values: Tensor, digits: int) -> Any:
    """Return a tensor as nested lists of numbers with some significant digits."""
    if values.ndim:
        return [rounded(value, digits) for value in values]
    return float(f"{float(values):.{digits}g}")


def load(found: dict[str, Any]) -> dict[str, OneStepNet]:
    """Return the nets that the slider's data hold."""
    nets = {}
    for name, values in found["nets"].items():
        nets[name] = OneStepNet(name, step=found["step"], generator=torch.Generator())
        state = {k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()}
        nets[name].field.load_state_dict(state)
    return nets


def errors(net: OneStepNet, method: str) -> tuple[float, ...]:
    """Return the error at ``TIME`` for all numbers of steps."""

    def evaluate(method: str, n: int) -> Tensor:
        return net.rollout(pendulum.exact(0.0), n, method=method, step=TIME / n)[-1]

    return graph_errors(evaluate, pendulum.exact(TIME), [method], COUNTS)[method]


@torch.no_grad()
def picture(found: dict[str, Any]) -> Figure:
    """Return three motions above the error of two nets against the step."""
    nets = load(found)
    with use_style():
        figure = Figure(figsize=(7.5, 5.0), layout="constrained")
        above, below = figure.subfigures(2, 1)
        for axes, (name, n) in zip(above.subplots(1, 3, sharey=True), PANELS, strict=True):
            motion(axes, found, nets[name], n)
        above.axes[0].set_ylabel("angle (rad)")
        axes = below.subplots()
        steps = [TIME / n for n in COUNTS]
        for name, net in nets.items():
            axes.loglog(steps, errors(net, name), label=f"{METHODS[name]} net")
        axes.set(xlabel="step (s)", ylabel="error after 3.2 s", ylim=(1e-5, 40))
        axes.legend(loc="lower left", ncols=3)
    return figure


def motion(axes: Any, found: dict[str, Any], net: OneStepNet, n: int) -> None:
    """Draw the true motion and that of a net with ``n`` steps up to ``TIME``."""
    step, truth = TIME / n, found["truth"]
    times = torch.linspace(0, SHOWN, len(truth))
    axes.plot(times, truth, "-", color="#bbbbbb", lw=6, marker="")
    path = net.rollout(pendulum.exact(0.0), round(SHOWN / step), step=step)
    axes.plot(step * torch.arange(len(path)), path[:, 0], color="#000000", ms=2.5)
    axes.set(title=f"{METHODS[net.method]} net, step {step:g} s", xlabel="time (s)")


def main() -> None:
    """Write both files."""
    found = data(train())
    write_slider("pendulum", found, picture(found))


if __name__ == "__main__":
    main()
