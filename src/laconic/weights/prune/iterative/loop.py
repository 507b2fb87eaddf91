"""The loop: train, choose an epoch, score, thin the masks, rewind, and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from torch import nn

from laconic.errors import ConfigError
from laconic.measure.sparsity import check_norms
from laconic.progress import Progress
from laconic.settings import check_settings, setting
from laconic.weights.prune.iterative.criteria import CRITERIA, Criterion, Scope
from laconic.weights.prune.iterative.history import PruningRun, Row
from laconic.weights.prune.iterative.masks import Masks
from laconic.weights.prune.iterative.running import Running, Score, Train, Turn
from laconic.weights.prune.iterative.schedules import Schedule, SparsityInformed

__all__ = ["IterativePruning", "LoopSettings", "Score", "Train", "Turn"]


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Settings of the loop that every schedule shares; :class:`IterativePruning` tells them."""

    scope: Scope = setting("global", help="what competes: all weights, a layer's, or a neuron's")
    p: float = setting(0.5, help="lower norm of the PQ Index", low=0.01)
    q: float = setting(1.0, help="upper norm of the PQ Index; above p")
    iterations: int = setting(15, help="prunings, each with a training after it", low=1)
    rewind: str | None = setting(
        "init", help="'init', 'epoch:K', or none to go on from trained weights"
    )
    stop: Literal["pqi"] | float | None = setting(
        None, help="'pqi', or the density to end at", low=1e-5, high=1.0
    )
    rise: float = setting(0.15, help="rise over its minimum that ends by 'pqi'", low=0.01, high=10)
    patience: int = setting(2, help="iterations that the rise must last", low=1)
    skip: tuple[str, ...] = setting((), help="name patterns of weights that are not pruned")

    @property
    def late_epoch(self) -> int | None:
        """Epoch of the first training that is rewound to; None for another place.

        Raises:
            ConfigError: ``rewind`` is neither ``init``, ``epoch:K`` nor none.
        """
        word, colon, number = (self.rewind or "").partition(":")
        if self.rewind in (None, "init"):
            return None
        if word == "epoch" and colon and number.isdecimal() and int(number) > 0:
            return int(number)
        raise ConfigError(
            f"iterative pruning: rewind={self.rewind!r} must be 'init', 'epoch:K' with a whole "
            "number from 1, or none."
        )

    def check_loop(self) -> None:
        """Check what bounds alone do not say; the word ``none`` for no rewinding becomes None.

        Raises:
            ConfigError: A place to rewind to that is none, or p not below q.
        """
        if self.rewind == "none":  # as people type it in YAML
            object.__setattr__(self, "rewind", None)
        if self.late_epoch is None:
            check_norms(self.p, self.q)


@dataclass(frozen=True, kw_only=True)
class IterativePruning(LoopSettings):
    """Prune, rewind and retrain until a rule ends it.

    Args:
        schedule: How many weights go.
        criterion: Which go first: ``magnitude``, ``random``, or a function of name, weight
            (rows, cols) and a source of randomness that returns scores (rows, cols).
        ranked_by: Whose weights are scored: those trained ``latest``, or those trained ``first``,
            in iteration 0, as one-shot pruning does.
        scope: What competes: all weights under one threshold (``global``), those of a ``layer``,
            or those of a ``neuron`` (one output row).
        p: Lower norm of the PQ Index.
        q: Upper norm.
        iterations: Prunings; there is one training more.
        rewind: Where survivors start from in every iteration: ``init``; ``epoch:K``, the state
            after K epochs of iteration 0; or none, the weights trained last.
        keep_buffers: Buffers such as the statistics of batch norms live on through a rewind, as
            in the published code; else they are rewound too.
        stop: None does all iterations. A number ends at that density, exactly. ``pqi`` ends when
            the PQ Index has risen over its minimum, and takes the masks of the minimum.
        rise: How far over its minimum the index must lie for that, as a share.
        patience: For how many iterations one after another.
        skip: Name patterns of weights that are trained and not pruned.
        name: For messages.

    Raises:
        ConfigError: A setting out of its bounds, an unknown criterion.

    Source: Frankle and Carbin 2019, section 2; Frankle et al. 2020 for ``epoch:K``; Diao et al.
        2023, algorithm 1.
    Differs: epochs are chosen on validation examples, and buffers are rewound; the published code
        of the latter chooses on the test set and leaves buffers as they are.
    """

    schedule: Schedule = field(default_factory=SparsityInformed)
    criterion: Criterion | str = "magnitude"
    ranked_by: Literal["latest", "first"] = "latest"
    keep_buffers: bool = False
    name: str = "iterative pruning"

    def __post_init__(self) -> None:
        check_settings(self, owner=self.name)
        self.check_loop()
        if isinstance(self.criterion, str) and self.criterion not in CRITERIA:
            raise ConfigError(
                f"{self.name}: criterion={self.criterion!r} must be one of {list(CRITERIA)}, or a "
                "function."
            )
        if self.ranked_by not in ("latest", "first"):
            raise ConfigError(
                f"{self.name}: ranked_by={self.ranked_by!r} must be 'latest' or 'first'."
            )

    def run(
        self,
        make_model: Callable[[], nn.Module],
        train: Train,
        evaluate: Score,
        *,
        masks: Masks,
        judge: Score | None = None,
        first_is_trained: bool = False,
        seed: int = 0,
        folder: Path | None = None,
        progress: Progress | None = None,
        watch: Callable[[Row, Masks], None] | None = None,
    ) -> PruningRun:
        """Run the loop.

        Args:
            make_model: Makes the model with its initial weights.
            train: Trains it, for example a :class:`Trainer`.
            evaluate: Score on validation examples, the higher the better.
            masks: What may be pruned, and what is pruned already; skipped names are taken out.
            judge: Score on test examples, for the history alone.
            first_is_trained: The model is trained already: iteration 0 takes it as it is.
            seed: Seed of trainings and of random scores.
            folder: Where the run is kept; called again with the same arguments it goes on where
                it was killed, and ends in the same masks.
            progress: Where progress is shown.
            watch: Called after every iteration with its row and its masks.

        Raises:
            ConfigError: No weight in the scope, a folder of another run, scores that are not
                finite.
            LayerError: Training left a pruned weight other than zero, a shape changed, or a
                weight is NaN; names it.
        """
        run = Running(self, make_model(), train, evaluate, judge, seed, folder, progress)
        run.watch, run.first_is_trained = watch, first_is_trained
        chosen = {
            name: mask
            for name, mask in masks.kept.items()
            if not any(fnmatchcase(name, pattern) for pattern in self.skip)
        }
        return run.all(Masks(chosen, masks.layouts))
