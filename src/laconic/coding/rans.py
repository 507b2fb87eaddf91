"""Range ANS over many lanes in step, in numpy: for symbols whose tables come one step at a time.

(Duda, 2013; Giesen, 2014.) Each lane has a 64-bit state ``x >= 2**31``; all lanes share one list
of 32-bit words, which encoder and decoder visit in the same order, so that the price of a lane is
its final state only. Encoding is last in, first out: push the steps in reverse.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from laconic.coding._errors import CodingError
from laconic.coding.bits import Array, Reader, put_varint
from laconic.coding.integers import GolombReader, put_golomb, unzigzag, zigzag
from laconic.coding.tables import MAX_PRECISION, FreqTable

_WHERE = "batched rans"
_LOWEST = 1 << 31
_WORD = np.uint64(32)
_SYMBOLS_PER_LANE = 2048
_MOST_LANES = 4096
_ESCAPE_LIMIT = 1 << 31

U64 = npt.NDArray[np.uint64]


class BatchedRans:
    """A coder of ``lanes`` independent streams that advance together.

    Args:
        lanes: Streams, at least 1.
        precision: Every push and advance is over frequencies that sum to ``2**precision``, 1..24.

    Encode with :meth:`push` in reverse order and :meth:`finish`; decode with :meth:`from_bytes`,
    then :meth:`peek` and :meth:`advance` in order, then :meth:`close`.

    >>> coder = BatchedRans(lanes=2, precision=4)
    >>> coder.push(np.array([0, 3]), np.array([3, 13]))
    >>> reader = BatchedRans.from_bytes(coder.finish(), lanes=2, precision=4)
    >>> reader.peek() >= np.array([0, 3])
    array([ True,  True])
    >>> reader.advance(np.array([0, 3]), np.array([3, 13]))
    >>> reader.close()
    """

    def __init__(self, lanes: int, precision: int) -> None:
        if lanes < 1 or not 1 <= precision <= MAX_PRECISION:
            raise CodingError(
                f"{_WHERE}: lanes={lanes} must be 1 or more and precision={precision} between 1 "
                f"and {MAX_PRECISION}."
            )
        self.lanes, self.precision = lanes, precision
        self._state: U64 = np.full(lanes, _LOWEST, np.uint64)
        self._groups: list[npt.NDArray[np.uint32]] = []
        self._words: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._next = 0

    def push(self, start: Array, freq: Array) -> None:
        """Encode one symbol in each lane, last symbol first.

        Args:
            start: (lanes,) where the symbols' ranges begin.
            freq: (lanes,) how wide they are, 1 or more; ``2**precision`` costs nothing.
        """
        low, wide = self._check(start, freq)
        precision = np.uint64(self.precision)
        full = self._state >= np.uint64((_LOWEST >> self.precision) << 32) * wide
        if full.any():
            self._groups.append(self._state[full].astype(np.uint32))
            self._state[full] >>= _WORD
        quotient, remainder = np.divmod(self._state, wide)
        self._state = (quotient << precision) + remainder + low

    def finish(self) -> bytes:
        """Return the states (64-bit) and words (32-bit), little-endian."""
        words = self._groups[::-1]
        return self._state.astype("<u8").tobytes() + b"".join(
            group.astype("<u4").tobytes() for group in words
        )

    @classmethod
    def from_bytes(cls, data: bytes, lanes: int, precision: int) -> BatchedRans:
        """Start decoding what :meth:`finish` gave.

        Raises:
            CodingError: Not ``lanes`` states and whole words, or states below ``2**31``.
        """
        coder = cls(1, precision)
        if lanes < 1 or len(data) < 8 * lanes or len(data) % 4:
            raise CodingError(f"{_WHERE}: {len(data)} bytes do not hold {lanes} lanes and words.")
        coder.lanes = lanes
        coder._state = np.frombuffer(data, "<u8", lanes).astype(np.uint64)
        coder._words = np.frombuffer(data, "<u4", offset=8 * lanes).astype(np.uint32)
        if (coder._state < _LOWEST).any() or (coder._state >> np.uint64(63)).any():
            raise CodingError(f"{_WHERE}: a state is outside 2**31..2**63; the data is damaged.")
        return coder

    def peek(self) -> npt.NDArray[np.uint32]:
        """Return (lanes,) slots in ``[0, 2**precision)``: the range that holds one is next."""
        return (self._state & np.uint64((1 << self.precision) - 1)).astype(np.uint32)

    def advance(self, start: Array, freq: Array) -> None:
        """Remove the symbols whose ranges hold the slots that :meth:`peek` gave.

        Raises:
            CodingError: A range that does not hold its slot, or no words left.
        """
        low, wide = self._check(start, freq)
        offset = self.peek().astype(np.uint64) - low  # wraps where the slot lies before the range
        if (offset >= wide).any():
            raise CodingError(f"{_WHERE}: a range does not hold its slot; look it up with peek().")
        self._state = wide * (self._state >> np.uint64(self.precision)) + offset
        need = self._state < _LOWEST
        taken = int(need.sum())
        if taken:
            words = self._words[self._next : self._next + taken]
            if words.size != taken:
                raise CodingError(f"{_WHERE}: the stream is cut short or damaged.")
            self._next += taken
            self._state[need] = self._state[need] << _WORD | words

    def close(self) -> None:
        """Raise unless every lane is back at its first state and every word has been read."""
        if (self._state != _LOWEST).any() or self._next != self._words.size:
            raise CodingError(f"{_WHERE}: the stream does not end where it began; it is damaged.")

    def _check(self, start: Array, freq: Array) -> tuple[U64, U64]:
        low, wide = np.asarray(start).astype(np.int64), np.asarray(freq).astype(np.int64)
        if low.shape != (self.lanes,) or wide.shape != (self.lanes,):
            raise CodingError(
                f"{_WHERE}: start {low.shape} and freq {wide.shape} must be ({self.lanes},)."
            )
        if (low < 0).any() or (wide < 1).any() or (low + wide > 1 << self.precision).any():
            raise CodingError(f"{_WHERE}: a range outside 0..{1 << self.precision} or of no width.")
        return low.astype(np.uint64), wide.astype(np.uint64)


def encode_rows(values: Array, rows: Array, table: FreqTable, *, lanes: int | None = None) -> bytes:
    """Code each value with its own row of a table.

    Args:
        values: (n,) integers; those outside their row need a table with an escape and then may
            be anything below ``2**31`` in size.
        rows: (n,) row of each value.
        table: Frequencies; the reader needs the same.
        lanes: Streams in step; the default is one for 2048 values.

    Raises:
        CodingError: Shapes that differ, or values that the table cannot code.
    """
    if values.shape != rows.shape or values.ndim != 1:
        raise CodingError(f"{_WHERE}: values {values.shape} and rows {rows.shape} must be (n,).")
    start, freq, escaped = table.interval(rows, values)
    outside = values[escaped].astype(np.int64)
    if outside.size and int(np.abs(outside).max()) >= _ESCAPE_LIMIT:
        raise CodingError(f"{_WHERE}: an escaped value is {_ESCAPE_LIMIT} or more in size.")
    lanes = lanes or min(max(1, values.size // _SYMBOLS_PER_LANE), _MOST_LANES)
    coder = BatchedRans(lanes, table.precision)
    steps = -(-values.size // lanes)
    padding = steps * lanes - values.size  # these take the whole range and cost nothing
    start = np.pad(start, (0, padding)).reshape(steps, lanes)
    freq = np.pad(freq, (0, padding), constant_values=1 << table.precision).reshape(steps, lanes)
    for step in range(steps - 1, -1, -1):
        coder.push(start[step], freq[step])
    stream = coder.finish()
    return put_varint(lanes) + put_varint(len(stream)) + stream + put_golomb(zigzag(outside), 0)


def decode_rows(data: bytes, rows: Array, table: FreqTable) -> npt.NDArray[np.int64]:
    """Undo :func:`encode_rows` with the same rows and table: (n,) int64.

    Raises:
        CodingError: Damaged, cut short or too long data.
    """
    reader = Reader(data, where=_WHERE)
    lanes, size = reader.varint(), reader.varint()
    if lanes > max(rows.size, 1):
        raise CodingError(f"{_WHERE}: {lanes} lanes for {rows.size} values; data is damaged.")
    coder = BatchedRans.from_bytes(reader.take(size), lanes, table.precision)
    steps = -(-rows.size // lanes)
    values = np.zeros(rows.size, np.int64)
    escaped = np.zeros(rows.size, np.bool_)
    for step in range(steps):
        part = slice(step * lanes, min((step + 1) * lanes, rows.size))
        active = part.stop - part.start
        value, low, wide, out = table.find(rows[part], coder.peek()[:active])
        values[part], escaped[part] = value, out
        padding = (0, lanes - active)
        coder.advance(
            np.pad(low, padding), np.pad(wide, padding, constant_values=1 << table.precision)
        )
    coder.close()
    escapes = GolombReader(reader.rest(), where=f"{_WHERE}: escapes")
    coded = np.array([escapes.take(0) for _ in range(int(escaped.sum()))], np.int64)
    escapes.close()
    values[escaped] = unzigzag(coded)
    return values
