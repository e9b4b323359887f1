r"""Linear residual networks, their rescaled gradient flow, and the constants of its theory.

The network is $\Pi = (I + \theta_{N-1}/N) \cdots (I + \theta_0/N)$. Layers count from 0. The
weights of all layers are one tensor of shape ``(..., N, d, d)``; leading axes hold independent
networks. Theory: Sander et al. 2022, section 3.2; proofs with all constants are in the book.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from companion.arguments import check_count, check_type


def layer_products(weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the products of the layers before and from every layer, with about 4N products.

    $$\text{before}_n = A_{n-1} \cdots A_0, \quad
    \text{after}_n = A_{N-1} \cdots A_n, \quad A_n = I + \theta_n/N, \quad n = 0, \dots, N$$

    Shapes:
        ``(..., N, d, d)`` to two tensors ``(..., N + 1, d, d)``.

    Raises:
        ValueError: ``weights`` is not a stack of square matrices, or has no layer.

    Example:
        >>> before, after = layer_products(torch.tensor([[[2.0]], [[4.0]]]))
        >>> before.flatten(), after.flatten()
        (tensor([1., 2., 6.]), tensor([6., 3., 1.]))
    """
    factors = _factors(weights)
    reverse = _prefix_products(factors.flip(-3).mT)
    return _prefix_products(factors), reverse.flip(-3).mT


def end_map(weights: Tensor) -> Tensor:
    r"""Return the matrix $\Pi$ of the whole network: ``(..., N, d, d)`` to ``(..., d, d)``.

    Raises:
        ValueError: ``weights`` is not a stack of square matrices, or has no layer.

    Example:
        >>> end_map(torch.tensor([[[2.0]], [[4.0]]]))
        tensor([[6.]])
    """
    return _product(_factors(weights))


def time_one_map(weights: Tensor) -> Tensor:
    r"""Return the time-1 map of the equation whose weights are constant in every cell.

    $$\dot x = \psi(s)\, x, \quad \psi(s) = \theta_n \text{ for } n/N \le s < (n+1)/N$$

    $$U(1, 0) = e^{\theta_{N-1}/N} \cdots e^{\theta_0/N}, \qquad
    \lVert U(1, 0) - \Pi \rVert \le \frac{\sqrt e}{8N}
    \quad\text{if all } \lVert\theta_n\rVert \le \tfrac12$$

    Shapes:
        ``(..., N, d, d)`` to ``(..., d, d)``.

    Raises:
        ValueError: ``weights`` is not a stack of square matrices, or has no layer.

    Example:
        >>> time_one_map(torch.tensor([[[0.0]], [[2.0]]]))
        tensor([[2.7183]])
    """
    _check(weights)
    return _product(torch.linalg.matrix_exp(weights / weights.shape[-3]))


@dataclass(frozen=True)
class LinearTask:
    r"""Regression on a linear target, after averaging over the inputs.

    $$\ell = \tfrac12 \lVert \Pi - B \rVert_\Sigma^2, \qquad
    \lVert A \rVert_\Sigma^2 = \operatorname{tr}(A \Sigma A^\top)$$

    This is half the mean squared error on inputs with second moment $\Sigma$ and outputs
    $Bx$. The paper's Eq. 5 leaves out the half; its gradient and its constants have it.

    Attributes:
        target: $B$, shape ``(..., d, d)``.
        covariance: $\Sigma$, symmetric and positive definite, shape ``(d, d)``.

    Raises:
        TypeError: a target or a covariance that is no tensor.
        ValueError: shapes, types or devices that do not fit, a type other than float32 and float64,
            or a covariance that is not symmetric and positive definite. In the methods: weights
            whose matrices are not of shape ``(d, d)``.

    Example:
        >>> task = LinearTask(torch.zeros(2, 2), torch.eye(2))
        >>> weights = torch.zeros(4, 2, 2)
        >>> task.loss(weights), task.rescaled_gradients(weights)[0]
        (tensor(1.), tensor([[1., 0.],
                             [0., 1.]]))
    """

    target: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        target, covariance = self.target, self.covariance
        check_type("target", target, Tensor)
        check_type("covariance", covariance, Tensor)
        width = covariance.shape[-1] if covariance.ndim == 2 else 0
        fits = covariance.shape == (width, width) and target.shape[-2:] == (width, width)
        if width < 1 or not fits:
            raise ValueError(
                f"target, covariance: shapes {tuple(target.shape)} and {tuple(covariance.shape)} "
                "are not allowed; they must be (..., d, d) and (d, d) with d at least 1"
            )
        if (target.dtype, target.device) != (covariance.dtype, covariance.device):
            raise ValueError(
                f"target, covariance: {target.dtype} on {target.device} and {covariance.dtype} on "
                f"{covariance.device} are not allowed; they must have one type and device"
            )
        if covariance.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"target, covariance: {covariance.dtype} is not allowed; they must be of float32 "
                "or float64"
            )
        if not torch.allclose(covariance, covariance.mT) or self.spectrum[0] <= 0:
            raise ValueError(
                f"covariance: {covariance} is not allowed; it must be symmetric and positive "
                "definite"
            )

    @cached_property
    def spectrum(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue of the covariance, m and M."""
        values = torch.linalg.eigvalsh(self.covariance)
        return float(values[0]), float(values[-1])

    def loss(self, weights: Tensor) -> Tensor:
        r"""Return $\ell$: ``(..., N, d, d)`` to ``(...)``."""
        self.check_weights(weights)
        return self._loss(end_map(weights) - self.target)

    def rescaled_gradients(self, weights: Tensor) -> Tensor:
        r"""Return N times the gradient of the loss with respect to every layer.

        $$N \nabla_n = \Pi_{n:}^\top (\Pi - B) \Sigma\, \Pi_{:n}^\top, \qquad
        \Pi_{n:} = \text{after}_{n+1}, \quad \Pi_{:n} = \text{before}_n$$

        Shapes:
            ``(..., N, d, d)`` to the same.
        """
        return self.loss_and_gradients(weights)[1]

    def loss_and_gradients(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return :meth:`loss` and :meth:`rescaled_gradients`, which share their products."""
        self.check_weights(weights)
        before, after = layer_products(weights)
        error = before[..., -1, :, :] - self.target
        pulled = (error @ self.covariance).unsqueeze(-3)
        gradients = after[..., 1:, :, :].mT @ pulled @ before[..., :-1, :, :].mT
        return self._loss(error), gradients

    def gradient_bounds(self) -> tuple[float, float]:
        r"""Return the lower and the upper bound of the rescaled gradients, squared, over the loss.

        $$\frac{2m}{e} \le \frac{\lVert N\nabla_n\rVert_F^2}{\ell} \le 2eM$$

        They hold while all $\lVert\theta_n\rVert \le \tfrac12$. The lower one is a
        Polyak-Lojasiewicz inequality: the flow's loss falls at least at the rate $2m/e$.
        """
        low, high = self.spectrum
        return 2 * low / math.e, 2 * math.e * high

    def loss_threshold(self, step: float = 0.0) -> float:
        r"""Return the initial loss from which no layer can travel further than 1/4.

        $$\varepsilon_\eta = \Bigl(1 - \frac{e\,\eta M}{8}\Bigr)^{\!2} \frac{m^2}{32 e^3 M}$$

        ``step = 0`` is the flow. Gradient descent needs $\eta \le 1/(eM)$.

        Raises:
            ValueError: ``step`` outside that range.
        """
        low, high = self.spectrum
        if not 0 <= step <= 1 / (math.e * high):
            raise ValueError(
                f"step: {step!r} is not allowed; it must lie between 0 and "
                f"{1 / (math.e * high):.3g}"
            )
        return (1 - math.e * step * high / 8) ** 2 * low**2 / (32 * math.e**3 * high)

    def check_weights(self, weights: Tensor) -> None:
        """Raise a ``ValueError`` unless weights, ``(..., N, d, d)``, have the task's ``d``."""
        _check(weights)
        width = self.covariance.shape[-1]
        if weights.shape[-1] != width:
            raise ValueError(
                f"weights: shape {tuple(weights.shape)} is not allowed; it must be (..., layers, "
                f"{width}, {width}), as the target's"
            )

    def _loss(self, error: Tensor) -> Tensor:
        weighted = error @ self.covariance
        return (weighted * error).sum((-2, -1)) / 2


class Moment(NamedTuple):
    """A moment of the descent: the weights, their loss and their rescaled gradients."""

    weights: Tensor
    loss: Tensor
    gradients: Tensor


def descend(task: LinearTask, weights: Tensor, step: float, steps: int) -> Iterator[Moment]:
    r"""Follow the rescaled gradient flow in explicit steps; yield ``steps + 1`` moments.

    $$\theta_n \leftarrow \theta_n - \eta N \nabla_n$$

    This is Euler's method for $\dot\theta_n = -N\nabla_n$.

    Args:
        task: the loss.
        weights: the start, shape ``(..., N, d, d)``; it is not changed.
        step: the learning rate $\eta$.
        steps: number of updates.

    Raises:
        ValueError: ``step`` is not positive and finite, ``steps`` is no integer of at least 0, or
            the weights do not fit the task.

    Example:
        >>> task = LinearTask(torch.zeros(1, 1), torch.eye(1))
        >>> [round(s.loss.item(), 4) for s in descend(task, torch.zeros(2, 1, 1), 0.5, 2)]
        [0.5, 0.1582, 0.0863]
    """
    if not 0 < step < math.inf:
        raise ValueError(f"step: {step!r} is not allowed; it must be positive and finite")
    check_count("steps", steps, least=0)
    task.check_weights(weights)
    return _stages(task, weights, step, steps)


def _stages(task: LinearTask, weights: Tensor, step: float, steps: int) -> Iterator[Moment]:
    for _ in range(steps):
        stage = Moment(weights, *task.loss_and_gradients(weights))
        yield stage
        weights = weights - step * stage.gradients
    yield Moment(weights, *task.loss_and_gradients(weights))


def roughness(weights: Tensor) -> Tensor:
    r"""Return $\max_n N \lVert\theta_{n+1} - \theta_n\rVert_F$, the discrete slope in depth.

    Shapes:
        ``(..., N, d, d)`` to ``(...)``.

    Raises:
        ValueError: fewer than two layers.

    Example:
        >>> roughness(torch.tensor([[[0.0]], [[0.5]], [[0.25]]]))
        tensor(1.5000)
    """
    _check(weights)
    if weights.shape[-3] < 2:
        raise ValueError("weights: 1 layer is not allowed; there must be at least two")
    steps: Tensor = weights.diff(dim=-3).norm(dim=(-2, -1))
    return weights.shape[-3] * steps.amax(-1)


def _check(weights: Tensor) -> None:
    if weights.ndim < 3 or weights.shape[-1] != weights.shape[-2] or weights.shape[-3] < 1:
        raise ValueError(
            f"weights: shape {tuple(weights.shape)} is not allowed; it must be (..., layers, d, d)"
        )


def _factors(weights: Tensor) -> Tensor:
    _check(weights)
    eye = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    return eye + weights / weights.shape[-3]


def _product(factors: Tensor) -> Tensor:
    """Multiply neighbours until one matrix is left; the last factor stands on the left."""
    while (count := factors.shape[-3]) > 1:
        pairs = factors[..., 1::2, :, :] @ factors[..., : count - 1 : 2, :, :]
        factors = torch.cat([pairs, factors[..., count - count % 2 :, :, :]], dim=-3)
    return factors[..., 0, :, :]


def _prefix_products(factors: Tensor) -> Tensor:
    """Return ``I, A_0, A_1 A_0, ...`` in 2N products, batched over about log2 N levels.

    The products of pairs have half as many prefixes; one more factor gives those in between.
    """
    count = factors.shape[-3]
    if count == 0:
        eye = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)
        return eye.expand(*factors.shape[:-3], 1, -1, -1)
    first = factors[..., 0::2, :, :]
    even = _prefix_products(factors[..., 1::2, :, :] @ first[..., : count // 2, :, :])
    odd = first @ even[..., : first.shape[-3], :, :]
    result = factors.new_empty(*factors.shape[:-3], count + 1, *factors.shape[-2:])
    result[..., 0::2, :, :], result[..., 1::2, :, :] = even, odd
    return result
