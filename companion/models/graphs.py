"""One model, many graphs: other schemes and steps for the same weights, and what they look like."""

from __future__ import annotations

import copy
from typing import Self, TypeVar, cast

import torch
from torch import Tensor, nn

from companion.basis import locate
from companion.block import OdeBlock, ode_blocks
from companion.gradients import Gradient
from companion.solve import Field, Problem, Stage

__all__ = ["ContinuousModel", "graph_summary", "with_graph"]

Model = TypeVar("Model", bound=nn.Module)


def with_graph(
    model: Model,
    *,
    method: str | None = None,
    steps: int | None = None,
    gradient: str | Gradient | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Model:
    """Return a model with the same weights and every block under another graph; ``None`` keeps.

    Only the blocks and the modules around them are new. All else is the same object in both models:
    stems, stitches, heads, the weights of the blocks, running statistics. Training, refining,
    moving or switching the mode of one does it to both.

    Args:
        model: a model with blocks.
        method: the scheme of all blocks.
        steps: the steps of every block.
        gradient: how all blocks are differentiated.
        rtol: the relative tolerance of all blocks.
        atol: the absolute tolerance of all blocks.

    Raises:
        ValueError: for a model without blocks, one that :func:`torch.compile` returned, or a value
            that a block refuses.

    Source:
        Queiruga et al. 2020, section 5.3.

    Example:
        >>> from companion.models import ResidualMLP
        >>> net = ResidualMLP(4, 2, width=3, hidden=5, layers=8, tied=False, scaled=True)
        >>> short = with_graph(net, method="rk4_38", steps=3)
        >>> short.block.steps, net.block.steps, short.head is net.head
        (3, 8, True)
    """
    if not any(isinstance(module, OdeBlock) for module in model.modules()):
        raise ValueError(f"model: a {type(model).__name__} without an OdeBlock has no graph to set")
    seen: dict[int, nn.Module] = {}  # what the model uses twice stays one module

    def view(module: nn.Module) -> nn.Module:
        if id(module) not in seen:
            seen[id(module)] = make(module)
        return seen[id(module)]

    def make(module: nn.Module) -> nn.Module:
        if isinstance(module, OdeBlock):
            return module.with_graph(
                method=method, steps=steps, gradient=gradient, rtol=rtol, atol=atol
            )
        children = {name: child and view(child) for name, child in module._modules.items()}
        if all(child is module._modules[name] for name, child in children.items()):
            return module
        if "forward" in vars(module):  # a copy would go on to call the old module's
            raise ValueError(
                f"model: a {type(module).__name__} with a forward of its own, as torch.compile "
                "makes it, has a fixed graph; choose the graph first and compile the view"
            )
        other = copy.copy(module)
        other._modules = children
        return other

    found = view(model)
    assert isinstance(found, type(model))
    return found


class ContinuousModel(nn.Module):
    """A model whose own methods refine its blocks and run them under other graphs."""

    def refine(self) -> None:
        """Double cells and steps of every block in place; see :meth:`companion.OdeBlock.refine`.

        Example:
            >>> from companion import PiecewiseConstant
            >>> from companion.models import ContinuousNet
            >>> net = ContinuousNet(basis=PiecewiseConstant(1), steps=1)
            >>> net.refine()
            >>> net.blocks[2].weights.basis, net.blocks[2].steps, net.stitches[1].scale
            (PiecewiseConstant(cells=2), 2, 1.0)
        """
        for block in ode_blocks(self):
            block.refine()

    def with_graph(
        self,
        *,
        method: str | None = None,
        steps: int | None = None,
        gradient: str | Gradient | None = None,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> Self:
        """Return the same weights under another graph: :func:`companion.models.with_graph`."""
        return with_graph(self, method=method, steps=steps, gradient=gradient, rtol=rtol, atol=atol)


def graph_summary(model: nn.Module) -> str:
    """Describe the graphs that the blocks of a model manifest: one line a step.

    A line says at which depths the stages of a step evaluate the residual, and which cells of the
    weight functions they read. The stages are those that the solver asks for, recorded in a solve
    without a field. Methods without a fixed grid have one line a cell: their stages depend on the
    input.

    Args:
        model: a block, or a model with blocks.

    Raises:
        ValueError: for a model without blocks.

    Source:
        Queiruga et al. 2020, Figs. 1 and 5.

    Example:
        Heun's second stage reads the end of a step from inside the step, so from its own cell:

        >>> from companion import PiecewiseConstant
        >>> block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(2), method="heun", steps=4)
        >>> print(graph_summary(block))
        OdeBlock: 1 block, 8 evaluations of a residual, 12 parameters
        block: heun, 4 steps, 8 evaluations; PiecewiseConstant(cells=2), 12 parameters; scale 1
          step   depths of the stages   cells read
             1        0    0.25         0  0
             2     0.25     0.5         0  0
             3      0.5    0.75         1  1
             4     0.75       1         1  1
    """
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, OdeBlock)}
    if not blocks:
        raise ValueError(f"model: a {type(model).__name__} without an OdeBlock has no graph")
    graphs = {name: _stages(block) for name, block in blocks.items()}
    count = sum(len(stages) for stages in graphs.values() if stages is not None)
    adaptive = any(stages is None for stages in graphs.values())
    parts = [
        "1 block" if len(blocks) == 1 else f"{len(blocks)} blocks",
        "evaluations as the input asks" if adaptive else f"{count:,} evaluations of a residual",
        f"{_size(model):,} parameters",
    ]
    lines = [f"{type(model).__name__}: {', '.join(parts)}"]
    for name, block in blocks.items():
        lines += _block_lines(name or "block", block, graphs[name])
    return "\n".join(lines)


def _stages(block: OdeBlock) -> list[Stage] | None:
    """Return where a block evaluates its residual, or ``None`` if that depends on the input."""
    if not block.solver.on_grid:
        return None
    asked: list[Stage] = []

    def record(stage: Stage, y: Tensor) -> Tensor:
        asked.append(stage)
        return y

    Problem(cast(Field, record), torch.zeros(1), (0.0, 1.0), block.solver).integrate()
    return asked


def _block_lines(name: str, block: OdeBlock, stages: list[Stage] | None) -> list[str]:
    basis, cells = block.weights.basis, block.weights.basis.cells
    held = f"{basis!r}, {_size(block):,} parameters; scale {block.scale:g}"
    if stages is None:
        grid = [
            f"  cell {k}: depth {k / cells:.4g} to {(k + 1) / cells:.4g}, steps as the input asks"
            for k in range(cells)
        ]
        tolerances = f"rtol {block.rtol:g}, atol {block.atol:g}"
        return [f"{name}: {block.method}, {tolerances}; {held}", *grid]
    steps: dict[int, list[Stage]] = {}
    for stage in stages:
        steps.setdefault(stage.step, []).append(stage)
    width = max(22, 9 * max(map(len, steps.values())))
    lines = [
        f"{name}: {block.method}, {block.steps} steps, {len(stages)} evaluations; {held}",
        f"  step   {'depths of the stages':<{width}} cells read",
    ]
    for step, own in steps.items():
        depths = " ".join(f"{float(stage.t):>8.4g}" for stage in own)
        read = "  ".join(str(_cell(stage, cells)) for stage in own)
        lines.append(f"  {step + 1:>4} {depths:<{width + 1}}  {read}")
    return lines


def _cell(stage: Stage, cells: int) -> int:
    assert stage.c is not None  # a stage on a grid
    return locate(stage.step, stage.steps, stage.c, cells).cell


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
