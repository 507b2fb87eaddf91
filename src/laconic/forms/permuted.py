"""Permuted: a form whose columns lie in another order, so that groups hold what is alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms._check import check_names, check_shape
from laconic.forms.activations import Axes
from laconic.forms.base import Form, Part
from laconic.forms.packing import pack, unpack

_SMALL = 2**8  # most columns whose numbers are held packed


class Permuted(Form):
    """Stands for a form with its columns put back: column ``order[j]`` is the form's column j.

    A product takes the inputs in the form's order first, so it costs one gather a call. The order
    is held packed up to 256 columns, in int32 above.

    Args:
        form: Form of the same shape, columns in their new order.
        order: (cols,) whole numbers: every number below cols once.
        shape: Shape that the form stands for; at least two columns.
        dtype: Type that the form stands for.

    Raises:
        ConfigError: An order that is none, or an inner form of another shape.

    Source: Frantar et al. 2023 (GPTQ), the published code's ``g_idx``: groups of columns in the
    order in which they were rounded.
    """

    kind = "permuted"
    packed: Tensor
    form: Form

    def __init__(
        self, form: Form, order: Tensor, *, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        super().__init__(shape, dtype)
        check_shape(self.kind, self.shape)
        if form.shape not in (self.shape, (self.rows, self.cols)) or self.cols < 2:
            raise ConfigError(
                f"permuted: an inner form of {form.shape} does not fit {self.shape}; shapes must "
                "agree and have two columns or more."
            )
        self._check(order)
        self.form = form
        if self.cols <= _SMALL:
            packed = pack(order.to(torch.uint8), self.bits)
        else:
            packed = order.to(torch.int32)
        self.register_buffer("packed", packed)

    @property
    def bits(self) -> int:
        """Bits of a held number."""
        return (self.cols - 1).bit_length() if self.cols <= _SMALL else 32

    @property
    def order(self) -> Tensor:
        """Which column each of the form's is, (cols,) int64."""
        if self.bits == 32:
            return self.packed.long()
        return unpack(self.packed, self.bits, self.cols).long()

    def _check(self, order: Tensor) -> None:
        whole = order.dtype in (torch.uint8, torch.int32, torch.int64)
        right = whole and tuple(order.shape) == (self.cols,)
        if right and not order.is_meta:
            numbers = torch.arange(self.cols, device=order.device)
            right = torch.equal(order.long().sort().values, numbers)
        if not right:
            raise ConfigError(
                f"permuted: order of shape {tuple(order.shape)} {order.dtype} must hold every "
                f"number from 0 to {self.cols - 1} once."
            )

    def _back(self) -> Tensor:
        """Return where each column lies in the form, (cols,) int64."""
        return self.order.argsort()

    def dense(self) -> Tensor:
        """Return the inner form with its columns put back."""
        matrix = self.form.dense().reshape(self.rows, self.cols)
        return matrix.index_select(1, self._back()).to(self.dtype).reshape(self.shape)

    def matmul(self, x: Tensor) -> Tensor:
        """Take the inputs in the form's order and multiply by it."""
        return self.form.matmul(x.index_select(-1, self.order))

    def incoming(self, x: Tensor, *, axes: Axes = "last") -> Tensor:
        """Return the input as the inner form takes it: rounding does not depend on the order."""
        return self.form.incoming(x, axes=axes)

    def operand(self, dtype: torch.dtype) -> Tensor:
        """Return the inner form's matrix with its columns put back."""
        return self.form.operand(dtype).index_select(1, self._back())

    def embed(self, ids: Tensor) -> Tensor:
        """Look up rows and put the columns of only those back."""
        rows = self.form.embed(ids).reshape(*ids.shape, self.cols)
        found = rows.index_select(-1, self._back()).to(self.dtype)
        return found.reshape(*ids.shape, *self.shape[1:])

    def parts(self) -> dict[str, Part]:
        """Return ``order`` (cols,) as symbols below cols."""
        stored = torch.uint8 if self.cols <= _SMALL else torch.int32
        return {"order": Part(self.order.to(stored), alphabet=self.cols)}

    def settings(self) -> dict[str, Any]:
        """Return nothing: the order is a part."""
        return {}

    @classmethod
    def from_parts(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        children: Mapping[str, Form],
    ) -> Permuted:
        """Build from ``order`` and the child ``form``."""
        check_names(cls.kind, "children", children, ["form"])
        check_names(cls.kind, "parts", parts, ["order"])
        return cls(children["form"], parts["order"], shape=shape, dtype=dtype)
