"""Data under names that are almost right: named, and never downloaded a second time."""

import gzip

import pytest

from companion.data import load_cifar10, load_cifar100, load_mnist, official
from companion.data.cifar import CIFAR10, CIFAR100
from companion.data.mnist import MNIST
from companion.data.near_names import is_called_after, near_names
from companion.data.official import read_published


@pytest.fixture(autouse=True)
def downloads(monkeypatch):
    """Every set that would have been downloaded, by name."""
    asked = []

    def refuse(published, root):
        asked.append(published.name)
        raise ValueError("would download")

    monkeypatch.setattr(official, "_download", refuse)
    return asked


def touch(root, *names):
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")


@pytest.mark.parametrize(
    ("load", "there", "found"),
    [
        (load_mnist, "train-images.idx3-ubyte", r"train-images\.idx3-ubyte"),
        (load_mnist, "mnist/train-images.idx3-ubyte", r"mnist/train-images\.idx3-ubyte"),
        (load_mnist, "MNIST/raw/train-images.idx3-ubyte.gz", "raw/train-images"),
        (load_mnist, "MNIST/train-images-idx3-ubyte", "MNIST/train-images-idx3-ubyte"),
        (load_mnist, "MNIST_data/t10k-labels-idx1-ubyte.gz", "MNIST_data/t10k-labels"),
        (load_mnist, "T10K-labels-idx1-ubyte", "T10K-labels"),
        (load_mnist, "mnist.npz", r"mnist\.npz"),
        (load_mnist, "mnist.pkl.gz", r"mnist\.pkl\.gz"),
        (load_cifar10, "cifar-10-batches-py/", "cifar-10-batches-py"),
        (load_cifar10, "cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/data_batch_1"),
        (load_cifar10, "cifar-10-python.tar.gz", r"cifar-10-python\.tar\.gz"),
        (load_cifar10, "cifar-10-binary.tar.gz", r"cifar-10-binary\.tar\.gz"),
        (load_cifar10, "CIFAR-10/test_batch.bin", r"CIFAR-10/test_batch\.bin"),
        (load_cifar10, "cifar10/data_batch_3", "cifar10/data_batch_3"),
        (load_cifar10, "cifar10/cifar-10-batches-bin/test_batch.bin", "bin/test_batch"),
        (load_cifar100, "cifar-100-python/train", "cifar-100-python/train"),
        (load_cifar100, "cifar100/Train.bin", r"cifar100/Train\.bin"),
    ],
)
def test_what_was_found_and_what_is_expected_are_named(tmp_path, load, there, found):
    touch(tmp_path, there)
    with pytest.raises(ValueError, match=f"found .*{found}.*, expected "):
        load(tmp_path)


@pytest.mark.parametrize("name", ["MNIST", "mnist"])
def test_the_folder_of_the_set_itself_is_looked_into(tmp_path, downloads, name):
    root = tmp_path / name
    touch(root, "raw/train-images-idx3-ubyte")
    with pytest.raises(ValueError, match=r"found .*raw/train-images-idx3-ubyte, expected "):
        load_mnist(root)
    assert downloads == []


@pytest.mark.parametrize(
    ("published", "others"),
    [
        (MNIST, ["FashionMNIST/raw/train-images-idx3-ubyte", "EMNIST/raw/", "QMNIST/"]),
        (MNIST, ["MNIST/processed/training.pt", "MNIST/raw/", "mnist/", "notes.txt", "train/"]),
        (CIFAR10, ["cifar-100-binary/train.bin", "cifar100/", "cifar-100-python.tar.gz", "data"]),
        (CIFAR100, ["cifar-10-batches-bin/test_batch.bin", "cifar-10-batches-py/", "train/a.png"]),
        (CIFAR100, ["imagenet/train/n01/1.JPEG", "MNIST/raw/train-images-idx3-ubyte", "cifar100/"]),
    ],
)
def test_other_sets_beside_it_do_not_keep_a_set_from_being_downloaded(
    tmp_path, downloads, published, others
):
    touch(tmp_path, *others)
    with pytest.raises(ValueError, match="would download"):
        read_published(published, tmp_path)
    assert downloads == [published.name]


def test_a_missing_file_under_a_near_name_is_named(tmp_path, downloads):
    for file in MNIST.files[:3]:
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"t10k-labels-idx1-ubyte missing, found .*\.idx1-ubyte; re"
    ):
        load_mnist(tmp_path)
    assert downloads == []


def test_a_file_of_the_same_kind_is_not_a_near_name(tmp_path):
    touch(tmp_path, *(file.name for file in CIFAR10.files[1:]))
    assert near_names(tmp_path, [CIFAR10.files[0].name]) == []
    with pytest.raises(ValueError, match=r"data_batch_1\.bin missing; add what is missing"):
        read_published(CIFAR10, tmp_path)


def test_numbers_are_read_whole():
    assert is_called_after("cifar_10", "cifar10")
    assert not is_called_after("cifar-1000", "cifar100")
