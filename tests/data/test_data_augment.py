import pytest
import torch

from companion.data import crop_and_flip


def images(n=200, height=5, width=4, channels=2):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, channels, height, width, generator=generator, dtype=torch.float64)


def candidates(image, padding, fill):
    """All crops of one padded image, plain and mirrored, by (top, left, flip)."""
    channels, height, width = image.shape
    padded = torch.empty(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    padded[:] = fill
    padded[:, padding:-padding, padding:-padding] = image
    places = range(2 * padding + 1)
    for top in places:
        for left in places:
            crop = padded[:, top : top + height, left : left + width]
            yield (top, left, False), crop
            yield (top, left, True), crop.flip(-1)


def test_every_image_is_a_crop_of_itself_and_all_crops_occur():
    x, fill = images(n=600), torch.tensor([7.0, 8.0], dtype=torch.float64).view(2, 1, 1)
    made = crop_and_flip(x, torch.Generator().manual_seed(1), padding=2, fill=fill)
    assert made.shape == x.shape
    assert made.is_contiguous()
    seen = []
    for before, after in zip(x, made, strict=True):
        found = [key for key, crop in candidates(before, 2, fill) if torch.equal(crop, after)]
        assert len(found) == 1
        seen += found
    # 50 equally likely outcomes, 12 times each on average; and no image follows another's choice.
    counts = [seen.count(key) for key in set(seen)]
    assert len(counts) == 50
    assert max(counts) < 30
    assert 0.4 < sum(flip for *_, flip in seen) / 600 < 0.6


def test_the_generator_alone_decides():
    x, state = images(), torch.get_rng_state()
    generator = torch.Generator().manual_seed(3)
    first, second = crop_and_flip(x, generator), crop_and_flip(x, generator)
    again = crop_and_flip(x, torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_any_device_gives_the_same_images(device):
    x = images()
    here = crop_and_flip(x, torch.Generator().manual_seed(3), fill=2.0)
    there = crop_and_flip(x.to(device), torch.Generator().manual_seed(3), fill=2.0)
    assert there.device.type == device.type
    assert torch.equal(there.cpu(), here)


def test_without_padding_images_are_only_mirrored():
    x = images()
    made = crop_and_flip(x, torch.Generator().manual_seed(0), padding=0)
    mirrored = (made == x.flip(-1)).all((1, 2, 3))
    assert ((made == x).all((1, 2, 3)) ^ mirrored).all()
    assert 0 < mirrored.sum() < len(x)


def test_bytes_stay_bytes():
    x = (images() * 255).to(torch.uint8)
    assert crop_and_flip(x, torch.Generator().manual_seed(0)).dtype == torch.uint8


def test_bad_arguments():
    generator = torch.Generator()
    with pytest.raises(
        ValueError, match=r"x: shape \(3, 4, 4\) is not allowed; it must be \(n, channels"
    ):
        crop_and_flip(torch.zeros(3, 4, 4), generator)
    with pytest.raises(ValueError, match=r"padding: -1 is not allowed; .* at least 0"):
        crop_and_flip(torch.zeros(1, 3, 4, 4), generator, padding=-1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [[1.0]]}, TypeError, r"x: .* is not allowed; it must be of type Tensor"),
        ({"padding": 1.5}, ValueError, r"padding: 1\.5 is not allowed"),
        ({"padding": None}, ValueError, "padding: None is not allowed"),
        ({"generator": 3}, TypeError, r"generator: 3 is not allowed; it must be of type Generator"),
        ({"generator": None}, TypeError, r"generator: None is not allowed; .* type Generator"),
        ({"fill": "black"}, TypeError, r"fill: 'black' .* type int or float or Tensor"),
        ({"fill": None}, TypeError, r"fill: None is not allowed; .* type int or float or Tensor"),
        ({"fill": torch.zeros(2, 1, 1)}, ValueError, r"fill: a shape of \(2, 1, 1\) does not"),
    ],
)
def test_other_bad_arguments(change, error, message):
    arguments = {"x": torch.zeros(2, 3, 4, 4), "generator": torch.Generator(), **change}
    with pytest.raises(error, match=message):
        crop_and_flip(arguments.pop("x"), arguments.pop("generator"), **arguments)
