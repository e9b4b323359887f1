"""What every data set of labelled samples looks like, so that experiments can exchange them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Samples:
    r"""A data set in memory, split and standardised.

    A pixel $p \in [0, 1]$ is stored as $(p - \mathrm{mean})/\mathrm{deviation}$.

    Attributes:
        x_train: training samples, one per row.
        y_train: their classes from 0, shape ``(n_train,)``, int64.
        x_test: as ``x_train``, for the test samples.
        y_test: as ``y_train``, for the test samples.
        mean: what was subtracted; broadcasts against a sample.
        deviation: what was divided by; of the shape of ``mean``.
        sha256: hash of what was read and of the split.
        origin: where it comes from, such as ``"official files"``.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: Tensor
    deviation: Tensor
    sha256: str
    origin: str

    @property
    def black(self) -> Tensor:
        """The stored value of a pixel $p = 0$, of the shape of ``mean``."""
        return -self.mean / self.deviation

    @property
    def provenance(self) -> str:
        """The hash, and the origin in brackets: what findings record about their data."""
        return f"{self.sha256} ({self.origin})"
