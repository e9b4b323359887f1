"""Q20-ADJ in small, against the adjoint written out."""

import pytest
import torch

from companion.experiments import run
from companion.experiments.many_graphs import q20_adj_adjoint_steps as q20_adj

CPU = torch.device("cpu")


def euler_adjoint(task, steps):
    """Euler back from the end for state and adjoint at once: gradients of weights and biases."""
    weight, bias = (p.detach() for p in task.block.weights.parameters())
    grads = torch.zeros_like(weight), torch.zeros_like(bias)
    x = task.x
    for n in range(steps):
        cell = n * q20_adj.CELLS // steps
        x = x + torch.tanh(x @ weight[cell].T + bias[cell]) / steps
    a = x - task.target
    for n in reversed(range(steps)):
        cell = n * q20_adj.CELLS // steps
        value = torch.tanh(x @ weight[cell].T + bias[cell])
        inner = a * (1 - value**2) / steps
        grads[0][cell] += inner.T @ x
        grads[1][cell] += inner.sum(0)
        x, a = x - value / steps, a + inner @ weight[cell]
    return torch.cat([g.flatten() for g in grads])


def test_adj_measures_the_adjoint_written_out():
    result = run("Q20-ADJ", seeds=1, ratios=(1, 3), nets=1, train_ratios=(1, 3), epochs=1)
    task = q20_adj._task(0, 4.0, CPU)
    for k, ratio in enumerate((1, 3)):
        wanted = q20_adj._gradient(task, "euler", 4 * ratio, "backprop")
        got = euler_adjoint(task, 4 * ratio)
        error = ((got - wanted).norm() / wanted.norm()).item()
        assert result["error_adjoint_euler"][0, k] == pytest.approx(error, rel=1e-9)
        cosine = torch.nn.functional.cosine_similarity(got, wanted, dim=0).item()
        assert result["cosine_adjoint_euler"][0, k] == pytest.approx(cosine, rel=1e-9)
    assert result["error_checkpoint_rk4"].max() < 1e-15
    assert result["error_reversible_async_leapfrog"].max() < 1e-13
    assert result["at_three_euler"] / result["at_one_euler"] < 0.5
    harm = result["test_error_adjoint"] - result["test_error_backprop"]
    assert result["harm_at_three"] == pytest.approx(harm[0, 1])
    assert harm[0, 0] > 0.1
