"""The data folder on a made-up data set of two tiny files: the sizes and hashes are its own."""

import gzip
import hashlib
import http.server
import sys
import tarfile
import threading
from functools import partial

import pytest
import torch

from companion.data import load_cifar10, load_cifar100, load_image_folder, load_mnist
from companion.data.official import DataFile, Published, data_folder, read_published

CONTENTS = {"one.bin": b"abc" * 5, "two.bin": b"\x00\xff" * 9}


def digest(content):
    return hashlib.sha256(content).hexdigest()


def published(address="http://127.0.0.1:9", registry=None):
    files = tuple(DataFile(name, len(data), digest(data)) for name, data in CONTENTS.items())
    registry = {"none.tar.gz": "0" * 64} if registry is None else registry
    return Published("tiny", "tiny-archive", files, f"{address}/", registry)


def write(place, **changes):
    place.mkdir(parents=True, exist_ok=True)
    for name, data in CONTENTS.items():
        (place / name).write_bytes(changes.get(name.removesuffix(".bin"), data))


@pytest.mark.parametrize("below", [".", "tiny", "tiny-archive"])
def test_a_folder_of_files_is_read_as_it_is(tmp_path, below):
    write(tmp_path / below)
    content = read_published(published(), tmp_path)
    assert content.files == tuple(CONTENTS.values())
    assert content.official
    assert content.origin == "official files"
    assert content.sha256 == digest("".join(digest(c) for c in CONTENTS.values()).encode())


def test_packed_files_are_unpacked_and_known_by_what_they_hold(tmp_path):
    write(tmp_path)
    plain = read_published(published(), tmp_path)
    for name in CONTENTS:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    assert read_published(published(), tmp_path) == plain


def test_other_files_of_the_right_size_are_read_but_not_called_official(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", two=b"\x01" * 18)
    first, second = (read_published(published(), tmp_path / name) for name in "ab")
    assert second.files[1] == b"\x01" * 18
    assert not second.official
    assert second.origin == "not the official files"
    assert first.sha256 != second.sha256


@pytest.mark.parametrize(
    ("content", "found"), [(b"abc" * 4, "12 bytes"), (b"abc" * 5 + b"d", "16 bytes"), (b"", "0")]
)
def test_a_file_of_another_size_is_named(tmp_path, content, found):
    write(tmp_path, one=content)
    with pytest.raises(ValueError, match=rf"one\.bin is cut or damaged: it has {found}.*ed 15;"):
        read_published(published(), tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 20, 24])
def test_a_cut_packed_file_is_named(tmp_path, keep):
    write(tmp_path)
    (tmp_path / "one.bin").unlink()
    packed = gzip.compress(CONTENTS["one.bin"])
    assert keep < len(packed)
    (tmp_path / "one.bin.gz").write_bytes(packed[:keep])
    with pytest.raises(ValueError, match=rf"one\.bin\.gz is cut.*{keep} bytes.*15 unpacked"):
        read_published(published(), tmp_path)


def test_a_damaged_packed_file_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "one.bin").unlink()
    packed = bytearray(gzip.compress(CONTENTS["one.bin"]))
    packed[12] ^= 255
    (tmp_path / "one.bin.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"one\.bin\.gz is cut or damaged"):
        read_published(published(), tmp_path)


def test_a_set_of_which_a_part_is_there_is_not_downloaded_over(tmp_path):
    write(tmp_path / "tiny")
    (tmp_path / "tiny" / "two.bin").unlink()
    with pytest.raises(ValueError, match=r"tiny is incomplete: two\.bin missing"):
        read_published(published(), tmp_path)


def test_the_folder_comes_from_the_argument_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("COMPANION_DATA", raising=False)
    for nothing in (None, ""):
        with pytest.raises(ValueError, match=r"give --data FOLDER.*COMPANION_DATA"):
            data_folder(nothing)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    (tmp_path / "other").mkdir()
    assert data_folder(tmp_path / "other") == tmp_path / "other"
    with pytest.raises(ValueError, match=r"folder: '.*absent' is not allowed.* folder that exists"):
        data_folder(tmp_path / "absent")
    monkeypatch.setenv("COMPANION_DATA", "no/such")
    with pytest.raises(ValueError, match="folder: 'no/such' is not allowed"):
        data_folder()


def test_without_pooch_an_absent_set_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ValueError, match=r"tiny is not in the data folder.*install pooch"):
        read_published(published(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pack", [False, True])
def test_files_that_are_there_are_read_and_checked_without_pooch(tmp_path, monkeypatch, pack):
    monkeypatch.setitem(sys.modules, "pooch", None)
    write(tmp_path / "tiny")
    if pack:
        for name, content in CONTENTS.items():
            (tmp_path / "tiny" / name).unlink()
            (tmp_path / "tiny" / f"{name}.gz").write_bytes(gzip.compress(content))
    assert read_published(published(), tmp_path).official
    write(tmp_path / "tiny", two=b"\x01" * 18)
    assert not read_published(published(), tmp_path).official


@pytest.fixture
def served(tmp_path):
    """A folder, and the address of a web server on this machine that offers it."""
    pytest.importorskip("pooch", reason="pooch, which downloads, is not installed")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def as_archive(folder):
    write(folder / "tiny-archive")
    (folder / "tiny-archive" / "readme.html").write_text("not data")
    with tarfile.open(folder / "tiny.tar.gz", "w:gz") as archive:
        archive.add(folder / "tiny-archive", "tiny-archive")
    return ["tiny.tar.gz"]


def as_single_files(folder):
    for name, content in CONTENTS.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return [f"{name}.gz" for name in CONTENTS]


@pytest.mark.parametrize("packed", [as_archive, as_single_files])
def test_an_absent_set_is_downloaded_once(tmp_path, served, packed):
    folder, address = served
    names = packed(folder)
    wanted = published(address, {name: digest((folder / name).read_bytes()) for name in names})
    root = tmp_path / "data"
    root.mkdir()
    content = read_published(wanted, root)
    assert content.files == tuple(CONTENTS.values())
    assert content.official
    for name in names:
        (folder / name).unlink()
    assert read_published(wanted, root) == content
    assert [path.name for path in root.iterdir()] == ["tiny"]
    assert len(list((root / "tiny").iterdir())) == 2


@pytest.mark.parametrize("fault", ["other content", "not there"])
def test_a_failed_download_leaves_nothing(tmp_path, served, fault):
    folder, address = served
    first, second = as_single_files(folder)
    hashes = {name: digest((folder / name).read_bytes()) for name in (first, second)}
    if fault == "not there":
        (folder / second).unlink()
    else:
        (folder / second).write_bytes(gzip.compress(b"something else"))
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(ValueError, match=rf"cannot be downloaded from {address}/{second}"):
        read_published(published(address, hashes), root)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("load", [load_mnist, load_cifar10, load_cifar100, load_image_folder])
def test_a_folder_is_a_path(load):
    with pytest.raises(TypeError, match="folder: 3 is not allowed; it must be a path, or None"):
        load(3)


@pytest.mark.parametrize("load", [load_mnist, load_cifar10, load_cifar100])
def test_pixels_are_floating_point(tmp_path, load):
    with pytest.raises(TypeError, match=r"dtype: torch\.int64 is not allowed"):
        load(tmp_path, dtype=torch.int64)
