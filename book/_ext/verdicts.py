"""What the ledger says about recorded numbers: how they are spelled, and which comes closest."""

import math
from collections.abc import Iterable, Sequence

from companion.claims import Statement
from companion.results import Claim, Result

RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def number(x: float) -> str:
    """Spell a number with three digits, large and small ones with a power of ten."""
    mantissa, _, exponent = f"{x:.3g}".partition("e")
    mantissa = mantissa.replace("-", "−")
    if not exponent:
        return mantissa
    power = f"10{str(int(exponent)).translate(RAISED)}"
    return {"1": power, "−1": f"−{power}"}.get(
        mantissa, f"{mantissa}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{power}"
    )


def expected(claim: Claim) -> str:
    if claim.low is None:
        assert claim.high is not None
        return f"at most {number(claim.high)}"
    if claim.high is None:
        return f"at least {number(claim.low)}"
    if claim.low == claim.high:
        return f"exactly {number(claim.low)}"
    return f"{number(claim.low)} to {number(claim.high)}"


def margin(claim: Claim) -> float:
    """Return how far inside its range a number lies, negative outside.

    The unit is half the width of a range with two ends. With one end it is the larger of that end
    and the number. A number that is expected exactly and found is never the closest.
    """
    x, low, high = claim.observed, claim.low, claim.high
    if math.isnan(x) or (low == high and x != low):
        return -math.inf
    if low is not None and high is not None:
        return math.inf if low == high else min(x - low, high - x) / ((high - low) / 2)
    bound, room = (high, high - x) if low is None else (low, x - low)  # type: ignore[operator]
    return room / max(abs(bound), abs(x)) if room else 0.0


def closest(claims: Iterable[Claim]) -> Claim:
    """Return the number that is nearest to the end of its range, or furthest beyond it."""
    return min(claims, key=margin)


def beside_its_range(claim: Claim) -> str:
    """Say where a number lies: ``0.042 of at most 0.05``."""
    if claim.low is None or claim.high is None:
        return f"{number(claim.observed)} of {expected(claim)}"
    return f"{number(claim.observed)}, where {expected(claim)} is expected"


def datasets(results: Iterable[Result]) -> set[str]:
    """Return the data sets that results were found on; some need none."""
    return {
        str(result.provenance.parameters.get("dataset", "digits"))
        for result in results
        if result.findings.data is not None
    }


def analogue(statement: Statement, results: Iterable[Result]) -> str:
    """Return the data that stood in for the paper's in every result, or an empty string."""
    papers = {name.lower().replace("-", "") for name in statement.data.split(" and ")}
    used = datasets(results)
    return "" if not statement.data or not used or used & papers else " and ".join(sorted(used))


def status(claims: Sequence[Claim], stand_in: str, written: bool) -> str:
    """Return the verdict in a word or two: what a reader can filter by."""
    if not claims:
        return "not yet run" if written else "chapter to come"
    word = "holds" if all(claim.holds for claim in claims) else "misses"
    return f"{word} on {stand_in}" if stand_in else word


def summary(claims: Sequence[Claim]) -> str:
    """Say how many numbers hold, and which is the closest or the worst."""
    held = sum(claim.holds for claim in claims)
    many = f"{held} of {len(claims)} number{'s' if len(claims) > 1 else ''}"
    worst = closest(claims)
    if not worst.holds:
        return f"{many} in range; worst: {beside_its_range(worst)} ({worst.text})"
    if worst.low == worst.high:  # the closest has no room, so none has
        return f"{many}; exact"
    return f"{many}; closest: {beside_its_range(worst)} ({worst.text})"
