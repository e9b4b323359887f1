"""Files that lie under a name which is almost the expected one."""

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path


def near_names(folder: Path, expected: Iterable[str]) -> list[Path]:
    """Return the files of a folder whose name is one of the expected ones, or almost.

    Almost is: the same letters and digits; one name the beginning of the other and at least half
    of it; or few letters exchanged, and the same numbers.

    Example:
        >>> near_names(Path(__file__).parent, ["near-names"])
        [PosixPath('.../companion/data/near_names.py')]
    """
    wanted = [*map(_plain, expected)]
    files = (path for path in folder.iterdir() if path.is_file())
    return [path for path in files if any(_near(_plain(path.name), name) for name in wanted)]


def is_called_after(name: str, data_set: str) -> bool:
    """Return whether a name begins with that of a data set, however it is spelt.

    Example:
        >>> is_called_after("CIFAR-10-batches-py", "cifar10")
        True
        >>> is_called_after("cifar-100-python", "cifar10"), is_called_after("EMNIST", "mnist")
        (False, False)
    """
    return re.match(f"{_plain(data_set)}(?![0-9])", _plain(name)) is not None


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower().removesuffix(".gz"))


def _near(one: str, other: str) -> bool:
    shorter, longer = sorted((one, other), key=len)
    if longer.startswith(shorter) and 2 * len(shorter) >= len(longer):
        return True
    numbers = (re.findall("[0-9]+", name) for name in (one, other))
    return SequenceMatcher(None, one, other).ratio() > 0.85 and len(set(map(tuple, numbers))) == 1
