"""What the declared claims of an experiment say of made-up numbers."""

from companion.experiments import Claim, find


def decided(id: str, numbers: dict[str, float], **parameters) -> list[Claim]:
    """Return the claims that these numbers decide, of a run with these parameters."""
    claims = (row.decide(numbers, parameters) for row in find(id).rows)
    return [claim for claim in claims if claim is not None]
