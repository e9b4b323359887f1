"""Gradients of blocks row by row, so that several processes average them while others come."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from companion.block import OdeBlock, ode_blocks
from companion.depth_weights import DepthWeights, split_into
from companion.solve import GridSolver


def data_parallel(model: nn.Module, **options: Any) -> DistributedDataParallel:
    r"""Return a model wrapped for several processes, whose gradients of blocks come row by row.

    A block's parameter is a stack of rows, those of its layers. Autograd hands it a gradient when
    those of all rows are there, at the end of the backward pass, and only then
    :class:`~torch.nn.parallel.DistributedDataParallel` can begin to average it. Here that is given
    the rows, leaves that share the stack's memory. It gets each row's gradient as soon as the
    layers that read the row have been passed, with the gradients ``"backprop"``, ``"checkpoint"``,
    ``"reconstruct"`` and ``"reversible"``. With ``"adjoint"`` all still come at the end.

    The model keeps its parameters: their gradients are filled, and optimisers, ``state_dict`` and
    all else see the stacks. Wrap it anew after a refinement, a projection, or a move to another
    device or dtype.

    Args:
        model: the module, on its device, with the same values in every process.
        **options: as for :class:`~torch.nn.parallel.DistributedDataParallel`.

    Raises:
        ValueError: for the option ``gradient_as_bucket_view``, which would take the gradients out
            of the stacks; when called, for a model whose weights have changed their shape or place.

    Example:
        In a program that ``torchrun`` starts:

        .. code-block:: python

            with connected():
                network = data_parallel(model)
                loss(network(x)).backward()
                optimiser.step()  # made from model.parameters()
    """
    if options.get("gradient_as_bucket_view"):
        raise ValueError(
            "gradient_as_bucket_view: True is not allowed; it must be False, since the gradients "
            "of rows lie in those of their stacks"
        )
    if not all(map(_reads_all_rows, ode_blocks(model))):
        options.setdefault("find_unused_parameters", True)
    split = RowByRow(model)
    return DistributedDataParallel(split if len(split.rows) else model, **options)


class RowByRow(nn.Module):
    """A model that computes with rows of its blocks' stacks that are parameters of their own.

    Attributes:
        model: the model.
        rows: the rows, layer by layer. Their memory is the stacks', and so is their gradients'.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        weights = [module for module in model.modules() if isinstance(module, DepthWeights)]
        stacks = dict.fromkeys(p for w in weights for p in w.parameters() if p.requires_grad)
        self._split = {stack: [nn.Parameter(row) for row in stack.detach()] for stack in stacks}
        layers = zip_longest(*self._split.values())
        self.rows = nn.ParameterList(row for layer in layers for row in layer if row is not None)
        for stack, rows in self._split.items():
            for row in rows:
                row.register_hook(_filling(stack, rows))  # type: ignore[no-untyped-call]
        # Read by DistributedDataParallel: these get their gradients through the rows.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, p in self.named_parameters(remove_duplicate=False) if p in self._split
        ]

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for stack, rows in self._split.items():
            shape = (len(rows), *rows[0].shape)
            if rows[0].data_ptr() != stack.data_ptr() or stack.shape != shape:
                raise ValueError(
                    "model: its weights have been refined, moved or replaced since it was wrapped; "
                    "wrap it again"
                )
        with split_into(self._split):
            return self.model(*args, **kwargs)


def _filling(stack: nn.Parameter, rows: list[nn.Parameter]) -> Callable[[Tensor], None]:
    """Return a hook that lays the gradients of rows into that of their stack.

    It runs before a row's gradient is added, not before the forward pass: between the two, somebody
    may have set gradients to ``None``.
    """

    def hook(grad: Tensor) -> None:
        if torch.is_grad_enabled():
            raise ValueError(
                "create_graph: True is not allowed for a model whose rows are split; use the model "
                "itself"
            )
        if stack.grad is None:
            stack.grad = torch.zeros_like(stack)
        if rows[0].grad is None or rows[0].grad.data_ptr() != stack.grad.data_ptr():
            for row, own in zip(rows, stack.grad, strict=True):
                row.grad = own

    return hook


def _reads_all_rows(block: OdeBlock) -> bool:
    """Say whether a block's steps come to all rows of its stacks; few steps skip some cells."""
    solver = block.solver
    if not isinstance(solver, GridSolver):
        return True
    problem = block.problem(torch.empty(0))
    used = {
        k
        for step in solver.grid(problem.t)
        for stage in solver.stages(step)
        for k in problem.field.uses(stage)
    }
    return len(used) == len(problem.field.params)
