"""From what a layer is called with to the rows that meet its weight, and their sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import LayerError
from laconic.weights.base import Site, Statistic, Statistics

_WIDE = 8192  # inputs above which sums are kept in float64
_CHUNK_BYTES = 2**26  # im2col rows that are made at once


def input_rows(site: Site, module: nn.Module, x: Tensor, keep: Tensor | None) -> Iterator[Tensor]:
    """Yield the rows of an input that meet a site's weight, in pieces of bounded size.

    Args:
        site: The weight.
        module: The layer that owns it.
        x: What the layer is called with.
        keep: (examples, tokens) bool, tokens that are not padding; None where all count.

    Shapes:
        -> (groups, rows, cols); ``groups`` is 1 for anything but a grouped convolution
    """
    if site.kind == "conv":
        yield from _patches(module, x)
    else:
        yield _without_padding(x, keep).reshape(1, -1, x.shape[-1])


def _without_padding(x: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None or x.dim() < 2:
        return x
    if x.shape[: keep.dim()] == keep.shape and x.dim() == keep.dim() + 1:
        return x[keep]
    if x.dim() == 2 and x.shape[0] == keep.numel():  # tokens of all examples in one axis
        return x[keep.reshape(-1)]
    return x


@dataclass(frozen=True)
class _Window:
    """How a convolution moves over its input; one-dimensional ones have a height of 1."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: list[int]
    mode: str
    groups: int
    spatial: int


def _window(module: Any) -> _Window:
    spatial = len(module.kernel_size)
    lead = (1,) * (2 - spatial)
    padding, pads = module.padding, []
    for axis in reversed(range(spatial)):  # as F.pad wants it: last axis first, both ends
        if padding == "same":
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            pads += [total // 2, total - total // 2]
        else:
            pads += [0, 0] if padding == "valid" else [padding[axis]] * 2
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    kernel, stride, dilation = (
        (*lead, *value) for value in (module.kernel_size, module.stride, module.dilation)
    )
    return _Window(kernel, stride, dilation, pads, mode, module.groups, spatial)


def _patches(module: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Yield im2col rows: channel first, then kernel position, as in the weight's matrix view."""
    window = _window(module)
    if x.dim() == window.spatial + 1:
        x = x.unsqueeze(0)
    x = F.pad(x, window.pads, mode=window.mode)
    if window.spatial == 1:
        x = x.unsqueeze(2)
    blown = x[0].numel() * x.element_size() * window.kernel[0] * window.kernel[1]
    step = max(1, _CHUNK_BYTES // max(blown, 1))
    for start in range(0, len(x), step):
        rows = F.unfold(
            x[start : start + step],
            window.kernel,
            dilation=window.dilation,
            stride=window.stride,
        )  # (examples, channels * kernel, places)
        n, width, places = rows.shape
        rows = rows.reshape(n, window.groups, width // window.groups, places)
        yield rows.permute(1, 0, 3, 2).reshape(window.groups, n * places, -1)


class Accumulator:
    """Sums over the rows of one input, for all sites that share it.

    Args:
        name: Site for messages.
        wants: Statistics to gather.
    """

    def __init__(self, name: str, wants: frozenset[Statistic]) -> None:
        self.name, self.wants, self.count = name, wants, 0
        self.counts: Tensor | None = None  # rows of each expert
        self.sums: dict[str, Tensor] = {}

    def add(self, rows: Tensor) -> None:
        """Add rows.

        Shapes:
            rows (groups, rows, cols)

        Raises:
            LayerError: A row has values that are not finite.
        """
        if rows.shape[1] == 0:
            return
        self.count += rows.shape[1]
        x = rows.float()
        squares = x.square().sum(1)
        if not bool(torch.isfinite(squares).all()):
            raise LayerError(
                f"{self.name}: its inputs on the calibration data are NaN or infinite (or their "
                "squares are). Check the data and the model in this precision, or exclude it."
            )
        for key in sorted(self.wants):
            self._merge(key, _sums(key, x, squares))

    def add_expert(self, expert: int, experts: int, rows: Tensor) -> None:
        """Add rows that met one of several stacked weights."""
        part = Accumulator(self.name, self.wants)
        part.add(rows.unsqueeze(0))
        if self.counts is None:
            self.counts = torch.zeros(experts, dtype=torch.long)
        self.counts[expert] += part.count
        self.count += part.count
        for key, value in part.sums.items():
            if key not in self.sums:
                self.sums[key] = value.new_zeros(experts, *value.shape[1:])
            held = self.sums[key][expert]
            if key == "absmax":
                torch.maximum(held, value[0], out=held)
            else:
                held += value[0]

    def _merge(self, key: str, value: Tensor) -> None:
        held = self.sums.get(key)
        if held is None:
            self.sums[key] = value.double() if value.shape[-1] > _WIDE else value
        elif key == "absmax":
            self.sums[key] = torch.maximum(held, value)
        else:
            held += value

    def statistics(self, groups: int) -> Statistics:
        """Return the means over all rows.

        Raises:
            LayerError: There were no rows.
        """
        if self.count == 0:
            raise LayerError(
                f"{self.name}: no calibration row reached this layer. Give data that uses it, "
                "or exclude it."
            )
        fields: dict[str, Tensor] = {}
        for key, value in self.sums.items():
            if key != "absmax":
                counts = value.new_tensor(self.count) if self.counts is None else self.counts
                shape = (-1,) + (1,) * (value.dim() - 1)
                value = value / counts.to(value.device).clamp_min(1).reshape(shape)
            fields[key] = value.float() if groups > 1 else value[0].float()
        return Statistics(count=self.count, **fields)


def _sums(key: str, x: Tensor, squares: Tensor) -> Tensor:
    if key == "gram":
        return torch.bmm(x.transpose(1, 2), x)
    if key == "sumsq":
        return squares
    magnitudes = x.abs()
    return magnitudes.amax(1) if key == "absmax" else magnitudes.sum(1)


def statistics_bytes(site: Site, wants: frozenset[Statistic]) -> int:
    """Return the bytes of a site's sums."""
    item = 8 if site.form.cols > _WIDE else 4
    per_group = sum(site.form.cols ** (2 if key == "gram" else 1) for key in wants)
    return item * site.groups * per_group
