import numpy as np
import pytest
import torch
from sklearn import datasets

from companion.data import load_digits


def test_shapes_and_types():
    data = load_digits(dtype=torch.float64)
    assert data.x_train.shape == (1297, 64)
    assert data.x_test.shape == (500, 64)
    assert data.x_train.dtype == torch.float64
    assert data.y_train.dtype == torch.int64
    assert set(data.y_test.tolist()) == set(range(10))


def test_every_sample_is_used_once_with_its_own_class():
    data = load_digits(dtype=torch.float64, test_size=300)
    pixels, classes = datasets.load_digits(return_X_y=True)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0)).numpy()
    raw = pixels / 16
    mean, deviation = raw[order[:1497]].mean(0), raw[order[:1497]].std(0, ddof=1)
    expected = (raw - mean) / (deviation + 0.1)
    np.testing.assert_allclose(data.x_train, expected[order[:1497]], atol=1e-12)
    np.testing.assert_allclose(data.x_test, expected[order[1497:]], atol=1e-12)
    assert data.y_train.tolist() == classes[order[:1497]].tolist()
    assert data.y_test.tolist() == classes[order[1497:]].tolist()


def test_test_samples_do_not_set_the_scale():
    data = load_digits(dtype=torch.float64)
    assert data.x_train.mean(0).abs().max() < 1e-12
    assert data.x_test.mean(0).abs().max() > 1e-3


def test_black_is_where_a_blank_pixel_went():
    data = load_digits(dtype=torch.float64, as_images=True)
    pixels = torch.from_numpy(datasets.load_digits().images) / 16
    stored = torch.cat([data.x_train, data.x_test])
    raw = stored * data.deviation + data.mean
    torch.testing.assert_close(raw.sum(), pixels.sum())
    blank = raw.abs() < 1e-12
    assert blank.sum() == (pixels == 0).sum()
    torch.testing.assert_close(stored[blank], data.black.expand_as(stored)[blank])


def test_images_are_the_same_pixels():
    flat, images = load_digits(), load_digits(as_images=True)
    assert images.x_train.shape == (1297, 1, 8, 8)
    assert torch.equal(images.x_train[:, 0, 2, 5], flat.x_train[:, 21])


def test_the_seed_decides_the_split_and_the_hash_tells():
    one, two, again = load_digits(seed=0), load_digits(seed=1), load_digits(seed=0)
    assert torch.equal(one.x_test, again.x_test)
    assert not torch.equal(one.x_test, two.x_test)
    assert one.sha256 == again.sha256 != two.sha256
    assert load_digits(test_size=400).sha256 != one.sha256
    assert load_digits(dtype=torch.float64, as_images=True).sha256 == one.sha256


def test_the_data_are_those_the_results_were_recorded_with():
    # Changes if scikit-learn ships other digits or torch shuffles differently.
    assert load_digits().sha256.startswith("a9eaa97d93c3e7c7")


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    load_digits()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [0, 1797, -1, 1.5, True, "500", None])
def test_bad_test_size(size):
    with pytest.raises(
        ValueError,
        match=rf"test_size: {size!r} is not allowed; it must be an integer from 1 to 1796",
    ):
        load_digits(test_size=size)


def test_bad_seed_and_type():
    with pytest.raises(TypeError, match=r"seed: 'a' is not allowed; it must be of type int"):
        load_digits(seed="a")
    for dtype in (torch.int64, torch.complex64, "float32"):
        with pytest.raises(TypeError, match=f"dtype: {dtype!r} is not allowed; .*floating"):
            load_digits(dtype=dtype)
