r"""The pendulum: its field, its exact motion, and pairs of states one step apart.

A pendulum of unit length and mass has the angle $\rho$ and the velocity $v$,

$$\dot\rho = v, \qquad \dot v = -\gamma \sin\rho, \qquad \gamma = 9.81.$$

Released at rest it swings, and Jacobi's elliptic functions give its motion exactly. Queiruga et
al. (2020, Eq. 13) print that solution with misprints: the modulus is $k = \sin(\rho_0/2)$ with the
angle at the start, the frequency is $\sqrt\gamma$ with a positive $\gamma$, and the velocity is
missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ellipj, ellipk, ellipkm1
from torch import Tensor

from companion.arguments import check_count, check_type

__all__ = ["GRAVITY", "START", "exact", "field", "pairs", "period", "region"]

GRAVITY = 9.81
r"""The constant $\gamma$."""

START = 3 * math.pi / 4
"""The angle at the start in Queiruga et al. (2020), in radians: 135 degrees."""

_NEAR = 1e-2
"""Below this $1 - m$, SciPy's functions, which are given $m$, lose digits."""

Numbers = Tensor | NDArray[np.float64] | Sequence[float] | float


def field(x: Tensor) -> Tensor:
    r"""Return the derivative $(v, -\gamma\sin\rho)$ of the state $x = (\rho, v)$.

    Shapes:
        ``(..., 2)`` to the same.

    Raises:
        ValueError: a last axis of another size than 2.

    Source:
        Queiruga et al. 2020, Eq. 12.

    Example:
        >>> field(torch.tensor([0.0, 1.0]))
        tensor([1., -0.])
    """
    if x.shape[-1:] != (2,):
        raise ValueError(f"x: shape {tuple(x.shape)} is not allowed; its last axis must be of 2")
    angle, velocity = x.unbind(-1)
    return torch.stack([velocity, -GRAVITY * torch.sin(angle)], dim=-1)


def exact(t: Numbers, rho0: Numbers = START) -> Tensor:
    r"""Return angle and velocity at the times ``t`` of a pendulum released at rest at ``rho0``.

    $$\rho(t) = 2 \arcsin\bigl(k\,\mathrm{sn}(K - \omega t \mid m)\bigr), \qquad
    v(t) = -2 k \omega\,\mathrm{cn}(K - \omega t \mid m),$$

    $$k = \sin\tfrac{\rho_0}2, \quad m = k^2, \quad \omega = \sqrt\gamma, \quad K = K(m).$$

    The functions take the parameter $m$, not the modulus $k$. Computed in double precision, to
    about 13 digits at any angle: near the upright position $1 - m$ is what counts, and is taken
    from $\cos(\rho_0/2)$.

    Args:
        t: times, of any sign.
        rho0: angles at the start, in radians, inside $(-\pi, \pi)$; broadcast against ``t``.

    Returns:
        A tensor of shape ``(*shape, 2)`` on the CPU, in double precision; ``shape`` is that of
        ``t`` and ``rho0`` broadcast.

    Raises:
        ValueError: a time that is not finite, or an angle outside $(-\pi, \pi)$ or so near its
            ends that double precision cannot tell.

    Source:
        Queiruga et al. 2020, Eq. 13, corrected.

    Example:
        >>> exact([0.1, 0.2], rho0=3 * math.pi / 4)
        tensor([[ 2.3213, -0.7016],
                [ 2.2143, -1.4495]], dtype=torch.float64)
    """
    times, angles = _doubles(t), _angles(rho0)
    if not np.isfinite(times).all():
        raise ValueError(
            f"t: {times[~np.isfinite(times)][0]} is not allowed; all times must be finite"
        )
    k, rest = np.sin(angles / 2), np.cos(angles / 2)
    omega = math.sqrt(GRAVITY)
    sn, cn, _, _ = ellipj(ellipk(k**2) - omega * times, k**2)
    found = np.stack([2 * np.arcsin(k * sn), -2 * k * omega * cn], axis=-1)
    if (near := rest**2 < _NEAR).any():
        upright = _exact_near_the_top(times, k, rest)
        found = np.where(np.broadcast_to(near[..., None], found.shape), upright, found)
    return torch.from_numpy(found)


def period(rho0: float = START) -> float:
    r"""Return the time $4 K(m) / \omega$ after which the motion repeats.

    Args:
        rho0: the angle at the start, in radians, inside $(-\pi, \pi)$.

    Raises:
        ValueError: an angle outside $(-\pi, \pi)$.

    Example:
        >>> round(period(3 * math.pi / 4), 6)
        3.065165
        >>> round(period(1e-6) * math.sqrt(GRAVITY) / (2 * math.pi), 9)  # small swings
        1.0
    """
    return float(_periods(_angles(rho0)))


def pairs(step: float, time: float, rho0: Numbers = START) -> tuple[Tensor, Tensor]:
    r"""Return the states $x(t_k)$ and $x(t_{k+1})$ along one motion, at $t_k = k\,\Delta t$.

    Args:
        step: the time $\Delta t$ between two states, above 0.
        time: the time of the last state, a multiple of ``step``.
        rho0: the angle at the start.

    Returns:
        Two tensors of shape ``(time / step, 2)``: the states that a net steps from, and to.

    Raises:
        ValueError: a step that is not positive, or a time that is no positive multiple of it.

    Source:
        Queiruga et al. 2020, Eq. 16 and 17.

    Example:
        >>> now, later = pairs(step=0.1, time=6.4)
        >>> now.shape, torch.equal(now[1:], later[:-1])
        (torch.Size([64, 2]), True)
    """
    _check_step(step)
    count = round(time / step)
    if count < 1 or not math.isclose(count * step, time, rel_tol=1e-9):
        raise ValueError(f"time: {time!r} is not allowed; it must be a multiple of step {step!r}")
    states = exact(step * torch.arange(count + 1, dtype=torch.float64), rho0)
    return states[:-1], states[1:]


def region(
    points: int, step: float, *, amplitude: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    r"""Return states that fill a region of the plane, and the states one ``step`` later.

    Every state lies on a motion of its own, at a uniform time of its period. The largest angle of
    a motion is ``amplitude`` times the square root of a uniform number. A single motion tells
    nothing about the field beside it; these do.

    Args:
        points: number of states.
        step: the time between a state and its partner, above 0.
        amplitude: the largest angle of all, in radians, inside $(0, \pi)$.
        generator: draws motions and times, on the CPU.

    Returns:
        Two tensors of shape ``(points, 2)``.

    Raises:
        ValueError: ``points`` no integer of at least 1, a step that is not positive, or an
            amplitude outside $(0, \pi)$.

    Example:
        >>> now, later = region(5, 0.1, amplitude=2.0, generator=torch.Generator().manual_seed(0))
        >>> energy = now[:, 1] ** 2 / 2 - GRAVITY * torch.cos(now[:, 0])
        >>> bool((energy < -GRAVITY * math.cos(2.0)).all())
        True
    """
    check_count("points", points)
    _check_step(step)
    if not 0 < amplitude < math.pi:
        raise ValueError(f"amplitude: {amplitude!r} is not allowed; it must lie inside (0, pi)")
    uniform = torch.rand(2, points, generator=generator, dtype=torch.float64).numpy()
    angles = amplitude * np.sqrt(uniform[0])
    times = uniform[1] * _periods(angles)
    return exact(times, angles), exact(times + step, angles)


def _exact_near_the_top(
    times: NDArray[np.float64], k: NDArray[np.float64], rest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the motion from ``rest``, the root of 1 - m, by the arithmetic-geometric mean.

    Abramowitz and Stegun 1964, 16.4. Sines and cosines come in pairs, so that no difference of
    nearly equal numbers is taken.
    """
    omega = math.sqrt(GRAVITY)
    a, b, ladder = np.ones_like(rest), rest, []
    for _ in range(9):  # enough for any double: the digits double once a and b have met
        a, b, half, low = (a + b) / 2, np.sqrt(a * b), (a - b) / 2, b
        ladder.append((half, low))
    phi = 2.0 ** len(ladder) * a * (ellipkm1(rest**2) - omega * times)
    for half, low in reversed(ladder):
        above, below = (2 * np.sin(math.pi / 4 + sign * phi / 2) ** 2 for sign in (1, -1))
        cosine = np.sqrt((low + half * above) * (low + half * below))
        phi = (phi + np.arctan2(half * np.sin(phi), cosine)) / 2
    sn, cn = np.sin(phi), np.cos(phi)
    dn = np.hypot(rest, k * cn)
    motion: NDArray[np.float64] = np.stack(
        np.broadcast_arrays(2 * np.arctan2(k * sn, dn), -2 * k * omega * cn), axis=-1
    )
    return motion


def _doubles(values: Numbers) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().numpy()  # numpy has no bfloat16
    return np.asarray(values, dtype=np.float64)


def _angles(rho0: Numbers) -> NDArray[np.float64]:
    angles = _doubles(rho0)
    if not (np.abs(angles) < math.pi).all():
        raise ValueError(f"rho0: {rho0!r} is not allowed; angles must lie inside (-pi, pi)")
    if (np.sin(angles / 2) ** 2 == 1).any():  # the period would be infinite
        raise ValueError(
            f"rho0: {rho0!r} is not allowed; in double precision that is pi, where the pendulum "
            "stands; stay at least 1e-7 away from it"
        )
    return angles


def _periods(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    rest = np.cos(angles / 2) ** 2
    quarter = np.where(rest < _NEAR, ellipkm1(rest), ellipk(np.sin(angles / 2) ** 2))
    periods: NDArray[np.float64] = 4 * quarter / math.sqrt(GRAVITY)
    return periods


def _check_step(step: float) -> None:
    check_type("step", step, int, float)
    if not 0 < step < math.inf:
        raise ValueError(f"step: {step!r} is not allowed; it must be positive and finite")
