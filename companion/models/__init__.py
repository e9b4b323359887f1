"""Models: one file each."""

from companion.block import ode_blocks
from companion.models.continuous_mlp import ContinuousMLP
from companion.models.continuous_net import (
    ContinuousNet,
    pre_activation_unit,
    wide_continuous_net,
)
from companion.models.graphs import ContinuousModel, graph_summary, with_graph
from companion.models.layers import layer_weights
from companion.models.members import Members
from companion.models.ode_net import Augment, ODENet, residual_layers
from companion.models.one_step import OneStepNet, TanhField
from companion.models.residual_conv import ResidualConvNet
from companion.models.residual_mlp import ResidualMLP
from companion.models.resnets import ResNet, resnet
from companion.models.saving import load, save
from companion.models.skip_init import SkipInit
from companion.models.stitch import Stitch
from companion.models.tanh_mlp import TanhMLP
from companion.models.time_fields import ConvField, SecondOrder, TimeConv
from companion.models.torchvision_weights import load_torchvision
from companion.models.transfer import deepen, train_only, untie
from companion.plain_layers import apply_to_layers

__all__ = [
    "Augment",
    "ContinuousMLP",
    "ContinuousModel",
    "ContinuousNet",
    "ConvField",
    "Members",
    "ODENet",
    "OneStepNet",
    "ResNet",
    "ResidualConvNet",
    "ResidualMLP",
    "SecondOrder",
    "SkipInit",
    "Stitch",
    "TanhField",
    "TanhMLP",
    "TimeConv",
    "apply_to_layers",
    "deepen",
    "graph_summary",
    "layer_weights",
    "load",
    "load_torchvision",
    "ode_blocks",
    "pre_activation_unit",
    "residual_layers",
    "resnet",
    "save",
    "train_only",
    "untie",
    "wide_continuous_net",
    "with_graph",
]
