"""From coded parts back to forms and values; nothing that the manifest says is believed."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from laconic import coding
from laconic.artifact.container import Container
from laconic.artifact.dtypes import DTYPES, from_raw, itemsize
from laconic.artifact.encode import bundle_key, part_key
from laconic.artifact.limits import (
    FREE_ELEMENTS,
    MANIFEST,
    MAX_FORM_EXPANSION,
    UNTRUSTED,
    WEIGHTS,
    Allowance,
)
from laconic.artifact.manifest import FormRecord, Manifest, PartRecord
from laconic.errors import ArtifactError
from laconic.forms import hashed, permuted, rotated, tensortrain  # noqa: F401  makes their names known
from laconic.forms.base import Form, form_class


class PartsReader:
    """Reads forms and values of one artefact; all sizes are checked before anything is decoded.

    Args:
        manifest: Records of all parts.
        container: Where their bytes lie.

    Raises:
        ArtifactError: Records and bytes do not belong together.
    """

    def __init__(self, manifest: Manifest, container: Container) -> None:
        self._container = container
        self._allowance = Allowance()
        self._places: dict[str, tuple[str, int, int]] = {}
        self._lengths = dict.fromkeys(manifest.bundles, 0)
        expected = [bundle_key(dtype) for dtype in manifest.bundles]
        for name, form in manifest.forms.items():
            for path, below in form.walk():
                for part, record in below.parts.items():
                    expected += self._place(part_key(name, path, part), record)
                _check_expansion(name, below)
        for name, record in manifest.values.items():
            expected += self._place(name, record)
        if len(set(expected)) != len(expected):
            raise ArtifactError(MANIFEST, "two records stand for the same stored tensor")
        surplus = set(container.entries) - set(expected)
        if surplus:
            raise ArtifactError(WEIGHTS, "stored, but no record asks for it", tensor=min(surplus))
        self._manifest = manifest
        self._bundles = {dtype: self._bundle(dtype) for dtype in manifest.bundles}

    def _place(self, key: str, record: PartRecord) -> list[str]:
        """Check a record's size; return its key in the container, none if it is bundled."""
        if record.coder:
            self._check_stored(key, record)
            return [key]
        start = self._lengths.get(record.dtype)
        if start is None:
            raise ArtifactError(MANIFEST, f"there is no bundle of {record.dtype}", tensor=key)
        if key in self._places:
            raise ArtifactError(MANIFEST, "two records stand for the same value", tensor=key)
        self._lengths[record.dtype] = start + record.decoded_bytes
        self._places[key] = (record.dtype, start, start + record.decoded_bytes)
        return []

    def _check_stored(self, key: str, record: PartRecord) -> None:
        stored = len(self._container.raw(key))
        entry = self._container.entries[key]
        if record.coder == "raw" and isinstance(record.content, str):
            if (entry.dtype, entry.shape) != (record.content, tuple(record.shape)):
                raise ArtifactError(
                    WEIGHTS,
                    f"is {entry.dtype} {list(entry.shape)}, the manifest says "
                    f"{record.content} {record.shape}",
                    tensor=key,
                )
        elif entry.dtype != "U8" or len(entry.shape) != 1:
            raise ArtifactError(WEIGHTS, "coded bytes must be a flat U8 tensor", tensor=key)
        if not self._allowance.takes(record.decoded_bytes, stored):
            raise ArtifactError(
                MANIFEST,
                f"declares {record.decoded_bytes} bytes for {stored} stored ones",
                tensor=key,
            )

    def _bundle(self, dtype: str) -> memoryview:
        record, key = self._manifest.bundles[dtype], bundle_key(dtype)
        stored = self._container.raw(key)
        fits = self._allowance.takes(record.bytes, len(stored))
        if self._lengths[dtype] != record.bytes or not fits:
            raise ArtifactError(
                MANIFEST,
                f"bundle declares {record.bytes} bytes, its records {self._lengths[dtype]}, "
                f"stored are {len(stored)}",
                tensor=key,
            )
        raw = _decode_values(key, record.coder, stored, record.bytes, itemsize(dtype))
        _check_crc(key, raw, record.crc32)
        return memoryview(raw)

    def form(self, name: str) -> Form:
        """Build the form that stands for a parameter."""
        return self._form(name, self._manifest.forms[name], ())

    def _form(self, name: str, record: FormRecord, path: tuple[str, ...]) -> Form:
        parts = {
            part: self._part(part_key(name, path, part), held)
            for part, held in record.parts.items()
        }
        children = {
            child: self._form(name, held, (*path, child)) for child, held in record.children.items()
        }
        where = "/".join((name, *path))
        try:
            cls = form_class(record.kind)
            form = cls.from_parts(
                tuple(record.shape), DTYPES[record.dtype], record.settings, parts, children
            )
        except UNTRUSTED as error:
            raise ArtifactError(MANIFEST, f"not a form: {error}", tensor=where) from error
        if form.shape != tuple(record.shape) or form.dtype != DTYPES[record.dtype]:
            raise ArtifactError(MANIFEST, "the form has another shape or type", tensor=where)
        return form

    def value(self, name: str) -> Tensor:
        """Return a plain parameter or buffer."""
        return self._part(name, self._manifest.values[name])

    def symbols(self, key: str, record: PartRecord) -> np.ndarray[tuple[int], np.dtype[np.integer]]:
        """Return the symbols of a part, flat."""
        if not isinstance(record.content, int):
            raise ArtifactError(MANIFEST, "plain values have no symbols", tensor=key)
        data = bytes(self._container.raw(key))
        try:
            symbols = coding.decode(record.coder, data, record.count, record.content)
        except UNTRUSTED as error:
            raise ArtifactError(WEIGHTS, f"{error}", tensor=key) from error
        if len(symbols) != record.count or symbols.nbytes != record.decoded_bytes:
            raise ArtifactError(WEIGHTS, "decoded to another size", tensor=key)
        _check_crc(key, symbols.data, record.crc32)
        return symbols

    def _part(self, key: str, record: PartRecord) -> Tensor:
        if isinstance(record.content, int):
            return torch.from_numpy(self.symbols(key, record)).reshape(record.shape)
        if not record.coder:
            dtype, start, stop = self._places[key]
            raw: bytes | memoryview = self._bundles[dtype][start:stop]
        else:
            stored, size = self._container.raw(key), record.decoded_bytes
            raw = _decode_values(key, record.coder, stored, size, itemsize(record.content))
            _check_crc(key, raw, record.crc32)
        try:
            return from_raw(raw, record.content, record.shape)
        except ValueError as error:
            raise ArtifactError(WEIGHTS, f"{error}", tensor=key) from error


def first_damage(manifest: Manifest, container: Container) -> str | None:
    """Return the name of the first part that does not decode to its checksum, if any."""
    try:
        reader = PartsReader(manifest, container)
        for name in manifest.forms:
            reader.form(name)
        for name in manifest.values:
            reader.value(name)
    except ArtifactError as error:
        return error.tensor
    return None


def _decode_values(
    key: str, coder: str, stored: memoryview, size: int, item: int
) -> bytes | memoryview:
    if coder == "raw":
        if len(stored) != size:
            raise ArtifactError(WEIGHTS, f"{len(stored)} bytes where {size} belong", tensor=key)
        return bytes(stored)
    try:
        raw = coding.decode_values(coder, bytes(stored), size, item)
    except UNTRUSTED as error:
        raise ArtifactError(WEIGHTS, f"{error}", tensor=key) from error
    if len(raw) != size:
        raise ArtifactError(WEIGHTS, f"decoded to {len(raw)} bytes, not {size}", tensor=key)
    return raw


def _check_crc(key: str, raw: bytes | memoryview, expected: int) -> None:
    if zlib.crc32(raw) != expected:
        raise ArtifactError(WEIGHTS, "damaged: its checksum does not match", tensor=key)


def _check_expansion(name: str, record: FormRecord) -> None:
    held = sum(part.decoded_bytes for _, below in record.walk() for part in below.parts.values())
    elements = int(np.prod([float(n) for n in record.shape]))
    if elements > held * MAX_FORM_EXPANSION + FREE_ELEMENTS:
        raise ArtifactError(
            MANIFEST, f"a form of {elements} elements cannot come from {held} bytes", tensor=name
        )
