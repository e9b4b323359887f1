"""Data sets, one file each, and what they share.

Every ``load_`` function returns :class:`Samples`. Those that come with a package need nothing;
the others read the data folder: their first argument, ``--data`` on the command line, or the
environment variable ``COMPANION_DATA``.
"""

from companion.data import pendulum as pendulum
from companion.data.augment import crop_and_flip
from companion.data.cifar import load_cifar10, load_cifar100
from companion.data.digits import load_digits
from companion.data.image_folder import ImageFolder, load_image_folder
from companion.data.mnist import load_mnist
from companion.data.samples import Samples

__all__ = [
    "ImageFolder",
    "Samples",
    "crop_and_flip",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_image_folder",
    "load_mnist",
]
