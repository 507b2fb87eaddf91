"""The safetensors container, written compactly and read strictly.

A file is the length of its header (8 bytes, little-endian), the header as JSON padded with spaces
to a multiple of 8, and the tensors' bytes one after another without gaps.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from laconic.artifact import strictjson
from laconic.artifact.dtypes import DTYPES, itemsize
from laconic.artifact.limits import MAX_JSON_BYTES, WEIGHTS, shape_problem
from laconic.errors import ArtifactError


@dataclass(frozen=True)
class Entry:
    """One tensor in the container: its type, shape and place after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Payload:
    """One tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview = field(repr=False)


def layout(payloads: Iterable[Payload]) -> tuple[bytes, list[Payload]]:
    """Return the header, its length in front, and the payloads in the order of the file.

    Wide types come first, so that every tensor is aligned.
    """
    ordered = sorted(payloads, key=lambda p: (-itemsize(p.dtype), p.name))
    header: dict[str, Any] = {}
    offset = 0
    for payload in ordered:
        stop = offset + len(payload.data)
        header[payload.name] = {
            "dtype": payload.dtype,
            "shape": list(payload.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = strictjson.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, ordered


def write(path: Path, payloads: Iterable[Payload]) -> None:
    """Write a container and flush it to disk."""
    header, ordered = layout(payloads)
    with path.open("wb") as file:
        file.write(header)
        for payload in ordered:
            file.write(payload.data)
        file.flush()
        os.fsync(file.fileno())


class Container:
    """A safetensors file mapped into memory; every size is checked before anything is read.

    Args:
        path: The file; it must be at least 8 bytes long.

    Raises:
        ArtifactError: Header and file do not belong together.
    """

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        if self.size < 8:
            raise ArtifactError(WEIGHTS, f"cut short: {self.size} bytes")
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)
        try:
            self.entries = self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> dict[str, Entry]:
        length = int.from_bytes(self._view[:8], "little")
        if length > min(self.size - 8, MAX_JSON_BYTES):
            raise ArtifactError(WEIGHTS, f"header of {length} bytes in a file of {self.size} bytes")
        header = strictjson.loads(bytes(self._view[8 : 8 + length]), file=WEIGHTS)
        if not isinstance(header, dict):
            raise ArtifactError(WEIGHTS, "header is not a JSON object")
        header.pop("__metadata__", None)
        entries = {name: _entry(name, record) for name, record in header.items()}
        self._data = 8 + length
        expected = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
            if entry.start != expected:
                raise ArtifactError(WEIGHTS, "tensors overlap or leave a gap", tensor=name)
            expected = entry.stop
        if self._data + expected != self.size:
            word = "cut short" if self._data + expected > self.size else "trailing bytes"
            raise ArtifactError(
                WEIGHTS, f"{word}: {self.size} bytes, the header asks for {self._data + expected}"
            )
        return entries

    def raw(self, name: str) -> memoryview:
        """Return a tensor's bytes without a copy.

        Raises:
            ArtifactError: No tensor has this name.
        """
        if name not in self.entries:
            raise ArtifactError(WEIGHTS, "missing tensor", tensor=name)
        entry = self.entries[name]
        return self._view[self._data + entry.start : self._data + entry.stop]

    def whole(self) -> memoryview:
        """Return the bytes of the whole file without a copy."""
        return self._view

    def close(self) -> None:
        """Release the file."""
        self._view.release()
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()


def _entry(name: str, record: Any) -> Entry:
    def refuse(reason: str) -> ArtifactError:
        return ArtifactError(WEIGHTS, reason, tensor=name[:200])

    if not isinstance(record, Mapping) or set(record) != {"dtype", "shape", "data_offsets"}:
        raise refuse("header record must have dtype, shape and data_offsets")
    dtype, shape, offsets = record["dtype"], record["shape"], record["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse(f"unknown dtype {str(dtype)[:40]!r}")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise refuse("shape and data_offsets must be lists of whole numbers")
    problem = shape_problem(shape)
    if problem:
        raise refuse(problem)
    start, stop = offsets
    if stop - start != prod(shape) * itemsize(dtype):
        raise refuse(f"{stop - start} bytes do not fill shape {shape} of {dtype}")
    return Entry(dtype, tuple(shape), start, stop)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
