"""Models: one file each."""

from companion.models.continuous_mlp import ContinuousMLP
from companion.models.layers import layer_weights
from companion.models.residual_conv import ResidualConvNet
from companion.models.residual_mlp import ResidualMLP
from companion.models.resnets import ResNet, resnet
from companion.models.transfer import deepen, ode_blocks, train_only, untie

__all__ = [
    "ContinuousMLP",
    "ResNet",
    "ResidualConvNet",
    "ResidualMLP",
    "deepen",
    "layer_weights",
    "ode_blocks",
    "resnet",
    "train_only",
    "untie",
]
