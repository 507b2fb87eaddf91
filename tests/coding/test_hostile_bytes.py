from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard
from coding_support import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import coding
from laconic.coding import CodingError, ans, huffman, zstd

CODERS = ("packed", "zstd", "huffman", "rans", "gaps-packed", "gaps-zstd", "gaps-huffman",
          "gaps-rans")  # fmt: skip


def check(coder: str, data: bytes, count: int, alphabet: int) -> bool:
    """Decode; what comes out without an error must have the size and alphabet declared."""
    try:
        symbols = coding.decode(coder, data, count, alphabet)
    except CodingError:
        return False
    assert symbols.shape == (count,)
    assert not count or (symbols.min() >= 0 and symbols.max() < alphabet)
    return True


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(CODERS), st.binary(max_size=80), st.integers(0, 500),
       st.sampled_from([1, 2, 3, 16, 256, 300, 65536]))  # fmt: skip
def test_any_bytes(coder: str, data: bytes, count: int, alphabet: int) -> None:
    check(coder, data, count, alphabet)


def coded(alphabet: int, count: int) -> dict[str, bytes]:
    symbols = draw("gauss", alphabet, count)
    return {
        "packed": coding.select.pack_fixed(symbols, (alphabet - 1).bit_length()),
        "zstd": zstd.encode(symbols, alphabet, effort="fast"),
        "huffman": huffman.encode(symbols, alphabet),
        "rans": ans.encode(symbols, alphabet),
    }


@pytest.mark.parametrize("alphabet", [3, 16, 300])
@pytest.mark.parametrize("coder", ["packed", "zstd", "huffman", "rans"])
def test_flips_cuts_and_trailing_bytes(coder: str, alphabet: int) -> None:
    count = 90
    data = coded(alphabet, count)[coder]
    assert check(coder, data, count, alphabet)
    for cut in range(len(data)):
        assert not check(coder, data[:cut], count, alphabet)
    for extra in (b"\0", b"\1\0\0\0", data):
        assert not check(coder, data + extra, count, alphabet)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        check(coder, bytes(flipped), count, alphabet)


@pytest.mark.parametrize("alphabet", [3, 16, 300])
@pytest.mark.parametrize("coder", ["packed", "zstd", "huffman", "rans"])
def test_another_count_is_refused(coder: str, alphabet: int) -> None:
    data = coded(alphabet, 400)[coder]
    for count in (0, 1, 392, 408, 10**6, 10**15):
        assert not check(coder, data, count, alphabet)


@pytest.mark.parametrize("coder", CODERS)
def test_nothing_comes_from_nothing(coder: str) -> None:
    for data in (b"", b"\0", b"\1", b"\1\0\0"):
        assert not check(coder, data, 25, 2)
    if not coder.startswith("gaps"):
        assert check(coder, b"", 0, 2)
        assert not check(coder, b"\0", 0, 2)


def test_a_frame_that_declares_another_size_is_not_decompressed() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(200_000_000))
    assert len(bomb) < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(CodingError, match="declares 200000000 bytes, 100 are due"):
            coding.decode("zstd", b"\1" + bomb, 100, 256)
        with pytest.raises(CodingError, match="declares 200000000 bytes"):
            coding.decode_values("zstd", bomb, 100, 1)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_frame_without_its_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
    with pytest.raises(CodingError, match="zstd"):
        coding.decode("zstd", b"\1" + frame, 100, 256)


def test_a_frame_with_a_huge_window_is_refused() -> None:
    # Not single-segment, 8 bytes of content size, window 2**27: a few bytes ask for 128 MiB.
    frame = bytes.fromhex("28b52ffd" + "c0" + f"{(27 - 10) << 3:02x}")
    frame += (300).to_bytes(8, "little") + bytes([1, 0, 0])
    with pytest.raises(CodingError, match="window of 134217728"):
        coding.decode("zstd", b"\1" + frame, 300, 256)


def test_a_skippable_frame_is_refused() -> None:
    frame = bytes.fromhex("502a4d18") + (100).to_bytes(4, "little") + bytes(100)
    with pytest.raises(CodingError, match="zstd"):
        coding.decode("zstd", b"\1" + frame, 100, 256)


@pytest.mark.parametrize("coder", ["huffman", "rans"])
def test_symbols_outside_the_alphabet(coder: str) -> None:
    data = coded(300, 400)[coder]
    assert not check(coder, data, 400, 257)
    assert not check(coder, data, 400, 16)


@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 1025, 131072, 131073, 300_001])
def test_our_own_frames_pass_the_window_check(size: int) -> None:
    rng = np.random.default_rng(size)
    data = rng.integers(0, 50, size).astype(np.uint8).tobytes()
    for level in (0, 1, 3, 12, 19):
        if level < 19 or size < 2000:
            assert zstd.unframe(zstd.frame(data, level), size, where="test") == data
