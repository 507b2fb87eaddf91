"""Learning rate over a run: linear warm-up, then half a cosine down to zero."""

from __future__ import annotations

from math import cos, pi


def cosine_factor(step: int, total: int, *, warmup: float) -> float:
    """Return the share of the peak learning rate at a step.

    Args:
        step: Steps already done, 0..total-1.
        total: Steps of the whole run.
        warmup: Share of the run that climbs from (almost) zero, 0..1.

    Source: Loshchilov & Hutter 2017, equation 5, one cycle, with linear warm-up before it.

    >>> [round(cosine_factor(step, 4, warmup=0.25), 2) for step in range(4)]
    [1.0, 1.0, 0.75, 0.25]
    """
    climb = round(warmup * total)
    if step < climb:
        return (step + 1) / climb
    return 0.5 * (1 + cos(pi * (step - climb) / max(total - climb, 1)))
