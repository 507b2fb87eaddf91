from __future__ import annotations

import heapq

import numpy as np
import pytest
from coding_support import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import CodingError, huffman
from laconic.coding._codelengths import canonical_codes, code_lengths
from laconic.coding.bits import put_varint
from laconic.coding.integers import pack_integers

quick = settings(deadline=None, max_examples=40)
counts_of = st.lists(st.integers(1, 10**6), min_size=2, max_size=80)


def plain_huffman_cost(counts: list[int]) -> int:
    """Sum of all merged weights: what an unlimited Huffman code costs."""
    heap, cost = list(counts), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        cost += merged
        heapq.heappush(heap, merged)
    return cost


def best_limited_cost(counts: list[int], limit: int) -> int:
    """Try every set of lengths with Kraft sum 1, rising with falling counts."""
    ordered = sorted(counts, reverse=True)

    def search(index: int, least: int, room: int) -> float:
        if index == len(ordered):
            return 0 if room == 0 else float("inf")
        costs = [float("inf")]
        for length in range(least, limit + 1):
            span = 1 << (limit - length)
            if span <= room:
                rest = search(index + 1, length, room - span)
                costs.append(ordered[index] * length + rest)
        return min(costs)

    return int(search(0, 1, 1 << limit))


@quick
@given(counts_of)
def test_code_lengths_are_optimal(counts: list[int]) -> None:
    lengths = code_lengths(np.array(counts), 32)
    assert int((lengths * counts).sum()) == plain_huffman_cost(counts)
    assert sum(2.0**-length for length in lengths) == 1.0


@quick
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=7), st.integers(3, 5))
def test_limited_code_lengths_are_optimal(counts: list[int], limit: int) -> None:
    lengths = code_lengths(np.array(counts), limit)
    assert lengths.max() <= limit
    assert int((lengths * counts).sum()) == best_limited_cost(counts, limit)


def test_the_limit_holds_where_huffman_would_go_deep() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert code_lengths(np.array(fibonacci), 40).max() == 39
    limited = code_lengths(np.array(fibonacci), 16)
    assert limited.max() == 16
    assert sum(2.0**-length for length in limited) == 1.0
    assert set(code_lengths(np.ones(65536, np.int64), 16).tolist()) == {16}


def test_canonical_codes_by_hand() -> None:
    codes, order = canonical_codes(np.array([2, 0, 1, 3, 3]))
    assert order.tolist() == [2, 0, 3, 4]
    assert [f"{codes[s]:b}" for s in order] == ["0", "10", "110", "111"]


def test_golden_bytes() -> None:
    symbols = np.array([200, 100, 200, 7, 200, 100, 200, 200], np.uint8)
    # 200 -> 0, 7 -> 10, 100 -> 11: 0 11 0 10 0 11 0 0, one chunk of 11 bits.
    data = huffman.encode(symbols, 256)
    assert data[0] == 1
    assert data.hex().endswith("0b00" + f"{0b0110100110000000:04x}")
    golden = "01080090e0bae0c8a1c0" + "0a0b00" + "6980"
    assert data.hex() == golden
    assert huffman.decode(bytes.fromhex(golden), 8, 256).tolist() == symbols.tolist()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 1000, 70_001])
@pytest.mark.parametrize("alphabet", [2, 16, 256, 5000])
def test_chunks_of_every_size(count: int, alphabet: int, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = draw("gauss", alphabet, count)
    for bits in (100, 3000):
        monkeypatch.setattr(huffman, "_CHUNK_BITS", bits)
        monkeypatch.setattr(huffman, "_LANES", 64)
        data = huffman.encode(symbols, alphabet)
        assert np.array_equal(huffman.decode(data, count, alphabet), symbols)


def test_the_plan_knows_the_size() -> None:
    for alphabet in (2, 16, 256):
        symbols = draw("gauss", alphabet, 50_000)
        chosen = huffman.plan(symbols, alphabet)
        size = len(huffman.encode(symbols, alphabet, chosen))
        assert abs(chosen.size - size) <= 0.01 * size


@pytest.mark.parametrize("wrong", [7, 9, 0, 80])
def test_another_count_is_refused(wrong: int) -> None:
    symbols = np.array([200, 100, 200, 7, 200, 100, 200, 200], np.uint8)
    with pytest.raises(CodingError, match="huffman"):
        huffman.decode(huffman.encode(symbols, 256), wrong, 256)


def test_codes_that_do_not_fill_the_tree_are_refused() -> None:
    for lengths in ([1, 2], [1, 1, 1], [0, 0], [2, 2, 2]):
        padded = np.array(lengths + [0] * (3 - len(lengths)))
        table = pack_integers(padded)
        data = bytes([1]) + put_varint(len(table)) + table + bytes([6, 8, 0, 0])
        with pytest.raises(CodingError, match="huffman"):
            huffman.decode(data, 8, 3)
