"""Seeds for what ignores explicit generators."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(
    seed: int, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    For what ignores explicit generators: initial weights and dropout. With ``dtype``, modules made
    inside have parameters of this precision, drawn in it.

    Example:
        >>> with seeded(0):
        ...     a = torch.rand(1)
        >>> with seeded(0):
        ...     b = torch.rand(1)
        >>> bool(a == b)
        True
    """
    with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype or before)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
