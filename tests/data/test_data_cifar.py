from dataclasses import replace

import numpy as np
import pytest
import torch
from real_data import real

from companion.data import cifar, load_cifar10, load_cifar100
from companion.data.cifar import CIFAR10, CIFAR100, parse_records

COLOURS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def records(n, classes, seed):
    """Return ``n`` records, and the classes and colour planes they were put together from."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, n, "u1")
    planes = draw.integers(0, 256, (n, 3, 32, 32), "u1")
    coarse = [] if classes == 10 else [draw.integers(0, 20, n, "u1")]
    columns = [*coarse, labels, planes.reshape(n, -1)]
    content = np.column_stack([c.reshape(n, -1) for c in columns]).tobytes()
    return content, labels, planes


@pytest.fixture(params=[10, 100])
def tiny(request, tmp_path, monkeypatch):
    """Files in the official format with 2 images each, and a catalogue that expects just them."""
    name, load = ("CIFAR10", load_cifar10) if request.param == 10 else ("CIFAR100", load_cifar100)
    published = getattr(cifar, name)
    made = [records(2, request.param, seed) for seed in range(len(published.files))]
    files = []
    for file, (content, *_) in zip(published.files, made, strict=True):
        (tmp_path / file.name).write_bytes(content)
        files.append(replace(file, size=len(content)))
    monkeypatch.setattr(cifar, name, replace(published, files=tuple(files)))
    return request.param, tmp_path, load, made


def test_pixels_and_classes_end_up_where_the_files_say(tiny):
    classes, folder, load, made = tiny
    data = load(folder, dtype=torch.float64)
    mean, deviation = (np.reshape(values, (3, 1, 1)) for values in COLOURS[classes])
    labels = np.concatenate([part[1] for part in made])
    planes = (np.concatenate([part[2] for part in made]) / 255 - mean) / deviation
    np.testing.assert_allclose(data.x_train, planes[:-2], atol=1e-13)
    np.testing.assert_allclose(data.x_test, planes[-2:], atol=1e-13)
    assert data.y_train.tolist() == labels[:-2].tolist()
    assert data.y_test.tolist() == labels[-2:].tolist()
    np.testing.assert_allclose(data.black, -mean / deviation)
    assert data.origin == "not the official files"


def test_the_official_sizes_are_expected(tmp_path):
    (tmp_path / "cifar10").mkdir()
    for file in CIFAR10.files:
        (tmp_path / "cifar10" / file.name).write_bytes(bytes(3073 * 2))
    with pytest.raises(ValueError, match=r"batch_1\.bin is cut.*6146 bytes; expected 30730000;"):
        load_cifar10(tmp_path)
    assert [file.size for file in CIFAR100.files] == [153_700_000, 30_740_000]


def test_cut_records_and_unknown_classes_are_named():
    content, labels, _ = records(3, 10, seed=0)
    with pytest.raises(ValueError, match=r"batch\.bin of 9218 bytes is cut: a record has 3073"):
        parse_records(content[:-1], "batch.bin", 10)
    with pytest.raises(ValueError, match=r"is cut: a record has 3074"):
        parse_records(content, "batch.bin", 100)
    damaged = bytearray(content)
    damaged[3073] = 11
    with pytest.raises(ValueError, match=r"batch\.bin is damaged: record 1 has the class 11 of 10"):
        parse_records(bytes(damaged), "batch.bin", 10)
    damaged = bytearray(records(3, 100, seed=0)[0])
    damaged[2 * 3074] = 20
    with pytest.raises(ValueError, match=r"record 2 has the coarse class 20 of 20"):
        parse_records(bytes(damaged), "batch.bin", 100)
    assert parse_records(content, "batch.bin", 10)[1].tolist() == labels.tolist()


def test_the_real_cifar10():
    data = load_cifar10(real("cifar10", "cifar-10-batches-bin"))
    assert data.x_train.shape == (50_000, 3, 32, 32)
    assert data.x_test.shape == (10_000, 3, 32, 32)
    assert data.y_train.bincount().tolist() == [5000] * 10
    assert data.y_test.bincount().tolist() == [1000] * 10
    assert data.y_train[:5].tolist() == [6, 9, 9, 4, 1]
    # The colours' constants are those of the training pixels.
    assert data.x_train.mean((0, 2, 3)).abs().max() < 3e-4
    assert (data.x_train.std((0, 2, 3)) - 1).abs().max() < 3e-4
    torch.testing.assert_close(data.x_train.amin((0, 2, 3)), data.black.flatten())


def test_the_real_cifar100():
    data = load_cifar100(real("cifar100", "cifar-100-binary"))
    assert data.x_train.shape == (50_000, 3, 32, 32)
    assert data.y_train.bincount().tolist() == [500] * 100
    assert data.x_train.mean((0, 2, 3)).abs().max() < 3e-4
