"""Checks that forms share; all of them look at shapes and types before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError, nearest

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_names(
    kind: str,
    what: str,
    given: Iterable[str],
    needed: Iterable[str],
    optional: Iterable[str] = (),
) -> None:
    """Refuse missing or surplus names.

    Raises:
        ConfigError: The message has the names that came and those that belong.
    """
    came, wanted, allowed = list(given), list(needed), list(optional)
    if not set(wanted) <= set(came) or not set(came) <= {*wanted, *allowed}:
        extra = f" and at most {allowed}" if allowed else ""
        raise ConfigError(f"{kind}: {what} must be {wanted}{extra}, got {came}.")


def check_children(kind: str, stem: str, children: Mapping[str, Any], parts: Iterable[str]) -> None:
    """Refuse anything but the children ``stem0``, ``stem1``, ... in order, and parts at all.

    Raises:
        ConfigError: The message has what came.
    """
    names = [f"{stem}{index}" for index in range(len(children))]
    if list(children) != names or list(parts):
        raise ConfigError(
            f"{kind}: children must be {stem}0, {stem}1, ... in order, without parts; got "
            f"children {list(children)}, parts {list(parts)}."
        )


def check_shape(kind: str, shape: tuple[int, ...], *, axes: int = 1) -> None:
    """Refuse a shape of too few axes or of anything but whole numbers from 0.

    Raises:
        ConfigError: The message has the shape.
    """
    if len(shape) < axes or any(type(n) is not int or n < 0 for n in shape):
        raise ConfigError(
            f"{kind}: shape={shape} must be at least {axes} whole numbers of at least 0."
        )


def check_tensor(
    kind: str,
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...] = FLOATS,
) -> None:
    """Refuse a tensor of another shape or type.

    Raises:
        ConfigError: The message has what came and what is allowed.
    """
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype not in dtypes:
        allowed = " or ".join(map(_word, dtypes))
        raise ConfigError(
            f"{kind}: {name} must have shape {tuple(shape)} and type {allowed}, got "
            f"{tuple(tensor.shape)} {_word(tensor.dtype)}."
        )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_symbols(kind: str, name: str, tensor: Tensor, alphabet: int) -> None:
    """Refuse symbols outside ``0 ... alphabet - 1``; on the meta device there are none.

    Raises:
        ConfigError: The message has the lowest and the highest symbol.
    """
    if tensor.is_meta or not tensor.numel():
        return
    low, high = (int(end) for end in torch.aminmax(tensor))
    if low < 0 or high >= alphabet:
        raise ConfigError(f"{kind}: {name} holds {low}..{high}; symbols are 0..{alphabet - 1}.")


def whole(kind: str, settings: Mapping[str, Any], name: str) -> int:
    """Return a whole number from settings.

    Raises:
        ConfigError: It is missing or of another type.
    """
    value = settings.get(name)
    if type(value) is not int:
        raise ConfigError(f"{kind}: {name}={value!r} must be a whole number.")
    return value


def choice(kind: str, settings: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    """Return one of several words from settings.

    Raises:
        ConfigError: It is missing or another word.
    """
    value = settings.get(name)
    if value not in allowed:
        hint = nearest(value, allowed) if isinstance(value, str) else ""
        raise ConfigError(f"{kind}: {name}={value!r} must be one of {', '.join(allowed)}.{hint}")
    return str(value)


def parameter(value: Tensor) -> nn.Parameter:
    """Return a Parameter that shares the values; trainable unless it was a frozen Parameter."""
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value.detach())


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type that values of ``dtype`` are computed in: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)
