"""What sparsity-informed pruning is compared with, on the same loop."""

from __future__ import annotations

from typing import Any

from laconic.weights.prune.iterative.loop import IterativePruning
from laconic.weights.prune.iterative.schedules import Cubic, Share


def lottery_ticket(share: float = 0.2, **settings: Any) -> IterativePruning:
    """Return pruning of a fixed share of what is left, by the weights trained last.

    Args:
        share: Share of the survivors that goes in an iteration.
        settings: Others of :class:`IterativePruning`.

    Source: Frankle and Carbin 2019, section 2.
    """
    return _named("lottery ticket", schedule=Share(share=share), **settings)


def one_shot(share: float = 0.2, **settings: Any) -> IterativePruning:
    """Return the same with weights ranked once, as trained before any pruning.

    Each iteration retrains from the initial weights, and the ranking never sees a pruned net.

    Source: Diao et al. 2023, section 4, baseline "OS".
    """
    return _named("one-shot", schedule=Share(share=share), ranked_by="first", **settings)


def at_random(share: float = 0.2, **settings: Any) -> IterativePruning:
    """Return the same with weights that go by lot: what any ranking must beat."""
    return _named("random", schedule=Share(share=share), criterion="random", **settings)


def gradual(density: float, **settings: Any) -> IterativePruning:
    """Return pruning to a density with much at first and little at last.

    Args:
        density: Share of the weights that is kept after the last iteration.
        settings: Others of :class:`IterativePruning`.

    Source: Zhu and Gupta 2017, equation 1.
    """
    return _named("cubic", schedule=Cubic(density=density), **settings)


def _named(name: str, **settings: Any) -> IterativePruning:
    return IterativePruning(**{"name": name, **settings})
