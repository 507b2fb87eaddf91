from __future__ import annotations

import numpy as np
import pytest
from coding_support import Symbols, draw, symbol_arrays
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import CodingError, ans

MASK = (1 << 24) - 1


def scalar_encode(symbols: list[int], scaled: list[int]) -> bytes:
    """Push in reverse in plain integers: 24-bit frequencies, 64-bit state, 32-bit words."""
    starts = np.concatenate([[0], np.cumsum(scaled)]).tolist()
    state, words = 1 << 24, []
    for symbol in reversed(symbols):
        frequency = scaled[symbol]
        if state >> 40 >= frequency:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // frequency << 24) + state % frequency + starts[symbol]
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return np.array(words, "<u4").tobytes()


@settings(deadline=None, max_examples=30)
@given(symbol_arrays())
def test_the_reference_reads_what_the_fast_path_wrote(case: tuple[Symbols, int]) -> None:
    symbols, alphabet = case[0][:800], case[1]
    data = ans.encode(symbols, alphabet)
    if symbols.size:
        again = ans.reference_decode(data, symbols.size, alphabet)
        assert np.array_equal(again, symbols)
        assert again.dtype == symbols.dtype
    assert np.array_equal(ans.decode(data, symbols.size, alphabet), symbols)


@pytest.mark.parametrize("alphabet", [17, 200, 1000])
@pytest.mark.parametrize("name", ["gauss", "zipf"])
def test_words_are_those_of_a_scalar_encoder(name: str, alphabet: int) -> None:
    symbols = draw(name, alphabet, 3000)
    data = ans.encode(symbols, alphabet)
    reader = ans.Reader(data, where="test")
    size, frequencies = ans._read_table(reader, symbols.size, alphabet)
    assert size == 1
    used = np.flatnonzero(frequencies)
    scaled = frequencies[used] * ((1 << 24) // frequencies.sum())
    ranks = np.searchsorted(used, symbols)
    assert reader.rest() == scalar_encode(ranks.tolist(), scaled.tolist())


def test_golden_bytes() -> None:
    symbols = np.array([20, 30, 20, 20, 30, 20, 20, 20] * 3, np.uint8)
    data = ans.encode(symbols, 31)
    # Frequencies 48 and 16 of 64 at symbols 20 and 30.
    assert data.hex() == "01" + "06" + "008a83194110" + "000040ce200a0000"
    ranks = [int(symbol == 30) for symbol in symbols]
    assert data[8:] == scalar_encode(ranks, [48 << 18, 16 << 18])
    assert ans.decode(data, 24, 31).tolist() == symbols.tolist()


@pytest.mark.parametrize("tail", [0, 1])
def test_long_runs_at_either_end_cost_bits_and_count(tail: int) -> None:
    symbols = np.full(60_000, 1 - tail, np.uint8)
    symbols[-30_000:] = tail
    data = ans.encode(np.repeat(symbols, 1), 200)
    assert len(data) > 60_000 / 8
    assert np.array_equal(ans.decode(data, symbols.size, 200), symbols)
    for wrong in (symbols.size - 1, symbols.size + 1):
        with pytest.raises(CodingError, match="rans"):
            ans.decode(data, wrong, 200)


def test_more_symbols_than_the_words_can_hold_are_refused_at_once() -> None:
    data = ans.encode(draw("gauss", 200, 1000), 200)
    with pytest.raises(CodingError, match="words do not hold 4000000000000 symbols"):
        ans.decode(data, 4 * 10**12, 200)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**20), st.sampled_from([0.5, 0.9, 0.999, 0.99999]))
def test_the_early_limit_never_refuses_real_data(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    symbols = np.sort((rng.random(20_000) > share).astype(np.uint8))
    for ordered in (symbols, symbols[::-1].copy(), rng.permutation(symbols)):
        data = ans.encode(ordered, 200)
        assert np.array_equal(ans.decode(data, ordered.size, 200), ordered)


@pytest.mark.parametrize("cut", [1, 2, 4, 8])
def test_words_cut_short(cut: int) -> None:
    data = ans.encode(draw("gauss", 16, 4000), 16)
    with pytest.raises(CodingError, match="rans"):
        ans.decode(data[:-cut], 4000, 16)


def test_a_last_word_of_zero_is_refused() -> None:
    data = ans.encode(draw("gauss", 16, 4000), 16)
    with pytest.raises(CodingError, match="last word is zero"):
        ans.decode(data + bytes(4), 4000, 16)


def test_the_backend_says_its_version() -> None:
    assert ans.backend_version().count(".") >= 1
