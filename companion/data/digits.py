"""The handwritten digits that scikit-learn ships: 1797 grey images of 8 by 8 pixels."""

import hashlib

import torch

from companion.arguments import check_type, is_count
from companion.data.samples import Samples
from companion.data.standardise import check_dtype


def load_digits(
    *,
    seed: int = 0,
    test_size: int = 500,
    as_images: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Samples:
    r"""Return the digits, shuffled, split and standardised.

    Pixels $p \in [0, 16]$ become $(p/16 - \mu)/(\sigma + 0.1)$ with mean and standard
    deviation of that pixel over the training samples. The 0.1 keeps border pixels, which are
    almost always blank, from being blown up.

    Args:
        seed: decides which samples are test samples, and nothing else.
        test_size: number of test samples, 1 to 1796.
        as_images: shape ``(n, 1, 8, 8)`` instead of ``(n, 64)``.
        dtype: of the pixels.
        device: of all tensors.

    Raises:
        TypeError: ``seed`` that is no integer, or ``dtype`` that is not floating-point.
        ValueError: ``test_size`` that is no integer in this range.

    Source:
        E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998 (the test part), as shipped with scikit-learn.

    Example:
        >>> data = load_digits(as_images=True)
        >>> data.x_train.shape, data.x_test.shape
        (torch.Size([1297, 1, 8, 8]), torch.Size([500, 1, 8, 8]))
    """
    check_type("seed", seed, int)
    check_dtype(dtype)
    from sklearn import datasets  # slow to import, needed only here

    pixels, classes = datasets.load_digits(return_X_y=True)
    if not is_count(test_size) or test_size >= len(pixels):
        raise ValueError(
            f"test_size: {test_size!r} is not allowed; it must be an integer from 1 to "
            f"{len(pixels) - 1}"
        )
    x = torch.from_numpy(pixels).to(torch.float64) / 16
    y = torch.from_numpy(classes).to(torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:-test_size], order[-test_size:]
    mean, deviation = x[train].mean(0), x[train].std(0) + 0.1
    shape = (1, 8, 8) if as_images else (64,)
    x, mean, deviation = (
        tensor.to(device=device, dtype=dtype).reshape(*tensor.shape[:-1], *shape)
        for tensor in ((x - mean) / deviation, mean, deviation)
    )
    y = y.to(device)
    parts = (pixels.astype("u1").tobytes(), classes.astype("u1").tobytes(), order.numpy().tobytes())
    sha256 = hashlib.sha256(b"".join(parts) + str(test_size).encode()).hexdigest()
    return Samples(
        x[train], y[train], x[test], y[test], mean, deviation, sha256, "shipped with scikit-learn"
    )
