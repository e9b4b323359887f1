"""Files that hold a model: its class, its arguments, the graph and basis of its blocks, its values.

A model takes part if its class is public in :mod:`companion.models` and it has an attribute
``arguments``: the values of all arguments that made it, by name.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import companion.basis as bases
import companion.gradients as gradients
from companion.block import OdeBlock, ode_blocks
from companion.files import load_checkpoint, save_checkpoint

__all__ = ["load", "save"]

_FORMAT = "companion model, format 1"
_PLAIN = (bool, int, float, str, type(None))
_KNOBS = ("method", "steps", "gradient", "scale", "rtol", "atol")


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model to a file, which appears whole or not at all.

    The file holds the arguments that made the model, and of every block its present basis, scheme,
    steps and gradient: those after refining, projecting or choosing another graph. An argument
    that is neither plain data, a basis, a gradient nor a function of :mod:`companion.models` is
    left out; :func:`~companion.models.load` asks for it. The modes of single parts, and which
    parameters are frozen, are not kept.

    Args:
        model: a :class:`~companion.models.ContinuousNet`, or another model of this package with an
            attribute ``arguments``.
        path: the file; missing folders are made.

    Raises:
        TypeError: for a model that cannot be made anew from a file.
        ValueError: for a gradient that was given tensors to differentiate.

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
    arguments = getattr(model, "arguments", None)
    if _public_class(type(model).__name__) is not type(model) or not isinstance(arguments, dict):
        raise TypeError(
            f"model: a {type(model).__name__} cannot be saved with its class; save its "
            "state_dict() instead, or one of companion.models that has the attribute arguments"
        )
    held = {name: value for name, value in arguments.items() if _can_hold(value)}
    state = {
        "format": _FORMAT,
        "class": type(model).__name__,
        "arguments": {name: _encoded(value) for name, value in held.items()},
        "left_out": sorted(arguments.keys() - held.keys()),
        "blocks": [_block_state(block) for block in ode_blocks(model)],
        "training": model.training,
        "values": model.state_dict(),
    }
    save_checkpoint(Path(path), state)


def load(path: str | Path, **left_out: Any) -> nn.Module:
    """Read what :func:`~companion.models.save` wrote: on the CPU, in the mode and dtype it had.

    Nothing in the file is executed, and no random number is drawn from the global generators.

    Args:
        path: the file.
        **left_out: the arguments that the file does not hold, such as a ``residual`` of your own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that cannot be read, is no such file, or does not fit this version of
            the package.
        TypeError: for other arguments than those that the file leaves out.
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
    if sorted(left_out) != state["left_out"]:
        raise TypeError(
            f"left_out: {sorted(left_out)} is not allowed; the file asks for {state['left_out']}"
        )
    try:
        return _rebuilt(state, left_out)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"path: {path} does not fit this version of the package: {error}"
        ) from error


def _rebuilt(state: dict[str, Any], left_out: dict[str, Any]) -> nn.Module:
    make = _public_class(state["class"])
    if make is None:
        raise ValueError(f"companion.models has no class {state['class']!r}")
    arguments = {name: _decoded(value) for name, value in state["arguments"].items()}
    with torch.random.fork_rng(devices=[]):  # the first values are drawn, and replaced
        model = make(**arguments, **left_out)
    blocks, found = ode_blocks(model), state["blocks"]
    if len(blocks) != len(found):
        raise ValueError(f"the file has {len(found)} blocks, the model {len(blocks)}")
    for block, knobs in zip(blocks, found, strict=True):
        wanted = {name: _decoded(value) for name, value in knobs.items()}
        if block.weights.basis != wanted["basis"]:
            block.weights.project(wanted["basis"])  # for the shapes
        for name in _KNOBS:
            setattr(block, name, wanted[name])
    own = model.state_dict(keep_vars=True)
    for name, value in state["values"].items():
        if name in own:
            own[name].data = own[name].data.to(value.dtype)
    model.load_state_dict(state["values"])
    return model.train(state["training"])


def _block_state(block: OdeBlock) -> dict[str, Any]:
    state = {name: _encoded(getattr(block, name)) for name in _KNOBS}
    return {"basis": _encoded(block.weights.basis), **state}


def _public_class(name: str) -> type[nn.Module] | None:
    found = getattr(_models(), name, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def _models() -> ModuleType:
    import companion.models as models  # not ready yet while this module is imported

    return models


def _can_hold(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_can_hold, value))
    return isinstance(value, _PLAIN) or _home(value) is not None


def _home(value: object) -> ModuleType | None:
    """Return the module of this package that a basis, a gradient or a function is public in."""
    kind = value if callable(value) and hasattr(value, "__name__") else type(value)
    for module in (bases, gradients, _models()):
        if kind.__name__ in module.__all__ and getattr(module, kind.__name__) is kind:
            return module
    return None


def _encoded(value: Any) -> Any:
    """Return plain data for what :func:`_can_hold` accepts."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, tuple | list):
        return tuple(map(_encoded, value))
    home = _home(value)
    if home is None:
        raise ValueError(
            f"model: its gradient holds a {type(value).__name__}, which a file cannot hold; save "
            "a view of it, model.with_graph(gradient='backprop')"
        )
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {"module": home.__name__, "name": value.__name__}
    fields = {f.name: _encoded(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return {"module": home.__name__, "name": type(value).__name__, "fields": fields}


def _decoded(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_decoded, value))
    if not isinstance(value, dict):
        return value
    homes = {module.__name__: module for module in (bases, gradients, _models())}
    home, name = homes[value["module"]], value["name"]
    if name not in home.__all__:
        raise ValueError(f"{home.__name__} has no {name!r}")
    found = getattr(home, name)
    if "fields" not in value:
        return found
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise ValueError(f"{home.__name__}.{name} is neither a basis nor a gradient")
    return found(**{field: _decoded(held) for field, held in value["fields"].items()})
