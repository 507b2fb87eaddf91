"""What the EoRA study compares: ways to compress, and ways to make up for it at equal rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Literal

from laconic.weights.base import LayerStep, Override, Site, Where
from laconic.weights.factor.eora import Eora
from laconic.weights.prune.magnitude import Magnitude
from laconic.weights.prune.sparsegpt import SparseGpt
from laconic.weights.quantize.gptq import Gptq
from laconic.weights.quantize.round_to_nearest import RoundToNearest

Metric = Mapping[str, float]

RIVALS = ("SVD", "ACT-S")
CORRECTIONS = (*RIVALS, "EoRA")
BLOCKS = Where(include=("*.layers.*",), types=("linear",))  # not the embedding, not the output


def corrections(rank: int, *, where: Where) -> dict[str, LayerStep]:
    """Return the three corrections, alike in rank, scope and stored type."""
    return {
        "SVD": Eora(rank=rank, metric="identity", factor_dtype="float32", where=where),
        "ACT-S": Eora(rank=rank, metric="absmean", factor_dtype="float32", where=where),
        "EoRA": Eora(rank=rank, metric="gram", factor_dtype="float32", where=where),
    }


def rounded(bits: int, *, where: Where) -> RoundToNearest:
    """Return plain rounding, asymmetric, one scale a row."""
    return RoundToNearest(bits=bits, group_size="channel", symmetric=False, where=where)


def gptq(bits: int, *, where: Where, by_input: bool = True) -> Gptq:
    """Return GPTQ as in the paper: asymmetric, one scale a row.

    Args:
        bits: Bits of a code.
        where: Scope.
        by_input: Columns with the largest inputs go first, as in the paper; else left to right.
    """
    order: Literal["static", "none"] = "static" if by_input else "none"
    return Gptq(bits=bits, group_size="channel", symmetric=False, order=order, where=where)


def two_of_four(*, where: Where) -> Magnitude:
    """Return 2:4 sparsity by magnitude."""
    return Magnitude(pattern="2:4", where=where)


def sparsegpt(*, where: Where) -> SparseGpt:
    """Return 2:4 sparsity by SparseGPT."""
    return SparseGpt(pattern="2:4", where=where)


def rounded_in_groups(bits: int, size: int, sites: Sequence[Site], *, where: Where) -> LayerStep:
    """Return plain rounding in groups; rows they do not fit get the nearest size that does."""
    odd = [site for site in sites if where.matches(site.name, site.kind, ("linear",))]
    others = tuple(
        Override((site.name,), {"group_size": _nearest_divisor(site.form.cols, size)})
        for site in odd
        if site.form.cols % size
    )
    return RoundToNearest(
        bits=bits, group_size=size, symmetric=False, where=where, overrides=others
    )


def _nearest_divisor(number: int, wanted: int) -> int:
    whole = [size for size in range(1, number + 1) if number % size == 0]
    return min(whole, key=lambda size: abs(log(size / wanted)))


def against_rivals(found: Metric) -> float:
    """Return EoRA's error as a share of the smaller of its rivals'."""
    return found["EoRA"] / min(found[name] for name in RIVALS)
