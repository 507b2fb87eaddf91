"""Symbol arrays for the tests of this room."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

ALPHABETS = (1, 2, 3, 4, 5, 8, 16, 17, 255, 256, 257, 1000, 4096, 65536)
Symbols = npt.NDArray[np.uint8 | np.int32]


def kind(alphabet: int) -> type[np.uint8 | np.int32]:
    return np.uint8 if alphabet <= 256 else np.int32


def draw(name: str, alphabet: int, count: int, seed: int = 0) -> Symbols:
    """Draw symbols: "gauss", "zipf", "uniform", "constant", "runs"."""
    rng = np.random.default_rng(seed)
    if name == "gauss":
        raw = np.round(rng.standard_normal(count) * alphabet / 6 + alphabet / 2)
    elif name == "zipf":
        raw = rng.zipf(1.5, count).astype(np.float64) - 1
    elif name == "uniform":
        raw = rng.integers(0, alphabet, count).astype(np.float64)
    elif name == "constant":
        raw = np.full(count, alphabet - 1.0)
    else:
        raw = np.repeat(rng.integers(0, alphabet, -(-count // 7)), 7)[:count].astype(np.float64)
    return np.clip(raw, 0, alphabet - 1).astype(kind(alphabet))


@st.composite
def symbol_arrays(draw_: st.DrawFn) -> tuple[Symbols, int]:
    """Any alphabet; long and short arrays, even and lopsided ones."""
    alphabet = draw_(st.sampled_from(ALPHABETS))
    name = draw_(st.sampled_from(["gauss", "zipf", "uniform", "constant", "runs"]))
    count = draw_(st.one_of(st.integers(0, 40), st.integers(0, 6000)))
    return draw(name, alphabet, count, draw_(st.integers(0, 2**31))), alphabet
