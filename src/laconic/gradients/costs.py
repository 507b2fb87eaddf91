"""What an exchange takes on links that cannot be made here: the usual model of rings.

A message of B bytes takes ``latency + B / bandwidth`` from one rank to the next.
"""

from __future__ import annotations

from laconic.errors import ConfigError


def all_reduce_seconds(
    size: int, ranks: int, *, megabits: float, latency_s: float = 50e-6
) -> float:
    """Return the seconds of a ring all-reduce: 2 (N - 1) steps of B / N bytes.

    >>> round(all_reduce_seconds(4_000_000, 4, megabits=100, latency_s=0), 3)
    0.48

    Raises:
        ConfigError: A number out of its range.
    """
    speed = _bytes_a_second(ranks, megabits, latency_s)
    return 2 * (ranks - 1) * (latency_s + size / ranks / speed)


def all_gather_seconds(
    size: int, ranks: int, *, megabits: float, latency_s: float = 50e-6
) -> float:
    """Return the seconds of a ring all-gather of messages of ``size`` bytes: N - 1 steps.

    >>> round(all_gather_seconds(40_000, 4, megabits=100, latency_s=0), 4)
    0.0096

    Raises:
        ConfigError: A number out of its range.
    """
    speed = _bytes_a_second(ranks, megabits, latency_s)
    return (ranks - 1) * (latency_s + size / speed)


def _bytes_a_second(ranks: int, megabits: float, latency_s: float) -> float:
    if ranks < 1 or not megabits > 0 or latency_s < 0:
        raise ConfigError(
            f"cost model: ranks={ranks} must be at least 1, megabits={megabits} positive and "
            f"latency_s={latency_s} not negative."
        )
    return megabits * 1e6 / 8
