"""Explicit Runge-Kutta schemes as Butcher tableaux: data, and the one formula that uses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from torch import Tensor

from companion.arguments import check_choice

__all__ = ["SCHEMES", "Row", "Tableau", "advance", "combination", "get_scheme"]

Row = tuple[Fraction, ...]
"""A row of a tableau: exact coefficients, one for each stage before it."""


@dataclass(frozen=True)
class Tableau:
    r"""An explicit Runge-Kutta scheme, with exact rational coefficients.

    $$k_i = f\Bigl(t_n + c_i h,\; y_n + h\sum_{j<i} a_{ij} k_j\Bigr), \qquad
    y_{n+1} = y_n + h\sum_i b_i k_i .$$

    Attributes:
        name: the name used everywhere in the package.
        order: the order of convergence.
        a: row ``i`` holds the ``i`` coefficients of stage ``i`` (row 0 is empty).
        b: the weights of the stages.
        c: the stage times as fractions of a step: the row sums of ``a``.
        fractions: ``c`` as floats.
        rows: ``a`` as floats.
        weights: ``b`` as floats.

    Example:
        >>> get_scheme("heun").c
        (Fraction(0, 1), Fraction(1, 1))
    """

    name: str
    order: int
    a: tuple[Row, ...]
    b: Row
    c: Row = field(init=False, repr=False, compare=False)
    fractions: tuple[float, ...] = field(init=False, repr=False, compare=False)
    rows: tuple[tuple[float, ...], ...] = field(init=False, repr=False, compare=False)
    weights: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Once and for all, not in cached properties: torch.compile cannot trace their lock.
        derived = {
            "c": tuple(sum(row, Fraction(0)) for row in self.a),
            "fractions": tuple(float(sum(row)) for row in self.a),
            "rows": tuple(tuple(float(x) for x in row) for row in self.a),
            "weights": tuple(float(x) for x in self.b),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def stages(self) -> int:
        """The number of evaluations of the field in one step."""
        return len(self.b)

    def step(self, stage: Callable[[int, Tensor], Tensor], y: Tensor, h: float | Tensor) -> Tensor:
        r"""Advance ``y`` by one step of size ``h``.

        Args:
            stage: ``stage(i, y)`` evaluates the field for stage ``i`` at the state ``y``.
            y: the state, of any shape.
            h: the step, negative to go back.

        Returns:
            The state after the step, shaped like ``y``.

        Example:
            One Euler step of $\dot y = y$ from 1 with $h = 0.1$:

            >>> import torch
            >>> get_scheme("euler").step(lambda i, y: y, torch.ones(1), 0.1)
            tensor([1.1000])
        """
        slopes = self._slopes(stage, y, h)
        if self.stages == 1:  # Euler: exactly the operations of a residual layer, bit for bit
            return y + h * slopes[0]
        return advance(y, slopes, self.weights, h)

    def increment(
        self, stage: Callable[[int, Tensor], Tensor], y: Tensor, h: float | Tensor
    ) -> Tensor:
        r"""Return what one step adds to ``y``, to full precision: $h\sum_i b_i k_i$.

        The difference ``step(...) - y`` would lose digits. The arguments are those of
        :meth:`step`.

        Example:
            >>> import torch
            >>> get_scheme("euler").increment(lambda i, y: y, torch.ones(1), 0.1)
            tensor([0.1000])
        """
        total, first = combination(self._slopes(stage, y, h), self.weights)
        assert total is not None  # the weights of a consistent scheme sum to 1
        return h * first * total

    def _slopes(
        self, stage: Callable[[int, Tensor], Tensor], y: Tensor, h: float | Tensor
    ) -> list[Tensor]:
        slopes: list[Tensor] = []
        for i, row in enumerate(self.rows):
            slopes.append(stage(i, advance(y, slopes, row, h)))
        return slopes


def advance(
    y: Tensor, slopes: Sequence[Tensor], coefficients: Sequence[float], h: float | Tensor
) -> Tensor:
    r"""Return ``y + h * sum_j coefficients[j] * slopes[j]``, skipping zero coefficients.

    It is computed as $y + h b_1 (k_1 + \frac{b_2}{b_1} k_2 + \dots)$, the form on paper: the
    increments are summed before they meet the larger ``y``, and adding a multiple is one operation.
    """
    total, first = combination(slopes, coefficients)
    if total is None:
        return y
    factor = h * first
    return y + factor * total if isinstance(factor, Tensor) else y.add(total, alpha=factor)


def combination(
    slopes: Sequence[Tensor], coefficients: Sequence[float]
) -> tuple[Tensor | None, float]:
    """Return the sum of the multiples over the first coefficient that is not zero, and that one."""
    total: Tensor | None = None
    first = 1.0
    for coefficient, slope in zip(coefficients, slopes, strict=False):
        if coefficient == 0.0:
            continue
        if total is None:
            total, first = slope, coefficient
        else:
            total = total.add(slope, alpha=coefficient / first)
    return total, first


def _rows(*rows: str) -> tuple[Row, ...]:
    return tuple(tuple(Fraction(x) for x in row.split()) for row in rows)


def _tableau(name: str, order: int, a: Sequence[str], b: str) -> Tableau:
    return Tableau(name=name, order=order, a=_rows(*a), b=_rows(b)[0])


SCHEMES: dict[str, Tableau] = {
    scheme.name: scheme
    for scheme in (
        _tableau("euler", 1, [""], "1"),
        _tableau("midpoint", 2, ["", "1/2"], "0 1"),
        _tableau("heun", 2, ["", "1"], "1/2 1/2"),
        _tableau("kutta3", 3, ["", "1/2", "-1 2"], "1/6 2/3 1/6"),
        _tableau("rk4", 4, ["", "1/2", "0 1/2", "0 0 1"], "1/6 1/3 1/3 1/6"),
        _tableau("rk4_38", 4, ["", "1/3", "-1/3 1", "1 -1 1"], "1/8 3/8 3/8 1/8"),
    )
}
"""The explicit fixed-step schemes, by name.

``rk4`` is the classic scheme of Kutta. What torchdiffeq calls ``rk4`` is the 3/8 rule, here
``rk4_38``.
"""


def get_scheme(name: str) -> Tableau:
    """Return the scheme called ``name``.

    Raises:
        ValueError: if there is no such scheme.

    Example:
        >>> get_scheme("rk4").order
        4
    """
    check_choice("method", name, SCHEMES)
    return SCHEMES[name]
