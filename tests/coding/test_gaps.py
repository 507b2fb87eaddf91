from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import coding
from laconic.coding import CodingError, gaps
from laconic.coding.bits import put_varint

quick = settings(deadline=None, max_examples=50)


def pattern(text: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.array([int(c) for c in text], np.uint8)


def slow_symbols(bits: list[int], width: int) -> list[int]:
    """The definition, one bit at a time."""
    filler, symbols, zeros = (1 << width) - 1, [], 0
    for bit in bits:
        if bit:
            while zeros >= filler:
                symbols.append(filler)
                zeros -= filler
            symbols.append(zeros)
            zeros = 0
        else:
            zeros += 1
    return symbols


@quick
@given(st.lists(st.integers(0, 1), max_size=80), st.integers(1, 8))
def test_symbols_follow_the_definition(bits: list[int], width: int) -> None:
    array = np.array(bits, np.uint8)
    runs = gaps.zeros_before(array)
    symbols = gaps.to_symbols(runs, width)
    assert symbols.tolist() == slow_symbols(bits, width)
    assert gaps.counts(runs, width).tolist() == np.bincount(symbols, minlength=1 << width).tolist()
    assert gaps.from_symbols(symbols, width, len(bits)).tolist() == bits


@pytest.mark.parametrize("width", gaps.WIDTHS)
@pytest.mark.parametrize("fillers", [0, 1, 2])
@pytest.mark.parametrize("around", [-1, 0, 1])
@pytest.mark.parametrize("trailing", [0, 1, 300])
def test_gaps_at_the_filler(width: int, fillers: int, around: int, trailing: int) -> None:
    zeros = max(0, fillers * ((1 << width) - 1) + around)
    bits = np.array([0] * zeros + [1] + [0] * trailing, np.uint8)
    symbols = gaps.to_symbols(gaps.zeros_before(bits), width)
    assert symbols.size == zeros // ((1 << width) - 1) + 1
    assert np.array_equal(gaps.from_symbols(symbols, width, bits.size), bits)


def test_every_pattern_of_ten_bits() -> None:
    for number in range(1 << 10):
        bits = np.array([number >> i & 1 for i in range(10)], np.uint8)
        for width in (1, 2, 3):
            symbols = gaps.to_symbols(gaps.zeros_before(bits), width)
            assert np.array_equal(gaps.from_symbols(symbols, width, 10), bits)


@pytest.mark.parametrize("effort", ["fast", "smallest"])
@pytest.mark.parametrize(
    "bits", [pattern(""), pattern("0"), pattern("1"), np.zeros(5000, np.uint8),
             np.ones(5000, np.uint8), pattern("0" * 4999 + "1"), pattern("1" + "0" * 4999)],
)  # fmt: skip
def test_patterns_at_the_ends(
    bits: np.ndarray[tuple[int], np.dtype[np.uint8]], effort: coding.Effort
) -> None:
    encoded = coding.encode_pattern(bits, effort=effort)
    assert np.array_equal(coding.decode(encoded.coder, encoded.data, bits.size, 2), bits)
    assert len(encoded.data) <= 24


@quick
@given(st.integers(0, 30_000), st.floats(0, 1), st.integers(0, 99))
def test_patterns_come_back(count: int, density: float, seed: int) -> None:
    bits = (np.random.default_rng(seed).random(count) < density).astype(np.uint8)
    fast = coding.encode_pattern(bits, effort="fast")
    smallest = coding.encode_pattern(bits, effort="smallest")
    for encoded in (fast, smallest):
        assert np.array_equal(coding.decode(encoded.coder, encoded.data, count, 2), bits)
    assert len(smallest.data) <= len(fast.data)
    assert len(fast.data) <= len(coding.encode(bits, 2, effort="fast").data)


def test_gaps_win_on_sparse_patterns() -> None:
    bits = (np.random.default_rng(0).random(200_000) < 0.02).astype(np.uint8)
    encoded = coding.encode_pattern(bits, effort="fast")
    ideal = coding.entropy(bits, 2) * bits.size / 8
    assert encoded.coder == "gaps-zstd"
    assert len(encoded.data) < 1.02 * ideal
    assert len(coding.encode_pattern(bits, effort="smallest").data) < 1.01 * ideal


def test_hostile_gaps() -> None:
    packed = bytes([2]) + put_varint(4) + bytes([0x8C])  # gaps 0, 3 zeros, 0, 2: 8 positions
    assert coding.decode("gaps-packed", packed, 8, 2).tolist() == [1, 0, 0, 0, 1, 0, 0, 1]
    with pytest.raises(CodingError, match="reach to 8, the pattern has 7 bits"):
        coding.decode("gaps-packed", packed, 7, 2)
    with pytest.raises(CodingError, match="fillers after the last one"):
        coding.decode("gaps-packed", bytes([2, 1, 3]), 8, 2)
    with pytest.raises(CodingError, match="9 gaps of 2 bits for 8 positions"):
        coding.decode("gaps-packed", bytes([2, 9]) + bytes(3), 8, 2)
    with pytest.raises(CodingError, match="gaps of 9 bits"):
        coding.decode("gaps-packed", bytes([9, 1, 0, 0]), 8, 2)
    with pytest.raises(CodingError, match="not alphabet 3"):
        coding.decode("gaps-packed", packed, 8, 3)
    with pytest.raises(CodingError, match="gaps of gaps"):
        coding.decode("gaps-gaps-packed", packed, 8, 2)
    with pytest.raises(CodingError, match="no coder"):
        coding.decode("gaps-", packed, 8, 2)
