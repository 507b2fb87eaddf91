"""Canonical Huffman codes (Huffman, 1952; Schwartz & Kallick, 1964), decoded in lock-step.

Only code lengths are stored. Symbols are cut into chunks of equal count whose bit positions are
stored as short fields, so that all chunks are decoded at once, one symbol of each a step, by a
table look-up on the next bits.

Layout: group size (1 byte), table of lengths (varint size, integers), then unless only one
symbol occurs: log2 of symbols a chunk (1 byte), smallest chunk in bits (varint), field width
(1 byte), chunk sizes above the smallest (fixed-width fields), the bit stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from laconic.coding._codelengths import Integers, canonical_codes, check_complete, code_lengths
from laconic.coding._errors import CodingError
from laconic.coding.bits import (
    Array,
    Reader,
    fixed_size,
    pack_fixed,
    put_codes,
    put_varint,
    unpack_fixed,
    width_of,
)  # fmt: skip
from laconic.coding.entropy import histogram
from laconic.coding.integers import pack_integers, unpack_integers
from laconic.coding.symbols import group, group_sizes, symbol_type, ungroup

_WHERE = "huffman"
_LONGEST = 16
_USUAL = 12  # code limit where the alphabet allows it: the look-up table then fits a L1 cache
_CHUNK_BITS = 3000
_CHUNK_LOGS = range(6, 11)
_LANES = 4096  # chunks decoded at once


@dataclass(frozen=True)
class Plan:
    """A code for one grouping of the symbols, and what it will take.

    Attributes:
        group: Symbols joined to one.
        lengths: (K,) code lengths, 0 where a joined symbol does not occur.
        table: The lengths as bytes.
        chunk_log: Joined symbols a chunk, as a power of two.
        size: Estimated bytes, exact but for the chunk fields.
    """

    group: int
    lengths: Integers
    table: bytes
    chunk_log: int
    size: int


def plan(symbols: Array, alphabet: int) -> Plan:
    """Choose the grouping that takes the fewest bytes."""
    return min(
        (_plan(symbols, alphabet, size) for size in group_sizes(alphabet)), key=lambda p: p.size
    )


def _plan(symbols: Array, alphabet: int, size: int) -> Plan:
    counts = histogram(group(symbols, alphabet, size), alphabet**size)
    used = np.flatnonzero(counts)
    lengths = np.zeros(counts.size, np.int64)
    limit = min(_LONGEST, max(_USUAL, width_of(used.size) + 2))
    lengths[used] = code_lengths(counts[used], limit)
    table = pack_integers(lengths)
    bits = int((counts * lengths).sum()) if used.size > 1 else 0
    items = -(-symbols.size // size)
    per_chunk = _CHUNK_BITS * items / max(bits, 1)
    chunk_log = min(max(round(np.log2(per_chunk)), _CHUNK_LOGS[0]), _CHUNK_LOGS[-1])
    chunks = -(-items >> chunk_log)
    estimate = 6 + len(table) + bits // 8 + chunks * 10 // 8
    return Plan(size, lengths, table, int(chunk_log), estimate)


def encode(symbols: Array, alphabet: int, chosen: Plan | None = None) -> bytes:
    """Code symbols, with a code that :func:`plan` chose for them or a new one."""
    if not symbols.size:
        return b""
    chosen = chosen or plan(symbols, alphabet)
    joined = group(symbols, alphabet, chosen.group)
    head = bytes([chosen.group]) + put_varint(len(chosen.table)) + chosen.table
    codes, used = canonical_codes(chosen.lengths)
    if used.size == 1:
        return head
    lengths = chosen.lengths.astype(np.uint8)[joined]
    stream = put_codes(codes.astype(np.uint16)[joined], lengths)
    chunks = np.add.reduceat(
        lengths, np.arange(0, joined.size, 1 << chosen.chunk_log), dtype=np.int64
    )
    smallest = int(chunks.min())
    width = int(chunks.max() - smallest).bit_length()
    fields = pack_fixed(chunks - smallest, width)
    head += bytes([chosen.chunk_log]) + put_varint(smallest) + bytes([width])
    return head + fields + stream


def decode(data: bytes, count: int, alphabet: int) -> Array:
    """Undo :func:`encode`.

    Raises:
        CodingError: Damaged, cut short or too long data.
    """
    reader = Reader(data, where=_WHERE)
    if not count:
        reader.close()
        return np.zeros(0, np.uint8)
    size = reader.byte()
    if size not in group_sizes(alphabet):
        raise CodingError(f"{_WHERE}: groups of {size} do not belong to alphabet {alphabet}.")
    items, values = -(-count // size), alphabet**size
    lengths = unpack_integers(reader.take(reader.varint()), values, where=_WHERE)
    used = np.flatnonzero(lengths)
    if used.size == 1 and lengths[used[0]] == 1:
        reader.close()
        joined: Array = np.full(items, used[0], symbol_type(values))
    else:
        check_complete(lengths, longest=_LONGEST, where=_WHERE)
        joined = _decode_stream(reader, items, lengths)
    return ungroup(joined, alphabet, size, count, where=_WHERE)


def _decode_stream(reader: Reader, items: int, lengths: Integers) -> Array:
    chunk_log, smallest, width = reader.byte(), reader.varint(), reader.byte()
    if chunk_log not in _CHUNK_LOGS or width > 24 or smallest > _LONGEST << chunk_log:
        raise CodingError(f"{_WHERE}: the header of the chunks is damaged.")
    if items > 8 * len(reader.data):
        raise CodingError(f"{_WHERE}: {len(reader.data)} bytes do not hold {items} codes.")
    chunks = -(-items >> chunk_log)
    fields = unpack_fixed(reader.take(fixed_size(chunks, width)), width, chunks)
    ends = np.cumsum(fields.astype(np.int64) + smallest)
    stream = reader.rest()
    if not items <= int(ends[-1]) or len(stream) != (int(ends[-1]) + 7) // 8:
        raise CodingError(f"{_WHERE}: {len(stream)} bytes of codes, {ends[-1]} bits are due.")
    spare = -int(ends[-1]) % 8
    if spare and stream[-1] & ((1 << spare) - 1):
        raise CodingError(f"{_WHERE}: bits after the last code are set; data is damaged.")
    steps = 1 << chunk_log
    windows = _windows(stream, spare_bits=_LONGEST * min(steps, items))
    table = _look_up_table(lengths)
    out = np.empty(items, symbol_type(lengths.size))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    for first in range(0, chunks, _LANES):
        lanes = slice(first, first + _LANES)
        part = out[first << chunk_log : (first + _LANES) << chunk_log]
        stopped = _lock_step(windows, table, starts[lanes], part, steps)
        if (stopped != ends[lanes]).any():
            raise CodingError(f"{_WHERE}: codes end off their chunk; the data is damaged.")
    return out


def _windows(stream: bytes, *, spare_bits: int) -> npt.NDArray[np.uint64]:
    """Return for each 32-bit word of the stream the 64 bits that begin there."""
    words = np.zeros((len(stream) + 3) // 4 + spare_bits // 32 + 2, np.uint64)
    padded = stream + bytes(-len(stream) % 4)
    words[: len(padded) // 4] = np.frombuffer(padded, ">u4")
    return words[:-1] << np.uint64(32) | words[1:]


def _look_up_table(lengths: Integers) -> npt.NDArray[np.uint64]:
    """Return for each string of ``longest`` bits ``symbol << 5 | length`` of its first code."""
    _, order = canonical_codes(lengths)
    longest = int(lengths.max())
    spans = np.int64(1) << (longest - lengths[order])
    return np.repeat(order << 5 | lengths[order], spans).astype(np.uint64)


def _lock_step(
    windows: npt.NDArray[np.uint64], table: npt.NDArray[np.uint64], starts: Integers, out: Array,
    steps: int,
) -> Integers:  # fmt: skip
    """Decode ``steps`` codes from each start into consecutive runs of ``out``.

    The last run may be shorter. Returns the bit position after each run.
    """
    longest = table.size.bit_length() - 1
    per_window = (64 - 31) // longest  # codes that surely lie within one window
    shift, low5 = np.uint64(64 - longest), np.uint64(31)
    lanes = starts.size
    tail = out.size - (lanes - 1) * steps
    columns = np.empty((steps if lanes > 1 else tail, lanes), out.dtype)
    at = starts.copy()
    window = np.empty(lanes, np.uint64)
    entry, scratch = np.empty_like(window), np.empty_like(window)
    step = 0
    while step < columns.shape[0]:
        active = lanes if step < tail else lanes - 1
        burst = min(per_window, (tail if step < tail else columns.shape[0]) - step)
        a, w, e, s = at[:active], window[:active], entry[:active], scratch[:active]
        windows.take(a >> 5, out=w, mode="clip")
        np.left_shift(w, (a & 31).view(np.uint64), out=w)
        for _ in range(burst):
            np.right_shift(w, shift, out=s)
            table.take(s.view(np.int64), out=e, mode="clip")
            np.bitwise_and(e, low5, out=s)
            np.left_shift(w, s, out=w)
            a += s.view(np.int64)
            np.right_shift(e, np.uint64(5), out=e)
            columns[step, :active] = e
            step += 1
    if lanes > 1:
        out[: (lanes - 1) * steps].reshape(lanes - 1, steps)[:] = columns[:, : lanes - 1].T
    out[(lanes - 1) * steps :] = columns[:tail, lanes - 1]
    return at
