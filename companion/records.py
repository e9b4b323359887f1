"""The recorded results: in a checkout those of the book, in an installed wheel a copy of them."""

from pathlib import Path

from companion.results import Result


def folder() -> Path:
    """Return the folder that holds the recorded results, one file ``ID.TIER.json`` a run.

    In a checkout, or an editable install of one, this is ``book/results``, where new runs are
    recorded. A wheel carries a copy of it inside the package.

    Example:
        >>> (folder() / "C18-A6.smoke.json").is_file()
        True
    """
    package = Path(__file__).parent
    checkout = package.parent / "book" / "results"
    return checkout if checkout.is_dir() else package / "recorded"


def names() -> tuple[tuple[str, str], ...]:
    """Return the ID and the tier of every recorded result, sorted.

    Example:
        >>> ("C18-A6", "smoke") in names()
        True
    """
    found = (path.name.removesuffix(".json") for path in folder().glob("*.json"))
    return tuple(sorted((id, tier) for id, _, tier in (name.rpartition(".") for name in found)))


def load(id: str, tier: str) -> Result | None:
    """Return the recorded result of an experiment in a tier, or ``None`` where none is recorded.

    Args:
        id: the experiment's ID.
        tier: ``"smoke"`` or ``"full"``.

    Raises:
        ValueError: the record cannot be read, or its content is that of another experiment or tier.

    Example:
        >>> load("C18-A6", "smoke").experiment, load("C18-A6", "huge")
        ('C18-A6', None)
    """
    path = folder() / f"{id}.{tier}.json"
    if not path.is_file():
        return None
    result = Result.load(path)
    if (result.experiment, result.provenance.tier) != (id, tier):
        raise ValueError(
            f"{path} holds {result.experiment}, tier {result.provenance.tier!r}; "
            f"its name says {id}, tier {tier!r}"
        )
    return result
