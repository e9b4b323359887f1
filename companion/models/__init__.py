"""Models: one file each."""

from companion.models.residual_mlp import ResidualMLP

__all__ = ["ResidualMLP"]
