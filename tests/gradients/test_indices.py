"""The codes of sorted indices: exact, of the announced size, suspicious of foreign bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from laconic.coding import CodingError
from laconic.errors import ConfigError
from laconic.gradients.indices import (
    IndexCode,
    decode_indices,
    encode_indices,
    index_bytes,
    index_code,
)

CODES: tuple[IndexCode, ...] = ("delta16", "int32", "bitmap")


def there_and_back(indices: Tensor, length: int, code: IndexCode) -> Tensor:
    data = encode_indices(indices, length, code)
    assert data.dtype == torch.uint8
    assert data.numel() == index_bytes(length, len(indices), code)
    return decode_indices(data, length, len(indices), code)


def test_by_hand() -> None:
    indices = torch.tensor([0, 3, 9])
    data = encode_indices(indices, 10, "delta16")  # gaps 0, 2, 5 and one spare slot
    assert data.tolist() == [0, 0, 2, 0, 5, 0, 255, 255]
    assert encode_indices(indices, 10, "bitmap").tolist() == [0b1001, 0b10]
    assert encode_indices(indices, 10, "int32").tolist() == [0, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("gap", [0, 1, 32767, 32768, 65534, 65535, 65536, 131070, 10**6])
def test_every_gap(code: IndexCode, gap: int) -> None:
    places = [gap, 2 * gap + 1, 2 * gap + 2]  # the gap before the first, between, and none
    indices = torch.tensor(places)
    for length in (places[-1] + 1, places[-1] + 70_000):
        assert torch.equal(there_and_back(indices, length, code), indices)


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_any_set(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 300) | st.integers(60_000, 200_000))
    places = sorted(data.draw(st.sets(st.integers(0, length - 1), max_size=40)))
    indices = torch.tensor(places, dtype=torch.int64)
    for code in CODES:
        assert torch.equal(there_and_back(indices, length, code), indices)


def test_all_places_and_none() -> None:
    for length in (1, 7, 8, 9, 65_535, 65_536, 140_001):
        for indices in (torch.arange(length), torch.arange(0)):
            for code in CODES:
                assert torch.equal(there_and_back(indices, length, code), indices)


def test_auto_is_the_smallest() -> None:
    for length in (10, 1000, 100_000, 3_000_000):
        for count in {0, 1, length // 1000, length // 17, length // 15, length // 2, length}:
            sizes = {code: index_bytes(length, count, code) for code in CODES}
            assert sizes[index_code(length, count)] == min(sizes.values())
    assert index_code(2**20, 2**20 // 100) == "delta16"
    assert index_code(2**20, 2**20 // 10) == "bitmap"  # above one in sixteen
    assert index_code(2**33, 4) == "delta16"
    assert index_code(10_000, 10, "int32") == "int32"


def test_a_slice_off_the_boundary_decodes() -> None:
    indices = torch.tensor([4, 70_000, 70_001])
    for code in CODES:
        data = encode_indices(indices, 80_000, code)
        shifted = torch.cat([torch.zeros(1, dtype=torch.uint8), data])[1:]
        assert torch.equal(decode_indices(shifted, 80_000, 3, code), indices)


@pytest.mark.parametrize("code", CODES)
def test_truncated_or_foreign(code: IndexCode) -> None:
    indices, length = torch.tensor([2, 5, 1004, 1005]), 1006
    data = encode_indices(indices, length, code)
    for wrong in (data[:-1], torch.cat([data, data[:1]]), data.view(torch.int8), data[None]):
        with pytest.raises(CodingError, match="takes"):
            decode_indices(wrong, length, 4, code)
    foreign = [torch.zeros_like(data), torch.full_like(data, 255), data.clone()]
    foreign[-1][-3 if code == "delta16" else -1] |= 0x40  # out of range, or beyond the end
    for wrong in foreign:
        with pytest.raises(CodingError, match="not the"):
            decode_indices(wrong, length, 4, code)


@given(st.binary(min_size=12, max_size=12))
@settings(deadline=None, max_examples=50)
def test_random_bytes_decode_to_valid_indices_or_raise(raw: bytes) -> None:
    buffer = torch.tensor(list(raw), dtype=torch.uint8)
    for code, length, count in (("delta16", 3000, 5), ("int32", 2**31, 3), ("bitmap", 91, 45)):
        try:
            found = decode_indices(buffer, length, count, code)  # type: ignore[arg-type]
        except CodingError:
            continue
        assert torch.equal(there_and_back(found, length, code), found)  # type: ignore[arg-type]
        assert len(found) == count


@pytest.mark.parametrize("places", [[3, 3], [4, 2], [-1, 2], [1, 10]])
def test_unsorted_or_out_of_range_is_not_sent(places: list[int]) -> None:
    for code in CODES:
        with pytest.raises(CodingError, match="rise strictly"):
            encode_indices(torch.tensor(places), 10, code)


def test_refused() -> None:
    with pytest.raises(ConfigError, match=r"delta17.*Did you mean 'delta16'"):
        index_bytes(10, 1, "delta17")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="count=11"):
        index_bytes(10, 11, "bitmap")
    with pytest.raises(ConfigError, match="4294967296"):
        index_bytes(2**32, 11, "int32")
    with pytest.raises(ConfigError, match="int32"):
        encode_indices(torch.arange(3, dtype=torch.int32), 10, "bitmap")
