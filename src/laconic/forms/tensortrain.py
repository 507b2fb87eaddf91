"""TensorTrain: a chain of small cores, or a sum of outer products, in place of a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, Literal, Self, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms import _tensortrain_math as tt
from laconic.forms._check import check_children, check_shape, choice, wide
from laconic.forms.base import Form, Part
from laconic.forms.dense import Dense

Mode = Literal["mpo", "cp", "one-way"]
_MODES: tuple[Mode, ...] = get_args(Mode)
_MOST_CORES = 16


class TensorTrain(Form):
    """Stands for the contraction of cores; every core is a form.

    With ``row_modes`` the digits of the row index and ``col_modes`` those of the column index,
    both row-major (the last digit runs fastest):

    - ``"mpo"``: matrix product operator. Core k is (r_k, m_k, n_k, r_{k+1}) with outer bonds 1,
      and ``W[(m_1..m_K), (n_1..n_K)] = core_1[:, m_1, n_1] @ ... @ core_K[:, m_K, n_K]``. Digits
      may multiply to more than the shape; the surplus rows and columns are left out.
    - ``"cp"``: sum of ``rank`` outer products. A factor (mode, rank) for each row mode and then
      for each column mode; digits multiply to rows and cols exactly.
    - ``"one-way"``: a sum of outer products of its own for each of ``prod(row_modes)`` leading
      slices, as one-way convolution filters are: a factor (prod(row_modes), mode, rank) for each
      column mode, the same rank in all. Row modes are the leading axes of the shape, for example
      (out, in) for one sum a kernel, (out,) for one sum an output channel.

    ``matmul`` of the first two never builds the dense tensor; a one-way filter bank has no
    cheaper product and builds it.

    Args:
        cores: The cores or factors, in order.
        shape: Shape that the contraction stands for.
        dtype: Type that the contraction stands for.
        row_modes: Digits of the row index (leading axes for ``"one-way"``).
        col_modes: Digits of the column index.
        mode: How the cores are contracted.

    Raises:
        ConfigError: Cores, digits and shape that do not belong together.

    Source: Oseledets, 2011, Tensor-train decomposition; Tomut et al., 2024, CompactifAI, section
    II (operator); Boukraichi et al., 2023, A priori compression (one-way filters).
    """

    kind = "tensor-train"

    def __init__(
        self,
        *cores: Form,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        row_modes: Sequence[int],
        col_modes: Sequence[int],
        mode: Mode = "mpo",
    ) -> None:
        super().__init__(shape, dtype)
        check_shape(self.kind, self.shape)
        self.mode = choice(self.kind, {"mode": mode}, "mode", _MODES)
        self.row_modes = _digits("row_modes", row_modes)
        self.col_modes = _digits("col_modes", col_modes)
        self._check_digits()
        self._check_cores([core.shape for core in cores])
        for index, core in enumerate(cores):
            self.add_module(f"core{index}", core)

    @property
    def cores(self) -> list[Form]:
        """The cores or factors, in order."""
        return list(self.children_forms().values())

    @property
    def ranks(self) -> tuple[int, ...]:
        """Inner bonds of an operator; the one rank of a sum of outer products."""
        cores = self.cores
        return tuple(core.shape[-1] for core in (cores[:-1] if self.mode == "mpo" else cores[:1]))

    def _check_digits(self) -> None:
        rows, cols = prod(self.row_modes), prod(self.col_modes)
        if self.mode == "mpo":
            right = len(self.row_modes) == len(self.col_modes)
            right = right and self.rows <= rows <= max(2 * self.rows, self.rows + 16)
            right = right and self.cols <= cols <= max(2 * self.cols, self.cols + 16)
            allowed = "as many row as column digits, whose products are at least the shape's"
        elif self.mode == "cp":
            right = (rows, cols) == (self.rows, self.cols)
            allowed = "digits whose products are the shape's"
        else:
            right = (*self.row_modes, *self.col_modes) == self.shape
            allowed = "leading and trailing axes of the shape"
        if not right or not self.rows * self.cols:
            raise ConfigError(
                f"tensor-train: row_modes={self.row_modes}, col_modes={self.col_modes} do not fit "
                f"shape {self.shape} ({self.rows} x {self.cols}) in mode {self.mode!r}; give "
                f"{allowed}, for example from balanced_modes()."
            )

    def _check_cores(self, shapes: list[tuple[int, ...]]) -> None:
        if self.mode == "mpo":
            modes = list(zip(self.row_modes, self.col_modes, strict=True))
            right = len(shapes) == len(modes) and all(len(s) == 4 for s in shapes)
            right = right and all(s[1:3] == mode for s, mode in zip(shapes, modes, strict=True))
            right = right and all(a[3] == b[0] for a, b in pairwise(shapes))
            right = right and shapes[0][0] == shapes[-1][3] == 1
            allowed = "(r_k, row mode, col mode, r_k+1) with outer bonds 1"
        else:
            each = (prod(self.row_modes),) if self.mode == "one-way" else ()
            modes_only = self.col_modes if each else (*self.row_modes, *self.col_modes)
            right = len(shapes) == len(modes_only) and len({s[-1:] for s in shapes}) == 1
            right = right and all(
                len(s) == len(each) + 2 and s[:-1] == (*each, mode)
                for s, mode in zip(shapes, modes_only, strict=True)
            )
            allowed = f"{(*each, 'mode', 'rank')} for the modes {modes_only}"
        if not right or not all(s[-1] for s in shapes):
            raise ConfigError(
                f"tensor-train: cores {shapes} do not chain in mode {self.mode!r}; they must be "
                f"{allowed}. Rebuild them with from_dense() or empty()."
            )

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        *,
        row_modes: Sequence[int],
        col_modes: Sequence[int],
        ranks: int | Sequence[int] | None = None,
        ratio: float | None = None,
        tolerance: float = 0.0,
        core_dtype: torch.dtype | None = None,
    ) -> Self:
        """Decompose a weight into an operator by sequential SVD, cores scaled to equal norms.

        Args:
            weight: The weight, any shape of at least one axis.
            row_modes: Digits of ``weight.shape[0]``; a larger product pads with zero rows.
            col_modes: Digits of the rest; a larger product pads with zero columns.
            ranks: A cap for all inner bonds, or each one's cap; None keeps all.
            ratio: Largest share of the weight's numbers that the cores may hold, instead of
                ``ranks``.
            tolerance: Relative error in the Frobenius norm that may be spent; 0 spends nothing.
            core_dtype: Type of the cores; the weight's where None.

        Raises:
            ConfigError: Digits that do not fit, a bond below 1, a ratio that a bond of 1 exceeds,
                or values that are not finite.
        """
        rows, cols = _digits("row_modes", row_modes), _digits("col_modes", col_modes)
        matrix = weight.detach().reshape(weight.shape[0] if weight.dim() else 1, -1)
        pad = (prod(cols) - matrix.shape[1], prod(rows) - matrix.shape[0])
        if len(rows) != len(cols) or min(pad) < 0:
            raise ConfigError(
                f"tensor-train: row_modes={rows}, col_modes={cols} do not cover "
                f"{tuple(matrix.shape)}; give as many row as column digits, with products at "
                f"least that, for example from balanced_modes()."
            )
        if not bool(torch.isfinite(matrix).all()):
            raise ConfigError("tensor-train: the weight holds values that are not finite.")
        caps = _caps(rows, cols, ranks, ratio, weight.numel())
        padded = F.pad(matrix.double(), (0, pad[0], 0, pad[1]))
        cores = tt.decompose(padded, rows, cols, ranks=caps, tolerance=tolerance)
        held = [
            Dense(core.to(core_dtype or weight.dtype).contiguous()) for core in tt.balance(cores)
        ]
        shape = tuple(weight.shape)
        return cls(*held, shape=shape, dtype=weight.dtype, row_modes=rows, col_modes=cols)

    @classmethod
    def empty(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        row_modes: Sequence[int],
        col_modes: Sequence[int],
        ranks: int | Sequence[int],
        mode: Mode = "mpo",
        core_dtype: torch.dtype | None = None,
    ) -> Self:
        """Return a sketch on the meta device: shapes and bytes without values.

        Args:
            shape: Shape that the form stands for.
            dtype: Type that the form stands for.
            row_modes: As for the class.
            col_modes: As for the class.
            ranks: A cap for all inner bonds, or each one's; for ``"cp"`` and ``"one-way"`` the
                one rank.
            mode: As for the class.
            core_dtype: Type of the cores; ``dtype`` where None.
        """
        rows, cols = _digits("row_modes", row_modes), _digits("col_modes", col_modes)
        sizes: list[tuple[int, ...]]
        if mode == "mpo":
            bonds = (1, *(_caps(rows, cols, ranks, None, 0) or ()), 1)
            sizes = [(a, m, n, b) for (a, b), m, n in zip(pairwise(bonds), rows, cols, strict=True)]
        else:
            rank = ranks if isinstance(ranks, int) else ranks[0]
            if rank < 1:
                raise ConfigError(f"tensor-train: rank={rank} must be at least 1.")
            modes = cols if mode == "one-way" else (*rows, *cols)
            each = (prod(rows),) if mode == "one-way" else ()
            sizes = [(*each, n, rank) for n in modes]
        held = [Dense(torch.empty(s, dtype=core_dtype or dtype, device="meta")) for s in sizes]
        return cls(*held, shape=shape, dtype=dtype, row_modes=rows, col_modes=cols, mode=mode)

    def _tensors(self, dtype: torch.dtype) -> list[Tensor]:
        return [core.dense().to(dtype) for core in self.cores]

    def dense(self) -> Tensor:
        """Return the contraction, computed in float32 or wider."""
        cores = self._tensors(wide(self.dtype))
        if self.mode == "mpo":
            matrix = tt.contract(cores)[: self.rows, : self.cols]
        elif self.mode == "cp":
            split = len(self.row_modes)
            matrix = tt.khatri_rao(cores[:split]) @ tt.khatri_rao(cores[split:]).T
        else:
            matrix = tt.khatri_rao(cores).sum(-1)
        return matrix.to(self.dtype).reshape(self.shape)

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply core by core from the cheaper end; the dense tensor is never built.

        Shapes:
            x (..., cols) -> (..., rows)
        """
        if self.mode == "one-way":
            return super().matmul(x)
        cores = self._tensors(x.dtype)
        flat = x.reshape(prod(x.shape[:-1]), self.cols)
        if self.mode == "mpo":
            surplus = prod(self.col_modes) - self.cols
            out = tt.sweep(F.pad(flat, (0, surplus)) if surplus else flat, cores)[:, : self.rows]
        else:
            split, rank, width = len(self.row_modes), cores[0].shape[1], self.cols
            held = flat.unsqueeze(-1)
            for mode, factor in zip(self.col_modes[::-1], cores[: split - 1 : -1], strict=True):
                width //= mode
                held = held.reshape(len(flat), width, mode, held.shape[-1])
                held = held.squeeze(-1) @ factor if held.shape[-1] == 1 else (held * factor).sum(-2)
            out = held.reshape(len(flat), rank) @ tt.khatri_rao(cores[:split]).T
        return out.reshape(*x.shape[:-1], self.rows)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up rows by gathering slices of the cores; the dense tensor is never built.

        Raises:
            IndexError: An id outside the rows.
        """
        check_ids(ids, self.rows, self.kind)
        cores = self._tensors(wide(self.dtype))
        flat = ids.reshape(-1)
        if self.mode == "mpo":
            digits = tt.split_digits(flat, self.row_modes)
            rows = tt.gather_rows(cores, digits)[:, : self.cols]
        elif self.mode == "cp":
            split = len(self.row_modes)
            picked = cores[0].new_ones(1)
            for factor, digit in zip(
                cores[:split], tt.split_digits(flat, self.row_modes), strict=True
            ):
                picked = picked * factor[digit]
            rows = picked @ tt.khatri_rao(cores[split:]).T
        else:
            each = [core.reshape(self.rows, -1, *core.shape[1:])[flat] for core in cores]
            rows = tt.khatri_rao(each).sum(-1)
        return rows.to(self.dtype).reshape(*ids.shape, *self.shape[1:])

    def parts(self) -> dict[str, Part]:
        """Return nothing: all is in the cores."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return ``mode``, ``row_modes`` and ``col_modes``."""
        return {
            "mode": self.mode,
            "row_modes": list(self.row_modes),
            "col_modes": list(self.col_modes),
        }

    @classmethod
    def from_parts(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        children: Mapping[str, Form],
    ) -> TensorTrain:
        """Build from ``core0``, ``core1``, ..."""
        check_children(cls.kind, "core", children, parts)
        return cls(
            *children.values(),
            shape=shape,
            dtype=dtype,
            row_modes=settings.get("row_modes", ()),
            col_modes=settings.get("col_modes", ()),
            mode=cast(Mode, settings.get("mode")),
        )


def check_ids(ids: Tensor, rows: int, kind: str) -> None:
    """Refuse ids outside ``0..rows - 1``, as ``nn.Embedding`` does.

    Raises:
        IndexError: An id is outside; the message has the lowest and the highest.
    """
    if ids.is_meta or not ids.numel():
        return
    low, high = (int(value) for value in torch.aminmax(ids))
    if low < 0 or high >= rows:
        raise IndexError(f"{kind}: ids {low}..{high} outside 0..{rows - 1}.")


def _digits(name: str, digits: object) -> tuple[int, ...]:
    """Return digits as a tuple, or refuse what is not a short list of whole numbers from 1."""
    right = isinstance(digits, list | tuple) and 1 <= len(digits) <= _MOST_CORES
    if not right or any(type(n) is not int or not 1 <= n < 2**31 for n in cast(list[Any], digits)):
        raise ConfigError(
            f"tensor-train: {name}={str(digits)[:80]} must be 1 to {_MOST_CORES} whole numbers of "
            f"at least 1; take them from balanced_modes()."
        )
    return tuple(cast(list[int], digits))


def _caps(
    rows: tuple[int, ...],
    cols: tuple[int, ...],
    ranks: int | Sequence[int] | None,
    ratio: float | None,
    numbers: int,
) -> tuple[int, ...] | None:
    """Return the cap of each inner bond from what the caller gave; None for no cap."""
    if ranks is not None and ratio is not None:
        raise ConfigError(f"tensor-train: ranks={ranks} and ratio={ratio}: give one of the two.")
    if ratio is not None:
        return tt.capped_ranks(rows, cols, tt.bond_for_ratio(rows, cols, int(ratio * numbers)))
    if ranks is None or isinstance(ranks, int):
        return None if ranks is None else tt.capped_ranks(rows, cols, ranks)
    caps = tuple(ranks)
    if len(caps) != len(rows) - 1 or any(type(r) is not int or r < 1 for r in caps):
        raise ConfigError(
            f"tensor-train: ranks={caps} must be {len(rows) - 1} whole numbers of at least 1, "
            f"one for each inner bond."
        )
    return tuple(min(r, full) for r, full in zip(caps, tt.full_ranks(rows, cols), strict=True))
