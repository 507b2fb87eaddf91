"""Hashed: rows put together from a small table by hash functions; only the seeds are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms._check import check_names, check_shape, choice
from laconic.forms._tensortrain_math import split_digits
from laconic.forms.base import Form, Part
from laconic.forms.dense import Dense
from laconic.forms.tensortrain import check_ids

Combine = Literal["single", "sum", "product", "concat"]
_COMBINES: tuple[Combine, ...] = get_args(Combine)
# 2**31 - 1: products of two residues stay below 2**62, so int64 arithmetic is exact.
PRIME = 2_147_483_647
_MOST_FUNCTIONS = 64


class Hashed(Form):
    """Stands for rows that are gathered from a small table and combined.

    Function k sends a row's id to a bucket, ``h_k(id) = ((a_k * id + b_k) mod p) mod buckets``
    with ``p = 2**31 - 1`` and ``a_k``, ``b_k`` from ``seeds[k]``: integers only, so every machine
    finds the same bucket. Without seeds the functions are the digits of the id in the mixed radix
    of ``buckets``, last digit fastest: two sizes are the quotient-remainder trick, and no two ids
    share all their digits.

    Args:
        table: (entries, width) tensor, or a form of that shape (a quantized table, for example).
            A tensor becomes a ``Dense`` child. Width is cols; for ``"concat"`` cols divided by
            the number of functions.
        shape: Shape that the rows stand for; at most 2**31 - 1 rows.
        dtype: Type that the rows stand for.
        seeds: One seed a hash function, 0..2**63 - 1; empty for the digits of the id.
        buckets: One number, the entries of a table that all functions share; or one size a
            function, whose sections follow each other in the table.
        combine: ``"single"`` (the hashing trick), ``"sum"`` (several hashes), ``"product"``
            (compositional), ``"concat"`` (each function gives its own piece of the row).

    Raises:
        ConfigError: Table, sizes and functions that do not belong together.

    Source: Carter and Wegman, 1979, Universal classes of hash functions; Weinberger et al., 2009,
    Feature hashing; Shi et al., 2020, Compositional embeddings, sections 3 and 4.
    """

    kind = "hashed"

    def __init__(
        self,
        table: Tensor | Form,
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        seeds: Sequence[int],
        buckets: int | Sequence[int],
        combine: Combine,
    ) -> None:
        super().__init__(shape, dtype)
        self.seeds = _whole("seeds", seeds, low=0, high=2**63 - 1)
        self.shared = type(buckets) is int
        self.buckets = _whole("buckets", [buckets] if self.shared else buckets, low=1, high=PRIME)
        self.combine = combine
        self._check(tuple(table.shape))
        self.table = table if isinstance(table, Form) else Dense(table)
        self._functions = [hash_coefficients(seed) for seed in self.seeds]

    table: Form

    @property
    def functions(self) -> int:
        """How many functions make up a row."""
        return len(self.seeds) or len(self.buckets)

    @property
    def width(self) -> int:
        """Numbers that one function brings to a row."""
        return self.cols // self.functions if self.combine == "concat" else self.cols

    def _check(self, table: tuple[int, ...]) -> None:
        check_shape(self.kind, self.shape)
        choice(self.kind, {"combine": self.combine}, "combine", _COMBINES)
        if not 1 <= self.rows <= PRIME or self.cols < 1:
            raise ConfigError(
                f"hashed: shape {self.shape} must have 1 to {PRIME} rows of at least one number; "
                f"split a larger table."
            )
        count, sizes = len(self.seeds), len(self.buckets)
        paired = count and (self.shared or count == sizes)
        if not paired and (count or self.shared or not sizes):
            raise ConfigError(
                f"hashed: {count} seeds and buckets={self.buckets} do not pair; give one size for "
                f"all, or one for each function (without seeds always one for each digit)."
            )
        if not count and prod(self.buckets) < self.rows:
            raise ConfigError(
                f"hashed: digits of buckets={self.buckets} reach {prod(self.buckets)} ids, but "
                f"there are {self.rows} rows; raise a size (see quotient_remainder())."
            )
        if self.combine == "single" and self.functions != 1:
            raise ConfigError(
                f"hashed: combine='single' takes one function, got {self.functions}; use 'sum'."
            )
        if self.combine == "concat" and self.cols % self.functions:
            raise ConfigError(
                f"hashed: {self.functions} pieces do not divide cols={self.cols}; choose a number "
                f"of functions that does."
            )
        wanted = (sum(self.buckets), self.width)
        if table != wanted:
            raise ConfigError(
                f"hashed: table {table} must be {wanted} for buckets={self.buckets}, "
                f"combine={self.combine!r} and shape {self.shape}."
            )

    @classmethod
    def quotient_remainder(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        remainders: int,
        combine: Combine = "product",
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> Self:
        """Build the quotient-remainder trick with an untrained table.

        Quotients start uniform in +-sqrt(1 / rows); remainders start around 1 for a product (so
        that a row is not the product of two tiny numbers), else like the quotients.

        Args:
            shape: Shape that the rows stand for.
            dtype: Type of the rows and of the table.
            remainders: Rows of the remainder section; the quotient section has
                ``ceil(rows / remainders)``.
            combine: How quotient and remainder rows meet.
            device: Where the table is made; ``"meta"`` gives a sketch.
            generator: Source of the random numbers; torch's own where None.
        """
        if type(remainders) is not int or not 1 <= remainders <= max(shape[0], 1):
            raise ConfigError(f"hashed: remainders={remainders} must be between 1 and {shape[0]}.")
        quotients = -(-shape[0] // remainders)
        width = prod(shape[1:]) // (2 if combine == "concat" else 1)
        bound = shape[0] ** -0.5
        table = torch.empty(quotients + remainders, width, dtype=dtype, device=device)
        table.uniform_(-bound, bound, generator=generator)
        if combine == "product":
            table[quotients:] += 1
        return cls(
            table.requires_grad_(),
            shape=shape,
            dtype=dtype,
            seeds=(),
            buckets=(quotients, remainders),
            combine=combine,
        )

    def positions(self, ids: Tensor) -> Tensor:
        """Return the table rows of each id.

        Shapes:
            ids (...) int64 -> (functions, ...) int64
        """
        ids = ids.long()
        if not self.seeds:
            found = split_digits(ids, self.buckets)
        else:
            sizes = self.buckets * (self.functions if self.shared else 1)
            found = [
                (a * ids + b) % PRIME % size
                for (a, b), size in zip(self._functions, sizes, strict=True)
            ]
        if self.shared:
            return torch.stack(found)
        starts = [sum(self.buckets[:k]) for k in range(len(self.buckets))]
        return torch.stack([row + start for row, start in zip(found, starts, strict=True)])

    def embed(self, ids: Tensor) -> Tensor:
        """Gather and combine the rows of ``ids``; no other row is touched.

        Raises:
            IndexError: An id outside the rows.
        """
        check_ids(ids, self.rows, self.kind)
        gathered = self.table.embed(self.positions(ids))  # (functions, ..., width)
        if self.combine == "sum":
            rows = gathered.sum(0)
        elif self.combine == "product":
            rows = gathered[0]
            for factor in gathered[1:]:
                rows = rows * factor
        else:
            rows = torch.cat(list(gathered), dim=-1)
        return rows.to(self.dtype).reshape(*ids.shape, *self.shape[1:])

    def dense(self) -> Tensor:
        """Return all rows."""
        device = next((t.device for t in (*self.parameters(), *self.buffers())), None)
        return self.embed(torch.arange(self.rows, device=device))

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply by the small table, then gather; the rows are never built.

        A product of rows has no such order, and rows fewer than the table's are cheaper: both
        are built.
        """
        built = self.combine == "product" and self.functions > 1
        if built or self.table.rows >= self.rows:
            return super().matmul(x)
        places = self.positions(torch.arange(self.rows, device=x.device))
        if self.combine != "concat":
            scores = self.table.matmul(x)
            return _total(scores[..., place] for place in places)
        pieces = torch.split(x, self.width, dim=-1)
        pairs = zip(pieces, places, strict=True)
        return _total(self.table.matmul(piece)[..., place] for piece, place in pairs)

    def parts(self) -> dict[str, Part]:
        """Return nothing: the table is a child form."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return ``seeds``, ``buckets`` (a number, or a list of section sizes) and ``combine``."""
        return {
            "seeds": list(self.seeds),
            "buckets": self.buckets[0] if self.shared else list(self.buckets),
            "combine": self.combine,
        }

    @classmethod
    def from_parts(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        children: Mapping[str, Form],
    ) -> Hashed:
        """Build from the child ``table``."""
        check_names(cls.kind, "children", children, ["table"])
        check_names(cls.kind, "parts", parts, [])
        return cls(
            children["table"],
            shape=shape,
            dtype=dtype,
            seeds=settings.get("seeds", ()),
            buckets=settings.get("buckets", ()),
            combine=cast(Combine, settings.get("combine")),
        )


def _total(terms: Iterator[Tensor]) -> Tensor:
    """Add up one or more tensors, out of place."""
    total = next(terms)
    for term in terms:
        total = total + term
    return total


def hash_coefficients(seed: int) -> tuple[int, int]:
    """Return ``(a, b)`` of the hash function of a seed: ``1 <= a < p``, ``0 <= b < p``.

    >>> hash_coefficients(0)
    (1292015328, 1291068387)
    """
    digest = hashlib.sha256(f"laconic/hash/{seed}".encode()).digest()
    a, b = (int.from_bytes(digest[start : start + 16], "little") for start in (0, 16))
    return 1 + a % (PRIME - 1), b % PRIME


def _whole(name: str, values: object, *, low: int, high: int) -> tuple[int, ...]:
    """Return values as a tuple, or refuse what is not a short list of whole numbers."""
    right = isinstance(values, list | tuple) and len(values) <= _MOST_FUNCTIONS
    listed = cast(list[Any], values) if right else []
    if not right or any(type(n) is not int or not low <= n <= high for n in listed):
        raise ConfigError(
            f"hashed: {name}={str(values)[:80]} must be at most {_MOST_FUNCTIONS} whole numbers "
            f"between {low} and {high}."
        )
    return tuple(listed)
