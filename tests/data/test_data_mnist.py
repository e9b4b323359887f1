from dataclasses import replace

import numpy as np
import pytest
import torch
from real_data import real

from companion.data import load_mnist, mnist
from companion.data.mnist import MNIST, parse_idx
from companion.data.official import DataFile

EXTENTS = ((3, 28, 28), (3,), (2, 28, 28), (2,))


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def arrays():
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256 if len(shape) == 3 else 10, shape, "u1") for shape in EXTENTS]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Files in the official format with 3 and 2 images, and a catalogue that expects just them."""
    files = []
    for file, array in zip(MNIST.files, arrays(), strict=True):
        (tmp_path / file.name).write_bytes(idx(array))
        files.append(DataFile(file.name, len(idx(array)), file.sha256))
    monkeypatch.setattr(mnist, "MNIST", replace(MNIST, files=tuple(files)))
    return tmp_path


def test_pixels_and_classes_end_up_where_the_files_say(tiny):
    data = load_mnist(tiny, dtype=torch.float64)
    raw = arrays()
    for x, pixels in ((data.x_train, raw[0]), (data.x_test, raw[2])):
        expected = (pixels[:, None] / 255 - 0.1307) / 0.3081
        np.testing.assert_allclose(x, expected, atol=1e-13)
    assert data.y_train.tolist() == raw[1].tolist()
    assert data.y_test.tolist() == raw[3].tolist()
    assert data.y_train.dtype == torch.int64
    assert data.black.item() == pytest.approx(-0.1307 / 0.3081)
    assert data.provenance == f"{data.sha256} (not the official files)"


@pytest.mark.parametrize(("part", "n"), [(1, 3), (3, 2)])
@pytest.mark.parametrize("label", [10, 200, 255])
def test_labels_that_are_no_digits_are_named(tiny, part, n, label):
    labels = np.zeros(n, "u1")
    labels[n - 1] = label
    name = MNIST.files[part].name
    (tiny / name).write_bytes(idx(labels))
    with pytest.raises(
        ValueError, match=rf"{name} is damaged: record {n - 1} has .* {label} of 10"
    ):
        load_mnist(tiny)
    labels[n - 1] = 9
    (tiny / name).write_bytes(idx(labels))
    load_mnist(tiny)


@pytest.mark.parametrize(
    ("part", "shape", "message"),
    [
        (0, (3, 14, 56), r"train-images.* shape \[3, 14, 56\]; expected \[n, 28, 28\]"),
        (2, (1, 56, 28), r"t10k-images.* shape \[1, 56, 28\]; expected \[n, 28, 28\]"),
    ],
)
def test_a_damaged_header_is_named(tiny, part, shape, message):
    """Of the right size and with the right number of values, but in another shape."""
    (tiny / MNIST.files[part].name).write_bytes(idx(np.zeros(shape, "u1")))
    with pytest.raises(ValueError, match=message):
        load_mnist(tiny)


def test_images_and_labels_of_two_sets_are_not_mixed(tiny, monkeypatch):
    labels = idx(np.zeros(4, "u1"))
    (tiny / MNIST.files[1].name).write_bytes(labels)
    files = list(mnist.MNIST.files)
    files[1] = replace(files[1], size=len(labels))
    monkeypatch.setattr(mnist, "MNIST", replace(mnist.MNIST, files=tuple(files)))
    with pytest.raises(ValueError, match=r"does not belong to .*: it has 4 labels for 3 images"):
        load_mnist(tiny)


def test_the_official_sizes_are_expected(tmp_path):
    for file, array in zip(MNIST.files, arrays(), strict=True):
        (tmp_path / file.name).write_bytes(idx(array))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.*expected 47040016;"):
        load_mnist(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it begins b''"),
        (b"\x1f\x8b\x08\x00", "it begins"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 0]), "no idx file of bytes"),
        (idx(np.zeros((2, 3), "u1"))[:-1], r"shape \[2, 3\], which is not the 5 it has"),
        (idx(np.zeros((2, 3), "u1")) + b"x", r"shape \[2, 3\], which is not the 7 it has"),
    ],
)
def test_what_is_no_idx_file_is_named(content, message):
    with pytest.raises(ValueError, match=rf"data file some-name.*{message}"):
        parse_idx(content, "some-name")


def test_the_real_files():
    data = load_mnist(real("mnist", "MNIST/raw"))
    assert data.x_train.shape == (60_000, 1, 28, 28)
    assert data.x_test.shape == (10_000, 1, 28, 28)
    assert data.y_train.bincount().tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.x_train.mean().abs() < 2e-4
    assert abs(data.x_train.std() - 1) < 2e-4
    if data.origin == "official files":
        assert data.sha256.startswith("c65580678af93f1e")
