"""Convolutional residual networks against the same networks written out with functions."""

import copy

import pytest
import torch
from sample_nets import images, scrambled
from torch import nn
from torch.nn import functional

from companion import OdeBlock, PiecewiseConstant, PiecewiseLinear
from companion.models import (
    ResidualConvNet,
    ResidualMLP,
    ResNet,
    deepen,
    layer_weights,
    ode_blocks,
    resnet,
    train_only,
    untie,
)
from companion.models.layers import PostActivation, basic_branch, bottleneck_branch, pre_activation
from companion.train import seeded

CONVS = {
    "basic": (("conv1", 1), ("conv2", 1)),
    "bottleneck": (("conv1", 0), ("conv2", 1), ("conv3", 0)),
}


class Written:
    """A network from functions alone, on copies of a model's tensors, which its norms update."""

    def __init__(self, model):
        self.training = model.training
        self.tensors = {name: t.detach().clone() for name, t in model.state_dict().items()}

    def get(self, prefix, leaf, row):
        tensor = self.tensors[f"{prefix}.{leaf}"]
        return tensor if row is None else tensor[row]

    def conv(self, x, prefix, row=None, stride=1, padding=1):
        return functional.conv2d(x, self.get(prefix, "weight", row), None, stride, padding)

    def norm(self, x, prefix, row=None):
        if self.training:
            self.get(prefix, "num_batches_tracked", row).add_(1)
        return functional.batch_norm(
            x,
            *(
                self.get(prefix, leaf, row)
                for leaf in ("running_mean", "running_var", "weight", "bias")
            ),
            self.training,
            0.1,
            1e-5,
        )

    def linear(self, x, prefix):
        return x @ self.get(prefix, "weight", None).T + self.get(prefix, "bias", None)

    def branch(self, x, prefix, kind, row=None, stride=1):
        """Convolutions and norms of one layer, without a ReLU before or after them."""
        for i, (name, padding) in enumerate(CONVS[kind], start=1):
            x = x if i == 1 else torch.relu(x)
            step = stride if name == ("conv1" if kind == "basic" else "conv2") else 1
            x = self.norm(
                self.conv(x, f"{prefix}.{name}", row, step, padding), f"{prefix}.norm{i}", row
            )
        return x


def write_conv_net(model, x, sets, step, heun):
    """Return the logits of a ``ResidualConvNet``, from the list of sets that the layers read."""
    net = Written(model)
    stride, pool = (3, 4) if x.shape[-1] == 32 else (2, 2)
    x = torch.relu(net.norm(net.conv(x, "stem.0", stride=stride), "stem.1"))

    def f(x, k):
        return net.branch(torch.relu(x), "block.weights.stacks", "basic", sets[k])

    for n in range(len(sets) - heun):
        if heun:
            first = f(x, n)
            x = x + step / 2 * (first + f(x + step * first, n + 1))
        else:
            x = x + step * f(x, n)
    return net, net.linear(functional.avg_pool2d(x, pool).flatten(1), "head.2")


def assert_same(model, x, written, logits):
    torch.testing.assert_close(model(x), logits, rtol=0, atol=1e-12)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, written.tensors[name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("kind", ["cifar", "digits"])
def test_the_conv_net_is_the_written_out_network(kind, method, tied, training):
    """Logits and, in training mode, every running statistic after the pass."""
    layers, heun = 3, method == "heun"
    net = scrambled(ResidualConvNet(layers, images=kind, channels=4, tied=tied, method=method))
    net.train(training)
    x = images(5, 3, 32, 32) if kind == "cifar" else images(5, 1, 8, 8)
    sets = [0 if tied else n for n in range(layers + heun)]
    written, logits = write_conv_net(net, x, sets, 1 / layers, heun)
    assert_same(net, x, written, logits)


def test_the_scale_is_a_factor_of_the_residual():
    net = scrambled(ResidualConvNet(3, images="digits", channels=4, scale=3.0))
    x = images(5, 1, 8, 8)
    written, logits = write_conv_net(net, x, range(3), 1.0, heun=False)
    assert_same(net, x, written, logits)


def test_the_published_heun_net_has_a_step_of_one_over_the_number_of_sets():
    functions = 4
    net = ResidualConvNet(
        functions - 1, images="digits", channels=4, method="heun", scale=(functions - 1) / functions
    )
    assert net.block.weights.basis.size == functions
    scrambled(net)
    x = images(5, 1, 8, 8)
    written, logits = write_conv_net(net, x, range(functions), 1 / functions, heun=True)
    assert_same(net, x, written, logits)


def test_the_paper_s_sizes():
    """16 channels on 10 by 10 pixels, 64 numbers into the head; by hand the parameter count."""
    net = ResidualConvNet(7)
    x = torch.zeros(2, 3, 32, 32)
    assert net.stem(x).shape == (2, 16, 10, 10)
    layer = 2 * (16 * 16 * 9 + 2 * 16)
    expected = 3 * 16 * 25 + 2 * 16 + 7 * layer + 64 * 10 + 10
    assert sum(p.numel() for p in net.parameters()) == expected


def test_every_layer_is_drawn_anew_and_starts_as_the_identity():
    net = ResidualConvNet(3, images="digits").eval()
    conv = net.get_parameter("block.weights.stacks.conv1.weight")
    assert len({row.sum().item() for row in conv}) == 3
    assert conv.std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.05)
    state = net.stem(torch.randn(2, 1, 8, 8))
    assert torch.equal(net.block(state), state)


# Heun and running statistics


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "reconstruct", "adjoint"])
def test_heun_s_sets_lie_in_cells_of_their_own(gradient):
    """The same function and gradients as with nodes, to the bit, without running statistics."""
    modules = [nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(8)]
    x = torch.randn(4, 3)
    for layers in range(1, 8):
        results = []
        for basis in (layer_weights(layers, "heun"), PiecewiseLinear(layers)):
            block = OdeBlock.from_modules(
                modules[: layers + 1], basis=basis, method="heun", steps=layers, gradient=gradient
            )
            y = block(x)
            y.square().sum().backward()
            results.append([y, *(p.grad for p in block.parameters())])
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_heun_s_statistics_belong_to_the_parameters_that_made_them():
    """One set of statistics for both ends of a step would mix those of two convolutions."""
    layers = 4
    x = torch.randn(64, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    gaps = []
    for basis in (layer_weights(layers, "heun"), PiecewiseLinear(layers)):
        with seeded(0):
            block = OdeBlock(lambda: pre_activation(basic_branch(4, 4)), basis, "heun", layers)
        nn.init.ones_(block.get_parameter("weights.stacks.norm2.weight"))
        with torch.no_grad():
            for _ in range(60):
                in_training = block(x)
            gap = block.eval()(x) - in_training
        gaps.append((gap.norm() / (in_training - x).norm()).item())
    assert gaps[0] < 0.05
    assert gaps[1] > 0.2


# The layers' parts


def test_norms_before_the_relu_would_never_learn():
    """A last norm of zeros passes no gradient through a ReLU; ours passes it on."""
    x = torch.randn(8, 4, 5, 5)
    ours = pre_activation(basic_branch(4, 4))
    usual = nn.Sequential(
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
    )
    nn.init.zeros_(usual[3].weight)
    for module, alive in ((ours, True), (usual, False)):
        (module(x) * torch.randn(x.shape)).sum().backward()
        assert any(p.grad.any() for p in module.parameters()) == alive


@pytest.mark.parametrize(("branch", "outputs"), [(basic_branch, 4), (bottleneck_branch, 16)])
def test_post_activation_is_one_layer_of_the_first_residual_networks(branch, outputs):
    layer = scrambled(PostActivation(branch(outputs, 4)))
    plain = copy.deepcopy(layer)
    x = images(3, outputs, 5, 5)
    y = x
    for module in plain.children():
        y = module(y)
    torch.testing.assert_close(x + layer(x), torch.relu(x + y), rtol=0, atol=1e-14)


# The ResNet family


@pytest.mark.parametrize(
    ("depth", "count"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_parameter_counts_are_those_of_torchvision(depth, count):
    with torch.device("meta"):
        nets = [
            resnet(depth, stem="imagenet", classes=1000, rule=r) for r in ("scaled", "original")
        ]
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [count, count]


def write_resnet(model, x, kind, layers, rule, stem, sets=None):
    net = Written(model)
    large = stem == "imagenet"
    x = net.conv(x, "stem.0", stride=2 if large else 1, padding=3 if large else 1)
    x = torch.relu(net.norm(x, "stem.1"))
    x = functional.max_pool2d(x, 3, 2, 1) if large else x
    for k, count in enumerate(layers):
        stage, stride = f"stages.{k}", 1 if k == 0 else 2
        shortcut = x
        if f"{stage}.first.shortcut.0.weight" in net.tensors:
            shortcut = net.conv(x, f"{stage}.first.shortcut.0", stride=stride, padding=0)
            shortcut = net.norm(shortcut, f"{stage}.first.shortcut.1")
        x = torch.relu(shortcut + net.branch(x, f"{stage}.first.branch", kind, stride=stride))
        for n in range(count - 1):
            row = n if sets is None else sets[n]
            entry = x if rule == "original" else torch.relu(x)
            f = net.branch(entry, f"{stage}.block.weights.stacks", kind, row)
            if rule == "original":
                x = torch.relu(x + f)
            else:
                x = x + (f / (count - 1) if rule == "scaled" else f)
        x = torch.relu(x)
    return net, net.linear(x.mean((2, 3)), "head")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rule", ["scaled", "classic", "original"])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_resnet_is_the_written_out_network(stem, kind, rule, training):
    """Logits and running statistics; with the rule "original" that is the net of He et al."""
    layers = (2, 4, 3)
    net = scrambled(ResNet(layers, kind, stem=stem, width=4, classes=7, rule=rule))
    net.train(training)
    x = images(4, 3, 33, 33)
    assert_same(net, x, *write_resnet(net, x, kind, layers, rule, stem))


def test_shortcuts_are_convolutions_only_where_the_shape_changes():
    basic, bottleneck = ResNet((2, 2), width=4), ResNet((2, 2), "bottleneck", width=4)
    assert [len(stage.first.shortcut) for stage in basic.stages] == [0, 2]
    assert [len(stage.first.shortcut) for stage in bottleneck.stages] == [2, 2]


def test_a_tied_resnet_has_one_set_a_stage_besides_the_first_layer():
    net = scrambled(ResNet((4, 3), width=4, tied=True))
    x = images(4, 3, 16, 16)
    assert_same(net, x, *write_resnet(net, x, "basic", (4, 3), "scaled", "cifar", sets=[0, 0, 0]))


def test_known_depths():
    assert [stage.block.steps for stage in resnet(101, width=2).stages] == [2, 3, 22, 2]
    with torch.device("meta"):
        layers = [
            2 + sum(3 * (s.block.steps + 1) for s in resnet(d).stages) for d in (50, 101, 152)
        ]
    assert layers == [50, 101, 152]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (2, 1)}, r"layers: \(2, 1\) is not allowed"),
        ({"layers": ()}, r"layers: \(\) is not allowed"),
        ({"layers": (2, 2.5)}, r"layers: \(2, 2\.5\) is not allowed"),
        ({"layers": (True, 2)}, r"layers: \(True, 2\) is not allowed"),
        ({"width": 0}, "width: 0 is not allowed; it must be an integer of at least 1"),
        ({"width": 2.5}, r"width: 2\.5 is not allowed"),
        ({"classes": 0}, "classes: 0 is not allowed"),
        ({"classes": -1}, "classes: -1 is not allowed"),
        ({"inputs": 0}, "inputs: 0 is not allowed"),
        ({"kind": ["basic"]}, r"kind: \['basic'\] .* one of basic, bottleneck"),
        ({"kind": "wide"}, "kind: 'wide' is not allowed; it must be one of basic, bottleneck"),
        ({"stem": "mnist"}, "stem: 'mnist' is not allowed; it must be one of cifar, imagenet"),
        ({"rule": "plain"}, r"rule: 'plain' .* one of scaled, classic, original"),
        ({"rule": "original", "method": "heun"}, "'original' with method='heun' is not allowed"),
        (
            {"rule": "original", "gradient": "reconstruct"},
            "cannot be undone; use gradient='backprop'",
        ),
    ],
)
def test_bad_resnets(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**{"layers": (2, 2), "width": 4, **options})


def test_other_bad_arguments():
    with pytest.raises(ValueError, match=r"depth: 20 .* one of 18, 34, 50, 101, 152"):
        resnet(20)
    with pytest.raises(ValueError, match=r"images: 'mnist' .* one of cifar, digits"):
        ResidualConvNet(2, images="mnist")
    for layers in (0, True, 2.0):
        with pytest.raises(ValueError, match=f"layers: {layers!r} is not allowed"):
            ResidualConvNet(layers)
    for name in ("channels", "classes"):
        with pytest.raises(ValueError, match=f"{name}: 0 is not allowed"):
            ResidualConvNet(2, **{name: 0})
    sizes = {"inputs": 2, "classes": 2, "width": 2, "hidden": 2, "layers": 2}
    for name in sizes:
        with pytest.raises(ValueError, match=rf"{name}: 2\.5 is not allowed"):
            ResidualMLP(**{**sizes, name: 2.5}, tied=True, scaled=True)
    with pytest.raises(TypeError, match="layers: 3 is not allowed; give the number of layers of"):
        ResNet(3)
    with pytest.raises(TypeError, match="kind: 'basic' is not allowed; the depth decides"):
        resnet(18, kind="basic")
    with pytest.raises(TypeError, match=r"layers: \(2, 2\) is not allowed; the depth decides"):
        resnet(18, layers=(2, 2))


# Any gradient: same loss, same statistics


def stepped(net, gradient, x, y):
    """Return the loss before one step of training, and the network after it."""
    net = copy.deepcopy(net)
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, OdeBlock):
                setattr(module, name, child.with_graph(gradient=gradient))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = functional.cross_entropy(net(x), y)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    optimiser.step()
    return loss.item(), gradients, dict(net.named_buffers())


def nets():
    with seeded(3):
        yield ResidualConvNet(4, images="digits", channels=4), (1, 8, 8)
        yield ResidualConvNet(4, images="digits", channels=4, tied=True, method="heun"), (1, 8, 8)
        yield ResidualConvNet(4, images="digits", channels=4, method="heun"), (1, 8, 8)
        yield ResNet((3, 5), width=4), (3, 8, 8)


@pytest.mark.parametrize("net", range(4))
def test_every_gradient_sees_the_same_loss_and_leaves_the_same_statistics(net):
    model, shape = list(nets())[net]
    scrambled(model)
    x, y = images(6, *shape), torch.arange(6) % 10
    loss, exact, buffers = stepped(model, "backprop", x, y)
    for gradient in ("checkpoint", "reconstruct"):
        other, gradients, others = stepped(model, gradient, x, y)
        assert other == loss
        for name, buffer in buffers.items():
            assert torch.equal(others[name], buffer), name
        assert gradients.keys() == exact.keys()
        if gradient == "checkpoint":
            for name, value in exact.items():
                torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-12, msg=name)


def test_the_reversible_scheme_has_exact_gradients_here_too():
    with seeded(3):
        model = ResNet((3, 5), width=4, method="async_leapfrog")
    scrambled(model)
    x, y = images(6, 3, 8, 8), torch.arange(6)
    loss, exact, buffers = stepped(model, "backprop", x, y)
    other, gradients, others = stepped(model, "reversible", x, y)
    assert other == loss
    for name, value in exact.items():
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-10, msg=name)
    for name, buffer in buffers.items():
        assert torch.equal(others[name], buffer), name


@pytest.mark.parametrize("gradient", ["backprop", "reconstruct"])
def test_the_state_keeps_full_precision_under_autocast(gradient):
    """Steps smaller than the spacing of half precision would be rounded away."""
    with seeded(0):
        models = [
            (ResidualConvNet(3, images="digits", gradient=gradient), (1, 8, 8)),
            (ResNet((3, 3), width=4, gradient=gradient), (3, 8, 8)),
        ]
    for net, shape in models:
        seen = []

        def record(block, args, out, seen=seen):
            seen.extend([args[0], out])

        for block in ode_blocks(net):
            block.register_forward_hook(record)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(torch.randn(2, *shape))
        logits.float().sum().backward()
        assert len(seen) == 2 * len(ode_blocks(net))
        assert all(state.dtype == torch.float32 for state in seen)
        assert all(p.grad is not None for p in net.parameters())


# Transfer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_a_deeper_tied_net_takes_more_steps_with_the_same_weights(method, training):
    net = scrambled(ResidualConvNet(2, images="digits", channels=4, tied=True, method=method))
    deeper = deepen(net.train(training), 5)
    x = images(5, 1, 8, 8)
    heun = method == "heun"
    written, logits = write_conv_net(deeper, x, [0] * (5 + heun), 1 / 5, heun)
    assert_same(deeper, x, written, logits)
    assert net.block.steps == 2


def test_deepen_takes_one_number_a_block():
    net = ResNet((4, 4, 4, 4), "bottleneck", width=2, tied=True)
    deeper = deepen(net, (3, 3, 63, 3))
    assert [block.steps for block in ode_blocks(deeper)] == [3, 3, 63, 3]
    assert [block.steps for block in ode_blocks(net)] == [3, 3, 3, 3]
    for (name, value), (other, same) in zip(
        net.state_dict().items(), deeper.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(value, same)
        assert value.data_ptr() != same.data_ptr()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", ["euler", "heun", "midpoint"])
def test_an_untied_net_computes_the_same_bits(method, training):
    net = scrambled(ResidualConvNet(4, images="digits", channels=4, tied=True, method=method))
    free = untie(net.train(training))
    assert free.training == training
    sets = 5 if method == "heun" else 4
    assert free.block.weights.basis == PiecewiseConstant(sets)
    copies = free.state_dict()
    for name, value in net.state_dict().items():
        tied = name.startswith("block")
        assert torch.equal(copies[name], value.expand(sets, *value.shape[1:]) if tied else value)
    x = images(5, 1, 8, 8)
    assert torch.equal(free(x), net(x))


def test_untied_layers_learn_apart_and_count_their_own_batches():
    net = scrambled(ResidualConvNet(4, images="digits", channels=4, tied=True))
    free = untie(net)
    functional.cross_entropy(free(images(6, 1, 8, 8)), torch.arange(6)).backward()
    gradient = free.get_parameter("block.weights.stacks.conv1.weight").grad
    assert not torch.equal(gradient[0], gradient[3])
    functional.cross_entropy(net(images(6, 1, 8, 8)), torch.arange(6)).backward()
    tied = net.get_parameter("block.weights.stacks.conv1.weight").grad
    torch.testing.assert_close(gradient.sum(0), tied[0], rtol=0, atol=1e-12)
    assert free.get_buffer("block.weights.stacks.norm1.num_batches_tracked").tolist() == [1] * 4
    assert net.get_buffer("block.weights.stacks.norm1.num_batches_tracked").tolist() == [4]


def test_a_perceptron_can_be_deepened_and_untied():
    net = ResidualMLP(6, 3, width=4, hidden=5, layers=2, tied=True, scaled=True)
    deep = deepen(net, 8)
    x = torch.randn(3, 6)
    assert torch.equal(untie(deep)(x), deep(x))


def test_only_some_blocks_are_untied_and_only_some_parts_trained():
    tied = scrambled(ResNet((2, 2, 2), width=4, tied=True))
    net = untie(deepen(tied, (1, 6, 1)), which=[1])
    assert [block.weights.basis.size for block in ode_blocks(net)] == [1, 6, 1]
    tuned = train_only(net, net.stages[1].block)
    assert {id(p) for p in tuned} == {id(p) for p in net.stages[1].block.parameters()}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    loss = functional.cross_entropy(net(images(4, 3, 16, 16)), torch.arange(4))
    loss.backward()
    torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1).step()
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]) == (not name.startswith("stages.1.block")), name
    assert all(p.requires_grad for p in train_only(net, net))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: deepen(net, (1, 2, 3)), "steps: 3 numbers do not fit 2 blocks"),
        (lambda net: deepen(net, 0), "steps: 0 is not allowed"),
        (lambda net: deepen(net, (2.5, 2)), r"steps: 2\.5 is not allowed; it must be an integer"),
        (lambda net: deepen(net, True), "steps: True is not allowed"),
        (lambda net: deepen(net, 2.0), r"steps: 2\.0 is not allowed"),
        (lambda net: deepen(net, None), "steps: None is not allowed"),
        (lambda net: deepen(net, "ab"), "steps: 'a' is not allowed"),
        (lambda net: deepen(untie(net), 4), r"block 0 has PiecewiseConstant\(cells=2\)"),
        (lambda net: untie(net, which=[2]), "which: 2 is not allowed; the model has 2 blocks"),
        (lambda net: untie(net, which=[-1]), "which: -1 is not allowed"),
        (lambda net: untie(net, ("a",)), "which: 'a' is not allowed; the model has 2 blocks"),
        (lambda net: untie(net, (1.5,)), r"which: 1\.5 is not allowed"),
        (lambda net: untie(net, (True,)), "which: True is not allowed"),
        (lambda net: train_only(net), "parts: none is not allowed"),
        (
            lambda net: untie(untie(net)),
            r"block 0 has PiecewiseConstant\(cells=2\); it is not tied",
        ),
        (lambda net: train_only(net, nn.Linear(1, 1)), "parts: a Linear has no parameters"),
    ],
)
def test_bad_transfers(change, message):
    net = ResNet((3, 3), width=2, tied=True)
    with pytest.raises(ValueError, match=message):
        change(net)
    assert all(p.requires_grad for p in net.parameters())


def test_transfers_of_something_else():
    net = ResNet((3, 3), width=2, tied=True)
    with pytest.raises(TypeError, match=r"which: 5 is not allowed; give positions.*or None"):
        untie(net, 5)
    with pytest.raises(TypeError, match=r"parts: 'stages\.0' is not allowed; give modules"):
        train_only(net, "stages.0")
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("which", [None, [0], [2]])
def test_blocks_that_share_their_weights_are_not_untied(which):
    block = OdeBlock(nn.Linear(2, 2), steps=2)
    net = nn.Sequential(block, OdeBlock(nn.Linear(2, 2), steps=3), block.with_graph(steps=4))
    with pytest.raises(ValueError, match=r"blocks 0 and 2 share their weights.*deepcopy"):
        untie(net, which)
    assert [b.weights.basis.size for b in ode_blocks(untie(net, [1]))] == [1, 3, 1]
    net[2] = copy.deepcopy(net[2])  # as the message says
    x = torch.randn(3, 2)
    assert [b.weights.basis.size for b in ode_blocks(untie(net))] == [2, 3, 4]
    assert torch.equal(untie(net)(x), net(x))


def test_recipes_that_walk_over_modules_see_a_residual_only_before_its_block():
    """What the docstring of ResNet says about synchronised norms, initialisers and modes."""
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    block = OdeBlock(nn.BatchNorm2d(2), steps=2)
    assert isinstance(convert(block).weights.template, nn.BatchNorm2d)
    before = OdeBlock(convert(nn.BatchNorm2d(2)), steps=2)
    assert isinstance(before.weights.template, nn.SyncBatchNorm)
    seen = []
    block.apply(lambda module: seen.append(isinstance(module, nn.BatchNorm2d)))
    assert not any(seen)
    assert not nn.Sequential(block).eval()[0].weights.template.training


def test_untied_layers_may_keep_their_number():
    net = ResNet((3, 2), width=2)
    assert [block.steps for block in ode_blocks(deepen(net, (2, 1)))] == [2, 1]
