"""Races in stages: candidates are judged on ever more fresh text, and ever fewer survive."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from statistics import median

import numpy as np
from numpy.typing import NDArray

from laconic.budget.sampler import Minibatch, Sampler
from laconic.budget.search import Choice, Fitness, Generation, Stage, StageRecord
from laconic.budget.table import LevelTable
from laconic.errors import BackendError, ConfigError, LaconicWarning

_PARTS = 4  # pieces of a minibatch, where the noise is measured


def check_stages(stages: Sequence[Stage], candidates: int, sampler: Sampler) -> tuple[Stage, ...]:
    """Return the stages as plain numbers, or raise where they make no race.

    Raises:
        ConfigError: No stage, more survivors than candidates or than before, the last keeps more
            than one, or a stage wants more tokens than the search set has.
    """
    told = tuple((int(survivors), int(tokens)) for survivors, tokens in stages)
    if not told or told[-1][0] != 1:
        raise ConfigError(
            f"stages={list(told)}: the last stage must keep 1 survivor; end with (1, tokens)."
        )
    before = candidates
    for number, (survivors, tokens) in enumerate(told, 1):
        if not 1 <= survivors <= before:
            raise ConfigError(
                f"stages={list(told)}: stage {number} keeps {survivors} of {before}; each stage "
                "must keep at least 1 and no more than enter it."
            )
        sampler.check(tokens, f"stage {number}")
        before = survivors
    return told


@dataclass
class Race:
    """Judges candidates, counts what that took, and measures the noise of the judgement.

    Args:
        table: Sites by levels.
        fitness: Judges assignments.
        sampler: Draws a minibatch for each stage.
        evaluations: Assignments judged so far.
        tokens: Tokens judged so far.
    """

    table: LevelTable
    fitness: Fitness
    sampler: Sampler
    evaluations: int = 0
    tokens: int = 0
    _warned: bool = field(default=False, init=False)

    def score(self, choices: Sequence[Choice], minibatch: Minibatch) -> NDArray[np.float64]:
        """Return the fitness of each choice, (choices,); what is no number counts as infinity.

        Raises:
            BackendError: The fitness gave another number of values than it got assignments.
        """
        assignments = [self.table.assignment(choice) for choice in choices]
        found = np.array(self.fitness(assignments, minibatch), dtype=np.float64)
        if found.shape != (len(choices),):
            raise BackendError(
                f"the fitness gave values of shape {found.shape} for {len(choices)} assignments; "
                "it must return one number each."
            )
        bad = np.isnan(found)
        if bad.any() and not self._warned:
            self._warned = True
            warnings.warn(
                f"the fitness of {int(bad.sum())} of {len(choices)} assignments is not a number; "
                "such assignments lose against all others. Look for levels that break the model.",
                LaconicWarning,
                stacklevel=2,
            )
        found[bad] = inf
        self.evaluations += len(choices)
        self.tokens += len(choices) * minibatch.tokens
        return found

    def run(
        self,
        candidates: Sequence[Choice],
        stages: Sequence[Stage],
        rng: np.random.Generator,
        *,
        parent: Choice | None = None,
        measure_noise: bool = False,
    ) -> tuple[Choice, float, tuple[StageRecord, ...]]:
        """Return the winner, its fitness, and what each stage did.

        Each stage draws one fresh minibatch for all. The parent joins at the last stage only,
        whatever the numbers of survivors, and is judged again there; it wins ties.

        Source: Sieberling et al. 2024 (EvoPress), algorithm 2, multi-step selection.
        Differs: the authors' code tells the last stage by its number of survivors, so that with
            stages that keep 1 and 1 the parent joins at the first.
        """
        standing = list(candidates)
        records: list[StageRecord] = []
        values = np.zeros(0)
        for index, (survivors, tokens) in enumerate(stages):
            if index == len(stages) - 1 and parent is not None:
                standing = [parent, *standing]
            minibatch = self.sampler.draw(tokens, rng)
            values, noise = self._judge(standing, minibatch, measure_noise)
            order = np.argsort(values, kind="stable")[:survivors]
            compared = values[order] if survivors > 1 else values
            records.append(StageRecord(len(standing), survivors, tokens, _spread(compared), noise))
            standing, values = [standing[int(i)] for i in order], values[order]
        return standing[0], float(values[0]), tuple(records)

    def _judge(
        self, choices: Sequence[Choice], minibatch: Minibatch, measure_noise: bool
    ) -> tuple[NDArray[np.float64], float | None]:
        """Score choices; where the noise is measured, piece by piece on the same documents."""
        pieces = minibatch.split(_PARTS) if measure_noise else [minibatch]
        if len(pieces) < 2 or len(choices) < 2:
            return self.score(choices, minibatch), None
        before = self.evaluations
        scores = np.stack([self.score(choices, piece) for piece in pieces], axis=1)
        self.evaluations = before + len(choices)
        shares = np.array([piece.tokens for piece in pieces]) / minibatch.tokens
        return scores @ shares, difference_noise(scores)


def difference_noise(scores: NDArray[np.float64]) -> float | None:
    """Return the standard error of the difference of two candidates' mean scores.

    The scores of candidates on pieces of one minibatch differ by candidate and by piece; what
    is left beyond both is noise that decides between candidates. With residual variance ``s2``
    over ``p`` pieces the difference of two means has variance ``2 s2 / p``.

    Args:
        scores: (candidates, pieces), at least two of each.

    Returns:
        None where fewer than two candidates have finite scores.

    >>> import numpy as np
    >>> difference_noise(np.array([[1.0, 2.0], [2.0, 3.0]]))  # the same on both pieces
    0.0
    """
    finite = scores[np.isfinite(scores).all(axis=1)]
    rows, pieces = finite.shape
    if rows < 2 or pieces < 2:
        return None
    by_row, by_piece = finite.mean(axis=1, keepdims=True), finite.mean(axis=0)
    rest = finite - by_row - by_piece + finite.mean()
    variance = float((rest**2).sum()) / ((rows - 1) * (pieces - 1))
    return sqrt(2 * variance / pieces)


def _spread(values: NDArray[np.float64]) -> float:
    finite = [float(v) for v in values if isfinite(v)]
    return max(finite) - min(finite) if finite else 0.0


def noisy_stages(history: Iterable[Generation]) -> list[str]:
    """Return a sentence for each stage whose noise hides the differences it should decide on.

    A stage is noisy where, in the median over the generations in which it was measured, the
    standard error of the difference between two candidates is above their spread.
    """
    measured: dict[int, list[StageRecord]] = {}
    for generation in history:
        for number, record in enumerate(generation.stages, 1):
            if record.noise is not None:
                measured.setdefault(number, []).append(record)
    told: list[str] = []
    for number, records in sorted(measured.items()):
        noise = median(record.noise or 0.0 for record in records)
        spread = median(record.spread for record in records)
        if noise > spread and noise > 0:
            told.append(
                f"stage {number} of {records[0].tokens} tokens: two candidates differ by "
                f"{spread:.3g} and the standard error of a difference is {noise:.3g}"
            )
    return told
