"""Fitness functions of the search tests; a module of its own, so that workers can import it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from laconic.budget import Assignment, LevelTable, Minibatch, Sampler


class Linear:
    """Sum of a weight for each site and level, the same on every minibatch; remembers all."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights
        self.seen: list[Assignment] = []
        self.calls: list[tuple[int, Minibatch]] = []

    def __call__(self, assignments: list[Assignment], minibatch: Minibatch, /) -> list[float]:
        self.seen += assignments
        self.calls.append((len(assignments), minibatch))
        rows = np.arange(len(self.weights))
        return [float(self.weights[rows, list(a.choice)].sum()) for a in assignments]


class Noisy(Linear):
    """The same, plus noise that depends on the assignment and on each document."""

    def __init__(self, weights: np.ndarray, scale: float) -> None:
        super().__init__(weights)
        self.scale = scale

    def __call__(self, assignments: list[Assignment], minibatch: Minibatch, /) -> list[float]:
        plain = super().__call__(assignments, minibatch)
        return [
            value + self.scale * self._mean_noise(a.choice, minibatch)
            for value, a in zip(plain, assignments, strict=True)
        ]

    def _mean_noise(self, choice: Sequence[int], minibatch: Minibatch) -> float:
        drawn = [
            np.random.default_rng((document, *choice)).standard_normal()
            for document in minibatch.documents
        ]
        return float(np.mean(drawn))


def noisy_factory(sites: int, levels: int, scale: float) -> Noisy:
    """Build a noisy fitness from plain numbers, as a worker does."""
    return Noisy(np.random.default_rng(7).random((sites, levels)), scale)


def broken_factory() -> Noisy:
    """Fail as a factory whose model is not there."""
    raise FileNotFoundError("no model here")


class Dies(Linear):
    """Ends its process when it is called."""

    def __call__(self, assignments: list[Assignment], minibatch: Minibatch, /) -> list[float]:
        os._exit(3)


def dying_factory() -> Dies:
    """Build a fitness that ends its process."""
    return Dies(np.zeros((1, 1)))


def subset_table(units: int) -> LevelTable:
    """Units that are dropped or kept, at a cost of 1 each, all in one group."""
    return LevelTable(
        [f"u{i}" for i in range(units)], ["dropped", "kept"], [[0, 1]] * units,
        groups=["all"] * units, unit="units",
    )  # fmt: skip


def documents(count: int = 200, tokens: int = 10) -> Sampler:
    return Sampler([tokens] * count, least=2)
