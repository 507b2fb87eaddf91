from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import (
    BatchedRans,
    CodingError,
    FreqTable,
    decode_rows,
    encode_rows,
    entropy,
    quantize_pmf,
)

quick = settings(deadline=None, max_examples=30)


def scalar_rans(pairs: list[tuple[int, int]], precision: int) -> bytes:
    """One lane in plain integers; pairs (start, freq) in the order of pushing."""
    lowest = 1 << 31
    state, words = lowest, []
    for start, freq in pairs:
        if state >= ((lowest >> precision) << 32) * freq:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // freq << precision) + state % freq + start
    return struct.pack(f"<Q{len(words)}I", state, *reversed(words))


def intervals(precision: int) -> st.SearchStrategy[tuple[int, int]]:
    total = 1 << precision
    return st.integers(0, total - 1).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(1, total - start))
    )


@quick
@given(st.sampled_from([1, 8, 12, 16, 24]).flatmap(
    lambda p: st.tuples(st.just(p), st.lists(intervals(p), max_size=60))))  # fmt: skip
def test_one_lane_is_the_scalar_coder_bit_for_bit(case: tuple[int, list[tuple[int, int]]]) -> None:
    precision, pairs = case
    coder = BatchedRans(1, precision)
    for start, freq in pairs:
        coder.push(np.array([start]), np.array([freq]))
    assert coder.finish() == scalar_rans(pairs, precision)


@quick
@given(st.integers(1, 9), st.integers(0, 40), st.sampled_from([4, 12, 16, 24]), st.integers(0, 99))
def test_lanes_come_back(lanes: int, steps: int, precision: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    frequencies = quantize_pmf(rng.dirichlet(np.full(11, 0.3)), precision)
    table = FreqTable.from_frequencies([frequencies], precision=precision)
    values = rng.integers(0, 11, (steps, lanes))
    rows = np.zeros(lanes, np.int64)
    coder = BatchedRans(lanes, precision)
    for step in values[::-1]:
        start, freq, _ = table.interval(rows, step)
        coder.push(start, freq)
    reader = BatchedRans.from_bytes(coder.finish(), lanes, precision)
    for step in values:
        found, start, freq, _ = table.find(rows, reader.peek())
        assert found.tolist() == step.tolist()
        reader.advance(start, freq)
    reader.close()


def test_golden_bytes() -> None:
    coder = BatchedRans(2, 8)
    for start, freq in (([0, 10], [5, 20]), ([100, 200], [1, 2]), ([0, 0], [256, 1])) * 3:
        coder.push(np.array(start), np.array(freq))
    assert coder.finish().hex() == "6400dd240601000000c88b8c6e12830064027acdc80500a5"
    # Each lane alone, in plain integers: its state, and the words that it gives up.
    first = scalar_rans([(0, 5), (100, 1), (0, 256)] * 3, 8)
    second = scalar_rans([(10, 20), (200, 2), (0, 1)] * 3, 8)
    assert coder.finish()[:16] == first[:8] + second[:8]
    assert sorted([coder.finish()[16:20], coder.finish()[20:]]) == sorted([first[8:], second[8:]])


def test_the_whole_range_costs_nothing() -> None:
    coder = BatchedRans(3, 16)
    before = coder.finish()
    for _ in range(1000):
        coder.push(np.zeros(3, np.int64), np.full(3, 1 << 16))
    assert coder.finish() == before


def test_a_lane_costs_less_than_64_bits_over_the_entropy() -> None:
    rng = np.random.default_rng(0)
    values = np.clip(np.round(rng.standard_normal(80_000) * 3), -20, 20).astype(np.int64)
    counts = np.bincount(values + 20, minlength=41)
    table = FreqTable.from_frequencies([quantize_pmf(counts, 16)], offset=[-20], precision=16)
    rows = np.zeros(values.size, np.int64)
    for lanes, count in ((1, 20_000), (16, 80_000)):
        data = encode_rows(values[:count], rows[:count], table, lanes=lanes)
        ideal = entropy((values[:count] + 20).astype(np.uint8), 41) * count
        assert 8 * len(data) <= 1.002 * ideal + 64 * lanes + 48
    assert np.array_equal(decode_rows(data, rows, table), values)


def tables(escape: bool) -> FreqTable:
    rows = [quantize_pmf([1, 4, 1], 12), quantize_pmf([1, 2, 8, 2, 1, 1], 12)]
    return FreqTable.from_frequencies(rows, offset=[-1, -2], precision=12, escape=escape)


@quick
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-(2**31) + 1, 2**31 - 1)), max_size=60),
       st.integers(1, 7))  # fmt: skip
def test_escapes_come_back(pairs: list[tuple[int, int]], lanes: int) -> None:
    rows = np.array([row for row, _ in pairs], np.int64)
    values = np.array([value for _, value in pairs], np.int64)
    data = encode_rows(values, rows, tables(True), lanes=min(lanes, max(1, len(pairs))))
    assert decode_rows(data, rows, tables(True)).tolist() == values.tolist()


def test_every_small_value_through_the_escape() -> None:
    values = np.concatenate([np.arange(-(2**12), 2**12 + 1), [2**30, -(2**30)]])
    rows = np.arange(values.size) % 2
    data = encode_rows(values, rows, tables(True))
    assert np.array_equal(decode_rows(data, rows, tables(True)), values)


def test_what_cannot_be_coded_is_refused() -> None:
    zero = np.zeros(1, np.int64)
    with pytest.raises(CodingError, match="symbol 5 outside table row 0"):
        encode_rows(zero + 5, zero, tables(False))
    with pytest.raises(CodingError, match="2147483648 or more in size"):
        encode_rows(zero + 2**31, zero, tables(True))
    with pytest.raises(CodingError, match=r"values \(1,\) and rows \(2,\)"):
        encode_rows(zero, np.zeros(2, np.int64), tables(False))
    coder = BatchedRans(2, 8)
    for start, freq in (([0, 0], [0, 1]), ([0, 250], [1, 7]), ([-1, 0], [1, 1])):
        with pytest.raises(CodingError, match="a range outside"):
            coder.push(np.array(start), np.array(freq))
    with pytest.raises(CodingError, match=r"must be \(2,\)"):
        coder.push(zero, zero + 1)
    with pytest.raises(CodingError, match="lanes=0"):
        BatchedRans(0, 8)
    with pytest.raises(CodingError, match="precision=25"):
        BatchedRans(1, 25)


def test_a_range_that_does_not_hold_the_slot_is_refused() -> None:
    coder = BatchedRans(1, 8)
    coder.push(np.array([10]), np.array([5]))
    reader = BatchedRans.from_bytes(coder.finish(), 1, 8)
    assert 10 <= reader.peek()[0] < 15
    for start in (0, 15):
        with pytest.raises(CodingError, match="does not hold its slot"):
            reader.advance(np.array([start]), np.array([5]))


def test_states_out_of_range_are_refused() -> None:
    for state in (0, 2**31 - 1, 2**63):
        with pytest.raises(CodingError, match="a state is outside"):
            BatchedRans.from_bytes(struct.pack("<Q", state), 1, 8)
    with pytest.raises(CodingError, match="do not hold 2 lanes"):
        BatchedRans.from_bytes(bytes(12), 2, 8)


def test_damage_is_noticed_or_changes_the_values() -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 2, 60)
    values = rng.integers(-1, 2, 60)
    table = tables(False)
    data = encode_rows(values, rows, table, lanes=4)
    for cut in range(len(data)):
        with pytest.raises(CodingError):
            decode_rows(data[:cut], rows, table)
    with pytest.raises(CodingError):
        decode_rows(data + b"\0", rows, table)
    missed = 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            decode_rows(bytes(flipped), rows, table)
            missed += 1
        except CodingError:
            continue
    assert missed == 0  # the states must come back to where they began


def test_rows_that_differ_are_refused() -> None:
    rows = np.zeros(500, np.int64)
    data = encode_rows(rows, rows, tables(False))
    with pytest.raises(CodingError):
        decode_rows(data, rows + 1, tables(False))
    with pytest.raises(CodingError):
        decode_rows(data, rows[:-1], tables(False))
