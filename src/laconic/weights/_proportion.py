"""Rows that are alike, and columns that are in proportion: the arithmetic of ``roles``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_CONSTANT = 1e-3  # spread of a ratio over tokens that counts as none


def flat(x: Tensor) -> Tensor:
    """Return the rows of the last axis, (rows, cols)."""
    return x.reshape(-1, x.shape[-1])


def row_set(x: Tensor) -> set[bytes]:
    """Return the rows of a matrix, as bytes of float32."""
    rows = x.detach().float().cpu().contiguous()
    return {row.numpy().tobytes() for row in rows}


def gain_offset(norm: nn.Module, out: Tensor) -> float | None:
    """Return a of a norm that gives ``x * (a + weight) + bias``; None where it is no such norm."""
    weight, bias = norm._parameters["weight"], norm._parameters.get("bias")
    if weight is None or out.shape[-1] != len(weight):
        return None
    x = torch.linspace(-1.0, 2.0, 3 * len(weight), dtype=weight.dtype, device=weight.device)
    found = []
    with torch.no_grad():
        for value in (0.0, 1.0, 3.0):
            given = {"weight": torch.full_like(weight, value)}
            y = torch.func.functional_call(norm, given, (x.reshape(3, len(weight)),))
            found.append(y if bias is None else y - bias)
    slope = found[1] - found[0]
    large = slope.abs() > 1e-3 * slope.abs().amax()
    if not bool(large.any()) or not torch.allclose(found[2] - found[0], 3 * slope, atol=1e-4):
        return None
    ratio = float((found[0][large] / slope[large]).median())
    near = round(ratio)
    return float(near) if near in (0, 1) and abs(ratio - near) < 1e-3 else None


def row_sets(rows: int, cols: int) -> Iterator[Tensor]:
    """Yield the rows of a layer that may pass to a layer of ``cols`` inputs.

    All of them, each met once or by a group of columns; or, of a layer that is several in one,
    one part: the last, the first, or one between, in one piece or every second, third row; or
    the values of a layer that holds queries, fewer keys and as few values.
    """
    every = torch.arange(rows)
    if rows <= cols:
        if cols % rows == 0:
            yield every
        return
    if rows % cols == 0:
        parts = rows // cols
        for part in reversed(range(parts)):
            yield every[part * cols : (part + 1) * cols]
        for part in reversed(range(parts)):
            yield every[part::parts]
    rest, odd = divmod(rows - cols, 2)
    if not odd and rest and cols % rest == 0:
        yield every[-rest:]


def constant_ratio(moved: Tensor, held: Tensor) -> Tensor | None:
    """Return ``moved / held`` for each column, NaN where it is all zero; None where it varies."""
    seen = held.abs() > 1e-3 * held.abs().amax().clamp_min(1e-30)
    ratio = torch.where(seen, moved / torch.where(seen, held, torch.ones_like(held)), torch.nan)
    low = torch.where(seen, ratio, torch.inf).amin(0)
    high = torch.where(seen, ratio, -torch.inf).amax(0)
    dead = ~seen.any(0)
    if bool((high[~dead] - low[~dead] > _CONSTANT).any()) or bool(dead.all()):
        return None
    return torch.where(dead, torch.nan, (low + high) / 2)


def matched(factors: Tensor, ratios: Tensor) -> Tensor | None:
    """Return the index of the factors that each ratio is; None where one is none of them.

    Columns that were all zero are taken to go on as the others do.

    Shapes:
        factors (draws, rows), ratios (draws, cols) -> (cols,)
    """
    gaps = (ratios.unsqueeze(2) - factors.unsqueeze(1)).abs().amax(0)  # (cols, rows)
    dead = ratios.isnan().any(0)
    gaps = torch.where(dead.unsqueeze(1), torch.inf, gaps)
    near = gaps.amin(1)
    if bool((near[~dead] > 2 * _CONSTANT).any()):
        return None
    columns = gaps.argmin(1).cpu()
    if bool(dead.any()):
        straight = torch.arange(len(columns))
        if len(columns) != factors.shape[1] or bool((columns != straight)[~dead.cpu()].any()):
            return None
        columns = straight
    counts = columns.bincount(minlength=factors.shape[1])
    return columns if bool((counts == counts[0]).all()) else None
