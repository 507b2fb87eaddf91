"""Round weights to levels that a normal distribution fills evenly, one absmax scale per block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms.codebook import Codebook
from laconic.forms.dense import Dense
from laconic.forms.quantized import Quantized
from laconic.registry import method
from laconic.settings import setting
from laconic.weights.checks import finite
from laconic.weights.quantize._clusters import cluster, nearest
from laconic.weights.quantize._codebooks import CodebookStep
from laconic.weights.quantize._uniform import ScaleType, resolve_group_size

_SCALE_BLOCK = 256  # scales that share one step, section 3 of the paper
_SCALE_BITS = 8


@method("nf4", family="quantize", source="Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023 (QLoRA)")
@dataclass(frozen=True, kw_only=True)
class NormalFloat(CodebookStep):
    """Round every weight to the nearest of 16 normal quantiles times the block's largest weight.

    Works on whatever is dense in a form, needs no data, and keeps zero exact. Where a layer's
    weights are far from normal, ``table="learned"`` finds levels of its own.

    Args:
        bits: Stored bits per weight, 2..8, without scales; 4 in the paper, other widths by the
            same construction.
        group_size: Weights of a block, along the input axis; must divide it. ``"auto"`` is the
            largest divisor up to ``group_limit``.
        group_limit: Largest block that group_size ``"auto"`` may choose; 64 in the paper.
        double: Scales are themselves held in 8 bits, in blocks of up to 256.
        scale_dtype: Type that scales are stored in, where ``double`` is off.
        table: ``"normal"``, or ``"learned"``: k-means over the layer's scaled weights, each counted
            by the square of its scale. Without weighting the level nearest to zero is moved onto
            it, for tiny weights may meet huge inputs.
        weighting: ``"gram"`` counts errors also by the mean square of the weight's input, which
            needs calibration data; only with a learned table.

    Shapes:
        weight (rows, cols) -> codes (rows, cols), table (2**bits, 1) float32, scales
        (rows, cols / group): float, or 8-bit codes with a float32 step and zero point a block

    Raises:
        ConfigError: ``weighting="gram"`` without a learned table.
        LayerError: ``group_size`` does not divide a row, or weights are not finite.
        RecipeError: Nothing dense is left in the form.

    Source: Dettmers, Pagnoni, Holtzman and Zettlemoyer 2023, section 3.
    Differs: blocks end with rows. Scales are spread evenly between the least and the greatest of
    their block, where the paper takes off one mean and rounds to 8-bit floats.
    """

    bits: int = setting(4, help="Stored bits per weight, without scales.", low=2, high=8)
    group_size: int | Literal["auto", "channel"] = setting(
        "auto", help="Weights of a block; must divide the layer's input.", low=1
    )
    group_limit: int = setting(
        64, help="Largest block that group_size 'auto' may choose.", low=16, high=1024
    )
    double: bool = setting(True, help="Hold scales in 8 bits.")
    scale_dtype: ScaleType = setting("float32", help="Type of scales that are not held in 8 bits.")
    table: Literal["normal", "learned"] = setting("normal", help="Where the levels come from.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting == "gram" and self.table != "learned":
            raise ConfigError(
                "nf4: weighting='gram' needs levels that are learned; give table='learned', or "
                "leave weighting at 'none'."
            )

    def levels(self) -> tuple[Self, ...]:
        """Return the step at 2, 3, 4, 5, 6 and 8 bits."""
        return tuple(replace(self, bits=bits) for bits in (2, 3, 4, 5, 6, 8))

    def codebook_sketch(self, dense: Dense, *, site: str) -> Codebook:
        """Return codes, one table and the scales of the blocks, without values."""
        size = self._group(dense, site=site)
        return Codebook.empty(
            dense.shape,
            dense.dtype,
            entries=2**self.bits,
            table_dtype=torch.float32,
            scale_dtype=getattr(torch, self.scale_dtype),
            scale=_scales_sketch(dense.rows * (dense.cols // size)) if self.double else None,
            group_size=size,
        )

    def _group(self, dense: Dense, *, site: str) -> int:
        return resolve_group_size(self.group_size, dense.cols, site=site, most=self.group_limit)

    def codebook(self, dense: Dense, importance: Tensor | None, *, site: str) -> Codebook:
        """Return codes of the nearest levels, the levels, and a scale for each block."""
        size = self._group(dense, site=site)
        blocks = finite(dense.dense().detach(), site=site).float().reshape(dense.rows, -1, size)
        absmax = blocks.abs().amax(-1) if blocks.numel() else blocks.sum(-1)  # (rows, blocks)
        held: Tensor | Quantized = absmax.to(getattr(torch, self.scale_dtype))
        if self.double:
            held = quantize_scales(absmax)
        # Codes are chosen with the scales as they are held.
        values = held.dense().detach() if isinstance(held, Quantized) else held.float()
        scale = values.reshape(-1)[: absmax.numel()].reshape(*absmax.shape, 1)
        inner = torch.where(scale > 0, blocks / scale, torch.zeros_like(blocks))
        table = self._table(inner, scale, importance)
        codes = nearest(inner, table).to(torch.uint8)
        return Codebook(
            codes.reshape(dense.rows, dense.cols),
            table.unsqueeze(1),
            shape=dense.shape,
            dtype=dense.dtype,
            scale=held,
            group_size=size,
        )

    def _table(self, inner: Tensor, scale: Tensor, importance: Tensor | None) -> Tensor:
        """Return the levels, (2**bits,) float32, rising, for scaled blocks (rows, blocks, size)."""
        if self.table == "normal" or inner.numel() == 0:
            return normal_levels(self.bits).to(inner.device)
        counts = scale.square().expand_as(inner).reshape(-1)
        if importance is not None:
            counts = counts * importance
        levels = cluster(inner.reshape(-1), 2**self.bits, weights=counts)
        if importance is None:  # tiny weights may meet huge inputs
            levels[levels.abs().argmin()] = 0.0
        return levels


def normal_levels(bits: int) -> Tensor:
    """Return the ``2**bits`` levels of a NormalFloat, (2**bits,) float32, rising from -1 to 1.

    They are quantiles of the normal distribution, evenly spread in probability on either side
    of an exact zero, one more above it than below, over the greatest of them.

    Source: Dettmers and others 2023, equation 4 and appendix E; the outermost probability is the
    published code's.
    """
    half = 2 ** (bits - 1)
    last = 1 - (1 / (2 * 2**bits) + 1 / (2 * (2**bits - 1))) / 2
    above = torch.special.ndtri(torch.linspace(0.5, last, half + 1, dtype=torch.float64)[1:])
    below = torch.special.ndtri(torch.linspace(0.5, last, half, dtype=torch.float64)[1:])
    levels = torch.cat([-below.flip(0), above.new_zeros(1), above])
    scaled: Tensor = (levels / above[-1]).float()
    return scaled


def _scales_shape(count: int) -> tuple[int, int]:
    """Return blocks and scales in a block: as few blocks as can be, all of one size."""
    blocks = max(-(-count // _SCALE_BLOCK), 1)
    return blocks, -(-count // blocks)


def _scales_sketch(count: int) -> Quantized:
    shape = _scales_shape(count)
    return Quantized.empty(
        shape,
        torch.float32,
        bits=_SCALE_BITS,
        group_size=max(shape[1], 1),
        scale_dtype=torch.float32,
        symmetric=False,
        zero_dtype=torch.float32,
    )


def quantize_scales(scale: Tensor) -> Quantized:
    """Return scales in 8 bits, in blocks of up to 256 over all rows, the last ones repeated.

    Shapes:
        scale any, n of them -> form (blocks, ceil(n / blocks)) with float32 steps and zero points

    Source: Dettmers and others 2023, section 3, double quantization.
    """
    flat = scale.reshape(-1)
    blocks, width = _scales_shape(flat.numel())
    spare = blocks * width - flat.numel()
    rows = torch.cat([flat, flat[-1:].expand(spare)]).reshape(blocks, width)
    top = 2**_SCALE_BITS - 1
    low, high = (rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)) if width else (
        rows.new_zeros(blocks, 1), rows.new_zeros(blocks, 1)
    )  # fmt: skip
    # A block of equal scales is held by its zero point alone: the step only has to be positive.
    step = torch.maximum((high - low) / top, high / 2**20)
    step = torch.where(step > 0, step, torch.ones_like(step))
    zero = -low / step
    codes = (rows / step + zero).round_().clamp_(0, top).to(torch.uint8)
    return Quantized(
        codes,
        step,
        zero,
        bits=_SCALE_BITS,
        group_size=max(width, 1),
        shape=(blocks, width),
        dtype=torch.float32,
        symmetric=False,
    )
