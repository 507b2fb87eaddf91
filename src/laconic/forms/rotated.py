"""Rotated: a form in a rotated basis, where outliers are spread and rounding costs less."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from math import sqrt
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms._check import check_names, check_shape, choice, wide
from laconic.forms.base import Form, Part

Side = Literal["in", "out", "both"]
_SIDES: tuple[Side, ...] = get_args(Side)
# Orders of a Hadamard matrix that is not a power of two, and the prime of Paley's construction.
_PALEY = {12: 11, 20: 19}


class Rotated(Form):
    """Stands for a form with its columns, its rows, or both rotated back.

    With ``Q = H diag(s) / sqrt(n)``, H a Hadamard matrix of order n and s signs drawn from the
    seed, an inner form M stands for

    - ``"in"``: ``W = M Q^T``, that is ``M = W Q``; the input is rotated before it meets M;
    - ``"out"``: ``W = Q M``, that is ``M = Q^T W``; the output of M is rotated back;
    - ``"both"``: ``W = Q_out M Q_in^T``, each with signs of its own.

    Nothing is kept but the seed: the signs come from integer arithmetic (SHAKE-256), the same on
    every machine, and the product with H takes ``n log n`` additions.

    Args:
        form: What stands for the rotated matrix; its shape is this form's or (rows, cols).
        shape: Shape that the form stands for.
        dtype: Type that the form stands for.
        side: Which axis is rotated.
        rotation: ``{"kind": "hadamard", "seed": 0 .. 2**63 - 1}``.

    Raises:
        ConfigError: A rotated axis whose size is not ``2**k`` times 1, 12 or 20, or settings
            that do not belong together.

    Source: Ashkboos et al., 2024, QuaRot, section 3 (randomised Hadamard); Paley, 1933, On
    orthogonal matrices (orders 12 and 20).
    """

    kind = "rotated"

    def __init__(
        self,
        form: Form,
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        side: Side,
        rotation: Mapping[str, Any],
    ) -> None:
        super().__init__(shape, dtype)
        check_shape(self.kind, self.shape)
        choice(self.kind, {"side": side}, "side", _SIDES)
        self.side = side
        self.seed = _seed_of(rotation)
        if self.rotates_columns:
            require_order(self.cols, "columns")
        if self.rotates_rows:
            require_order(self.rows, "rows")
        if form.shape not in (self.shape, (self.rows, self.cols)):
            raise ConfigError(
                f"rotated: the inner form stands for {form.shape}; it must stand for "
                f"{self.shape} or ({self.rows}, {self.cols}). Rotate the weight with "
                f"rotate_weight() before it is compressed."
            )
        self.form = form

    form: Form

    @property
    def rotates_columns(self) -> bool:
        """The input side is rotated."""
        return self.side in ("in", "both")

    @property
    def rotates_rows(self) -> bool:
        """The output side is rotated."""
        return self.side in ("out", "both")

    def dense(self) -> Tensor:
        """Return the inner form rotated back, computed in float32 or wider."""
        matrix = _work(self.form.dense().reshape(self.rows, self.cols))
        if self.rotates_columns:
            matrix = rotate_back(matrix, signs_for(self.seed, "in", self.cols))
        if self.rotates_rows:
            matrix = rotate_back(matrix.T, signs_for(self.seed, "out", self.rows)).T
        return matrix.to(self.dtype).reshape(self.shape)

    def matmul(self, x: Tensor) -> Tensor:
        """Rotate the input, multiply by the inner form, rotate the output back.

        Shapes:
            x (..., cols) -> (..., rows)
        """
        return self.after(self.form.matmul(self.before(x)), x.dtype)

    def before(self, x: Tensor) -> Tensor:
        """Rotate an input (..., cols) into the basis of the inner form; keeps its type."""
        if not self.rotates_columns:
            return x
        return rotate(_work(x), signs_for(self.seed, "in", self.cols)).to(x.dtype)

    def after(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Rotate an output (..., rows) of the inner form back and give it a type."""
        if not self.rotates_rows:
            return y.to(dtype)
        return rotate_back(_work(y), signs_for(self.seed, "out", self.rows)).to(dtype)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up rows; only those asked for are rotated back, unless rows are mixed."""
        if self.rotates_rows:
            return super().embed(ids)
        rows = _work(self.form.embed(ids).reshape(*ids.shape, self.cols))
        rows = rotate_back(rows, signs_for(self.seed, "in", self.cols))
        return rows.to(self.dtype).reshape(*ids.shape, *self.shape[1:])

    def parts(self) -> dict[str, Part]:
        """Return nothing: the rotation is its seed."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return ``side`` and ``rotation``."""
        return {"side": self.side, "rotation": {"kind": "hadamard", "seed": self.seed}}

    @classmethod
    def from_parts(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        children: Mapping[str, Form],
    ) -> Rotated:
        """Build from the child ``form``."""
        check_names(cls.kind, "children", children, ["form"])
        check_names(cls.kind, "parts", parts, [])
        return cls(
            children["form"],
            shape=shape,
            dtype=dtype,
            side=cast(Side, settings.get("side")),
            rotation=cast(Mapping[str, Any], settings.get("rotation")),
        )


def _work(tensor: Tensor) -> Tensor:
    """Return at least float32: a chain of additions is not left to a half type."""
    return tensor.to(wide(tensor.dtype))


def rotate_weight(weight: Tensor, *, side: Side, seed: int) -> Tensor:
    """Return the matrix (rows, cols) that the inner form of a ``Rotated`` must stand for.

    It is computed, and returned, in float32 or wider, contiguous.

    Args:
        weight: The weight, any shape; as a matrix its rows are ``weight.shape[0]``.
        side: As for ``Rotated``.
        seed: As for ``Rotated``.

    Raises:
        ConfigError: An axis that cannot be rotated.

    >>> w = torch.arange(8.0).reshape(2, 4)
    >>> bool(rotate_weight(w, side="in", seed=0).norm().isclose(w.norm()))
    True
    """
    matrix = _work(weight.reshape(weight.shape[0], -1))
    rows, cols = matrix.shape
    if side in ("in", "both"):
        matrix = rotate(matrix, signs_for(seed, "in", require_order(cols, "columns")))
    if side in ("out", "both"):
        matrix = rotate(matrix.T, signs_for(seed, "out", require_order(rows, "rows"))).T
    return matrix.contiguous()


def rotate(x: Tensor, signs: NDArray[np.float32]) -> Tensor:
    """Return ``x Q`` over the last axis."""
    scale = torch.from_numpy(signs).to(device=x.device, dtype=x.dtype) / sqrt(len(signs))
    return hadamard(x) * scale


def rotate_back(x: Tensor, signs: NDArray[np.float32]) -> Tensor:
    """Return ``x Q^T`` over the last axis: the inverse of :func:`rotate`."""
    scale = torch.from_numpy(signs).to(device=x.device, dtype=x.dtype) / sqrt(len(signs))
    return hadamard(x * scale, transposed=True)


def hadamard(x: Tensor, *, transposed: bool = False) -> Tensor:
    """Return ``x H`` (or ``x H^T``) over the last axis: additions only, not scaled.

    ``H`` is the Kronecker product of an order 1, 12 or 20 with Sylvester's matrix, which a
    butterfly applies in ``log2`` rounds of one addition and one subtraction a pair.

    Raises:
        ConfigError: The last axis is not ``2**k`` times 1, 12 or 20.
    """
    size = require_order(x.shape[-1], "columns")
    odd = _odd_order(size)
    power = size // odd
    held = x.reshape(*x.shape[:-1], odd, power)
    step = 1
    while step < power:
        pairs = held.reshape(*x.shape[:-1], odd, power // (2 * step), 2, step)
        first, second = pairs.unbind(-2)
        held = torch.stack((first + second, first - second), dim=-2)
        step *= 2
    held = held.reshape(*x.shape[:-1], odd, power)
    if odd > 1:
        small = torch.from_numpy(paley(odd)).to(device=x.device, dtype=x.dtype)
        # (x H)_j = sum_i x_i H_ij, on the axis before the last.
        held = (small if transposed else small.T) @ held
    return held.reshape(x.shape)


def require_order(size: int, axis: str) -> int:
    """Return ``size`` where a Hadamard matrix of it is known here.

    Raises:
        ConfigError: It is not ``2**k`` times 1, 12 or 20.
    """
    if _odd_order(size):
        return size
    below, above = _neighbours(size)
    raise ConfigError(
        f"rotated: {size} {axis} came, but a Hadamard rotation needs 2**k times 1, 12 or 20 "
        f"(the nearest are {below} and {above}). Leave this site out, rotate its other side, or "
        f"pad it to {above}."
    )


def _odd_order(size: int) -> int:
    """Return 1, 12 or 20, whichever leaves a power of two; 0 where none does."""
    for order in (1, *_PALEY):
        power, rest = divmod(size, order)
        if not rest and power > 0 and not power & (power - 1):
            return order
    return 0


def _neighbours(size: int) -> tuple[int, int]:
    """Return the nearest orders below and above a size that has none."""
    orders = sorted(
        order << k for order in (1, *_PALEY) for k in range(max(size, 1).bit_length() + 1)
    )
    return max((n for n in orders if n < size), default=1), min(n for n in orders if n > size)


@lru_cache(maxsize=4)
def paley(order: int) -> NDArray[np.float32]:
    """Return the Hadamard matrix of order 12 or 20 by Paley's first construction.

    ``H = I + S`` where S borders the matrix of quadratic characters ``chi(j - i)`` modulo
    ``order - 1``; S is skew because that prime is 3 modulo 4.
    """
    prime = _PALEY[order]
    squares = {i * i % prime for i in range(1, prime)}
    chi = [0] + [1 if i in squares else -1 for i in range(1, prime)]
    skew = np.zeros((order, order), dtype=np.float32)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = [[chi[(j - i) % prime] for j in range(prime)] for i in range(prime)]
    return skew + np.eye(order, dtype=np.float32)


@lru_cache(maxsize=256)
def signs_for(seed: int, label: str, size: int) -> NDArray[np.float32]:
    """Return ``size`` signs +1 or -1 of a seed: bits of SHAKE-256, lowest first.

    >>> signs_for(0, "in", 8).astype(int).tolist()
    [1, -1, 1, -1, -1, -1, 1, 1]
    """
    text = f"laconic/rotation/{label}/{seed}"
    stream = hashlib.shake_256(text.encode()).digest((size + 7) // 8)
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), bitorder="little")[:size]
    return 1 - 2 * bits.astype(np.float32)


def _seed_of(rotation: object) -> int:
    """Return the seed of a rotation setting, or refuse what is not one."""
    told: Mapping[Any, Any] = rotation if isinstance(rotation, Mapping) else {}
    seed = told.get("seed")
    if set(told) != {"kind", "seed"} or told["kind"] != "hadamard":
        raise ConfigError(
            f"rotated: rotation={str(rotation)[:80]} must be {{'kind': 'hadamard', 'seed': a whole "
            f"number}}; other kinds are not known here."
        )
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ConfigError(
            f"rotated: seed={str(seed)[:40]} must be a whole number between 0 and 2**63 - 1; give "
            f"such a number."
        )
    return seed
