from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import CodingError, FreqTable, quantize_pmf

quick = settings(deadline=None, max_examples=40)
weights = st.lists(st.floats(0, 1e6), min_size=1, max_size=60).filter(lambda w: sum(w) > 0)


def test_quantize_by_hand() -> None:
    # Total 16, 3 symbols: 13 are shared, floor(13 * (.5, .3, .2)) + 1 = (7, 4, 3), 2 are left.
    assert quantize_pmf([0.5, 0.3, 0.2], 4).tolist() == [9, 4, 3]
    assert quantize_pmf([1, 0, 0], 4).tolist() == [14, 1, 1]
    assert quantize_pmf([1, 1, 1], 3).tolist() == [4, 2, 2]  # what is left goes to the first
    assert quantize_pmf([[3, 1], [1, 3]], 2).tolist() == [[3, 1], [1, 3]]
    # Total 16, frequencies of 2 or more: 10 are shared, (5, 5, 0) + 2.
    assert quantize_pmf([0.5, 0.5, 0], 4, min_freq=2).tolist() == [7, 7, 2]


@quick
@given(weights, st.integers(6, 24))
def test_quantize_invariants(p: list[float], precision: int) -> None:
    frequencies = quantize_pmf(p, precision).astype(np.int64)
    assert frequencies.sum() == 1 << precision
    assert frequencies.min() >= 1
    order = np.argsort(p, kind="stable")
    rises = np.diff(np.array(p)[order]) > 0  # the remainder may part entries that are equal
    assert (np.diff(frequencies[order])[rises] >= -1).all()  # monotone up to 1
    assert quantize_pmf(frequencies, precision).tolist() == frequencies.tolist()  # idempotent


@quick
@given(weights, st.integers(0, 99))
def test_quantize_permutes_with_its_input(p: list[float], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(p))
    whole, turned = quantize_pmf(p, 16), quantize_pmf(np.array(p)[order], 16)
    # Only the remainder may move, and only between entries that are equally probable.
    differing = np.flatnonzero(whole[order] != turned)
    assert all(np.array(p)[order][i] == max(p) for i in differing)


def test_quantize_survives_extreme_scales() -> None:
    assert quantize_pmf([1e308, 1e308], 8).tolist() == [128, 128]
    assert quantize_pmf([5e-324, 0.0], 8).tolist() == [255, 1]


@pytest.mark.parametrize(
    ("p", "precision", "message"),
    [
        ([[0.5, 0.5], [float("nan"), 1]], 8, "row 1 contain NaN"),
        ([float("inf"), 1], 8, "row 0 contain NaN or infinity"),
        ([-0.1, 1], 8, "row 0 are negative"),
        ([0, 0], 8, "all zero"),
        (np.ones(70000), 16, "precision 16 cannot hold 70000 symbols"),
        ([], 8, "cannot hold 0 symbols"),
        ([1, 1], 25, "precision=25 must be between 1 and 24"),
        ([1, 1], 0, "precision=0"),
    ],
)
def test_quantize_refuses(p: list[float], precision: int, message: str) -> None:
    with pytest.raises(CodingError, match=message):
        quantize_pmf(p, precision)


def table(*, escape: bool = False) -> FreqTable:
    return FreqTable.from_frequencies(
        [[8, 4, 4], [1, 15]], offset=[-1, 10], precision=4, escape=escape
    )


def test_intervals_and_slots_agree() -> None:
    rows = np.array([0, 0, 0, 1, 1])
    values = np.array([-1, 0, 1, 10, 11])
    start, freq, escaped = table().interval(rows, values)
    assert start.tolist() == [0, 8, 12, 0, 1]
    assert freq.tolist() == [8, 4, 4, 1, 15]
    assert not escaped.any()
    for row in (0, 1):
        slots = np.arange(16)
        value, low, wide, _ = table().find(np.full(16, row), slots)
        again, width, _ = table().interval(np.full(16, row), value)
        assert ((again <= slots) & (slots < again + width)).all()
        assert (low == again).all()
        assert (wide == width).all()


def test_escape_takes_what_is_outside() -> None:
    start, freq, escaped = table(escape=True).interval(np.array([0, 0, 1]), np.array([0, 1, 99]))
    assert escaped.tolist() == [False, True, True]  # value 1 is the escape entry of row 0
    assert start.tolist() == [8, 12, 1]
    assert freq.tolist() == [4, 4, 15]


def test_a_symbol_outside_is_named() -> None:
    with pytest.raises(CodingError, match=r"symbol 300 outside table row 0 \(-1\.\.\.1\)"):
        table().interval(np.array([0]), np.array([300]))
    with pytest.raises(CodingError, match=r"row number is outside 0\.\.1"):
        table().interval(np.array([2]), np.array([0]))


@pytest.mark.parametrize("rows", [[[8, 8, 1]], [[16, 0]], [[15]], [[17, -1]], [[]]])
def test_rows_that_are_no_table(rows: list[list[int]]) -> None:
    with pytest.raises(CodingError, match="frequency table"):
        FreqTable.from_frequencies(rows, precision=4)


@pytest.mark.parametrize(
    ("start", "length"), [([[0, 8, 8, 16]], [3]), ([[1, 8, 12, 16]], [3]), ([[0, 8, 16, 15]], [2]),
                          ([[0, 8, 12, 16]], [4]), ([[0, 8, 12, 16]], [0])],
)  # fmt: skip
def test_starts_that_are_no_table(start: list[list[int]], length: list[int]) -> None:
    with pytest.raises(CodingError, match="frequency table"):
        FreqTable(np.array(start, np.uint32), np.zeros(1, np.int32), np.array(length, np.int32), 4)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(CodingError, match="uint32"):
        FreqTable(np.zeros((1, 2)), np.zeros(1, np.int32), np.ones(1, np.int32), 4)  # type: ignore[arg-type]


def test_a_table_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        table().start[0, 1] = 3


@pytest.mark.parametrize("escape", [False, True])
def test_bytes_come_back_and_are_fixed(escape: bool) -> None:
    data = table(escape=escape).to_bytes()
    again = FreqTable.from_bytes(data)
    assert again.sha256() == table(escape=escape).sha256()
    assert again.start.tolist() == table().start.tolist()
    assert again.offset.tolist() == [-1, 10]
    assert again.escape is escape
    assert len(data) < 24


def test_fingerprint_changes_with_every_integer() -> None:
    make = FreqTable.from_frequencies
    prints = {
        make(rows, offset=offset, precision=precision, escape=escape).sha256()
        for rows, offset, precision, escape in (
            ([[8, 8]], [0], 4, False), ([[7, 9]], [0], 4, False), ([[8, 8]], [1], 4, False),
            ([[16, 16]], [0], 5, False), ([[8, 8]], [0], 4, True), ([[8, 4, 4]], [0], 4, False),
            ([[8, 8], [8, 8]], [0, 0], 4, False),
        )
    }  # fmt: skip
    assert len(prints) == 7


def test_damaged_bytes_are_refused_or_give_a_valid_table() -> None:
    data = table().to_bytes()
    for cut in range(len(data)):
        with pytest.raises(CodingError):
            FreqTable.from_bytes(data[:cut])
    with pytest.raises(CodingError, match="too many"):
        FreqTable.from_bytes(data + b"\0")
    outcomes = set()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            outcomes.add(FreqTable.from_bytes(bytes(flipped)).sha256() != table().sha256())
        except CodingError:
            outcomes.add(None)
    assert outcomes <= {None, True}
