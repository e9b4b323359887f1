"""Published data sets: finding their files in the data folder, checking and downloading them.

There is one setting, the data folder: the argument of a loader, ``--data`` on the command line, or
the environment variable ``COMPANION_DATA``.
"""

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "COMPANION_DATA"
"""Environment variable that names the data folder where no argument does."""


@dataclass(frozen=True)
class DataFile:
    """One file of a published data set, unpacked.

    Attributes:
        name: its name, without ``.gz``.
        size: bytes it has.
        sha256: hash of the official file.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Published:
    """A published data set.

    Attributes:
        name: how errors call it, and the folder below the data folder that it is kept in.
        archive: the folder that its own archive unpacks to.
        files: its files.
        downloads: SHA-256 of what is to be downloaded, by address: the files packed with gzip, or
            one tar archive of all.
    """

    name: str
    archive: str
    files: tuple[DataFile, ...]
    downloads: Mapping[str, str]


@dataclass(frozen=True)
class Content:
    """What the files of a data set hold.

    Attributes:
        files: the bytes of every file, unpacked, in the order of the catalogue.
        sha256: hash of the files' hashes.
        official: whether every file is the official one, bit for bit.
    """

    files: tuple[bytes, ...]
    sha256: str
    official: bool

    @property
    def origin(self) -> str:
        """The words that results record: ``official files`` or ``not the official files``."""
        return "official files" if self.official else "not the official files"


def data_folder(folder: Path | str | None = None) -> Path:
    """Return the data folder: the argument or, where that is ``None``, what the variable names.

    Raises:
        TypeError: the argument is no path.
        ValueError: neither is set, or there is no such folder.

    Example:
        >>> data_folder(".")
        PosixPath('.')
    """
    if not isinstance(folder, str | Path | None):
        raise TypeError(f"folder: {folder!r} is not allowed; it must be a path, or None")
    chosen = os.environ.get(VARIABLE) if folder is None else folder
    if not chosen:
        raise ValueError(
            "this needs a data folder: give --data FOLDER (in Python, data=FOLDER), or set the "
            f"environment variable {VARIABLE}"
        )
    path = Path(chosen).expanduser()
    if not path.is_dir():
        raise ValueError(f"the data folder must be a folder that exists; got {str(chosen)!r}")
    return path


def read_published(published: Published, folder: Path | str | None = None) -> Content:
    """Read a data set from the data folder; download it there first if it is absent.

    The files may lie in the data folder itself, in a folder of the set's name, or in the one its
    archive unpacks to; packed with gzip or not.

    Raises:
        ValueError: no data folder; some of the files are missing; a file is damaged or of another
            size than the official one; or the set is absent and cannot be downloaded.
    """
    root = data_folder(folder)
    place = _place(published, root)
    if place is None:
        place = _download(published, root)
    found = {file: _path(place, file) for file in published.files}
    if missing := [file.name for file, path in found.items() if path is None]:
        raise ValueError(
            f"{published.name} in {place} is incomplete: {', '.join(missing)} missing; add what is "
            "missing, or remove the other files to have the set downloaded"
        )
    files = tuple(_read(path, file.size) for file, path in found.items() if path is not None)
    hashes = [hashlib.sha256(content).hexdigest() for content in files]
    official = hashes == [file.sha256 for file in published.files]
    return Content(files, hashlib.sha256("".join(hashes).encode()).hexdigest(), official)


def _place(published: Published, root: Path) -> Path | None:
    """Return the folder that holds at least one of the files."""
    for place in (root, root / published.name, root / published.archive):
        if any(_path(place, file) for file in published.files):
            return place
    return None


def _path(place: Path, file: DataFile) -> Path | None:
    paths = (place / file.name, place / f"{file.name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _read(path: Path, size: int) -> bytes:
    """Return what a file holds, unpacked."""
    content = path.read_bytes()
    found = f"{len(content)} bytes"
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
            found += f", {len(content)} unpacked"
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            found, content = f"{found} that cannot be unpacked ({error})", b""
    if len(content) != size:
        raise ValueError(
            f"data file {path} is cut or damaged: it has {found}; expected {size}"
            f"{' unpacked' if path.suffix == '.gz' else ''}; replace it or delete it"
        )
    return content


def _download(published: Published, root: Path) -> Path:
    """Put the set into its own folder below ``root``, whole or not at all."""
    place = root / published.name
    try:
        import pooch
    except ModuleNotFoundError:
        raise ValueError(
            f"{published.name} is not in the data folder {root}; put its files there, or install "
            "pooch (the extra `data`) to have them downloaded"
        ) from None
    with tempfile.TemporaryDirectory(dir=root, prefix=".download.") as temporary:
        unpacked = Path(temporary) / published.name
        unpacked.mkdir()
        for address, sha256 in published.downloads.items():
            try:
                got = pooch.retrieve(address, f"sha256:{sha256}", path=temporary)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{published.name} is not in the data folder {root} and cannot be downloaded "
                    f"from {address}: {error}"
                ) from error
            _unpack(Path(got), published, unpacked / address.rpartition("/")[2])
        try:
            os.replace(unpacked, place)
        except OSError:
            if _place(published, root) is None:  # else another process was quicker
                raise
    return place


def _unpack(got: Path, published: Published, target: Path) -> None:
    """Move a downloaded file to ``target``, or the data files of an archive beside it."""
    if not tarfile.is_tarfile(got):
        shutil.move(got, target)
        return
    names = {file.name for file in published.files}
    with tarfile.open(got) as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            content = archive.extractfile(member)
            if name in names and content is not None:
                with (target.parent / name).open("wb") as file:
                    shutil.copyfileobj(content, file)
