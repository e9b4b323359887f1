"""Embedded Runge-Kutta pairs as data: a scheme, its error estimate and its dense output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from companion.schemes import Row, Tableau

__all__ = ["PAIRS", "Pair"]


@dataclass(frozen=True)
class Pair:
    r"""A Runge-Kutta scheme that estimates its own error and gives states inside its steps.

    The last stage is evaluated at the end of the step, $k_s = f(t + h, y_1)$, and is the first of
    the next one (first same as last). With it,

    $$e = h\sum_i (b_i - b^*_i) k_i, \qquad y(t + \theta h) = y + h\sum_i b_i(\theta) k_i, \qquad
    b_i(\theta) = \sum_{j\ge1} p_{ij}\theta^j .$$

    The polynomial has the states and the slopes of both ends of the step. That leaves one vector
    $d$ free, which is the coefficient of $\theta^2(1-\theta)^2$: see :attr:`dense`.

    Attributes:
        tableau: the scheme, the last stage included: its row of ``a`` is ``b``.
        errors: the differences $b_i - b^*_i$ to the embedded scheme's weights.
        quartic: the vector $d$.
        lower: the order of the embedded scheme.
        dense: the coefficients $p_{ij}$, a row for each stage.
        error_weights: ``errors`` as floats.
        dense_rows: ``dense`` as floats.
        fractions: the stage times as floats, exactly 1 at the end of a step.

    Example:
        >>> PAIRS["dopri5"].tableau.order, PAIRS["dopri5"].lower
        (5, 4)
    """

    tableau: Tableau
    errors: Row
    quartic: Row
    lower: int
    dense: tuple[Row, ...] = field(init=False, repr=False, compare=False)
    error_weights: tuple[float, ...] = field(init=False, repr=False, compare=False)
    dense_rows: tuple[tuple[float, ...], ...] = field(init=False, repr=False, compare=False)
    fractions: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        dense = _interpolant(self.tableau.b, self.quartic)
        object.__setattr__(self, "dense", dense)  # the dataclass is frozen
        object.__setattr__(self, "error_weights", tuple(float(x) for x in self.errors))
        object.__setattr__(self, "dense_rows", tuple(tuple(map(float, row)) for row in dense))
        # Sums of published decimals miss 1 by their rounding, and could step over the end.
        object.__setattr__(self, "fractions", tuple(round(float(c), 15) for c in self.tableau.c))

    @property
    def name(self) -> str:
        """The name used everywhere in the package."""
        return self.tableau.name

    @property
    def stages(self) -> int:
        """The number of slopes of a step; the first is known from the step before."""
        return self.tableau.stages

    def inside(self, theta: float) -> list[float]:
        r"""Return the weights $b_i(\theta)$ of the slopes at a fraction ``theta`` of the step.

        Example:
            >>> [round(b, 4) for b in PAIRS["bosh3"].inside(1.0)]
            [0.2222, 0.3333, 0.4444, 0.0]
        """
        weights = []
        for row in self.dense_rows:
            value = 0.0
            for coefficient in reversed(row):
                value = (value + coefficient) * theta
            weights.append(value)
        return weights


def _interpolant(b: Row, quartic: Row) -> tuple[Row, ...]:
    """Return the coefficients of Hermite's cubic plus a multiple of the quartic bump."""
    rows = []
    for i, (weight, bump) in enumerate(zip(b, quartic, strict=True)):
        first, last = Fraction(i == 0), Fraction(i == len(b) - 1)
        rows.append((
            first,
            3 * weight - 2 * first - last + bump,
            -2 * weight + first + last - 2 * bump,
            bump,
        ))  # fmt: skip
    return tuple(rows)


def _pair(
    name: str, order: int, lower: int, a: Sequence[str], errors: str, quartic: str = ""
) -> Pair:
    """Return a pair from its rows; the weights are the last stage's row, and a zero for itself."""
    rows = tuple(tuple(Fraction(x) for x in row.split()) for row in a)
    zeros = (Fraction(0),) * len(rows)
    return Pair(
        tableau=Tableau(name=name, order=order, a=rows, b=(*rows[-1], Fraction(0))),
        errors=tuple(Fraction(x) for x in errors.split()),
        quartic=tuple(Fraction(x) for x in quartic.split()) or zeros,
        lower=lower,
    )


PAIRS: dict[str, Pair] = {
    pair.name: pair
    for pair in (
        _pair(
            "bosh3", 3, 2,
            ["", "1/2", "0 3/4", "2/9 1/3 4/9"],
            errors="-5/72 1/12 1/9 -1/8",
        ),
        _pair(
            "dopri5", 5, 4,
            [
                "",
                "1/5",
                "3/40 9/40",
                "44/45 -56/15 32/9",
                "19372/6561 -25360/2187 64448/6561 -212/729",
                "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
                "35/384 0 500/1113 125/192 -2187/6784 11/84",
            ],
            errors="71/57600 0 -71/16695 71/1920 -17253/339200 22/525 -1/40",
            quartic=(
                "-12715105075/11282082432 0 87487479700/32700410799 -10690763975/1880347072 "
                "701980252875/199316789632 -1453857185/822651844 69997945/29380423"
            ),
        ),
        _pair(
            "tsit5", 5, 4,
            [
                "",
                "0.161",
                "-0.008480655492356989 0.335480655492357",
                "2.8971530571054935 -6.359448489975075 4.3622954328695815",
                "5.325864828439257 -11.748883564062828 7.4955393428898365 -0.09249506636175525",
                "5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401 "
                "-0.028269050394068383",
                "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 "
                "-3.290069515436081 2.324710524099774",
            ],
            errors=(
                "-0.00178001105222577714 -0.0008164344596567469 0.007880878010261995 "
                "-0.1447110071732629 0.5823571654525552 -0.45808210592918697 1/66"
            ),
            quartic=(
                "-1.0530884977290216 0.1017 2.490627285651252793 -16.54810288924490272 "
                "47.37952196281928122 -34.87065786149660974 2.5"
            ),
        ),
    )
}  # fmt: skip
"""The pairs, by name.

Bogacki and Shampine (1989) with Hermite's cubic; Dormand and Prince (1980) with Shampine's quartic
(Hairer, Norsett and Wanner, Solving ODEs I, II.6, whose ``d`` these are); Tsitouras (2011), whose
coefficients are decimals.
"""
