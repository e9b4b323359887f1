"""One-step nets rolled out: how long, at which steps, and what the schemes do without a net."""

from collections.abc import Sequence

import torch
from torch import Tensor

from companion.analysis.convergence import Convergence, convergence_test, graph_errors
from companion.data import pendulum
from companion.experiments import Part, Run
from companion.experiments.pendulum.training import Pairs, train_nets
from companion.models import OneStepNet
from companion.ode import odeint

DATA_TIME = 6.4
"""The data cover a little more than two periods."""

TEST_TIME = 3.2
"""Errors are measured at this time."""

SCHEMES = ("euler", "midpoint", "rk4")

RATIOS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)
"""Steps of the graphs over the step of the data."""

HALF, OWN = RATIOS.index(0.5), RATIOS.index(1.0)


def step_counts(step: float) -> list[int]:
    """Return the numbers of steps from 0 to the time of the test, from fine to coarse."""
    return [round(TEST_TIME / (ratio * step)) for ratio in RATIOS]


def motion_nets(
    run: Run, part: Part, method: str, step: float, count: int, **iterations: int
) -> tuple[list[OneStepNet], Pairs]:
    """Return ``count`` nets trained from the run's seeds on, and their data, one motion.

    The part keeps the nets.
    """
    now, later = pendulum.pairs(step, DATA_TIME)
    data = (now.to(run.device), later.to(run.device))
    own = run.seeds(count)
    nets = train_nets(method, step, data, own, **iterations)
    for net, seed in zip(nets, own, strict=True):
        part.keep(net, f"seed {seed}")
    return nets, data


def compared(
    net: OneStepNet, steps: Sequence[int], *methods: str, angle: float = pendulum.START
) -> Convergence:
    """Compare where a net arrives at the time of the test with the truth, also by other schemes."""
    start, end = pendulum.exact([0.0, TEST_TIME], angle).to(net.field.inner)
    return convergence_test(net, start, end, time=TEST_TIME, methods=methods, steps=steps)


def numerical(method: str, time: float, steps: int, device: torch.device) -> Tensor:
    """Return the states of a scheme on the true field."""
    times = [n * time / steps for n in range(steps + 1)]
    start = pendulum.exact(0.0).to(device)
    states: Tensor = odeint(lambda t, x: pendulum.field(x), start, times, method=method)
    return states


def numerical_errors(method: str, step: float, device: torch.device) -> tuple[float, ...]:
    """Return the errors of a scheme on the true field, with the steps that the nets take."""

    def evaluate(method: str, n: int) -> Tensor:
        return numerical(method, TEST_TIME, n, device)[-1]

    truth = pendulum.exact(TEST_TIME).to(device)
    return graph_errors(evaluate, truth, [method], step_counts(step))[method]
