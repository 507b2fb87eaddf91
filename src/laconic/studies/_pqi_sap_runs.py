"""Runs of the PQI study: a bench of model, data and training, and variants of pruning on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from laconic.progress import NullProgress, Progress
from laconic.task import Task
from laconic.weights.prune.iterative import (
    IterativePruning,
    Masks,
    PruningRun,
    Row,
    SparsityInformed,
    Trainer,
    held_out,
    scorer,
)
from laconic.weights.sites import find_sites

Transform = Callable[[Task], Task]
ENOUGH = 0.10  # the density at which methods are compared


@dataclass(frozen=True)
class Bench:
    """What is pruned: a network, its data, and how it is trained.

    Args:
        make: Network by seed, with its initial weights.
        data: Task by seed.
        training: Settings of :class:`Trainer` beside task and device.
        validation: Share of the training examples that is held out.
        transform: What is done to the task of the examples that are left to train on, such as
            flips and crops.
        device: Where the work is done.
        folder: Where runs are kept, by variant and seed; None keeps nothing.
        progress: Where progress is shown.
    """

    make: Callable[[int], nn.Module]
    data: Callable[[int], Task]
    training: Mapping[str, Any]
    validation: float = 0.15
    transform: Transform | None = None
    device: str = "cpu"
    folder: Path | None = None
    progress: Progress = field(default_factory=NullProgress)

    def run(self, name: str, plan: IterativePruning, seed: int) -> PruningRun:
        """Run one variant with one seed; epochs are chosen on validation examples alone."""
        task = self.data(seed)
        train, validation = held_out(task, self.validation, seed=seed)
        train = self.transform(train) if self.transform else train
        folder = None if self.folder is None else self.folder / f"{slug(name)}-{seed}"
        return replace(plan, name=name).run(
            lambda: self.make(seed).to(self.device),
            Trainer(task=train, device=self.device, **self.training),
            scorer(validation, device=self.device),
            masks=Masks.of_sites(find_sites(self.make(seed))),
            judge=scorer(task, device=self.device),
            seed=seed,
            folder=folder,
            progress=self.progress,
        )

    def run_all(
        self, variants: Mapping[str, IterativePruning], seeds: Sequence[int]
    ) -> dict[str, list[PruningRun]]:
        """Run every variant with every seed."""
        return {
            name: [self.run(name, plan, seed) for seed in seeds] for name, plan in variants.items()
        }


def slug(name: str) -> str:
    """Return a name as part of a path."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def informed(
    gamma: float = 1.0, p: float = 0.5, q: float = 1.0, eta: float = 0.0, **settings: Any
) -> IterativePruning:
    """Return sparsity-informed pruning."""
    return IterativePruning(schedule=SparsityInformed(gamma=gamma, eta=eta), p=p, q=q, **settings)


def reached(run: PruningRun, density: float = ENOUGH) -> Row | None:
    """Return the first row at or below a density; None where the run never came there."""
    return next((row for row in run.history if row.density <= density), None)


def on_test(row: Row) -> float:
    """Return the score on test examples."""
    return float("nan") if row.test is None else row.test


def points_lost(run: PruningRun, row: Row | None) -> float:
    """Return how many points of test score a row lies below the dense model."""
    return 100 * (on_test(run.history[0]) - on_test(row)) if row else float("nan")


def lowest(run: PruningRun, density: float = 0.01) -> Row:
    """Return the row of the smallest PQ Index among those of at least a density."""
    return min((row for row in run.history if row.density >= density), key=lambda row: row.pqi)


def peak(run: PruningRun, low: float = 0.002, high: float = 0.01) -> float:
    """Return the largest PQ Index between two densities."""
    return max((r.pqi for r in run.history if low <= r.density <= high), default=float("nan"))


def summary_row(name: str, plan: IterativePruning, runs: Sequence[PruningRun]) -> dict[str, Any]:
    """Return a variant's row: what it keeps and scores after 5 prunings, at 10 %, at the end."""
    found = [reached(run) for run in runs]
    rows = [row for row in found if row is not None]
    complete = len(rows) == len(runs)
    fifth = [run.history[min(5, len(run.history) - 1)] for run in runs]
    last = [run.chosen for run in runs]
    return {
        "method": name,
        "p, q": f"{plan.p:g}, {plan.q:g}",
        "scope": plan.scope,
        "kept after 5": fmean(row.density for row in fifth),
        "top-1 then": fmean(map(on_test, fifth)),
        "prunings to 10 %": fmean(row.iteration for row in rows) if complete else None,
        "top-1 there": fmean(map(on_test, rows)) if complete else None,
        "prunings in all": fmean(row.iteration for row in last),
        "kept at the end": fmean(row.density for row in last),
        "top-1 at the end": fmean(map(on_test, last)),
    }


def curve_rows(runs: Sequence[PruningRun]) -> tuple[dict[str, Any], ...]:
    """Return the iterations of a variant, figures averaged over seeds, the first seed's phase."""
    length = min(len(run.history) for run in runs)
    rows = []
    for number, phase in enumerate(runs[0].phases()[:length]):
        each = [run.history[number] for run in runs]
        pruned = [row.score_pruned for row in each if row.score_pruned is not None]
        rows.append(
            {
                "iteration": number,
                "density": fmean(row.density for row in each),
                "survivors": round(fmean(row.survivors for row in each)),
                "pqi": fmean(row.pqi for row in each),
                "gini": fmean(row.gini for row in each),
                "hoyer": fmean(row.hoyer for row in each),
                "test": fmean(map(on_test, each)),
                "score": fmean(row.score for row in each),
                "score_pruned": fmean(pruned) if len(pruned) == len(each) else None,
                "phase": phase,
            }
        )
    return tuple(rows)
