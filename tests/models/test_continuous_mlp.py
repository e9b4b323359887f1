"""ContinuousMLP against the same network written out with loops."""

import pytest
import torch

from companion import Chebyshev, PiecewiseConstant
from companion.models import ContinuousMLP, ResidualMLP, load, save
from companion.train import seeded

A = {
    "euler": ([[]], [1.0], [0.0]),
    "midpoint": ([[], [0.5]], [0.0, 1.0], [0.0, 0.5]),
    "rk4": ([[], [0.5], [0, 0.5], [0, 0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], [0, 0.5, 0.5, 1.0]),
}
"""Tableaux typed once more: stages, weights, places in the step."""


def scrambled(**options):
    with seeded(0):
        net = ContinuousMLP(5, 3, width=4, hidden=6, **options).double()
        for param in net.parameters():
            param.data += 0.3 * torch.randn(param.shape, dtype=torch.float64)
    return net


def samples(rows=7):
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def written(net, x, method, steps, scale, cells):
    """The network as loops over steps and stages, from copies of its values alone."""
    values = {name: p.detach() for name, p in net.named_parameters()}
    skips = values.get("block.weights.stacks.skip", torch.ones(cells, dtype=torch.float64))
    inner = (
        "block.weights.stacks.residual."
        if "block.weights.stacks.skip" in values
        else "block.weights.stacks."
    )

    def field(cell, x):
        w, b, v, c = (
            values[inner + name][cell] for name in ("0.weight", "0.bias", "2.weight", "2.bias")
        )
        return scale * skips[cell] * ((x @ w.T + b).clamp(min=0) @ v.T + c)

    x = x @ values["stem.weight"].T + values["stem.bias"]
    rows, weights, places = A[method]
    for n in range(steps):
        slopes = []
        for row, place in zip(rows, places, strict=True):
            # The far end of a step is read from inside the step.
            depth = min((n + place) / steps, (n + 1) / steps - 1e-9)
            inside = x + sum((a / steps * k for a, k in zip(row, slopes, strict=False)), 0 * x)
            slopes.append(field(int(depth * cells + 1e-12), inside))
        x = x + sum(b / steps * k for b, k in zip(weights, slopes, strict=True))
    return x @ values["head.weight"].T + values["head.bias"]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("method", "steps", "cells"),
    [("euler", 4, 4), ("midpoint", 5, 2), ("rk4", 4, 4), ("rk4", 6, 3)],
)
def test_the_net_is_the_loop(method, steps, cells, skip):
    net = scrambled(
        basis=PiecewiseConstant(cells), method=method, steps=steps, scale=2.5, skip_init=skip
    )
    expected = written(net, samples(), method, steps, 2.5, cells)
    torch.testing.assert_close(net(samples()), expected, rtol=0, atol=1e-12)


def test_another_graph_of_the_same_weights():
    net = scrambled(basis=PiecewiseConstant(4), steps=4)
    other = net.with_graph(method="rk4", steps=8)
    torch.testing.assert_close(
        other(samples()), written(net, samples(), "rk4", 8, 1.0, 4), rtol=0, atol=1e-12
    )
    assert list(map(id, other.parameters())) == list(map(id, net.parameters()))
    assert (net.block.method, net.block.steps) == ("euler", 4)


def test_initial_weights_are_those_of_the_residual_network():
    with seeded(3):
        net = ContinuousMLP(5, 3, width=4, hidden=6, basis=PiecewiseConstant(4), steps=4)
    with seeded(3):
        plain = ResidualMLP(5, 3, width=4, hidden=6, layers=4, tied=False, scaled=True)
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(net.state_dict()[name], p) for name, p in plain.state_dict().items())
    x = samples().float()
    assert torch.equal(net(x), plain(x))


def test_skip_initialisation_starts_as_the_identity():
    with seeded(0):
        net = ContinuousMLP(5, 3, skip_init=True, method="rk4")
    assert torch.equal(net(samples().float()), net.head(net.stem(samples().float())))


def test_refining_doubles_cells_and_steps_of_the_same_function():
    net = scrambled(basis=PiecewiseConstant(2), method="rk4", steps=2)
    before = net(samples())
    net.refine()
    assert (net.block.weights.basis, net.block.steps) == (PiecewiseConstant(4), 4)
    assert torch.equal(net.with_graph(steps=2)(samples()), before)


def test_saved_and_loaded(tmp_path):
    net = scrambled(basis=Chebyshev(3), skip_init=True, scale=2.0)
    save(net, tmp_path / "net.pt")
    assert torch.equal(load(tmp_path / "net.pt").double()(samples()), net(samples()))


@pytest.mark.parametrize("name", ["width", "hidden"])
def test_sizes_are_counts(name):
    with pytest.raises(ValueError, match=f"{name}: 0 is not allowed"):
        ContinuousMLP(5, 3, **{name: 0})
    with pytest.raises(ValueError, match=r"inputs: 2\.5"):
        ContinuousMLP(2.5, 3)
