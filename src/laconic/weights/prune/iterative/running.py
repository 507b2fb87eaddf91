"""A run of the loop at work: where it stands, and one iteration after another."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from laconic import measure
from laconic.errors import ConfigError, LaconicWarning, LayerError
from laconic.progress import NullProgress, Progress
from laconic.seeds import generator_for
from laconic.weights.prune.iterative.criteria import (
    CRITERIA,
    Criterion,
    at_most,
    scope_index,
    thinned,
)
from laconic.weights.prune.iterative.history import DROP, PruningRun, Row, limit_at
from laconic.weights.prune.iterative.masks import Masks
from laconic.weights.prune.iterative.schedules import Turnout
from laconic.weights.prune.iterative.store import State, Store, fingerprint_of, snapshot

if TYPE_CHECKING:
    from laconic.weights.prune.iterative.loop import IterativePruning

Score = Callable[[nn.Module], float]


class Train(Protocol):
    """Trains a masked model in place."""

    def __call__(self, model: nn.Module, masks: Masks, turn: Turn) -> None:
        """Train; pruned weights must be zero at the end.

        Args:
            model: In the state it is to be trained from.
            masks: What is kept.
            turn: The iteration, and who is to be told of each epoch.
        """
        ...


@dataclass(frozen=True)
class Turn:
    """One training of a run.

    Attributes:
        iteration: Number of the iteration.
        seed: Seed of this training.
        epoch_done: To be called with the epochs done, after each: the weights of the best one on
            the validation examples are taken. Never called, the last weights are taken.
        checkpoint: File that an interrupted training is taken up from; None without a folder.
        progress: Where progress is shown.
    """

    iteration: int
    seed: int
    epoch_done: Callable[[int], None]
    checkpoint: Path | None
    progress: Progress


class Running:
    """One run at work."""

    def __init__(
        self,
        settings: IterativePruning,
        model: nn.Module,
        train: Train,
        evaluate: Score,
        judge: Score | None,
        seed: int,
        folder: Path | None,
        progress: Progress | None,
    ) -> None:
        self.settings, self.model, self.train = settings, model, train
        self.evaluate, self.judge, self.seed = evaluate, judge, seed
        self.progress = progress or NullProgress()
        self.initial = snapshot(model)
        self.store = Store(folder)
        self.watch: Callable[[Row, Masks], None] | None = None
        self.first_is_trained = False

    def all(self, masks: Masks) -> PruningRun:
        """Do every iteration that is not done yet and choose one."""
        s = self.settings
        told = {key: value for key, value in asdict(s).items() if key != "schedule"}
        told |= {
            "schedule": repr(s.schedule),
            "criterion": _name_of(s.criterion),
            "seed": self.seed,
        }
        held = self.store.open(fingerprint_of(told, self.initial, masks), masks)
        state = held or State(masks)
        bar = self.progress.start(s.name, s.iterations + 1)
        self.progress.advance(bar, len(state.rows))
        while not state.stopped:
            row = self._iteration(state)
            self.store.write(state)
            self.progress.advance(
                bar, note=f"density {row.density:.3g}, score {row.score:.4g}, PQI {row.pqi:.3g}"
            )
            if self.watch:
                self.watch(row, state.trained_under)
        self.progress.finish(bar)
        if state.warning:
            warnings.warn(state.warning, LaconicWarning, stacklevel=4)
        return PruningRun(
            tuple(state.rows), state.chosen_masks, state.chosen, state.best, state.stopped, told
        )

    def _iteration(self, state: State) -> Row:
        """Train, score, and thin the masks for the next iteration."""
        start, number = time.perf_counter(), len(state.rows)
        self._rewind(state)
        epoch = self._trained(state, number)
        masks = state.masks
        self._check(masks)
        trained = snapshot(self.model)
        if number == 0:
            state.first = trained if self.settings.ranked_by == "first" else {}
        state.latest = self._carried(trained)
        row = self._row(number, masks, epoch)
        state.rows.append(row)
        state.trained_under = masks
        self._choose(state, trained)
        self._end(state)
        if not state.stopped:
            state.masks = self._thinned(state)
            if state.masks.survivors == masks.survivors:
                state.stopped = "nothing more to remove: the schedule asks for no weight"
                state.warning = self._unreached(state)
            else:
                state.masks.apply_(self.model)
                row = replace(row, score_pruned=self._score(self.evaluate, "evaluate"))
        row = replace(row, seconds=round(time.perf_counter() - start, 3))
        state.rows[-1] = row
        return row

    def _rewind(self, state: State) -> None:
        """Put the model where its training begins; pruned weights are zero."""
        source = state.late if state.rows and self.settings.late_epoch else self.initial
        self._set({**source, **state.latest})
        state.masks.apply_(self.model)

    def _carried(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what of a trained model the next training starts with."""
        if self.settings.rewind is None:
            return dict(trained)
        kept = dict(self.model.named_buffers()) if self.settings.keep_buffers else {}
        return {name: value for name, value in trained.items() if name in kept}

    def _set(self, values: Mapping[str, Tensor]) -> None:
        """Give parameters and buffers of the model these values."""
        held = self._tensors()
        with torch.no_grad():
            for name, value in values.items():
                held[name].copy_(value)

    def _trained(self, state: State, number: int) -> int | None:
        """Train the model, leave it in its best epoch, and return that."""
        best = self.store.epochs(number)

        def epoch_done(epoch: int) -> None:
            if number == 0 and epoch == self.settings.late_epoch:
                best.late = snapshot(self.model)
            value = self._score(self.evaluate, "evaluate")
            if best.epoch is None or value >= best.score:  # of equals the later, calmer one
                best.epoch, best.score, best.state = epoch, value, snapshot(self.model)
            self.store.write_epochs(best)

        turn = Turn(
            number,
            generator_for(self.seed, "iteration", number).initial_seed() % 2**31,
            epoch_done,
            self.store.training_path(number),
            self.progress,
        )
        if number or not self.first_is_trained:
            self.train(self.model, state.masks, turn)
            self._check_shapes()
            self._set(best.state)
        if number == 0 and self.settings.late_epoch:
            if not best.late:
                raise ConfigError(
                    f"{self.settings.name}: rewind={self.settings.rewind!r}, but the first "
                    "training told of no such epoch. Train longer, or rewind earlier."
                )
            state.late = best.late
        return best.epoch

    def _tensors(self) -> dict[str, Tensor]:
        model = self.model
        buffers = dict(model.named_buffers(remove_duplicate=False))
        return {**buffers, **dict(model.named_parameters(remove_duplicate=False))}

    def _check_shapes(self) -> None:
        held = self._tensors()
        for name, value in self.initial.items():
            found = tuple(held[name].shape) if name in held else None
            if found != tuple(value.shape):
                raise LayerError(
                    f"{name}: training changed its shape from {tuple(value.shape)} to {found}; "
                    "shapes must stay, or there is nothing to rewind to."
                )

    def _check(self, masks: Masks) -> None:
        """Hold what training left against what it must leave."""
        for name, weight in masks.weights(self.model).items():
            if not bool(torch.isfinite(weight).all()):
                raise LayerError(
                    f"{name}: training left NaN or infinite weights. Lower the learning rate, or "
                    "repair the model."
                )
        moved = masks.nonzero(self.model)
        if moved:
            name, count = next(iter(moved.items()))
            raise LayerError(
                f"{name}: training moved {count} pruned weights away from zero. Multiply by the "
                "mask after every step, as laconic's Trainer does."
            )

    def _score(self, function: Score, what: str) -> float:
        value = float(function(self.model))
        if not value == value or value in (float("inf"), -float("inf")):
            raise ConfigError(
                f"{self.settings.name}: {what} gave a score of {value}; it must be a finite "
                "number, the higher the better."
            )
        return value

    def _row(self, number: int, masks: Masks, epoch: int | None) -> Row:
        s, weights, kept = self.settings, masks.weights(self.model), masks.matrices()
        flat = torch.cat([weights[name][mask] for name, mask in kept.items()])
        whole = measure.sparsity(flat, p=s.p, q=s.q)
        each = {n: float(measure.pqi(weights[n][mask], s.p, s.q)) for n, mask in kept.items()}
        return Row(
            iteration=number,
            density=masks.density,
            survivors=whole.survivors,
            pqi=whole.pqi,
            gini=whole.gini,
            hoyer=whole.hoyer,
            zeros=whole.zeros,
            pqi_by_weight=each,
            score=self._score(self.evaluate, "evaluate"),
            test=self._score(self.judge, "judge") if self.judge else None,
            epoch=epoch,
        )

    def _choose(self, state: State, trained: dict[str, Tensor]) -> None:
        """Take the row as the chosen one: the last, or the lowest index that has not collapsed."""
        rows, row = state.rows, state.rows[-1]
        if self.settings.stop == "pqi" and len(rows) > 1:
            collapsed = row.score < rows[0].score - DROP
            if collapsed or row.pqi >= rows[state.best].pqi:
                return
        state.best, state.chosen, state.chosen_masks = row.iteration, trained, state.masks

    def _end(self, state: State) -> None:
        """Write down why the run ends here, if it does."""
        s, rows = self.settings, state.rows
        found = limit_at([r.pqi for r in rows], rise=s.rise, patience=s.patience)
        if s.stop == "pqi" and found:
            state.stopped = f"the PQ Index rose from its minimum in iteration {found[0]}"
        elif s.stop == "pqi" and rows[-1].score < rows[0].score - DROP:
            state.stopped = f"the score fell more than {DROP} below the dense one"
        elif isinstance(s.stop, int | float) and rows[-1].survivors <= self._wanted(state):
            state.stopped = f"density {s.stop} is reached"
        elif len(rows) > s.iterations:
            state.stopped = f"all {s.iterations} iterations are done"
            state.warning = self._unreached(state)

    def _unreached(self, state: State) -> str:
        """Return what to warn of where a run ends before the rule that was to end it."""
        s, last = self.settings, state.rows[-1]
        if s.stop is None:
            return ""
        return (
            f"{s.name}: stop={s.stop!r} was not reached in {len(state.rows)} iterations (density "
            f"{last.density:.4g}; {state.stopped}). Give more iterations, or a schedule that "
            "removes more, such as a larger gamma."
        )

    def _wanted(self, state: State) -> int:
        stop = self.settings.stop
        return max(1, round(stop * state.masks.total)) if isinstance(stop, int | float) else 0

    def _thinned(self, state: State) -> Masks:
        """Return the masks of the next iteration."""
        s, number, kept = self.settings, len(state.rows) - 1, state.masks.matrices()
        weights = state.masks.weights(self.model)
        counts, index = scope_index(weights, kept, s.scope, s.p, s.q)
        turnout = Turnout(number, s.iterations, counts, index, state.masks.total, s.p, s.q)
        removed = s.schedule.removals(turnout).clamp_min(0)
        removed = torch.minimum(removed, (counts - 1).clamp_min(0))
        exact = False
        if isinstance(s.stop, int | float):
            allowed = state.masks.survivors - self._wanted(state)
            exact = int(removed.sum()) >= allowed
            removed = at_most(removed, allowed)
        ranked = weights
        if s.ranked_by == "first":
            ranked = {name: state.masks.matrix(name, state.first[name].cpu()) for name in kept}
        criterion = CRITERIA[s.criterion] if isinstance(s.criterion, str) else s.criterion
        scores = {
            name: criterion(name, ranked[name], generator_for(self.seed, "score", number, name))
            for name in kept
        }
        return state.masks.from_matrices(thinned(scores, kept, s.scope, removed, exact=exact))


def _name_of(criterion: Criterion | str) -> str:
    return criterion if isinstance(criterion, str) else getattr(criterion, "__qualname__", "own")
