"""One row a form: what the contract tests run on. A new form joins by a row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from laconic.forms import Codebook, Dense, Form, LowRank, Quantized, Sparse, Sum
from laconic.forms.hashed import Hashed
from laconic.forms.permuted import Permuted
from laconic.forms.rotated import Rotated
from laconic.forms.tensortrain import TensorTrain

Make = Callable[[torch.dtype], Form]


def symbols(*shape: int, below: int) -> Tensor:
    return torch.randint(0, below, shape).to(torch.uint8)


def quantized(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    bits: int = 4,
    group: int | None = None,
    symmetric: bool = True,
) -> Quantized:
    rows, cols = shape[0], int(torch.Size(shape[1:]).numel())
    group = group or cols
    return Quantized(
        symbols(rows, cols, below=2**bits),
        (torch.rand(rows, cols // group) + 0.1).to(dtype),
        None if symmetric else symbols(rows, cols // group, below=2**bits),
        bits=bits,
        group_size=group,
        shape=shape,
        dtype=dtype,
        symmetric=symmetric,
    )


def dense(shape: tuple[int, ...], dtype: torch.dtype) -> Dense:
    return Dense(torch.randn(shape).to(dtype))


def codebook(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    entries: int = 5,
    vector: int = 1,
    group: int | None = None,
) -> Codebook:
    rows, cols = shape[0], int(torch.Size(shape[1:]).numel())
    return Codebook(
        torch.randint(0, entries, (rows, cols // vector)),
        torch.randn(entries, vector).to(dtype),
        shape=shape,
        dtype=dtype,
        scale=None if group is None else (torch.rand(rows, cols // group) + 0.1).to(dtype),
        group_size=group,
    )


def real_zero(shape: tuple[int, ...], dtype: torch.dtype, group: int) -> Quantized:
    """Zero points that are not whole numbers."""
    like = quantized(shape, dtype, bits=3, group=group)
    zero = (7 * torch.rand(like.scale.shape)).to(dtype)
    return Quantized(
        like.codes(), like.scale, zero,
        bits=3, group_size=group, shape=shape, dtype=dtype, symmetric=False,
    )  # fmt: skip


def doubly_scaled(dtype: torch.dtype) -> Codebook:
    """Ten scales in three blocks of four: two places are not used."""
    like = codebook((5, 8), dtype, entries=16, group=4)
    scale = real_zero((3, 4), dtype, group=4)
    return Codebook(
        like.codes(), like.table, shape=(5, 8), dtype=dtype, scale=scale, group_size=4
    )  # fmt: skip


def low_rank(shape: tuple[int, int], dtype: torch.dtype, rank: int = 2) -> LowRank:
    left, right = dense((shape[0], rank), dtype), dense((rank, shape[1]), dtype)
    return LowRank(left, right, shape=shape, dtype=dtype)


def three_factors(dtype: torch.dtype) -> LowRank:
    factors = (quantized((5, 3), dtype), dense((3, 2), dtype), codebook((2, 7), dtype))
    return LowRank(*factors, shape=(5, 7), dtype=dtype)


def two_of_four(rows: int, cols: int) -> Tensor:
    order = torch.rand(rows, cols // 4, 4).argsort(-1)
    return (order < 2).reshape(rows, cols)


def unstructured(dtype: torch.dtype) -> Sparse:
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask.view(-1)[torch.randperm(35)[:11]] = True
    mask[0] = True
    values = dense((1, int(mask.sum())), dtype)
    return Sparse(mask, values, shape=(5, 7), dtype=dtype)


def sparse_2_4(dtype: torch.dtype, values: Form) -> Sparse:
    return Sparse(two_of_four(4, 16), values, shape=(4, 16), dtype=dtype, pattern="2:4")


def by_rows(dtype: torch.dtype) -> Sparse:
    mask = torch.tensor([True, False, True, False, False, True])
    values = quantized((3, 8), dtype, bits=3, group=4)
    return Sparse(mask, values, shape=(6, 8), dtype=dtype, pattern="row")


def by_columns(dtype: torch.dtype) -> Sparse:
    mask = torch.tensor([False, True, True, False, True, False, True]).expand(5, 7)
    return Sparse(mask, dense((5, 4), dtype), shape=(5, 7), dtype=dtype, pattern="column")


def nested(dtype: torch.dtype) -> Sum:
    pruned = sparse_2_4(dtype, quantized((4, 8), dtype, bits=3, group=4, symmetric=False))
    left = Sparse(
        torch.tensor([[True, False], [True, False], [False, True], [False, True]]),
        Sum(quantized((4, 1), dtype), codebook((4, 1), dtype), shape=(4, 1), dtype=dtype),
        shape=(4, 2),
        dtype=dtype,
    )
    correction = LowRank(left, codebook((2, 16), dtype, group=4), shape=(4, 16), dtype=dtype)
    return Sum(pruned, correction, shape=(4, 16), dtype=dtype)


def train(dtype: torch.dtype) -> TensorTrain:
    cores = (dense((1, 2, 3, 2), dtype), quantized((2, 3, 4, 1), dtype, bits=5))
    modes = {"row_modes": (2, 3), "col_modes": (3, 4)}
    return TensorTrain(*cores, shape=(6, 12), dtype=dtype, **modes)


def outer_products(dtype: torch.dtype) -> TensorTrain:
    factors = [dense((mode, 2), dtype) for mode in (5, 3, 4)]
    return TensorTrain(
        *factors, shape=(5, 3, 4), dtype=dtype, row_modes=(5,), col_modes=(3, 4), mode="cp"
    )


def hashed(dtype: torch.dtype) -> Hashed:
    table = quantized((6, 8), dtype)
    return Hashed(table, shape=(40, 8), dtype=dtype, seeds=(1, 2), buckets=6, combine="sum")


def rotated(dtype: torch.dtype) -> Rotated:
    return Rotated(
        quantized((8, 16), dtype, group=8),
        shape=(8, 16),
        dtype=dtype,
        side="both",
        rotation={"kind": "hadamard", "seed": 3},
    )


def permuted(shape: tuple[int, ...], dtype: torch.dtype) -> Permuted:
    cols = int(torch.Size(shape[1:]).numel())
    return Permuted(
        quantized(shape, dtype, group=2), torch.randperm(cols), shape=shape, dtype=dtype
    )


TABLE: dict[str, Make] = {
    "dense": lambda d: dense((5, 7), d),
    "dense-conv": lambda d: dense((4, 3, 2, 2), d),
    **{
        f"quantized-{bits}": lambda d, b=bits: quantized((5, 9), d, bits=b, group=3)
        for bits in range(1, 9)
    },
    **{
        f"quantized-{bits}-zero": lambda d, b=bits: quantized((3, 7), d, bits=b, symmetric=False)
        for bits in range(1, 9)
    },
    "quantized-conv": lambda d: quantized((4, 2, 3, 3), d, bits=3, group=9),
    "quantized-bytes": lambda d: quantized((5, 8), d, bits=3, group=8, symmetric=False),
    "quantized-real-zero": lambda d: real_zero((5, 6), d, 3),
    "codebook": lambda d: codebook((5, 7), d),
    "codebook-one": lambda d: codebook((5, 7), d, entries=1),
    "codebook-256": lambda d: codebook((5, 8), d, entries=256, group=4),
    "codebook-300": lambda d: codebook((5, 6), d, entries=300, vector=3),
    "codebook-product": lambda d: codebook((4, 2, 3, 3), d, entries=16, vector=3, group=6),
    "codebook-twice": doubly_scaled,
    "sparse": unstructured,
    "sparse-2:4": lambda d: sparse_2_4(d, dense((4, 8), d)),
    "sparse-2:4-quantized": lambda d: sparse_2_4(d, quantized((4, 8), d, group=4)),
    "sparse-rows": by_rows,
    "sparse-columns": by_columns,
    "low-rank": lambda d: low_rank((5, 7), d),
    "low-rank-three": three_factors,
    "sum": lambda d: Sum(
        quantized((5, 7), d), low_rank((5, 7), d), unstructured(d), shape=(5, 7), dtype=d
    ),
    "nested": nested,
    "tensor-train": train,
    "tensor-train-cp": outer_products,
    "hashed": hashed,
    "rotated": rotated,
    "permuted": lambda d: permuted((5, 8), d),
    "permuted-wide": lambda d: permuted((2, 300), d),
    "permuted-conv": lambda d: permuted((4, 2, 3, 3), d),
}
