"""What the zoo's tests share."""

from __future__ import annotations

import os

import pytest

from laconic.zoo import ScoreBPE

needs_data = pytest.mark.skipif(
    "LACONIC_DATA" not in os.environ,
    reason="needs published files: set LACONIC_DATA to the folder that holds them",
)


def small_bpe(words: list[str]) -> ScoreBPE:
    """A tokenizer whose pieces merge in the order given."""
    special = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
    pieces = [*special, *(f"<0x{i:02X}>".encode() for i in range(256))]
    scores = [0.0] * len(pieces) + [-float(i) for i in range(len(words))]
    return ScoreBPE((*pieces, *(word.encode() for word in words)), tuple(scores))
