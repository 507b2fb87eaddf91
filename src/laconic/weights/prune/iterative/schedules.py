"""How many weights go from each scope in an iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from laconic import measure
from laconic.settings import check_settings, setting


@dataclass(frozen=True)
class Turnout:
    """What a schedule is told.

    Attributes:
        iteration: Prunings done before this one.
        iterations: Prunings in all.
        survivors: Weights that are kept in each scope, (scopes,) int64.
        index: PQ Index of the trained survivors of each scope, (scopes,) float64.
        total: Weights of all scopes before any pruning.
        p: Lower norm of the index.
        q: Upper norm.
    """

    iteration: int
    iterations: int
    survivors: Tensor
    index: Tensor
    total: int
    p: float
    q: float


class Schedule(Protocol):
    """Says how many weights go."""

    def removals(self, turnout: Turnout) -> Tensor:
        """Return how many weights go from each scope, (scopes,) int64."""
        ...


@dataclass(frozen=True, kw_only=True)
class SparsityInformed:
    """As many as the PQ Index of what is left allows: ``floor(d clip(gamma (1 - r/d), 0, beta))``.

    ``r`` is the retention bound (:func:`laconic.measure.retain_bound`). Scopes without survivors
    are passed over.

    Args:
        eta: Share of p-th powers that may be removed, in terms of what stays.
        gamma: Factor on the share of weights that the bound leaves free.
        beta: Largest share of a scope that goes in one iteration.

    Raises:
        ConfigError: A setting out of its bounds.

    Source: Diao et al. 2023, algorithm 1.
    """

    eta: float = setting(0.0, help="share of p-th powers that may go", low=0)
    gamma: float = setting(1.0, help="factor on the share that the bound leaves free", low=0)
    beta: float = setting(0.9, help="largest share of a scope that goes", low=0.01, high=0.99)

    def __post_init__(self) -> None:
        check_settings(self, owner="sap")

    def removals(self, turnout: Turnout) -> Tensor:
        """Return how many weights go from each scope, (scopes,) int64."""
        count = turnout.survivors
        bound = measure.retain_bound(turnout.index, count, turnout.p, turnout.q, self.eta)
        free = 1 - bound.double() / count.clamp_min(1)
        share = (self.gamma * free).clamp(0, self.beta)
        return torch.where(count > 0, torch.floor(count * share + 1e-9).long(), 0)


@dataclass(frozen=True, kw_only=True)
class Share:
    """The same share of what is left, every time.

    Args:
        share: Share of the survivors of each scope that goes; 0.2 in the lottery ticket papers.

    Source: Frankle and Carbin 2019, section 2.
    """

    share: float = setting(0.2, help="share of the survivors that goes", low=0.0, high=0.99)

    def __post_init__(self) -> None:
        check_settings(self, owner="share schedule")

    def removals(self, turnout: Turnout) -> Tensor:
        """Return how many weights go from each scope, (scopes,) int64."""
        return torch.floor(turnout.survivors * self.share + 1e-9).long()


@dataclass(frozen=True, kw_only=True)
class Cubic:
    """Much at first and little at last, to a density that is given.

    After ``t`` of ``T`` prunings the share of zeros is ``s (1 - (1 - t/T)^3)``.

    Args:
        density: Share of all weights that is kept at the end.

    Source: Zhu and Gupta 2017, equation 1, with one pruning a training instead of many in one.
    """

    density: float = setting(help="share that is kept at the end", low=1e-6, high=1.0)

    def __post_init__(self) -> None:
        check_settings(self, owner="cubic schedule")

    def removals(self, turnout: Turnout) -> Tensor:
        """Return how many weights go from each scope, (scopes,) int64."""
        left = 1 - (turnout.iteration + 1) / turnout.iterations
        zeros = (1 - self.density) * (1 - left**3)
        kept = round((1 - zeros) * turnout.total)
        held = int(turnout.survivors.sum())
        share = max(0.0, 1 - kept / held) if held else 0.0
        return torch.floor(turnout.survivors * share + 1e-9).long()
