"""Prune, rewind, retrain, again and again: the loop that iterative pruning methods share.

:class:`IterativePruning` holds the settings and runs the loop; a :mod:`schedule
<laconic.weights.prune.iterative.schedules>` says how many weights go, a criterion which ones.
"""

from __future__ import annotations

from laconic.weights.prune.iterative.baselines import (
    at_random,
    gradual,
    lottery_ticket,
    one_shot,
)
from laconic.weights.prune.iterative.criteria import Criterion
from laconic.weights.prune.iterative.history import PruningRun, Row, limit_at, phases
from laconic.weights.prune.iterative.loop import IterativePruning, Turn
from laconic.weights.prune.iterative.masks import Masks
from laconic.weights.prune.iterative.schedules import Cubic, Schedule, Share, SparsityInformed
from laconic.weights.prune.iterative.training import Trainer, held_out, scorer

__all__ = [
    "Criterion",
    "Cubic",
    "IterativePruning",
    "Masks",
    "PruningRun",
    "Row",
    "Schedule",
    "Share",
    "SparsityInformed",
    "Trainer",
    "Turn",
    "at_random",
    "gradual",
    "held_out",
    "limit_at",
    "lottery_ticket",
    "one_shot",
    "phases",
    "scorer",
]
