"""Level tables of the three searches of EvoPress: sparsity, bit-widths, depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from laconic.budget.groups import GroupRule
from laconic.budget.table import LevelTable
from laconic.errors import ConfigError

DROPPED, KEPT = "dropped", "kept"


def sparsity_step(smallest: int, sparsity: float, *, reach: int = 8) -> int:
    """Return a step in weights with which the smallest site has ``reach`` levels on each side.

    Args:
        smallest: Weights of the smallest site.
        sparsity: Mean share of zeros, above 0 and below 1.
        reach: Levels above and below.

    Source: the step of Sieberling et al. 2024 (EvoPress) but for their factor of one half.
    """
    _check_share(sparsity)
    return max(1, int(min(sparsity, 1 - sparsity) * smallest / reach))


def sparsity_table(
    weights: Mapping[str, int], sparsity: float, step: int, *, reach: int = 8
) -> LevelTable:
    """Return levels of sparsity that are the same number of weights apart at every site.

    Level ``l`` of a site with ``n`` weights keeps ``n - round(s n) - l d`` of them, so that a
    switch between sites of any two sizes is exact; level 0 is uniform. All sites are one group.

    Args:
        weights: Number of weights of each site.
        sparsity: Mean share of zeros ``s``, above 0 and below 1.
        step: Weights ``d`` between two levels.
        reach: Levels above and below 0 at most.

    Returns:
        A table with levels ``-8`` to ``+8`` (more is sparser) in units of weights kept.

    Source: Sieberling et al. 2024 (EvoPress), section 4.2.

    >>> table = sparsity_table({"a": 100, "b": 1000}, 0.6, 10, reach=2)
    >>> table.levels, table.costs.tolist()
    (('-2', '-1', '+0', '+1', '+2'), [[60, 50, 40, 30, 20], [420, 410, 400, 390, 380]])
    """
    _check_share(sparsity)
    if step < 1 or reach < 1:
        raise ConfigError(f"sparsity table: step={step}, reach={reach} must be at least 1.")
    numbers = range(-reach, reach + 1)
    costs, errors = [], []
    for count in weights.values():
        zeros = round(sparsity * count)
        # A level that would cut below no zeros or beyond all of them is not there.
        legal = [0 <= zeros + number * step <= count for number in numbers]
        costs.append([count - zeros - number * step if ok else 0 for number, ok in
                      zip(numbers, legal, strict=True)])  # fmt: skip
        errors.append([0.0 if ok else np.inf for ok in legal])
    names = [f"{number:+d}" for number in numbers]
    table = LevelTable(
        list(weights), names, costs, errors, groups=["weights"] * len(weights), unit="weights"
    )
    return table.without_errors()


def bits_table(
    weights: Mapping[str, int],
    bits: Sequence[int],
    *,
    errors: ArrayLike | None = None,
    groups: GroupRule = "size",
) -> LevelTable:
    """Return levels of bit-width; costs are bits, of codes alone.

    Args:
        weights: Number of weights of each site.
        bits: Bits of each level.
        errors: Error of each site at each level; None where it is not known.
        groups: Between which sites levels are switched.

    Source: Sieberling et al. 2024 (EvoPress), section 4.3.
    """
    costs = np.array([[count * width for width in bits] for count in weights.values()])
    names = [f"{width} bits" for width in bits]
    return LevelTable(list(weights), names, costs, errors, unit="bits").grouped(groups)


def depth_table(units: Mapping[str, str], *, costs: Sequence[int] | None = None) -> LevelTable:
    """Return levels ``dropped`` and ``kept`` for each unit.

    Args:
        units: Group of each unit, such as ``attention`` and ``mlp``; switches stay inside, and
            a budget can be given for each.
        costs: What each unit costs when it is kept; 1 each where None.

    Source: Sieberling et al. 2024 (EvoPress), section 4.1.
    """
    each = [1] * len(units) if costs is None else list(costs)
    unit = "units" if costs is None else "bytes"
    table = [[0, cost] for cost in each]
    return LevelTable(list(units), (DROPPED, KEPT), table, groups=list(units.values()), unit=unit)


def _check_share(sparsity: float) -> None:
    if not 0 < sparsity < 1:
        raise ConfigError(f"sparsity={sparsity} must be above 0 and below 1.")
