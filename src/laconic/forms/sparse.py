"""Sparse: a pattern and the surviving values, themselves a form."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from re import fullmatch
from typing import Any, Self

import torch
from torch import Tensor

from laconic.errors import ConfigError, nearest
from laconic.forms._check import check_names, check_shape, check_symbols, check_tensor
from laconic.forms.activations import Axes
from laconic.forms.base import Form, Part
from laconic.forms.packing import pack, packed_bytes, unpack, unpack_rows

PATTERNS = ("unstructured", "n:m", "row", "column")


class Sparse(Form):
    """Stands for the values where the mask is set and for zeros elsewhere.

    ``values`` are the survivors in row-major order: (rows, kept in a row) where every row keeps
    as many, else (1, kept in all); (kept rows, cols) for the pattern ``"row"``. So groups of a
    quantized value form lie within rows wherever rows are alike.

    The mask is held as one bit a weight, or as the index of what is kept where whole rows or
    columns are; such patterns multiply with the kept ones only. It is fixed: training moves the
    values and no zero comes back.

    Args:
        mask: (rows, cols) bool, True where a value is kept; for ``"row"`` and ``"column"`` also
            a vector of one entry a row or column.
        values: Form of the kept values.
        shape: Shape that the form stands for.
        dtype: Type that the form stands for.
        pattern: ``"unstructured"``, ``"row"``, ``"column"``, or ``"n:m"``, also with the numbers
            as ``"2:4"``: rows keep equally many.

    Raises:
        ConfigError: Mask, values, pattern and shape that do not belong together.
    """

    kind = "sparse"
    packed_mask: Tensor | None
    index: Tensor | None

    def __init__(
        self,
        mask: Tensor,
        values: Form,
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        pattern: str = "unstructured",
    ) -> None:
        super().__init__(shape, dtype)
        check_shape(self.kind, self.shape)
        if not self.rows * self.cols:
            raise ConfigError(f"sparse: shape {self.shape} has no weights; keep it dense.")
        self.pattern = _checked_pattern(pattern)
        packed, index = None, None
        if self.lines:
            index = self._index(mask, values)
        else:
            check_tensor(self.kind, "mask", mask, (self.rows, self.cols), (torch.bool,))
            self._check_counts(mask, values)
            packed = pack(mask.reshape(-1).to(torch.uint8), 1)
        self.register_buffer("packed_mask", packed)
        self.register_buffer("index", index)
        self.values = values

    @property
    def lines(self) -> int:
        """Lines that are kept or dropped as a whole: rows or columns; 0 for other patterns."""
        return {"row": self.rows, "column": self.cols}.get(self.pattern, 0)

    def _index(self, mask: Tensor, values: Form) -> Tensor:
        """Return the index of the kept lines, (kept,) int32."""
        axis = 1 if self.pattern == "row" else 0
        if mask.dim() == 2:
            check_tensor(self.kind, "mask", mask, (self.rows, self.cols), (torch.bool,))
            vector = mask.any(axis)
            if not mask.is_meta and bool((mask != vector.unsqueeze(axis)).any()):
                raise ConfigError(
                    f"sparse: pattern={self.pattern!r} keeps whole {self.pattern}s; the mask "
                    "splits one. Give pattern='unstructured'."
                )
            mask = vector
        check_tensor(self.kind, "mask", mask, (self.lines,), (torch.bool,))
        kept = values.rows if self.pattern == "row" else values.cols
        if not mask.is_meta:
            kept = int(mask.sum())
        held = (kept, self.cols) if self.pattern == "row" else (self.rows, kept)
        if (values.rows, values.cols) != held:
            raise self._wrong_values(values, f"{held}")
        if mask.is_meta:
            return torch.empty(kept, dtype=torch.int32, device="meta")
        return mask.nonzero().squeeze(1).to(torch.int32)

    def _check_counts(self, mask: Tensor, values: Form) -> None:
        held = (values.rows, values.cols)
        if mask.is_meta:
            if held[0] not in (1, self.rows) or prod(held) > self.rows * self.cols:
                raise self._wrong_values(values, f"(1, kept) or ({self.rows}, kept in a row)")
            return
        counts = mask.sum(1)
        low, high = (int(n) for n in torch.aminmax(counts)) if counts.numel() else (0, 0)
        allowed = [(self.rows, low)] if low == high else []
        if ":" not in self.pattern:
            allowed.append((1, int(counts.sum())))
        if held not in allowed:
            raise self._wrong_values(values, " or ".join(map(str, allowed)) or "equal in each row")

    def _wrong_values(self, values: Form, allowed: str) -> ConfigError:
        return ConfigError(
            f"sparse: a mask of pattern {self.pattern!r} for {self.shape} needs values of shape "
            f"{allowed}, got {values.shape}."
        )

    @classmethod
    def sketch(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        kept: int,
        values: Form,
        pattern: str = "unstructured",
    ) -> Self:
        """Return a form without a real mask, on the meta device: shapes and bytes only.

        Args:
            shape: Shape that the form stands for.
            dtype: Type that the form stands for.
            kept: Weights that are kept in all.
            values: Form of the kept values, on the meta device.
            pattern: As for the class.

        Raises:
            ConfigError: The values are not ``kept``, or do not fit the shape.
        """
        if values.rows * values.cols != kept:
            raise ConfigError(f"sparse: kept={kept}, but values of {values.shape} were given.")
        size = {"row": shape[:1], "column": (prod(shape[1:]),)}.get(
            pattern, (shape[0], prod(shape[1:]))
        )
        mask = torch.empty(size, dtype=torch.bool, device="meta")
        return cls(mask, values, shape=shape, dtype=dtype, pattern=pattern)

    @property
    def mask(self) -> Tensor:
        """Which weights are kept, (rows, cols) bool."""
        if self.index is not None:
            keeps = self._keeps(self.index)
            lines = keeps.unsqueeze(1 if self.pattern == "row" else 0)
            return lines.expand(self.rows, self.cols)
        flat = unpack(self._bits(), 1, self.rows * self.cols)
        return flat.view(torch.bool).view(self.rows, self.cols)

    def _bits(self) -> Tensor:
        if self.packed_mask is None:
            raise ConfigError(f"sparse: pattern {self.pattern!r} holds an index, not bits.")
        return self.packed_mask

    def _keeps(self, index: Tensor) -> Tensor:
        keeps = torch.zeros(self.lines, dtype=torch.bool, device=index.device)
        return keeps.index_fill(0, index.long(), True)

    def kept_index(self) -> Tensor:
        """Return which rows or columns are kept, (kept,) int64.

        Raises:
            ConfigError: The pattern does not keep whole rows or columns.
        """
        if self.index is None:
            raise ConfigError(f"sparse: pattern {self.pattern!r} keeps no whole rows or columns.")
        return self.index.long()

    def dense(self) -> Tensor:
        """Return the values in their places and zeros elsewhere; differentiable in the values."""
        kept = self.values.dense().to(self.dtype)
        if self.index is None:
            zeros = torch.zeros(self.rows, self.cols, dtype=self.dtype, device=kept.device)
            return zeros.masked_scatter(self.mask, kept.reshape(-1)).view(self.shape)
        kept = kept.reshape(self.values.rows, self.values.cols)
        return self._spread(kept, axis=0 if self.pattern == "row" else 1).view(self.shape)

    def _spread(self, kept: Tensor, *, axis: int) -> Tensor:
        """Return kept lines along an axis in their places, zeros between them."""
        sizes = [*kept.shape]
        sizes[axis] = self.lines
        return kept.new_zeros(sizes).index_copy(axis, self.kept_index(), kept)

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply; with the kept rows or columns only where whole ones are kept."""
        if self.pattern == "row":
            return self._spread(self.values.matmul(x), axis=-1)
        if self.pattern == "column":
            return self.values.matmul(x.index_select(-1, self.kept_index()))
        return super().matmul(x)

    def incoming(self, x: Tensor, *, axes: Axes = "last") -> Tensor:
        """Return the input as its values take it: rounded where they round activations."""
        return self.values.incoming(x, axes=axes)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up rows; only those are built where every row keeps as many values."""
        flat = ids.reshape(-1)
        if self.pattern == "column":
            found = self._spread(self.values.embed(flat), axis=-1)
        elif self.pattern == "row":
            found = self._embed_kept(flat)
        elif self.values.rows == self.rows:
            mask = unpack_rows(self._bits(), 1, (self.rows, self.cols), flat).bool()
            kept = self.values.embed(flat).to(self.dtype)
            zeros = torch.zeros(*mask.shape, dtype=self.dtype, device=kept.device)
            found = zeros.masked_scatter(mask, kept)
        else:
            found = self.dense().reshape(self.rows, self.cols).index_select(0, flat)
        return found.to(self.dtype).view(*ids.shape, *self.shape[1:])

    def _embed_kept(self, flat: Tensor) -> Tensor:
        """Look up rows of which only some are kept."""
        index = self.kept_index()
        place = torch.full((self.rows,), -1, dtype=torch.long, device=index.device)
        place[index] = torch.arange(len(index), device=index.device)
        where = place.index_select(0, flat)
        zeros = torch.zeros(len(flat), self.cols, dtype=self.dtype, device=index.device)
        hits = (where >= 0).nonzero().squeeze(1)
        rows = self.values.embed(where.index_select(0, hits)).to(self.dtype)
        return zeros.index_copy(0, hits, rows.reshape(len(hits), self.cols))

    def parts(self) -> dict[str, Part]:
        """Return ``mask`` as symbols 0 and 1: (rows, cols), or a vector for whole lines."""
        if self.index is None:
            flat = unpack(self._bits(), 1, self.rows * self.cols)
            symbols = flat.view(self.rows, self.cols)
        else:
            symbols = self._keeps(self.index).to(torch.uint8)
        return {"mask": Part(symbols, alphabet=2, sparse_pattern=True)}

    def settings(self) -> dict[str, Any]:
        """Return the pattern."""
        return {"pattern": self.pattern}

    @classmethod
    def from_parts(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        children: Mapping[str, Form],
    ) -> Sparse:
        """Build from ``mask`` and the child ``values``."""
        check_names(cls.kind, "parts", parts, ["mask"])
        check_names(cls.kind, "children", children, ["values"])
        check_shape(cls.kind, shape)
        pattern = _checked_pattern(settings.get("pattern"))
        sizes: dict[str, tuple[int, ...]] = {"row": shape[:1], "column": (prod(shape[1:]),)}
        size = sizes.get(pattern, (shape[0], prod(shape[1:])))
        symbols = parts["mask"]
        check_tensor(cls.kind, "mask", symbols, size, (torch.uint8,))
        check_symbols(cls.kind, "mask", symbols, 2)
        return cls(symbols.bool(), children["values"], shape=shape, dtype=dtype, pattern=pattern)

    @property
    def pattern_bytes(self) -> int:
        """Bytes that the pattern takes in memory."""
        if self.index is not None:
            return self.index.numel() * self.index.element_size()
        return packed_bytes(self.rows * self.cols, 1)


def _checked_pattern(pattern: object) -> str:
    if isinstance(pattern, str) and (pattern in PATTERNS or fullmatch(r"\d{1,4}:\d{1,4}", pattern)):
        return pattern
    hint = nearest(pattern, PATTERNS) if isinstance(pattern, str) else ""
    raise ConfigError(
        f"sparse: pattern={pattern!r} must be one of {', '.join(PATTERNS)}, or N:M in numbers such "
        f"as '2:4'.{hint}"
    )
