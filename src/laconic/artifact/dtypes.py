"""Names of tensor types on disk (those of safetensors) and raw bytes of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from laconic.errors import UnsupportedModelError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype, *, where: str) -> str:
    """Return the name of a type on disk.

    Raises:
        UnsupportedModelError: Tensors of this type cannot be stored.
    """
    if dtype not in _NAMES:
        known = ", ".join(str(d).removeprefix("torch.") for d in _NAMES)
        raise UnsupportedModelError(
            f"{where}: {dtype} cannot be stored; it must be one of {known}."
        )
    return _NAMES[dtype]


def itemsize(name: str) -> int:
    """Return the bytes of one element of a type, by its name on disk."""
    return DTYPES[name].itemsize


def raw_bytes(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return the bytes of a tensor in row-major order, without a copy where possible."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def from_raw(data: bytes | bytearray | memoryview, name: str, shape: Sequence[int]) -> Tensor:
    """Build a tensor that owns its memory from raw bytes.

    Raises:
        ValueError: The bytes do not fill the shape, or a truth value is neither 0 nor 1.
    """
    dtype, size = DTYPES[name], prod(shape) * itemsize(name)
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes do not fill shape {list(shape)} of {name}")
    if not size:
        return torch.empty(tuple(shape), dtype=dtype)
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if dtype == torch.bool and bool((flat > 1).any()):
        raise ValueError("a truth value is neither 0 nor 1")
    return flat.view(dtype).reshape(tuple(shape))
