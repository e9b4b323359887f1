import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from companion.data import ImageFolder, load_image_folder
from companion.data.image_folder import middle_box, random_box
from companion.train import error_rate, fit, seeded

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
SIZES = [(40, 30), (30, 40), (32, 32)]


def write(root, part, classes=("ant", "bee"), suffix="png", sizes=SIZES):
    draw = np.random.default_rng(0)
    for name in classes:
        (root / part / name).mkdir(parents=True)
        for i, (width, height) in enumerate(sizes):
            pixels = draw.integers(0, 256, (height, width, 3), "u1")
            Image.fromarray(pixels).save(root / part / name / f"{i}.{suffix}")


@pytest.fixture
def root(tmp_path):
    for part in ("train", "val"):
        write(tmp_path / "imagenet", part)
    return tmp_path / "imagenet"


def test_classes_and_files_are_in_the_order_of_their_names(root):
    (root / "train" / "ant" / "notes.txt").write_text("no image")
    (root / "train" / "readme.txt").write_text("no class")
    folder = ImageFolder(root, "train", size=8)
    assert folder.classes == ["ant", "bee"]
    assert len(folder) == 6
    assert folder.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [path.name for path in folder.paths] == ["0.png", "1.png", "2.png"] * 2
    x, y = folder[4, 0]
    assert x.shape == (3, 8, 8)
    assert (y.dtype, y.item()) == (torch.int64, 1)


def test_validation_images_are_the_middle(root):
    """At a size of 28 the middle of 32 by 32 pixels is cut out, at its scale."""
    folder = ImageFolder(root, "val", size=28)
    x, _ = folder[2, 0]
    pixels = torch.from_numpy(np.array(Image.open(folder.paths[2]))).permute(2, 0, 1)
    expected = (pixels[:, 2:30, 2:30] / 255 - MEAN) / DEVIATION
    torch.testing.assert_close(x, expected)
    assert torch.equal(folder[2, 99][0], x)


def test_the_middle_is_the_same_for_wide_and_high_images():
    assert middle_box((40, 32)) == (6, 2, 34, 30)
    assert middle_box((32, 40)) == (2, 6, 30, 34)


def test_a_training_image_depends_on_its_seed_alone(root):
    folder = ImageFolder(root, "train", size=8)
    state = torch.get_rng_state()
    first, other = folder[0, 5][0], folder[0, 6][0]
    assert torch.equal(folder[0, 5][0], first)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_training_image_is_the_piece_drawn_or_its_mirror_image(root):
    folder, mirrored = ImageFolder(root, "train", size=8), 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        image = Image.open(folder.paths[1])
        box = random_box(image.size, generator)
        pixels = torch.from_numpy(np.array(image.resize((8, 8), Image.Resampling.BILINEAR, box)))
        piece = (pixels.permute(2, 0, 1) / 255 - MEAN) / DEVIATION
        x = folder[1, seed][0]
        straight = torch.allclose(x, piece, atol=1e-6)
        assert straight ^ torch.allclose(x.flip(2), piece, atol=1e-6)
        mirrored += not straight
    assert 10 < mirrored < 30


def test_random_pieces_keep_to_the_shares_and_ratios():
    generator = torch.Generator().manual_seed(0)
    boxes = [random_box((400, 300), generator) for _ in range(500)]
    edges = np.array(boxes)
    width, height = edges[:, 2] - edges[:, 0], edges[:, 3] - edges[:, 1]
    assert (edges[:, :2] >= 0).all()
    assert (edges[:, 2] <= 400).all()
    assert (edges[:, 3] <= 300).all()
    share, ratio = width * height / 120_000, width / height
    assert 0.078 < share.min() < 0.12
    assert share.max() > 0.9
    assert 0.74 < ratio.min() < 0.78
    assert 1.3 < ratio.max() < 1.35
    assert abs(np.median(np.log(ratio))) < 0.05
    # A small piece can lie anywhere.
    small = share < 0.2
    assert edges[small, 0].min() < 30
    assert edges[small, 2].max() > 370


@pytest.mark.parametrize(
    ("extent", "expected"),
    [
        ((1000, 30), (480, 0, 520, 30)),
        ((30, 1000), (0, 480, 30, 520)),
    ],
)
def test_where_nothing_fits_the_middle_is_taken(extent, expected):
    boxes = {random_box(extent, torch.Generator().manual_seed(seed)) for seed in range(20)}
    assert expected in boxes
    for left, upper, right, lower in boxes:
        assert 0.74 < (right - left) / (lower - upper) < 1.34


def test_grey_images_and_jpegs_are_read_in_colour(tmp_path):
    write(tmp_path, "val", suffix="JPEG")
    Image.fromarray(np.full((16, 16), 51, "u1")).save(tmp_path / "val" / "ant" / "grey.jpg")
    folder = ImageFolder(tmp_path, "val", size=14)
    assert len(folder) == 7
    index = [path.name for path in folder.paths].index("grey.jpg")
    x, _ = folder[index, 0]
    torch.testing.assert_close(x, ((0.2 - MEAN) / DEVIATION).expand(3, 14, 14))


def test_the_hash_sees_names_and_sizes(root):
    before = ImageFolder(root, "train").sha256
    assert ImageFolder(root, "train", size=8).sha256 == before
    (root / "train" / "ant" / "0.png").rename(root / "train" / "ant" / "9.png")
    renamed = ImageFolder(root, "train").sha256
    with (root / "train" / "bee" / "0.png").open("ab") as file:
        file.write(b"x")
    assert len({before, renamed, ImageFolder(root, "train").sha256}) == 3


def test_both_parts_of_a_set_in_the_data_folder(root):
    for folder in (root.parent, root):
        train, val = load_image_folder(folder, size=8)
        assert (train.random, val.random) == (True, False)
        assert train.classes == val.classes
    write(root, "val", classes=("cow",))
    with pytest.raises(ValueError, match="same classes; only one of them has cow"):
        load_image_folder(root)


def test_bad_folders(root):
    with pytest.raises(
        ValueError, match=r"root: .* must hold the folder test/ and holds train, val"
    ):
        ImageFolder(root, "test")
    (root / "val").rename(root / "validation")
    with pytest.raises(ValueError, match="must hold the folder val/ and holds train, validation"):
        load_image_folder(root)
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match="empty/ must hold a folder for each class"):
        ImageFolder(root, "empty")
    (root / "train" / "cow").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*cow holds no image"):
        ImageFolder(root, "train")


@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_a_cut_image_is_named(root, keep):
    folder = ImageFolder(root, "val")
    whole = folder.paths[0].read_bytes()
    folder.paths[0].write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(ValueError, match=r"image file .*0\.png cannot be read"):
        folder[0, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_network_learns_from_a_folder(tmp_path, workers):
    """Two classes that differ in their colours, through the training loop and its error rate."""
    for part, number in (("train", 6), ("val", 3)):
        write(tmp_path, part, sizes=SIZES * (number // 3))
        for path in (tmp_path / part / "bee").iterdir():
            Image.open(path).point(lambda value: value // 2).save(path)
    train, val = load_image_folder(tmp_path, size=8)
    with seeded(0):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    assert error_rate(model, val, batch_size=4, workers=workers) > 0
    fit(
        model,
        lambda net, x, y: nn.functional.cross_entropy(net(x), y),
        train,
        optimiser=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        epochs=4,
        batch_size=4,
        generator=torch.Generator().manual_seed(0),
        workers=workers,
    )
    assert error_rate(model, val, batch_size=4, workers=workers) == 0


@pytest.mark.parametrize("size", [0, 8.0])
def test_bad_sizes(root, size):
    with pytest.raises(ValueError, match=f"size: {size} is not allowed; it must be an integer"):
        load_image_folder(root, size=size)
