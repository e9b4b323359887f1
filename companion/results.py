"""What an experiment returns: numbers, the claims they decide, and where they come from."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from companion.files import replacing

SCHEMA = 1
"""Version of the JSON layout. Raise it when a field changes its name or meaning."""

_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True)
class Claim:
    r"""One measured number against the range that a claim of the catalogue predicts.

    The claim holds if $\mathrm{low} \le \mathrm{observed} \le \mathrm{high}$; a bound of
    ``None`` is absent and NaN lies in no range.

    Attributes:
        id: the claim's name in :mod:`companion.claims`.
        text: what was measured, in one line.
        observed: the number.
        low: smallest value that agrees with the claim, or ``None``.
        high: largest value that agrees with the claim, or ``None``.
        note: why the claim misses, or what to know about the number. A recorded miss needs one;
            it is the only field of a recorded result that is written by hand.

    Raises:
        ValueError: no bound is given, or ``low > high``.

    Example:
        >>> Claim("CL24", "fitted order of rk4", 3.98, low=3.75, high=4.25).holds
        True
    """

    id: str
    text: str
    observed: float
    low: float | None = None
    high: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError(f"claim {self.id}: low and high are both None; give at least one")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"claim {self.id}: low must be <= high; got {self.low} > {self.high}")

    @property
    def holds(self) -> bool:
        """Whether the observed value lies in the range."""
        above = self.low is None or self.observed >= self.low
        below = self.high is None or self.observed <= self.high
        return above and below and not math.isnan(self.observed)


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from.

    Attributes:
        tier: ``"smoke"`` or ``"full"``.
        seed: the seed of the whole run.
        parameters: the values of the experiment's parameters, by name.
        device: the kind of processor and its name.
        threads: CPU threads that torch used; sums may round differently with another number.
        versions: the packages that took part, by name.
        source: hash of the code (:func:`companion.sources.source_hash`).
        seconds: duration; with ``--resume``, of the last leg only.
        processor_seconds: the time that processors worked for this process and its children, which
            another program on the machine does not lengthen; ``None`` where it was not taken.
        finished: UTC time in ISO format.
    """

    tier: str
    seed: int
    parameters: Mapping[str, Any]
    device: str
    threads: int
    versions: Mapping[str, str]
    source: str
    seconds: float
    finished: str
    processor_seconds: float | None = None


@dataclass(frozen=True)
class Findings:
    """The numbers of one run, before its provenance is known.

    Attributes:
        scalars: single numbers by name.
        curves: arrays of any rank by name, as nested lists, arrays or tensors.
        claims: the decided claims.
        data: hash of the data set, or ``None`` where the experiment makes its own.
        deciding: numbers that decide claims as scalars do, and are stored with these only.

    Raises:
        ValueError: a scalar and a curve share a name.
    """

    scalars: Mapping[str, float]
    curves: Mapping[str, Any] = field(default_factory=dict)
    claims: Sequence[Claim] = ()
    data: str | None = None
    deciding: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if both := sorted(set(self.scalars) & set(self.curves)):
            raise ValueError(f"scalars and curves must have different names; both have {both}")
        object.__setattr__(self, "scalars", {k: float(v) for k, v in self.scalars.items()})
        object.__setattr__(self, "curves", {k: _nested(v) for k, v in self.curves.items()})
        object.__setattr__(self, "claims", tuple(self.claims))


@dataclass(frozen=True)
class Result:
    """What an experiment found, as it is stored.

    ``result[name]`` is the scalar of that name, or the curve as a float64 array.

    Attributes:
        experiment: its ID, such as ``"S22-F3a"``.
        findings: scalars, curves and claims.
        provenance: how the numbers came about.
        tiny: what a tiny run of the same code found, to compare with what later code finds.
        moved: names of the numbers of a tiny run that later code finds otherwise: the result is
            no longer what the code computes.

    Example:
        >>> found = Findings({"error": 0.04}, {"depths": [2, 4]},
        ...                  [Claim("CL57", "test error", 0.04, high=0.08)])
        >>> made = Provenance("smoke", 0, {}, "cpu", 1, {}, "0" * 64, 1.0,
        ...                   "2026-01-01T00:00:00+00:00")
        >>> result = Result("S22-F3a", found, made)
        >>> result["error"], result["depths"], result.claim("CL57").holds
        (0.04, array([2., 4.]), True)
        >>> Result.from_json(result.to_json()) == result
        True
    """

    experiment: str
    findings: Findings
    provenance: Provenance
    tiny: Findings | None = None
    moved: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        """Return a scalar or a curve by its name; a ``KeyError`` lists the known names."""
        if name in self.findings.scalars:
            return self.findings.scalars[name]
        if name in self.findings.curves:
            curve: NDArray[np.float64] = np.asarray(self.findings.curves[name], dtype=np.float64)
            return curve
        known = sorted([*self.findings.scalars, *self.findings.curves])
        raise KeyError(f"{self.experiment} has no number {name!r}; it has {known}")

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The decided claims."""
        return tuple(self.findings.claims)

    @property
    def misses(self) -> tuple[Claim, ...]:
        """The claims that do not hold."""
        return tuple(claim for claim in self.claims if not claim.holds)

    def claim(self, id: str) -> Claim:
        """Return the first claim with this ID; a ``KeyError`` lists the known ones."""
        for claim in self.claims:
            if claim.id == id:
                return claim
        known = sorted({claim.id for claim in self.claims})
        raise KeyError(f"{self.experiment} decides no claim {id!r}; it decides {known}")

    def to_json(self) -> str:
        """Return the result as strict JSON; NaN and infinities become strings.

        Floats are spelled with the fewest digits that read back to the same bits.
        """
        claims = [{**asdict(claim), "holds": claim.holds} for claim in self.claims]
        content = {
            "schema": SCHEMA,
            "experiment": self.experiment,
            "scalars": self.findings.scalars,
            "curves": self.findings.curves,
            "claims": claims,
            "data": self.findings.data,
            "provenance": asdict(self.provenance),
        }
        if self.tiny is not None:
            content["tiny"] = {"scalars": self.tiny.scalars, "curves": self.tiny.curves}
            content["moved"] = list(self.moved)
        return json.dumps(encode(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "result") -> "Result":
        """Read what :meth:`to_json` wrote.

        Args:
            text: JSON.
            source: where the text comes from, for error messages.

        Raises:
            ValueError: not JSON, another schema version, or fields missing or inconsistent.
        """
        try:
            content = json.loads(text)
            schema = content["schema"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{source} is not the JSON of a result: {error!r}") from error
        if schema != SCHEMA:
            raise ValueError(
                f"{source} has schema version {schema}; this package reads {SCHEMA}: "
                "run the experiment again"
            )
        try:
            return cls._from_content(decode(content))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{source} is not a complete result: {error!r}") from error

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> "Result":
        claims = []
        for stored in content["claims"]:
            holds = stored.pop("holds")
            claim = Claim(**stored)
            if claim.holds is not holds:
                raise ValueError(f"claim {claim.id} says holds: {holds}, its numbers say otherwise")
            claims.append(claim)
        provenance = content["provenance"]
        provenance["parameters"] = frozen(provenance["parameters"])
        findings = Findings(content["scalars"], content["curves"], claims, content["data"])
        tiny = Findings(**content["tiny"]) if "tiny" in content else None
        moved = tuple(content.get("moved", ()))
        return cls(content["experiment"], findings, Provenance(**provenance), tiny, moved)

    def save(self, path: Path) -> None:
        """Write the result to ``path`` as JSON, whole or not at all."""
        with replacing(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "Result":
        """Read a result that :meth:`save` wrote; see :meth:`from_json` for the errors."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not the JSON of a result: {error!r}") from error
        return cls.from_json(text, source=str(path))


def encode(value: Any) -> Any:
    """Replace NaN and infinities in nested lists and dicts by the strings JSON can hold.

    Example:
        >>> encode({"loss": [1.0, float("nan"), float("-inf")]})
        {'loss': [1.0, 'nan', '-inf']}
    """
    if isinstance(value, Mapping):
        return {name: encode(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def decode(value: Any) -> Any:
    """Undo :func:`encode`.

    Example:
        >>> decode(["inf", "text", 1.5])
        [inf, 'text', 1.5]
    """
    if isinstance(value, dict):
        return {name: decode(item) for name, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def frozen(value: Any) -> Any:
    """Turn lists into tuples, also inside tuples and dicts: the form parameters are kept in.

    Example:
        >>> frozen({"depths": [2, 4]})
        {'depths': (2, 4)}
    """
    if isinstance(value, Mapping):
        return {name: frozen(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(frozen(item) for item in value)
    return value


def _nested(values: Any) -> Any:
    """Turn an array, a tensor or nested sequences into nested lists of floats."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return [_nested(item) for item in values]
    return float(values)
