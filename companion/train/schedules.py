"""Factors on the learning rate, as functions of the finished fraction of a run."""

import math
from collections.abc import Callable


def step_decay(*milestones: float, factor: float = 0.1) -> Callable[[float], float]:
    """Return a schedule that multiplies the rate by ``factor`` at each finished fraction.

    Example:
        >>> rate = step_decay(0.5, 0.75)
        >>> [round(rate(p), 6) for p in (0.0, 0.5, 0.9)]
        [1.0, 0.1, 0.01]
    """
    return lambda progress: factor ** sum(progress >= point for point in milestones)


def cosine(progress: float) -> float:
    r"""Return the factor $(1 + \cos \pi p)/2$ after the fraction $p$ of all steps.

    Source:
        I. Loshchilov and F. Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017,
        Eq. 5, without restarts.

    Example:
        >>> [round(cosine(p), 6) for p in (0.0, 0.5, 0.75)]
        [1.0, 0.5, 0.146447]
    """
    return (1 + math.cos(math.pi * progress)) / 2
