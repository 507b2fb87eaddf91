from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import coding
from laconic.coding import CodingError

quick = settings(deadline=None, max_examples=50)


@quick
@given(st.binary(max_size=300), st.integers(1, 8), st.sampled_from(["fast", "smallest"]))
def test_values_come_back(data: bytes, itemsize: int, effort: coding.Effort) -> None:
    raw = data[: len(data) // itemsize * itemsize]
    encoded = coding.encode_values(raw, itemsize, effort=effort)
    assert len(encoded.data) <= len(raw)
    assert coding.decode_values(encoded.coder, encoded.data, len(raw), itemsize) == raw


@pytest.mark.parametrize("effort", ["fast", "smallest"])
@pytest.mark.parametrize(
    ("dtype", "share"), [(np.float16, 0.92), (np.float32, 0.93), (np.float64, 0.96)]
)
def test_planes_shrink_floats(dtype: type, share: float, effort: coding.Effort) -> None:
    raw = np.random.default_rng(0).standard_normal(50_000).astype(dtype).tobytes()
    itemsize = np.dtype(dtype).itemsize
    encoded = coding.encode_values(raw, itemsize, effort=effort)
    assert encoded.coder == "planes-zstd"
    assert len(encoded.data) < share * len(raw)
    assert coding.decode_values(encoded.coder, encoded.data, len(raw), itemsize) == raw


def test_smallest_is_never_larger() -> None:
    for raw in (b"ab" * 5000, np.arange(3000, dtype="<i4").tobytes(), bytes(10), b""):
        fast, smallest = (
            coding.encode_values(raw, 2, effort=effort) for effort in ("fast", "smallest")
        )
        assert len(smallest.data) <= len(fast.data)


def test_noise_and_nothing_stay_raw() -> None:
    noise = np.random.default_rng(0).bytes(1000)
    assert coding.encode_values(noise, 2, effort="fast") == ("raw", noise)
    assert coding.encode_values(b"", 4, effort="smallest") == ("raw", b"")


def test_golden_planes() -> None:
    # Two planes stored as they are (mode 0) and as a frame of one raw block (mode 1).
    data = bytes.fromhex("000102" + "010b" + "28b52ffd20021100000304")
    assert coding.decode_values("planes-zstd", data, 4, 2) == bytes([1, 3, 2, 4])


@pytest.mark.parametrize(
    ("coder", "data", "size", "itemsize", "message"),
    [
        ("raw", b"abc", 4, 2, "3 bytes came, 4 are due"),
        ("raw", b"abc", 3, 2, "not whole values of 2 bytes"),
        ("raw", b"", -4, 2, "not whole values"),
        ("zstd", b"abcd", 4, 2, "damaged"),
        ("planes-zstd", b"\0ab\0cde", 4, 2, "1 bytes too many"),
        ("planes-zstd", b"\0ab\0c", 4, 2, "cut short"),
        ("planes-zstd", b"\2ab\0cd", 4, 2, "plane mode 2"),
        ("lzma", b"", 0, 2, "no coder 'lzma'"),
    ],
)
def test_decode_refuses(coder: str, data: bytes, size: int, itemsize: int, message: str) -> None:
    with pytest.raises(CodingError, match=message):
        coding.decode_values(coder, data, size, itemsize)
