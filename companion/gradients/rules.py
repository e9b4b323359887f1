"""Memory-free rules by one name each: what experiments compare, tables print and records hold."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from companion.gradients.backprop import Backprop
from companion.gradients.reconstruct import Reconstruct
from companion.gradients.reversible import Reversible

__all__ = ["NAMED_RULES", "Rule"]


class Rule(NamedTuple):
    """A scheme and a gradient method for it."""

    method: str
    gradient: Backprop | Reconstruct | Reversible

    @property
    def reference(self) -> str:
        """The name of the rule with backprop to compare training with."""
        return "heun_backprop" if self.method == "heun" else "backprop"


NAMED_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "backprop": Rule("euler", Backprop()),
        "reverse": Rule("euler", Reconstruct(rule="reverse")),
        "sweeps": Rule("euler", Reconstruct(rule="reverse", sweeps=2)),
        "corrected": Rule("euler", Reconstruct(rule="corrected")),
        "predicted": Rule("euler", Reconstruct(rule="predicted")),
        "predicted_2": Rule("euler", Reconstruct(rule="predicted", order=2)),
        "predicted_2_swept": Rule("euler", Reconstruct(rule="predicted", order=2, sweeps=1)),
        "heun_backprop": Rule("heun", Backprop()),
        "heun_reverse": Rule("heun", Reconstruct(rule="reverse")),
        "heun_corrected": Rule("heun", Reconstruct(rule="corrected")),
        "heun_predicted": Rule("heun", Reconstruct(rule="predicted", order=3)),
        "reversible": Rule("async_leapfrog", Reversible()),
    }
)
"""The rules by name: the scheme if not Euler's, the rule, its order if above 1, its sweeps."""
