"""Probability tables made of integers, so that two machines read the same bits alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from laconic.coding._errors import CodingError
from laconic.coding.bits import Array, Reader, put_varint
from laconic.coding.integers import pack_integers, unpack_integers, unzigzag, zigzag

MAX_PRECISION = 24
_WHERE = "frequency table"
_LIFT = MAX_PRECISION + 1
_MAX_OFFSET = 1 << 24


def quantize_pmf(p: npt.ArrayLike, precision: int, *, min_freq: int = 1) -> npt.NDArray[np.uint32]:
    """Turn probabilities into integer frequencies that sum to exactly ``2**precision``.

    Every entry gets ``min_freq``; the rest is shared in proportion, rounded down, and what is
    left goes to the most probable entry (the first of several). Probabilities that already are
    such frequencies over ``2**precision`` stay as they are.

    Args:
        p: (..., K) probabilities or counts; each row is scaled to sum 1.
        precision: Bits of the total, 1..24.
        min_freq: Smallest frequency, at least 1, so that every symbol can be coded.

    Shapes:
        (..., K) -> (..., K) uint32

    Raises:
        CodingError: NaN, infinite, negative or all-zero rows, or ``K * min_freq`` above the total.
    """
    wide = np.asarray(p, np.float64)
    _check_precision(precision)
    total, entries = 1 << precision, wide.shape[-1] if wide.ndim else 0
    if min_freq < 1 or not 1 <= entries * min_freq <= total:
        raise CodingError(
            f"precision {precision} cannot hold {entries} symbols of frequency {min_freq} or "
            "more. Raise the precision, or code fewer symbols."
        )
    rows = wide.reshape(-1, entries)
    for wrong, what in (
        (~np.isfinite(rows).all(1), "contain NaN or infinity"),
        ((rows < 0).any(1) | ~(rows > 0).any(1), "are negative somewhere or all zero"),
    ):
        if wrong.any():
            raise CodingError(f"probabilities row {int(wrong.argmax())} {what}.")
    rows = rows / rows.max(1, keepdims=True)  # keeps the sum of huge or tiny rows finite
    shares = rows / rows.sum(1, keepdims=True)
    exact = np.rint(shares * total)
    frequencies = np.floor(shares * (total - entries * min_freq)).astype(np.int64) + min_freq
    best = rows.argmax(1)[:, None]
    rest = total - frequencies.sum(1, keepdims=True)
    np.put_along_axis(frequencies, best, np.take_along_axis(frequencies, best, 1) + rest, 1)
    keep = (exact >= min_freq).all(1) & (exact.sum(1) == total)
    keep &= (np.abs(exact - shares * total) < 1e-6).all(1)
    frequencies[keep] = exact[keep].astype(np.int64)
    result: npt.NDArray[np.uint32] = frequencies.astype(np.uint32).reshape(wide.shape)
    return result


@dataclass(frozen=True, eq=False)
class FreqTable:
    """Rows of cumulative frequencies; row ``r`` codes values ``offset[r], offset[r] + 1, ...``.

    Attributes:
        start: (R, K + 1) uint32; ``start[r, k]`` is where entry ``k`` begins, strictly rising to
            ``2**precision`` at ``length[r]`` and constant after.
        offset: (R,) int32; value of the first entry.
        length: (R,) int32; entries of each row, the escape included.
        precision: Every row's total is ``2**precision``, 1..24.
        escape: The last entry of each row stands for any value outside the row.

    Raises:
        CodingError: Shapes, types or numbers that are no such table.
    """

    start: npt.NDArray[np.uint32]
    offset: npt.NDArray[np.int32]
    length: npt.NDArray[np.int32]
    precision: int
    escape: bool = False

    def __post_init__(self) -> None:
        _check_precision(self.precision)
        rows = self.length.size
        fits = (self.start.shape[:-1], self.offset.shape, self.length.shape) == ((rows,),) * 3
        types = [array.dtype.name for array in (self.start, self.offset, self.length)]
        if not fits or types != ["uint32", "int32", "int32"]:
            raise CodingError(
                f"{_WHERE}: start {self.start.shape}, offset {self.offset.shape} and length "
                f"{self.length.shape} must be (R, K+1) uint32, (R,) int32 and (R,) int32."
            )
        columns = np.arange(self.start.shape[1])
        used = self.length[:, None]
        if rows and not (self.length.min() >= 1 and self.length.max() < columns.size):
            raise CodingError(f"{_WHERE}: a row has no entry, or more than fit its width.")
        if rows and (np.abs(self.offset.astype(np.int64)) > _MAX_OFFSET).any():
            raise CodingError(f"{_WHERE}: an offset is above {_MAX_OFFSET} in size.")
        steps = np.diff(self.start.astype(np.int64), axis=1)
        inside = columns[:-1] < used
        after = columns >= used
        if (
            self.start[:, :1].any()
            or (steps[inside] < 1).any()
            or (self.start[after] != 1 << self.precision).any()
        ):
            raise CodingError(
                f"{_WHERE}: every row must rise from 0 to {1 << self.precision}, each entry by "
                "1 or more. Build it with FreqTable.from_frequencies."
            )
        for array in (self.start, self.offset, self.length):
            array.flags.writeable = False

    @classmethod
    def from_frequencies(
        cls, rows: Sequence[npt.ArrayLike], *, offset: Sequence[int] | None = None,
        precision: int, escape: bool = False,
    ) -> FreqTable:  # fmt: skip
        """Build a table from rows of frequencies that each sum to ``2**precision``."""
        arrays = [np.asarray(row, np.int64) for row in rows]
        widest = max((row.size for row in arrays), default=0)
        start = np.full((len(arrays), widest + 1), 1 << precision, np.int64)
        for index, row in enumerate(arrays):
            if row.size and (row.min() < 1 or row.sum() != 1 << precision):
                raise CodingError(
                    f"{_WHERE}: row {index} sums to {row.sum()} with a smallest entry of "
                    f"{row.min()}; it must sum to {1 << precision} with entries of 1 or more."
                )
            start[index, 0] = 0
            start[index, 1 : row.size + 1] = np.cumsum(row)
        first = np.zeros(len(arrays), np.int32) if offset is None else _offsets(offset)
        length = np.array([row.size for row in arrays], np.int32)
        return cls(start.astype(np.uint32), first, length, precision, escape)

    def interval(
        self, rows: Array, values: Array
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Look up where values begin, how wide they are, and which take the escape.

        Args:
            rows: (n,) row of each value.
            values: (n,) integers.

        Returns:
            start (n,) uint32, freq (n,) uint32, escaped (n,) bool.

        Raises:
            CodingError: A value outside its row where the table has no escape.
        """
        self._check_rows(rows)
        plain = self.length[rows] - int(self.escape)
        entry = values.astype(np.int64) - self.offset[rows]
        outside = (entry < 0) | (entry >= plain)
        if outside.any() and not self.escape:
            at = int(outside.argmax())
            low = int(self.offset[rows][at])
            raise CodingError(
                f"symbol {values[at]} outside table row {rows[at]} "
                f"({low}...{low + int(plain[at]) - 1}) and the table has no escape."
            )
        entry = np.where(outside, plain, entry)
        start = self.start[rows, entry]
        return start, self.start[rows, entry + 1] - start, outside

    def find(
        self, rows: Array, slots: Array
    ) -> tuple[
        npt.NDArray[np.int64], npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.bool_]
    ]:
        """Look up which value covers a slot in ``[0, 2**precision)``.

        Returns:
            value (n,) int64, start (n,) uint32, freq (n,) uint32, escaped (n,) bool.
        """
        self._check_rows(rows)
        lifted = rows.astype(np.int64)
        wanted = slots.astype(np.int64) + (lifted << _LIFT)
        entry = np.searchsorted(self._flat, wanted, "right") - 1 - lifted * self.start.shape[1]
        start = self.start[rows, entry]
        escaped = (entry == self.length[rows] - 1) & self.escape
        return entry + self.offset[rows], start, self.start[rows, entry + 1] - start, escaped

    @cached_property
    def _flat(self) -> npt.NDArray[np.int64]:
        """All rows one after another in one rising array, each lifted above the one before."""
        lift = np.arange(self.start.shape[0], dtype=np.int64)[:, None] << _LIFT
        return (self.start.astype(np.int64) + lift).ravel()

    def _check_rows(self, rows: Array) -> None:
        count = self.start.shape[0]
        if rows.size and not (int(rows.min()) >= 0 and int(rows.max()) < count):
            raise CodingError(f"{_WHERE}: a row number is outside 0..{count - 1}.")

    def to_bytes(self) -> bytes:
        """Write the table as compact integers, the same bytes on every machine."""
        rows, precision = self.start.shape[0], self.precision
        head = bytes([precision | 128 * self.escape]) + put_varint(rows)
        parts = [pack_integers(zigzag(self.offset)), pack_integers(self.length)]
        for row, length in zip(self.start, self.length, strict=True):
            parts.append(pack_integers(np.diff(row[: length + 1].astype(np.int64))))
        return head + b"".join(put_varint(len(part)) + part for part in parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> FreqTable:
        """Read a table back.

        Raises:
            CodingError: The bytes are cut short, too long, or no valid table.
        """
        reader = Reader(data, where=_WHERE)
        flags = reader.byte()
        precision, count = flags & 127, reader.varint()
        _check_precision(precision)
        if count > len(data):
            raise CodingError(f"{_WHERE}: {count} rows cannot fit {len(data)} bytes.")
        offset = unzigzag(unpack_integers(reader.take(reader.varint()), count, where=_WHERE))
        length = unpack_integers(reader.take(reader.varint()), count, where=_WHERE)
        if count and (length.max() > 1 << precision or length.min() < 1):
            raise CodingError(f"{_WHERE}: a row of {length.max()} entries at {precision} bits.")
        rows = []
        for entries in length:
            part = reader.take(reader.varint())
            rows.append(unpack_integers(part, int(entries), where=_WHERE))
        reader.close()
        return cls.from_frequencies(
            rows, offset=[int(o) for o in offset], precision=precision, escape=flags > 127
        )

    def sha256(self) -> str:
        """Return a fingerprint that changes when any integer of the table changes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def _offsets(values: Sequence[int]) -> npt.NDArray[np.int32]:
    if any(abs(value) > _MAX_OFFSET for value in values):
        raise CodingError(f"{_WHERE}: an offset is above {_MAX_OFFSET} in size.")
    return np.array(values, np.int32)


def _check_precision(precision: int) -> None:
    if not 1 <= precision <= MAX_PRECISION:
        raise CodingError(f"precision={precision} must be between 1 and {MAX_PRECISION}.")
