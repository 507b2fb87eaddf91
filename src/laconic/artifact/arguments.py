"""Arguments of a graph's nodes as JSON, and back.

Numbers, texts, truth values, null and lists stand for themselves. An object with one key stands
for what JSON lacks: ``{"n": 3}`` the result of node 3, ``{"t": [...]}`` a tuple, ``{"s": [start,
stop, step]}`` a slice, ``{"d": "F32"}`` a type, ``{"v": "cpu"}`` a device, ``{"m": {...}}`` a
dictionary, ``{"e": 0}`` an ellipsis, ``{"f": "inf"}`` a number that is not finite and ``{"l":
"channels_last"}`` a memory format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from laconic.artifact.dtypes import DTYPES
from laconic.artifact.limits import MAX_DEPTH
from laconic.errors import UnsupportedModelError

_DTYPES = {dtype: name for name, dtype in DTYPES.items()}
_FORMATS = {
    "contiguous_format": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
    "preserve_format": torch.preserve_format,
}
_LARGEST = 2**63


def to_json(value: Any, number: Callable[[Any], int | None]) -> Any:
    """Write one argument.

    Args:
        value: The argument, with nodes in it.
        number: Gives the index of a node, None for all else.

    Raises:
        UnsupportedModelError: The argument is of a kind that files cannot hold.
    """
    index = number(value)
    if index is not None:
        return {"n": index}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and abs(value) < _LARGEST:
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"f": repr(float(value))}
    if isinstance(value, list):
        return [to_json(item, number) for item in value]
    if isinstance(value, tuple):
        return {"t": [to_json(item, number) for item in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"m": {key: to_json(item, number) for key, item in value.items()}}
    return _constant(value, number)


def _constant(value: Any, number: Callable[[Any], int | None]) -> Any:
    if isinstance(value, slice):
        return {"s": [to_json(end, number) for end in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype) and value in _DTYPES:
        return {"d": _DTYPES[value]}
    if isinstance(value, torch.device):
        return {"v": str(value)}
    if value is Ellipsis:
        return {"e": 0}
    for name, held in _FORMATS.items():
        if value is held:
            return {"l": name}
    raise UnsupportedModelError(f"an argument of type {type(value).__name__} cannot be stored")


def from_json(value: Any, node: Callable[[int], Any], device: torch.device, depth: int = 0) -> Any:
    """Read one argument; the inverse of :func:`to_json`.

    Args:
        value: What stands in the file.
        node: Gives the node of an index, and raises ValueError where there is none.
        device: Stands for every device in the file.
        depth: Containers around this argument.

    Raises:
        ValueError: Nothing that ``to_json`` writes.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"arguments are nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        if abs(value) >= _LARGEST:
            raise ValueError("a whole number has more than 63 bits")
        return value
    if isinstance(value, list):
        return [from_json(item, node, device, depth + 1) for item in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("an argument must be an object with one key")
    ((tag, inner),) = value.items()
    if tag == "n" and type(inner) is int:
        return node(inner)
    if tag == "t" and isinstance(inner, list):
        return tuple(from_json(item, node, device, depth + 1) for item in inner)
    if tag == "m" and isinstance(inner, dict):
        return {key: from_json(item, node, device, depth + 1) for key, item in inner.items()}
    if tag == "s" and isinstance(inner, list) and len(inner) == 3:
        return slice(*(from_json(item, node, device, depth + 1) for item in inner))
    return _from_constant(tag, inner, device)


def _from_constant(tag: str, inner: Any, device: torch.device) -> Any:
    if tag == "d" and isinstance(inner, str) and inner in DTYPES:
        return DTYPES[inner]
    if tag == "v" and isinstance(inner, str):
        return device
    if tag == "e":
        return Ellipsis
    if tag == "f" and inner in ("inf", "-inf", "nan"):
        return float(inner)
    if tag == "l" and isinstance(inner, str) and inner in _FORMATS:
        return _FORMATS[inner]
    raise ValueError(f"unknown argument {tag[:20]!r}")
