"""Entropy coding: symbols to bytes and back, exactly; integers only, numpy only."""

from laconic.coding._errors import CodingError
from laconic.coding.container import pack, unpack
from laconic.coding.entropy import entropy
from laconic.coding.rans import BatchedRans, decode_rows, encode_rows
from laconic.coding.select import (
    CODERS,
    Encoded,
    decode,
    decode_values,
    encode,
    encode_pattern,
    encode_values,
)
from laconic.coding.tables import FreqTable, quantize_pmf
from laconic.coding.zstd import Effort

__all__ = [
    "CODERS",
    "BatchedRans",
    "CodingError",
    "Effort",
    "Encoded",
    "FreqTable",
    "decode",
    "decode_rows",
    "decode_values",
    "encode",
    "encode_pattern",
    "encode_rows",
    "encode_values",
    "entropy",
    "pack",
    "quantize_pmf",
    "unpack",
]
