from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import CodingError
from laconic.coding.bits import (
    Reader,
    fixed_size,
    pack_fixed,
    put_codes,
    put_varint,
    unpack_fixed,
    width_of,
)
from laconic.coding.integers import (
    GolombReader,
    golomb_bits,
    pack_integers,
    put_golomb,
    unpack_integers,
    unzigzag,
    zigzag,
)

quick = settings(deadline=None, max_examples=40)


def as_one_number(values: list[int], width: int) -> bytes:
    """The definition: field i is added at bit i * width of one little-endian number."""
    number = sum(value << (i * width) for i, value in enumerate(values))
    return number.to_bytes((len(values) * width + 7) // 8, "little")


@quick
@given(st.data(), st.integers(1, 8))
def test_fixed_fields_are_one_little_endian_number(data: st.DataObject, width: int) -> None:
    values = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=70))
    packed = pack_fixed(np.array(values, np.uint8), width)
    assert packed == as_one_number(values, width)
    assert unpack_fixed(packed, width, len(values)).tolist() == values


@quick
@given(st.data(), st.integers(9, 24))
def test_wide_fields_come_back(data: st.DataObject, width: int) -> None:
    values = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40))
    packed = pack_fixed(np.array(values, np.int32), width)
    assert len(packed) == fixed_size(len(values), width)
    assert unpack_fixed(packed, width, len(values)).tolist() == values


def test_packed_bytes_are_fixed_for_ever() -> None:
    assert pack_fixed(np.array([1, 2, 3, 4, 5], np.uint8), 3).hex() == "d158"
    assert pack_fixed(np.array([1, 15, 7], np.uint8), 4).hex() == "f107"
    assert pack_fixed(np.array([0x123, 0x0FF], np.int32), 9).hex() == "23ff01"


@pytest.mark.parametrize("change", [b"", b"\x01\x02\x03", b"\xd1\x58\x00"])
def test_packed_refuses_other_lengths(change: bytes) -> None:
    with pytest.raises(CodingError, match="5 fields of 3 bits"):
        unpack_fixed(change, 3, 5)


def test_packed_refuses_set_padding() -> None:
    with pytest.raises(CodingError, match="padding"):
        unpack_fixed(bytes([0xD1, 0xD8]), 3, 5)


@pytest.mark.parametrize(
    ("alphabet", "width"), [(1, 0), (2, 1), (3, 2), (16, 4), (17, 5), (65536, 16)]
)
def test_width(alphabet: int, width: int) -> None:
    assert width_of(alphabet) == width


@quick
@given(st.lists(st.integers(0, 32).flatmap(
    lambda n: st.tuples(st.integers(0, 2**n - 1), st.just(n))), max_size=60))  # fmt: skip
def test_codes_lie_most_significant_bit_first(pairs: list[tuple[int, int]]) -> None:
    text = "".join(f"{code:0{length}b}" for code, length in pairs if length)
    text += "0" * (-len(text) % 8)
    expected = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    codes = np.array([code for code, _ in pairs], np.int64)
    assert put_codes(codes, np.array([n for _, n in pairs], np.int64)) == expected


def test_codes_across_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 17, 1000)
    codes = rng.integers(0, 1 << 16, 1000) & ((1 << lengths) - 1)
    whole = put_codes(codes, lengths)
    monkeypatch.setattr("laconic.coding.bits._SLAB", 37)
    assert put_codes(codes, lengths) == whole


@quick
@given(st.integers(0, 2**62))
def test_varint(value: int) -> None:
    reader = Reader(put_varint(value), where="test")
    assert reader.varint() == value
    reader.close()


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 10 + b"\x01", b"\x80\x00"])
def test_varint_refuses(data: bytes) -> None:
    with pytest.raises(CodingError, match="test"):
        Reader(data, where="test").varint()


def test_golomb_by_hand() -> None:
    # Order 0: 0 -> 1, 1 -> 010, 2 -> 011, 3 -> 00100: 1 010 011 00100 0000.
    assert put_golomb(np.array([0, 1, 2, 3]), 0) == bytes([0b10100110, 0b01000000])
    # Order 2: 5 + 4 = 9 = 1001, one zero before it.
    assert put_golomb(np.array([5]), 2) == bytes([0b01001000])
    assert golomb_bits(np.array([0, 1, 2, 3]), 0) == 12


@quick
@given(st.lists(st.integers(-(2**31) + 1, 2**31 - 1), max_size=30))
def test_golomb_of_zigzag_comes_back(values: list[int]) -> None:
    data = put_golomb(zigzag(np.array(values, np.int64)), 0)
    reader = GolombReader(data, where="test")
    assert unzigzag(np.array([reader.take(0) for _ in values], np.int64)).tolist() == values
    reader.close()


def test_escape_code_for_every_small_value() -> None:
    values = np.arange(-(2**12), 2**12 + 1)
    assert sorted(zigzag(values).tolist()) == list(range(2**13 + 1))
    reader = GolombReader(put_golomb(zigzag(values), 0), where="test")
    assert [int(unzigzag(np.array([reader.take(0)]))[0]) for _ in values] == values.tolist()


@quick
@given(st.lists(st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 2**24)), max_size=200))
def test_integers_come_back(values: list[int]) -> None:
    data = pack_integers(np.array(values, np.int64))
    assert unpack_integers(data, len(values), where="test").tolist() == values


def test_integers_are_short_where_they_can_be() -> None:
    assert len(pack_integers(np.zeros(65536, np.int64))) <= 6
    assert len(pack_integers(np.full(256, 7))) <= 35
    ramp = pack_integers(np.arange(1000) * 5 + 100)
    assert len(ramp) <= 1000  # differences of 5: 8 bits or fewer each


@quick
@given(st.binary(max_size=60), st.integers(0, 300))
def test_integers_from_any_bytes(data: bytes, count: int) -> None:
    try:
        values = unpack_integers(data, count, where="test")
    except CodingError:
        return
    assert values.size == count
    assert not count or (values.min() >= 0 and values.max() < 2**26)
