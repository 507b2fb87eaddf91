"""What the tests of data sets share."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from laconic.datasets import DataFile

needs_data = pytest.mark.skipif(
    "LACONIC_DATA" not in os.environ,
    reason="needs published files: set LACONIC_DATA to the folder that holds them",
)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(folder: Path, path: str, data: bytes, **options: Any) -> DataFile:
    """Write a small file into a data folder and return its entry."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data)
    return DataFile(path, digest(data), **options)


def put_text(folder: Path, path: str, text: str) -> DataFile:
    return put(folder, path, gzip.compress(text.encode(), mtime=0))


def decoded(windows: Any) -> str:
    """Join windows of bytes again."""
    return bytes(windows.tensors["input_ids"].flatten().tolist()).decode(errors="replace")
