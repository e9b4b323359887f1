import pytest
import torch

from companion.gradients import Checkpoint
from companion.models import ResidualMLP
from companion.train import seeded


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_residual_mlp_is_the_written_out_network(tied, scaled):
    layers = 5
    with seeded(0):
        net = ResidualMLP(6, 3, width=4, hidden=7, layers=layers, tied=tied, scaled=scaled).double()
        x = torch.randn(2, 6, dtype=torch.float64)
    stacks = {name.split("weights.stacks.")[1]: p for name, p in net.block.named_parameters()}
    assert all(len(p) == (1 if tied else layers) for p in stacks.values())
    state = net.stem(x)
    for n in range(layers):
        w, b, v, c = (
            stacks[name][0 if tied else n] for name in ("0.weight", "0.bias", "2.weight", "2.bias")
        )
        factor = 1 / layers if scaled else 1.0
        state = state + factor * (torch.relu(state @ w.T + b) @ v.T + c)
    torch.testing.assert_close(net(x), net.head(state), rtol=0, atol=1e-13)


def test_untied_layers_start_different():
    with seeded(0):
        net = ResidualMLP(6, 3, width=4, hidden=7, layers=3, tied=False, scaled=True)
    first = dict(net.block.named_parameters())["weights.stacks.0.weight"]
    assert not torch.equal(first[0], first[1])


def test_initial_weights_have_the_stated_variance():
    with seeded(0):
        net = ResidualMLP(6, 3, width=100, hidden=400, layers=2, tied=False, scaled=True)
    stacks = dict(net.block.named_parameters())
    assert stacks["weights.stacks.0.weight"].var().item() == pytest.approx(2 / 100, rel=0.02)
    assert stacks["weights.stacks.2.weight"].var().item() == pytest.approx(1 / 400, rel=0.02)
    assert not stacks["weights.stacks.0.bias"].any()


def test_residual_mlp_with_heun_is_the_written_out_network():
    """N + 1 sets of weights; the far end of a step reads the next set."""
    with seeded(0):
        net = ResidualMLP(
            6, 3, width=4, hidden=7, layers=3, tied=False, scaled=True, method="heun",
            gradient="checkpoint",
        ).double()  # fmt: skip
        x = torch.randn(2, 6, dtype=torch.float64)
    w, b, v, c = net.block.weights.parameters()
    assert len(w) == 4

    def field(state, n):
        return torch.relu(state @ w[n].T + b[n]) @ v[n].T + c[n]

    state = net.stem(x)
    for n in range(3):
        first = field(state, n)
        state = state + (first + field(state + first / 3, n + 1)) / 6
    torch.testing.assert_close(net(x), net.head(state), rtol=0, atol=1e-13)
    assert net.block.gradient == Checkpoint()


def test_gain_multiplies_the_initial_weights_and_nothing_else():
    nets = []
    for gain in (1.0, 3.0):
        with seeded(0):
            sizes = {"width": 4, "hidden": 7, "layers": 2}
            nets.append(ResidualMLP(6, 3, **sizes, tied=False, scaled=True, gain=gain))
    for (name, one), three in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        expected = 3 * one if name.startswith("block") else one
        torch.testing.assert_close(three, expected)
