"""The loop of every search by generations: propose, race, keep the best, write it down."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from laconic.budget.race import Race, check_stages, noisy_stages
from laconic.budget.sampler import Sampler
from laconic.budget.search import (
    Choice,
    Fitness,
    Generation,
    SearchResult,
    Stage,
    StageRecord,
    read_record,
    to_plain,
)
from laconic.budget.table import LevelTable
from laconic.errors import ConfigError, LaconicWarning
from laconic.files import write_atomic
from laconic.progress import NullProgress, Progress

Step = Callable[[], bool]
_FORMAT = 1
_NOISE_EVERY = 10  # generations between two measurements of the noise


@dataclass
class Loop:
    """State of a search, all of it in a checkpoint after each generation.

    Args:
        method: Name of the solver.
        table: Sites by levels.
        fitness: Judges assignments.
        sampler: Draws minibatches.
        stages: Races of each generation.
        generations: How many; None until a step ends the search.
        settings: What else fixes the answer; a checkpoint of other settings is refused.
        initial: Tokens that starts are judged on, where there are several.
        seed: Seed of everything random.
        checkpoint: File of the state; None keeps none.
        progress: Where progress is shown.
    """

    method: str
    table: LevelTable
    fitness: Fitness
    sampler: Sampler
    stages: Sequence[Stage]
    generations: int | None
    settings: Mapping[str, Any]
    initial: int = 0
    seed: int = 0
    checkpoint: Path | None = None
    progress: Progress | None = None
    history: list[Generation] = field(default_factory=list, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.race = Race(self.table, self.fitness, self.sampler)
        self.key = self._key()
        self.before_s, self.begun = 0.0, time.monotonic()

    @property
    def parent(self) -> Choice:
        """Levels of the best so far."""
        return self.history[-1].choice

    def run(
        self, starts: Callable[[np.random.Generator], list[Choice]], step: Step
    ) -> SearchResult:
        """Run or go on, and return what was found.

        Args:
            starts: Draws the states to begin with.
            step: Makes one generation; False ends the search.
        """
        if not self._resumed():
            self._begin(starts(self.rng))
        bar = self.progress or NullProgress()
        task = bar.start(f"search: {self.method}", self.generations)
        bar.advance(task, len(self.history) - 1)
        while self.generations is None or len(self.history) <= self.generations:
            if not step():
                break
            bar.advance(task, note=f"fitness {self.history[-1].fitness:.4g}")
        bar.finish(task)
        return self._result()

    def _begin(self, states: list[Choice]) -> None:
        """Take the fittest of the initial states; a single one is not judged."""
        if len(states) == 1:
            self.record(states[0], nan, True, ())
        else:
            winner, value, records = self.race.run(states, [(1, self.initial)], self.rng)
            self.record(winner, value, True, records)

    def breed(self, children: list[Choice]) -> bool:
        """Let candidates race against each other and the parent; False where there are none."""
        if not children:
            self.note("the search ended early: no other assignment of this cost can be reached.")
            return False
        winner, value, records = self.race.run(
            children, fitted(self.stages, len(children)), self.rng,
            parent=self.parent, measure_noise=len(self.history) % _NOISE_EVERY == 1,
        )  # fmt: skip
        self.record(winner, value, winner != self.parent, records)
        return True

    def note(self, text: str) -> None:
        """Add a sentence for the reader of the result, once."""
        if text not in self.notes:
            self.notes.append(text)

    def record(
        self, choice: Choice, value: float, changed: bool, stages: tuple[StageRecord, ...]
    ) -> None:
        """Make an assignment the parent and write the checkpoint."""
        cost = self.table.assignment(choice).cost
        done = self.race.evaluations, self.race.tokens
        number = len(self.history)
        self.history.append(Generation(number, choice, cost, value, changed, *done, stages))
        self._save()

    def _seconds(self) -> float:
        return self.before_s + time.monotonic() - self.begun

    def _result(self) -> SearchResult:
        noisy = noisy_stages(self.history)
        if noisy:
            warnings.warn(
                f"search {self.method!r}: the noise of the judgement hides the differences that "
                f"it decides on: {'; '.join(noisy)}. Give the stages more tokens.",
                LaconicWarning,
                stacklevel=4,
            )
        last = self.history[-1]
        return SearchResult(
            self.method, self.table.assignment(last.choice), last.fitness, tuple(self.history),
            self.race.evaluations, self.race.tokens, self._seconds(),
            {**self.settings, "seed": self.seed}, (*self.notes, *noisy),
        )  # fmt: skip

    def _key(self) -> str:
        """Return a digest of all that fixes the answer but the fitness and the length."""
        table = self.table
        told = {
            "method": self.method, "sites": table.sites, "levels": table.levels,
            "costs": table.costs.tolist(), "errors": [[repr(e) for e in r] for r in table.errors],
            "groups": table.groups, "fixed": table.fixed_bytes, "seed": self.seed,
            "stages": self.stages, "settings": self.settings,
            "documents": self.sampler.lengths, "least": self.sampler.least,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        state = {
            "format": _FORMAT, "key": self.key, "seconds": self._seconds(), "notes": self.notes,
            "generator": self.rng.bit_generator.state,
            "history": [to_plain(generation) for generation in self.history],
        }  # fmt: skip
        write_atomic(self.checkpoint, json.dumps(state) + "\n")

    def _resumed(self) -> bool:
        """Take up the state of the checkpoint; False where there is none.

        Raises:
            ConfigError: It is no checkpoint, or one of another search.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return False
        try:
            state = json.loads(self.checkpoint.read_text())
            key, history = state["key"], [read_record(row) for row in state["history"]]
            self.rng.bit_generator.state = state["generator"]
            self.before_s, self.notes = float(state["seconds"]), list(state["notes"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.checkpoint.name} is no checkpoint of a search ({error}). Remove it or "
                "choose another file."
            ) from error
        if key != self.key:
            raise ConfigError(
                f"{self.checkpoint.name} belongs to a search with other levels, budget, stages, "
                "seed or settings. Remove it to begin anew, or choose another file."
            )
        self.history = history[: None if self.generations is None else self.generations + 1]
        self.race.evaluations = self.history[-1].evaluations
        self.race.tokens = self.history[-1].tokens
        return True


def fitted(stages: Sequence[Stage], candidates: int) -> tuple[Stage, ...]:
    """Return stages that keep no more than the candidates there are."""
    return tuple((min(survivors, candidates), tokens) for survivors, tokens in stages)


def check_counts(
    what: str, sampler: Sampler, stages: Sequence[Stage], generations: int, candidates: int
) -> tuple[Stage, ...]:
    """Return the checked stages of a search by generations.

    Raises:
        ConfigError: A count is below its least, or the stages make no race.
    """
    if generations < 0 or candidates < 1:
        raise ConfigError(
            f"{what}: generations={generations} must be at least 0 and {candidates} candidates a "
            "generation at least 1."
        )
    return check_stages(stages, candidates, sampler)
