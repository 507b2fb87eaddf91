"""Atomic writes and checksums: nothing is ever half-written."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laconic.errors import ConfigError


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, read in chunks of 1 MiB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file under a temporary name, flush it to disk, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = data.encode() if isinstance(data, str) else data
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def folder_atomic(path: Path, *, force: bool = False, inside: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends without an error.

    Args:
        path: Where the folder shall stand; parents are made.
        force: Replace what stands there; without it an existing path is refused.
        inside: Where the temporary folder lies, on the same disk; beside ``path`` if None.

    Raises:
        ConfigError: ``path`` exists and ``force`` is not given.
    """
    refuse_existing(path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    place = inside or path.parent
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=place))
    try:
        yield work
        work.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=place))
            os.replace(path, old / path.name)
            os.replace(work, path)
            shutil.rmtree(old)
        else:
            os.replace(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise unless ``path`` is free, an empty folder, or ``force`` is given."""
    taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if taken and not force:
        raise ConfigError(f"{path} exists. Choose another --out or give --force to replace it.")
