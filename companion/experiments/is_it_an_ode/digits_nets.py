"""Small networks trained on digits: what the experiments on the distance to an ODE share."""

import torch
from torch import Tensor

from companion.experiments import Part
from companion.experiments.gradient_rules import layer_rates
from companion.experiments.recipes import classification_loss
from companion.models import ResidualMLP
from companion.train import fit, seeded, step_decay

_RATE = 0.05


def train_perceptron(
    part: Part, x: Tensor, y: Tensor, *, layers: int, scaled: bool, equal: bool, seed: int,
    epochs: int,
) -> ResidualMLP:  # fmt: skip
    """Return a trained residual perceptron with a state of 8 and 16 hidden units in a layer.

    With the factor 1/N a layer's gradient is of size 1/N. Its learning rate has the factor N then,
    which keeps the pace of its weights at any depth, as in the rescaled gradient flow of Sander et
    al. 2022, Section 3.2. Initial weights are ``equal`` in all layers, or drawn independently.
    """
    with seeded(seed):
        net = ResidualMLP(64, 10, width=8, hidden=16, layers=layers, tied=False, scaled=scaled)
    if equal:
        with torch.no_grad():
            for weight in net.block.parameters():
                weight.copy_(weight[:1].expand_as(weight).clone())
    net = net.to(x.device)
    fit(
        net, classification_loss, (x, y),
        optimiser=layer_rates(net, _RATE, layers if scaled else 1), epochs=epochs, batch_size=64,
        generator=torch.Generator().manual_seed(seed), schedule=step_decay(0.7), clip=5.0,
        snapshot=part.snapshot, report=part.report,
    )  # fmt: skip
    part.keep(net)
    return net
