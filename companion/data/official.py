"""Published data sets: finding their files in the data folder, checking and downloading them.

There is one setting, the data folder: the argument of a loader, ``--data`` on the command line, or
the environment variable ``COMPANION_DATA``.
"""

import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from companion.data.near_names import is_called_after, near_names

VARIABLE = "COMPANION_DATA"
"""Environment variable that names the data folder where no argument does."""


@dataclass(frozen=True)
class DataFile:
    """One file of a published data set, unpacked: its name without ``.gz``, its bytes, its hash."""

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
        address: the folder on the web, with a slash at the end.
        registry: SHA-256 of what is downloaded from there, by name: the files packed with gzip, or
            one tar archive of all.
    """

    name: str
    archive: str
    files: tuple[DataFile, ...]
    address: str
    registry: Mapping[str, str]


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
        raise ValueError(f"folder: {str(chosen)!r} is not allowed; it must be a folder that exists")
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
    places = (root, root / published.name, root / published.archive)
    place = next((p for p in places if any(_path(p, file) for file in published.files)), None)
    if place is None:
        _refuse_near(published, root, places)
        place = _download(published, root)
    found = [_path(place, file) for file in published.files]
    if None in found:
        missing = [file.name for file, path in zip(published.files, found, strict=True) if not path]
        near = _listed(near_names(place, missing))
        raise ValueError(
            f"{published.name} in {place} is incomplete: {', '.join(missing)} missing"
            + (f", found {near}; rename" if near else "; add")
            + " what is missing, or remove the other files to have the set downloaded"
        )
    files = tuple(
        _read(path, f.size) for path, f in zip(found, published.files, strict=True) if path
    )
    hashes = [hashlib.sha256(content).hexdigest() for content in files]
    official = hashes == [file.sha256 for file in published.files]
    return Content(files, hashlib.sha256("".join(hashes).encode()).hexdigest(), official)


def _path(place: Path, file: DataFile) -> Path | None:
    paths = (place / file.name, place / f"{file.name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _refuse_near(published: Published, root: Path, places: Sequence[Path]) -> None:
    """Refuse to download what seems to be there under other names."""
    called = [path for path in root.iterdir() if is_called_after(path.name, published.name)]
    own = [*called]
    if is_called_after(root.resolve().name, published.name):  # the set's own folder was given
        own += [path for path in root.iterdir() if path.is_dir()]
    within = [path for folder in own if folder.is_dir() for path in (folder, *folder.iterdir())]
    wanted = [*(file.name for file in published.files), *published.registry]
    near = [p for place in {*places, *within} if place.is_dir() for p in near_names(place, wanted)]
    parents = {parent for place in places for parent in (place, *place.parents)}
    if found := near or [path for path in called if path not in parents]:
        raise ValueError(
            f"{published.name} is not in the data folder {root} under its own names: found "
            f"{_listed(found)}, expected {published.files[0].name}"
            f"{' and so on' if len(published.files) > 1 else ''} in one of "
            f"{', '.join(map(str, places))}; rename or unpack what is there if it is the same, or "
            "take it away to have the set downloaded"
        )


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in sorted(paths)[:3]) + (", ..." if paths[3:] else "")


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
    try:
        import pooch
    except ModuleNotFoundError:
        raise ValueError(
            f"{published.name} is not in the data folder {root}; put its files there, or install "
            "pooch (the extra `data`) to have them downloaded"
        ) from None
    place = root / published.name
    with tempfile.TemporaryDirectory(dir=root, prefix=".download.") as temporary:
        registry = {name: f"sha256:{sha256}" for name, sha256 in published.registry.items()}
        shelf = pooch.create(f"{temporary}/got", published.address, registry=registry)
        for name in registry:
            unpack = pooch.Untar(extract_dir=".") if name.endswith(".tar.gz") else None
            try:
                shelf.fetch(name, processor=unpack)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{published.name} is not in the data folder {root} and cannot be downloaded "
                    f"from {shelf.get_url(name)}: {error}"
                ) from error
        whole = Path(temporary) / published.name
        whole.mkdir()
        for file in published.files:
            for path in shelf.abspath.rglob(f"{file.name}*"):
                os.replace(path, whole / path.name)
        try:
            os.replace(whole, place)
        except OSError:
            if not any(_path(place, file) for file in published.files):
                raise  # else another process was quicker
    return place
