"""Training by refinement: cells and steps double at preset epochs."""

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from companion.arguments import is_count
from companion.block import ode_blocks, refine
from companion.train.optimiser_state import check_splits, split_optimiser_state

MOMENTUM = ("split", "drop")


@dataclass(frozen=True)
class Refinement:
    r"""When the blocks of a network are refined while it trains, and what becomes of momentum.

    Before each of the epochs ``at``, cells and steps of every
    :class:`~companion.block.OdeBlock` double. Blocks that share weights refine those once, and
    each doubles its own steps. Pass it to :func:`companion.train.fit`.

    Attributes:
        at: numbers of finished epochs, from 1, in rising order. Those that the run does not come
            to have no effect.
        momentum: ``"split"`` refines the optimiser's state with the weights, by
            :func:`~companion.train.split_optimiser_state`; ``"drop"`` begins with an empty state,
            as the paper's optimiser, made anew, does.

    Raises:
        TypeError: ``at`` is no tuple.
        ValueError: ``at`` holds other things than rising integers of at least 1, or another name
            for ``momentum``.

    Source:
        Queiruga et al. 2020, section 4 ("Refinement training").

    Example:
        >>> Refinement(at=(6, 12, 18)).due(epoch=12)
        2
    """

    at: tuple[int, ...]
    momentum: str = "split"

    def __post_init__(self) -> None:
        if not isinstance(self.at, tuple):
            raise TypeError(
                f"at: {self.at!r} is not allowed; it must be a tuple of epochs, such as (6, 12, 18)"
            )
        if not all(map(is_count, self.at)) or list(self.at) != sorted(set(self.at)):
            raise ValueError(
                f"at: {self.at!r} is not allowed; it must hold integers from 1 in rising order"
            )
        if self.momentum not in MOMENTUM:
            raise ValueError(
                f"momentum: {self.momentum!r} is not allowed; it must be one of {MOMENTUM}"
            )

    def due(self, epoch: int) -> int:
        """Return how many refinements lie before the steps of an epoch, counted from 0."""
        return sum(place <= epoch for place in self.at)

    def check(self, model: nn.Module) -> None:
        """Refuse a model that cannot be refined, before anything is trained.

        Raises:
            ValueError: no block in the model.
            TypeError: a block whose basis has no cells to split.
        """
        blocks = ode_blocks(model)
        if not blocks:
            raise ValueError(
                f"model: {type(model).__name__} without an OdeBlock is not allowed; there would be "
                "nothing to refine"
            )
        for block in blocks:
            block.weights.basis.refined()

    def check_optimiser(self, model: nn.Module, optimiser: Optimizer) -> None:
        """Refuse an optimiser whose state cannot be refined, before anything is trained.

        Raises:
            ValueError: its state must be split and has other shapes than the parameters.
        """
        if self.momentum == "split":
            blocks = ode_blocks(model)
            check_splits(optimiser, {p: b for k in blocks for p, b in k.weights.bases().items()})

    def apply(self, model: nn.Module, optimiser: Optimizer) -> None:
        """Refine a model once, in place, and its optimiser's state with it."""
        before = refine(model)
        if self.momentum == "split":
            split_optimiser_state(optimiser, before)
        else:
            optimiser.state.clear()
