"""torchvision's names and layers, written down here: it is not installed."""

import pytest
import torch
from loops import loop
from torch import nn

from companion.models import ResNet, load_torchvision, resnet
from companion.train import seeded


def basic(inputs, width, stride):
    layer = nn.Module()
    layer.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
    layer.bn1 = nn.BatchNorm2d(width)
    layer.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    layer.bn2 = nn.BatchNorm2d(width)
    return layer, width


def bottleneck(inputs, width, stride):
    layer = nn.Module()
    layer.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
    layer.bn1 = nn.BatchNorm2d(width)
    layer.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
    layer.bn2 = nn.BatchNorm2d(width)
    layer.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
    layer.bn3 = nn.BatchNorm2d(4 * width)
    return layer, 4 * width


class Torchvision(nn.Module):
    """The network of torchvision, in its names and its order of operations."""

    def __init__(self, layers, kind, classes=7, width=8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for k, count in enumerate(layers):
            stage = nn.Sequential()
            for i in range(count):
                stride = 2 if i == 0 and k > 0 else 1
                layer, outputs = kind(channels, width * 2**k, stride)
                if stride != 1 or channels != outputs:
                    layer.downsample = nn.Sequential(
                        nn.Conv2d(channels, outputs, 1, stride, bias=False),
                        nn.BatchNorm2d(outputs),
                    )
                stage.append(layer)
                channels = outputs
            self.add_module(f"layer{k + 1}", stage)
        self.fc = nn.Linear(channels, classes)
        for name, x in self.state_dict().items():  # no value is one that a fresh network has
            if x.is_floating_point() and ("bn" in name or "downsample.1" in name):
                x.copy_(torch.rand_like(x) + 0.5)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for k in range(1, 5):
            for layer in getattr(self, f"layer{k}"):
                y = layer.bn2(layer.conv2(torch.relu(layer.bn1(layer.conv1(x)))))
                if hasattr(layer, "conv3"):
                    y = layer.bn3(layer.conv3(torch.relu(y)))
                x = torch.relu(y + (layer.downsample(x) if hasattr(layer, "downsample") else x))
        return self.fc(x.mean((2, 3)))


KNOBS = {"stem": "imagenet", "classes": 7, "width": 8, "rule": "original"}


@loop("kind", [basic, bottleneck])
def test_the_function_is_torchvisions(kind):
    layers, name = (2, 3, 4, 2), kind.__name__
    with seeded(0):
        theirs, ours = Torchvision(layers, kind).double(), ResNet(layers, name, **KNOBS).double()
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    state = theirs.state_dict()
    load_torchvision(ours, state)
    for mode in (False, True):
        torch.testing.assert_close(
            ours.train(mode)(x), theirs.train(mode)(x), rtol=1e-9, atol=1e-12
        )
    old = {n: x for n, x in state.items() if "num_batches" not in n}
    again = ResNet(layers, name, **KNOBS).double()
    load_torchvision(again, old)
    assert torch.equal(again.head.weight, theirs.fc.weight)


@loop("depth", [18, 50])
def test_sizes_are_torchvisions(depth):
    kind, layers = {18: (basic, (2, 2, 2, 2)), 50: (bottleneck, (3, 4, 6, 3))}[depth]
    with torch.device("meta"):
        state = Torchvision(layers, kind, classes=1000, width=64).state_dict()
        net = resnet(depth, rule="original", stem="imagenet", classes=1000)
    load_torchvision(net, state)


def test_what_does_not_fit_is_named_and_changes_nothing():
    layers = (2, 2, 2, 2)
    with seeded(0):
        state, net = Torchvision(layers, basic).state_dict(), ResNet(layers, **KNOBS)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    for wrong, message in {
        "cut": r"no fc.bias; resnet\(depth, rule='original'",
        "more": r"layer5.weight, which it does not have; resnet",
        "shape": r"conv1.weight of shape \(8, 3, 3, 3\), not \(8, 3, 7, 7\); resnet",
    }.items():
        bad = dict(state)
        if wrong == "cut":
            del bad["fc.bias"]
        elif wrong == "more":
            bad["layer5.weight"] = torch.zeros(1)
        else:
            bad["conv1.weight"] = torch.zeros(8, 3, 3, 3)
        with pytest.raises(ValueError, match=message):
            load_torchvision(net, bad)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    deeper = ResNet((2, 2, 2, 3), **KNOBS)
    with pytest.raises(ValueError, match=r"no layer4.2.bn1.bias.* and 6 more"):
        load_torchvision(deeper, state)
    for other in ({"rule": "classic"}, {"rule": "classic", "method": "heun"}, {"tied": True}):
        with pytest.raises(ValueError, match=r"net: stage .* another function"):
            load_torchvision(ResNet((3, 3, 3, 3), **(KNOBS | other)), state)
    with pytest.raises(TypeError, match="net: "):
        load_torchvision(nn.Linear(2, 2), state)
