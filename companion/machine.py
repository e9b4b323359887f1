"""What a result records about the machine it was computed on."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "torchdiffeq", "pillow")


def resolve_device(device: str | torch.device) -> torch.device:
    """Return ``device`` as a ``torch.device`` after checking that it is there.

    Raises:
        ValueError: no such kind of device, or this machine lacks it; the message lists the ones
            it has.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        present = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device must be one of {present} on this machine; got {str(device)!r} ({reason})"
        ) from error
    return torch.device(device)


def device_name(device: torch.device) -> str:
    """Return the kind of processor and, for a GPU, its model.

    Example:
        >>> device_name(torch.device("cpu")).startswith("cpu")
        True
    """
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.machine()})"


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on.

    Example:
        >>> package_versions()["torch"] == torch.__version__
        True
    """
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions | {"torch": torch.__version__}
