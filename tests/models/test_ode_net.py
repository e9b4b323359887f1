"""The ODE-Net and its fields against functions written out, and its counts against the paper's."""

import math

import pytest
import torch
from sample_nets import images, scrambled
from torch import nn
from torch.nn import functional

from companion import OdeBlock, counting, odeint
from companion.models import (
    Augment,
    ConvField,
    ODENet,
    SecondOrder,
    TanhMLP,
    TimeConv,
    load,
    residual_layers,
    save,
)
from companion.train import seeded

F64 = torch.float64
SMALL = {"inputs": 2, "channels": 4, "classes": 3, "halvings": 1}
TOLERANCES = {"rtol": 1e-3, "atol": 1e-3}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def small_net(block):
    return scrambled(ODENet(block, **SMALL))


def ode_block(channels, **options):
    return OdeBlock(ConvField(channels), time=True, **options)


def test_parameters_are_those_of_the_public_example():
    """Chen et al. 2018: 0.22 M and 0.60 M; their code has 208,266 and 576,778."""
    knobs = {"method": "dopri5", **TOLERANCES, "gradient": "adjoint"}
    assert parameters(ODENet(ode_block(64, **knobs))) == 208_266
    assert parameters(ODENet(ode_block(64, method="rk4", steps=4))) == 208_266
    assert parameters(ODENet(residual_layers(64))) == 576_778
    stem = 640 + 128 + 65_600 + 128 + 65_600
    assert parameters(ODENet(nn.Identity())) == stem + 128 + 650


def test_the_residual_net_is_the_plain_formula():
    """Six layers x + f(x), each with its own weights, bit for bit."""
    net = small_net(residual_layers(4))
    x = images(5, 2, 8, 8)
    rows = {name: p.detach() for name, p in net.block.weights.stacks.named_parameters()}
    y = net.stem(x)
    for n in range(6):
        z = functional.group_norm(y, 2, rows["norm1.weight"][n], rows["norm1.bias"][n])
        z = functional.conv2d(torch.relu(z), rows["conv1.weight"][n], padding=1)
        z = functional.group_norm(z, 2, rows["norm2.weight"][n], rows["norm2.bias"][n])
        y = y + functional.conv2d(torch.relu(z), rows["conv2.weight"][n], padding=1)
    assert torch.equal(net(x), net.head(y))


def written_field(field, t, x):
    """The published field: a constant image of the time in front, norms before, between, behind."""

    def norm(layer, x):
        return functional.group_norm(x, 2, layer.weight, layer.bias)

    def conv(layer, x):
        time = torch.full_like(x[:, :1], t)
        return functional.conv2d(
            torch.cat([time, x], 1), layer.conv.weight, layer.conv.bias, padding=1
        )

    x = conv(field.conv1, torch.relu(norm(field.norm1, x)))
    return norm(field.norm3, conv(field.conv2, torch.relu(norm(field.norm2, x))))


def test_the_field_is_the_published_one():
    field, x = scrambled(ConvField(4)), images(3, 4, 5, 5)
    expected = written_field(field, 0.7, x)
    torch.testing.assert_close(field(torch.tensor(0.7, dtype=F64), x), expected)
    assert not torch.allclose(field(torch.tensor(0.1, dtype=F64), x), expected)  # time matters


def test_the_rk_net_takes_rk4_steps_of_the_field():
    field = scrambled(ConvField(4))
    net = small_net(ode_block(4, method="rk4", steps=2))
    values = {name: p[0] for name, p in net.block.weights.stacks.named_parameters()}
    field.load_state_dict(values)
    x = images(2, 2, 8, 8)
    y, h = net.stem(x), 0.5
    for t in (0.0, 0.5):
        k1 = written_field(field, t, y)
        k2 = written_field(field, t + h / 2, y + h / 2 * k1)
        k3 = written_field(field, t + h / 2, y + h / 2 * k2)
        k4 = written_field(field, t + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    torch.testing.assert_close(net(x), net.head(y))


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
@pytest.mark.parametrize(
    "knobs", [{"method": "rk4", "steps": 40}, {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9}]
)
def test_gradients_of_all_methods_are_those_of_backprop(gradient, knobs):
    """Checkpoints to rounding, the adjoint as far as the solve is exact.

    The ReLUs are kinks: without the smoother field the adjoint would be off by the solver's error.
    """

    def gradients(how):
        with seeded(0):
            net = ODENet(OdeBlock(Smooth(4), time=True, gradient=how, **knobs), **SMALL).double()
        net(images(2, 2, 6, 6)).square().sum().backward()
        return [p.grad for p in net.parameters()]

    rtol = 1e-9 if gradient == "checkpoint" else 1e-5
    for got, expected in zip(gradients(gradient), gradients("backprop"), strict=True):
        torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol)


class Smooth(nn.Module):
    """A time-aware field without a kink."""

    def __init__(self, channels):
        super().__init__()
        self.conv = TimeConv(channels, channels)

    def forward(self, t, x):
        return torch.tanh(self.conv(t, x))


def test_the_control_is_stem_and_head():
    net = small_net(nn.Identity())
    x = images(2, 2, 8, 8)
    assert torch.equal(net(x), net.head(net.stem(x)))


def test_images_of_mnist_and_of_digits_fit():
    assert ODENet(nn.Identity()).stem(torch.zeros(1, 1, 28, 28)).shape == (1, 64, 6, 6)
    small = ODENet(nn.Identity(), channels=16, halvings=1)
    assert small.stem(torch.zeros(1, 1, 8, 8)).shape == (1, 16, 3, 3)
    assert small(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("field", [ConvField(4), TanhMLP(4, (6, 6))], ids=["images", "vectors"])
def test_a_time_for_each_sample_is_read_by_that_sample(field):
    shape = (3, 4, 2, 2) if isinstance(field, ConvField) else (3, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.5, 0.9]).view(3, *(1,) * (len(shape) - 1))
    alone = [field(t[k].reshape(()), x[k : k + 1]) for k in range(3)]
    torch.testing.assert_close(field(t, x), torch.cat(alone))


def test_the_perceptron_is_its_formula():
    field = scrambled(TanhMLP(2, (3, 3)))
    t, x = torch.tensor(0.3, dtype=F64), images(4, 2)
    rows = torch.cat([torch.full((4, 1), 0.3, dtype=F64), x], dim=1)
    inner = torch.tanh(rows @ field.first.weight.T + field.first.bias)
    inner = torch.tanh(inner @ field.second.weight.T + field.second.bias)
    torch.testing.assert_close(field(t, x), inner @ field.last.weight.T + field.last.bias)


class Spring(nn.Module):
    def forward(self, t, x):
        return -4 * x[:, :2]


def test_a_block_of_second_order_swings():
    """q'' = -4 q: q(1) = q0 cos 2 + v0/2 sin 2."""
    start = torch.tensor([[1.0, -0.5, 0.4, 2.0]], dtype=F64)
    block = OdeBlock(SecondOrder(Spring()), method="dopri5", time=True).double()
    end = block(start)
    q, v = start[:, :2], start[:, 2:]
    cos, sin = math.cos(2), math.sin(2)
    torch.testing.assert_close(end[:, :2], cos * q + sin / 2 * v, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(end[:, 2:], -2 * sin * q + cos * v, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="even"):
        SecondOrder(Spring())(torch.tensor(0.0), torch.zeros(1, 3))


class Rotation(nn.Module):
    """A half turn in the plane of the first two coordinates: x becomes -x."""

    def forward(self, t, x):
        return math.pi * torch.stack([-x[:, 1], x[:, 0]], dim=1)


def test_an_extra_dimension_lets_x_become_minus_x():
    net = nn.Sequential(Augment(1), OdeBlock(Rotation(), method="dopri5", time=True))
    x = torch.linspace(-1, 1, 5, dtype=F64).unsqueeze(1)
    torch.testing.assert_close(net(x)[:, :1], -x, rtol=1e-6, atol=1e-6)
    assert Augment(2)(torch.ones(1, 3, 4, 4)).shape == (1, 5, 4, 4)
    assert Augment(2)(torch.ones(1, 3, 4, 4))[:, 3:].abs().max() == 0


def test_one_field_alone_and_in_a_block_is_one_solve():
    field = scrambled(TanhMLP(3, (4, 4)))
    x = images(5, 3)
    block = OdeBlock(field, method="dopri5", time=True, **TOLERANCES)
    with counting() as inside:
        y = block(x)
    with counting() as outside:
        z = odeint(field, x, [0.0, 1.0], **TOLERANCES)[-1]
    torch.testing.assert_close(y, z)
    assert inside.nfe == outside.nfe


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvField(0), "channels: 0 is not allowed"),
        (lambda: ConvField(7), "channels: 7 is not allowed; 3 groups must divide it"),
        (lambda: ODENet(nn.Identity(), halvings=-1), "halvings: -1 is not allowed"),
        (lambda: ODENet(nn.Identity(), classes=0), "classes: 0 is not allowed"),
        (lambda: ODENet(nn.Identity(), inputs=0), "inputs: 0 is not allowed"),
        (lambda: residual_layers(8, layers=0), "layers: 0 is not allowed"),
        (lambda: TimeConv(1, 0), "outputs: 0 is not allowed"),
        (lambda: TanhMLP(0, (3, 3)), "width: 0 is not allowed"),
        (lambda: Augment(0), "extra: 0 is not allowed"),
    ],
)
def test_bad_sizes_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("channels", [8.0, True, 0])
@pytest.mark.filterwarnings("error")
def test_channels_are_checked_before_anything_is_made_of_them(channels):
    with pytest.raises(ValueError, match=r"channels: \S+ is not allowed; it must be an integer"):
        ODENet(nn.Identity(), channels=channels)


def test_blocks_that_cannot_run_are_refused_at_once():
    with pytest.raises(TypeError, match=r"block: .* is not allowed; it must be of type Module"):
        ODENet(nn.Identity)
    with pytest.raises(
        ValueError, match=r"block: its field ConvField .* OdeBlock\(field, time=True"
    ):
        ODENet(OdeBlock(ConvField(8), method="rk4", steps=1), channels=8)


def test_accelerations_of_another_shape_are_refused():
    whole = SecondOrder(TanhMLP(4, (3, 3)))
    with pytest.raises(ValueError, match=r"acceleration: it returned shape \(2, 4\).*\(2, 2\)"):
        whole(torch.tensor(0.0), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"x: shape \(4,\) is not allowed"):
        whole(torch.tensor(0.0), torch.zeros(4))


def test_a_trained_net_is_read_back_into_one_made_alike(tmp_path):
    net = small_net(ode_block(4, method="dopri5", gradient="adjoint", **TOLERANCES))
    save(net, tmp_path / "net.pt")
    made = ODENet(ode_block(4, method="rk4", steps=3), **SMALL)
    again = load(tmp_path / "net.pt", made)
    x = images(2, 2, 8, 8)
    assert torch.equal(again(x), net(x))
    assert again.block.method == "dopri5"
