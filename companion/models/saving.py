"""Files that hold a trained model: the graph and basis of its blocks, and all values.

Models of this package that know their ``arguments`` are made anew from the file; any other model is
made by who loads it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import companion.basis as bases
import companion.gradients as gradients
from companion.arguments import check_type
from companion.block import OdeBlock, ode_blocks
from companion.files import load_checkpoint, save_checkpoint
from companion.methods import get_solver
from companion.plain_layers import all_modules

__all__ = ["load", "save"]

_FORMAT = "companion model, format 3"
_PLAIN = (bool, int, float, str, type(None))
_GRAPH = ("method", "steps", "rtol", "atol")
_HINTS = {
    "basis": "project its weights onto one that can, block.project(...)",
    "gradient": "save a view of the model, with_graph(model, gradient='backprop')",
}


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model to a file, which appears whole or not at all.

    The file holds all values, and of every block its present basis, scheme, steps and gradient:
    those after refining, projecting or choosing another graph. If the class is one of this
    package with an attribute ``arguments``, it holds these too, but for those that are neither
    plain data, a basis, a gradient nor a function of :mod:`companion.models`. The modes of single
    parts, and which parameters are frozen, are not kept.

    Args:
        model: any module.
        path: the file; missing folders are made.

    Raises:
        ValueError: a block with a basis or a gradient that is none of this package's, or one that
            was given tensors to differentiate.
        TypeError: something else than a module.

    Example:
        >>> import tempfile
        >>> from companion.models import ContinuousNet
        >>> net = ContinuousNet(channels=(2, 4), steps=4).with_graph(method="rk4", steps=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(net, Path(folder) / "net.pt")
        ...     again = load(Path(folder) / "net.pt")
        >>> again.blocks[1].method, again.blocks[1].steps
        ('rk4', 2)
    """
    check_type("model", model, nn.Module)
    own = _public().get(type(model).__name__) is type(model)
    arguments = getattr(model, "arguments", None) if own else None
    held = {name: value for name, value in (arguments or {}).items() if _can_hold(value)}
    state = {
        "format": _FORMAT,
        "class": type(model).__name__,
        "arguments": arguments and {name: _encoded(value) for name, value in held.items()},
        "left_out": arguments and sorted(arguments.keys() - held.keys()),
        "blocks": [_block_state(block, k) for k, block in enumerate(_all_blocks(model))],
        "training": model.training,
        "values": model.state_dict(),
    }
    save_checkpoint(Path(path), state)


def load(path: str | Path, model: nn.Module | None = None, **left_out: Any) -> nn.Module:
    """Read what :func:`~companion.models.save` wrote: on the CPU, in the mode and dtype it had.

    Nothing in the file is executed, and no random number is drawn from the global generators.

    Args:
        path: the file.
        model: made as the saved one was, to take over what the file holds; not needed if the file
            says how it was made.
        **left_out: the arguments that the file does not hold, such as a ``residual`` of your own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that cannot be read, is no such file, or does not fit the model or this
            version of the package.
        TypeError: no model where one is needed, or other arguments than the file leaves out.

    Example:
        >>> import tempfile
        >>> from companion import OdeBlock, PiecewiseConstant
        >>> net = nn.Sequential(nn.Linear(2, 3), OdeBlock(nn.Linear(3, 3), PiecewiseConstant(1)))
        >>> net[1].refine()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(net, Path(folder) / "net.pt")
        ...     made = nn.Sequential(nn.Linear(2, 3), OdeBlock(nn.Linear(3, 3)))
        ...     load(Path(folder) / "net.pt", made)[1].weights.basis
        PiecewiseConstant(cells=2)
    """
    path = Path(path)
    try:
        state = load_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"path: {path} holds no model; {error}") from error
    if state.get("format") != _FORMAT:
        raise ValueError(
            f"path: {path} holds no model of this version; expected a file of companion.models.save"
        )
    if model is None and state["left_out"] is None:
        raise TypeError(
            f"model: None is not allowed; {path} does not say how its {state['class']} was made, "
            "so make one and give it: load(path, model)"
        )
    wanted = [] if model is not None else state["left_out"]
    if sorted(left_out) != wanted:
        raise TypeError(f"left_out: {sorted(left_out)} is not allowed; the file asks for {wanted}")
    try:
        return _filled(_made(state, left_out) if model is None else model, state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        whom = "this version of the package" if model is None else "model"
        raise ValueError(f"path: {path} does not fit {whom}: {error}") from error


def _made(state: dict[str, Any], left_out: dict[str, Any]) -> nn.Module:
    make = _public().get(state["class"])
    if not isinstance(make, type) or not issubclass(make, nn.Module):
        raise ValueError(f"companion.models has no class {state['class']!r}")
    arguments = {name: _decoded(value) for name, value in state["arguments"].items()}
    with torch.random.fork_rng(devices=[]):  # the first values are drawn, and replaced
        return make(**arguments, **left_out)


def _filled(model: nn.Module, state: dict[str, Any]) -> nn.Module:
    blocks, found = _all_blocks(model), state["blocks"]
    outer = ode_blocks(model)
    if len(blocks) != len(found):
        raise ValueError(f"the file has {len(found)} blocks, the model {len(blocks)}")
    for block, knobs in zip(blocks, found, strict=True):
        wanted = {name: _decoded(value) for name, value in knobs.items()}
        if block.weights.basis != wanted["basis"]:
            if block not in outer:  # its weights are the outer block's
                raise ValueError(
                    f"a block inside a residual has the basis {block.weights.basis!r}; the file's "
                    f"is {wanted['basis']!r}"
                )
            block.weights.project(wanted["basis"])  # for the shapes
        block.gradient, block.scale = wanted["gradient"], wanted["scale"]
        block.solver = get_solver(*(wanted[name] for name in _GRAPH))
    own = model.state_dict(keep_vars=True)
    for name, value in state["values"].items():
        if name in own:
            own[name].data = own[name].data.to(value.dtype)
    model.load_state_dict(state["values"])
    return model.train(state["training"])


def _all_blocks(model: nn.Module) -> list[OdeBlock]:
    """Return the blocks of a model, and those inside the residuals of others."""
    return [module for module in all_modules(model) if isinstance(module, OdeBlock)]


def _block_state(block: OdeBlock, position: int) -> dict[str, Any]:
    if block.params:
        raise ValueError(
            f"model: block {position} has params=, tensors of somebody else, which a file cannot "
            "hold; save a block without, and set block.params after loading"
        )
    graph = {name: getattr(block.solver, name) for name in _GRAPH}
    own = {"basis": block.weights.basis, "gradient": block.gradient, "scale": block.scale}
    knobs = own | graph
    for name, value in knobs.items():
        if not _can_hold(value):
            raise ValueError(
                f"model: the {name} {value!r} of block {position} is not allowed; a file can hold "
                f"those of companion, made of plain data; {_HINTS.get(name, 'change it')}"
            )
    return {name: _encoded(value) for name, value in knobs.items()}


def _public() -> dict[str, Any]:
    """Return everything that a file may name."""
    import companion.models as models  # not ready yet while this module is imported

    return {n: getattr(m, n) for m in (bases, gradients, models) for n in m.__all__}


def _can_hold(value: object) -> bool:
    try:
        return bool(_decoded(_encoded(value)) == value)
    except (TypeError, ValueError):
        return False


def _encoded(value: Any) -> Any:
    """Return plain data; in the place of an object, its name and its fields."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return tuple(map(_encoded, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _encoded(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"name": type(value).__name__, "fields": fields}
    return {"name": getattr(value, "__name__", repr(value))}


def _decoded(value: Any) -> Any:
    """Undo that: a public name of the package, or one of its data classes with these fields."""
    if isinstance(value, tuple):
        return tuple(map(_decoded, value))
    if not isinstance(value, dict):
        return value
    if value["name"] not in _public():
        raise ValueError(f"companion has no public {value['name']!r}")
    found = _public()[value["name"]]
    if "fields" not in value:
        return found
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise ValueError(f"{value['name']} is neither a basis nor a gradient")
    return found(**{name: _decoded(field) for name, field in value["fields"].items()})
