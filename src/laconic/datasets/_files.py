"""Find the files of data sets and weights, and check that they are the right ones."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

from laconic.errors import DataError
from laconic.files import sha256, write_atomic

_TIMEOUT_S = 30.0
_DAMAGED = (OSError, EOFError, zlib.error)  # what gzip raises; BadGzipFile is an OSError
_checked: dict[tuple[Path, int, int], str] = {}


@dataclass(frozen=True)
class DataFile:
    """One file of a data set and how it is recognised.

    Attributes:
        path: Place under the data folder, for example ``mnist/train-labels-idx1-ubyte.gz``.
        sha256: SHA-256 of the file as the data folder keeps it.
        content: SHA-256 of what a ``.gz`` file holds: other packings of the same bytes, such
            as the authors' own, are accepted where this is given.
        url: Address of one plain file that can be downloaded; gives ``content`` when it is not
            itself a ``.gz`` file.
        recipe: How to make the file where there is no such address.
    """

    path: str
    sha256: str
    content: str | None = None
    url: str | None = None
    recipe: str = ""


def roots() -> list[Path]:
    """Return the folders that are searched: ``LACONIC_DATA`` where set, then the cache."""
    given = os.environ.get("LACONIC_DATA")
    return [*([Path(given)] if given else []), cache_root()]


def cache_root() -> Path:
    """Return the folder for downloads: ``$LACONIC_CACHE/datasets`` or under the home folder."""
    cache = os.environ.get("LACONIC_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "laconic") / "datasets"


def find(file: DataFile) -> Path:
    """Return the path of a data file, downloaded into the cache where that is possible.

    The checksum is computed once per file and process.

    Raises:
        DataError: The file is in no folder and cannot be downloaded, or its content is not the
            expected one; the message says what to put where.
    """
    for root in roots():
        path = root / file.path
        if path.is_file():
            _check(path, file)
            return path
    return _download(file)


def _check(path: Path, file: DataFile) -> None:
    stat = path.stat()
    key = (path.resolve(), stat.st_size, stat.st_mtime_ns)
    if _checked.get(key) == file.sha256:
        return
    found = sha256(path)
    if found != file.sha256 and not _holds(path, file.content):
        raise DataError(
            f"{path}: SHA-256 is {found}, expected {file.sha256}. The file is damaged or another"
            f" version: remove it. {_advice(file)}"
        )
    _checked[key] = file.sha256


def _holds(path: Path, content: str | None) -> bool:
    """Return whether a gzip file holds bytes with the given SHA-256."""
    if content is None:
        return False
    digest = hashlib.sha256()
    try:
        with gzip.open(path) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except _DAMAGED:
        return False  # the caller reports the checksum of the whole file
    return digest.hexdigest() == content


def _download(file: DataFile) -> Path:
    if file.url is None:
        raise DataError(f"{file.path}: not found. {_advice(file)}")
    target = cache_root() / file.path
    try:
        with urllib.request.urlopen(file.url, timeout=_TIMEOUT_S) as response:
            data: bytes = response.read()
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise DataError(
            f"{file.path}: not found, and the download of {file.url} failed ({error})."
            f" {_advice(file)}"
        ) from error
    if target.suffix == ".gz" and not file.url.endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    _check_bytes(data, file)
    write_atomic(target, data)
    _check(target, file)
    return target


def _check_bytes(data: bytes, file: DataFile) -> None:
    """Refuse downloaded bytes before they reach the cache."""
    found = hashlib.sha256(data).hexdigest()
    if found == file.sha256:
        return
    if file.content is not None and data[:2] == b"\x1f\x8b":
        try:
            found = hashlib.sha256(gzip.decompress(data)).hexdigest()
        except _DAMAGED as error:
            raise DataError(
                f"{file.path}: {file.url} gave a damaged gzip file ({error}). Nothing was kept."
                f" {_advice(file)}"
            ) from error
        if found == file.content:
            return
    raise DataError(
        f"{file.path}: {file.url} gave a file with SHA-256 {found}, expected"
        f" {file.content or file.sha256}. Nothing was kept. {_advice(file)}"
    )


def _advice(file: DataFile) -> str:
    made = f" ({file.recipe})" if file.recipe else f" (from {file.url})" if file.url else ""
    return (
        f"Put the file{made} at $LACONIC_DATA/{file.path} or"
        f" {cache_root() / file.path}; its SHA-256 must be {file.content or file.sha256}"
        f"{' when unpacked' if file.content else ''}."
    )
