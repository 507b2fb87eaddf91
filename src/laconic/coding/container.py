"""Named byte strings in one checked byte string.

Layout, little-endian: magic ``LCNC``, version (u16), zero (u16), header size (u32), header,
CRC-32 of all before (u32), the sections one after another. The header holds the size of the
metadata (u32), the metadata (JSON), the number of sections (u32) and for each its name's size
(u16), name, size (u64) and CRC-32 (u32). CRC-32 finds every change of a single bit.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from laconic.coding._errors import CodingError
from laconic.coding.bits import Reader

MAGIC = b"LCNC"
VERSION = 1
_PREFIX = struct.Struct("<4sHHI")
_U16, _U32, _ENTRY = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<QI")
_WHERE = "container"


def pack(sections: Mapping[str, bytes], meta: Mapping[str, Any] | None = None) -> bytes:
    """Join sections and metadata; the same input gives the same bytes.

    Args:
        sections: Name to bytes, kept in this order.
        meta: Plain JSON values.

    Raises:
        CodingError: A name above 65535 bytes, or metadata that JSON cannot hold.
    """
    try:
        text = json.dumps(dict(meta or {}), sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise CodingError(f"{_WHERE}: the metadata is not plain JSON: {error}.") from error
    coded = text.encode()
    parts = [_U32.pack(len(coded)), coded, _U32.pack(len(sections))]
    for name, data in sections.items():
        encoded = name.encode()
        if len(encoded) > 0xFFFF:
            raise CodingError(f"{_WHERE}: section name of {len(encoded)} bytes; 65535 is the most.")
        parts += [_U16.pack(len(encoded)), encoded, _ENTRY.pack(len(data), zlib.crc32(data))]
    header = b"".join(parts)
    head = _PREFIX.pack(MAGIC, VERSION, 0, len(header)) + header
    return head + _U32.pack(zlib.crc32(head)) + b"".join(sections.values())


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the metadata and all sections, those that nobody asks for included.

    Raises:
        CodingError: No container, a newer version, a wrong checksum, cut short or too long.
    """
    reader = Reader(data, where=_WHERE)
    magic, version, zero, size = _PREFIX.unpack(reader.take(_PREFIX.size))
    if magic != MAGIC:
        raise CodingError(f"{_WHERE}: begins with {magic!r}, not {MAGIC!r}.")
    if version != VERSION:
        raise CodingError(f"{_WHERE}: version {version}, this release reads {VERSION}. Update it.")
    header = Reader(reader.take(size), where=f"{_WHERE}: header")
    checked = data[: reader.at]
    if zero or _U32.unpack(reader.take(4))[0] != zlib.crc32(checked):
        raise CodingError(f"{_WHERE}: CRC mismatch in the header; the data is damaged.")
    meta, entries = _read_header(header)
    sections: dict[str, bytes] = {}
    for name, length, crc in entries:
        section = reader.take(length)
        if zlib.crc32(section) != crc:
            raise CodingError(f"{_WHERE}: CRC mismatch in section {name}; the data is damaged.")
        if name in sections:
            raise CodingError(f"{_WHERE}: two sections are named {name}.")
        sections[name] = section
    reader.close()
    return meta, sections


def _read_header(header: Reader) -> tuple[dict[str, Any], list[tuple[str, int, int]]]:
    try:
        meta = json.loads(header.take(_U32.unpack(header.take(4))[0]))
        entries = []
        for _ in range(_U32.unpack(header.take(4))[0]):
            name = header.take(_U16.unpack(header.take(2))[0]).decode()
            length, crc = _ENTRY.unpack(header.take(_ENTRY.size))
            entries.append((name, length, crc))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CodingError(f"{_WHERE}: the header is not readable: {error}.") from error
    header.close()
    if not isinstance(meta, dict):
        raise CodingError(f"{_WHERE}: the metadata is not a mapping.")
    return meta, entries
