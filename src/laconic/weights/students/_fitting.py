"""Settings of a layer whose input has changed its width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

LARGEST_LINEAR = 50_000  # inputs of a linear layer above which a child is refused
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class InvalidChildError(Exception):
    """A sequence of actions gives no network; says why. Never leaves the room."""


@dataclass(frozen=True)
class Sizes:
    """New sizes of a unit's layer; None leaves one as it is.

    Attributes:
        kernel: Window, an entry an axis.
        stride: Step, an entry an axis.
        filters: Channels or features given.
        padding: Padding, an entry an axis.
    """

    kernel: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    filters: int | None = None
    padding: tuple[int, ...] | None = None


def fitted(layer: nn.Module, x: Tensor, sizes: Sizes, width: int | None) -> dict[str, Any]:
    """Return the settings in which a layer must differ to take an input.

    Args:
        layer: The layer as it was.
        x: Its input, (batch, ...).
        sizes: New window of a convolution or pool.
        width: What a convolution or linear layer shall give.

    Raises:
        InvalidChildError: The layer cannot take the input.
    """
    if isinstance(layer, _CONVS):
        return {**_conv(layer, int(x.shape[1]), width), **_window(sizes)}
    if isinstance(layer, nn.Linear):
        if x.shape[-1] > LARGEST_LINEAR:
            raise InvalidChildError(f"a linear layer would read {x.shape[-1]} numbers")
        return {"in_features": int(x.shape[-1]), "out_features": width or layer.out_features}
    if isinstance(layer, _NORMS):
        return {"num_features": int(x.shape[1])}
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": tuple(x.shape[-len(layer.normalized_shape) :])}
    if isinstance(layer, nn.GroupNorm):
        channels = int(x.shape[1])
        fits = [g for g in range(1, layer.num_groups + 1) if channels % g == 0]
        return {"num_channels": channels, "num_groups": fits[-1]}
    if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        return {"num_parameters": int(x.shape[1])}
    return _window(sizes)


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether a convolution filters each channel by itself."""
    return isinstance(layer, _CONVS) and layer.groups == layer.in_channels > 1


def _conv(layer: Any, channels: int, width: int | None) -> dict[str, Any]:
    if is_depthwise(layer):
        several = layer.out_channels // layer.in_channels
        return {"in_channels": channels, "out_channels": several * channels, "groups": channels}
    width = width or layer.out_channels
    if channels % layer.groups or width % layer.groups:
        raise InvalidChildError(
            f"{layer.groups} groups do not divide {channels} -> {width} channels"
        )
    return {"in_channels": channels, "out_channels": width}


def _window(sizes: Sizes) -> dict[str, Any]:
    named: Mapping[str, Any] = {
        "kernel_size": sizes.kernel,
        "stride": sizes.stride,
        "padding": sizes.padding,
    }
    return {name: value for name, value in named.items() if value is not None}
