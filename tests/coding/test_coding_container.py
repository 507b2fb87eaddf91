from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import CodingError, pack, unpack

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(max_size=10), st.binary(max_size=50), max_size=5),
       st.dictionaries(st.text(max_size=6), json_values, max_size=4))  # fmt: skip
def test_everything_comes_back(sections: dict[str, bytes], meta: dict[str, object]) -> None:
    data = pack(sections, meta)
    assert unpack(data) == (meta, sections)
    assert list(unpack(data)[1]) == list(sections)
    assert pack(sections, dict(reversed(meta.items()))) == data


def test_golden_bytes() -> None:
    data = pack({"a": b"xyz"}, {"n": 1})
    header = b"\x07\0\0\0" + b'{"n":1}' + b"\x01\0\0\0" + b"\x01\0a" + b"\x03" + bytes(7)
    header += zlib.crc32(b"xyz").to_bytes(4, "little")
    head = b"LCNC" + b"\x01\0" + b"\0\0" + len(header).to_bytes(4, "little") + header
    assert data == head + zlib.crc32(head).to_bytes(4, "little") + b"xyz"


def kilobyte() -> bytes:
    return pack({"codes": np.random.default_rng(0).bytes(900), "empty": b"", "table": bytes(60)},
                {"model": "1a2b"})  # fmt: skip


def test_every_flip_of_a_bit_is_noticed() -> None:
    data = kilobyte()
    assert len(data) > 1024
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodingError, match="container"):
            unpack(bytes(flipped))


def test_every_cut_is_noticed() -> None:
    data = kilobyte()
    for size in range(len(data)):
        with pytest.raises(CodingError, match="container"):
            unpack(data[:size])


def test_what_follows_the_end_is_refused() -> None:
    with pytest.raises(CodingError, match="1 bytes too many"):
        unpack(kilobyte() + b"\0")


def test_a_newer_version_is_refused_by_its_number() -> None:
    data = bytearray(kilobyte())
    data[4] = 2
    with pytest.raises(CodingError, match="version 2, this release reads 1"):
        unpack(bytes(data))


def test_the_damaged_section_is_named() -> None:
    data = bytearray(kilobyte())
    data[-1] ^= 1
    with pytest.raises(CodingError, match="CRC mismatch in section table"):
        unpack(bytes(data))


def test_what_json_cannot_hold_is_refused() -> None:
    for meta in ({"x": float("nan")}, {"x": b"bytes"}):
        with pytest.raises(CodingError, match="not plain JSON"):
            pack({}, meta)
    with pytest.raises(CodingError, match="65535 is the most"):
        pack({"n" * 70_000: b""})


def forge(header: bytes) -> bytes:
    head = b"LCNC\x01\0\0\0" + len(header).to_bytes(4, "little") + header
    return head + zlib.crc32(head).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\x02\0\0\0[]\0\0\0\0", "not a mapping"),
        (b"\x02\0\0\0{]\0\0\0\0", "not readable"),
        (b"\x02\0\0\0{}\xff\xff\xff\xff", "cut short"),
        (b"\xff\xff\xff\xff{}\0\0\0\0", "cut short"),
        (b"\x02\0\0\0{}\0\0\0\0?", "too many"),
        (b"\x02\0\0\0{}\x01\0\0\0\x01\0\xff" + bytes(12), "not readable"),
        (b"\x02\0\0\0{}\x01\0\0\0\x01\0a" + b"\xff" * 8 + bytes(4), "cut short"),
        (b"\x02\0\0\0{}\x02\0\0\0" + 2 * (b"\x01\0a" + bytes(12)), "two sections are named a"),
    ],
)
def test_forged_headers_are_refused(header: bytes, message: str) -> None:
    with pytest.raises(CodingError, match=message):
        unpack(forge(header))
