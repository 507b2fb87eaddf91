"""What a run of iterative pruning found, iteration by iteration, and how to read it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from laconic.errors import ConfigError
from laconic.files import write_atomic
from laconic.weights.prune.iterative.masks import Masks

Phase = Literal["regularising", "limit", "collapse"]
FALL = 0.3  # the index has collapsed when it lies so far below its peak after the minimum
DROP = 0.05  # the model has collapsed when its score lies so far below the dense one's


@dataclass(frozen=True, kw_only=True)
class Row:
    """One iteration: what was kept while it was trained, and what came of it.

    Attributes:
        iteration: 0 is the dense model, or what the first masks left of it.
        density: Share of the prunable weights that is kept.
        survivors: Number of weights that is kept.
        pqi: PQ Index of all trained survivors together.
        gini: Gini index of the same.
        hoyer: Hoyer's measure of the same.
        zeros: Survivors that are exactly zero; they were counted.
        pqi_by_weight: PQ Index of each tensor's survivors.
        score: Of the retrained model on the validation examples; the higher the better.
        score_pruned: Of the same weights under the next masks, not retrained; None at the end.
        test: Of the retrained model by the judge, where there is one; never used for a choice.
        epoch: Epoch whose weights were taken; None where training told of none.
        seconds: Time of the iteration.
    """

    iteration: int
    density: float
    survivors: int
    pqi: float
    gini: float
    hoyer: float
    zeros: int
    pqi_by_weight: Mapping[str, float]
    score: float
    score_pruned: float | None = None
    test: float | None = None
    epoch: int | None = None
    seconds: float = 0.0


def limit_at(
    index: Sequence[float], *, rise: float = 0.15, patience: int = 2
) -> tuple[int, int] | None:
    """Return where the PQ Index had its minimum and where that was confirmed; None if nowhere.

    It is confirmed when the index lay at least ``rise`` above its running minimum in ``patience``
    iterations one after another.

    >>> limit_at([0.16, 0.06, 0.035, 0.036, 0.05, 0.06, 0.04])
    (2, 5)
    """
    low, above = 0, 0
    for place, value in enumerate(index):
        if value < index[low]:
            low, above = place, 0
        above = above + 1 if value >= (1 + rise) * index[low] and place > low else 0
        if above == patience:
            return low, place
    return None


def phases(
    index: Sequence[float],
    scores: Sequence[float],
    *,
    rise: float = 0.15,
    patience: int = 2,
    drop: float = DROP,
) -> list[Phase]:
    """Return the phase of every iteration.

    ``regularising`` while the PQ Index falls; ``limit`` from its first local minimum on, once it
    is confirmed (:func:`limit_at`); ``collapse`` from where the score lies more than ``drop``
    below the dense one, or the index 30 % below its peak after the minimum.

    >>> phases([0.16, 0.04, 0.06, 0.10, 0.05], [0.98, 0.97, 0.96, 0.95, 0.60])
    ['regularising', 'limit', 'limit', 'limit', 'collapse']
    """
    found = limit_at(index, rise=rise, patience=patience)
    named: list[Phase] = []
    peak = 0.0
    for place, (value, score) in enumerate(zip(index, scores, strict=True)):
        limit = found is not None and place >= found[0]
        peak = max(peak, value) if limit else 0.0
        fallen = limit and value <= (1 - FALL) * peak
        if fallen or score < scores[0] - drop or (named and named[-1] == "collapse"):
            named.append("collapse")
        else:
            named.append("limit" if limit else "regularising")
    return named


@dataclass(frozen=True)
class PruningRun:
    """What came of a run.

    Attributes:
        history: One row an iteration.
        masks: The masks that were chosen.
        state: Trained parameters and buffers under them, by name.
        best: Iteration that they come from.
        stopped: Why the run ended.
        settings: What it was asked, as plain values.
    """

    history: tuple[Row, ...]
    masks: Masks
    state: Mapping[str, Tensor]
    best: int
    stopped: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chosen(self) -> Row:
        """The row of the masks that were chosen."""
        return self.history[self.best]

    def phases(self) -> list[Phase]:
        """Return the phase of every iteration, by the settings of the run."""
        told = {name: self.settings[name] for name in ("rise", "patience") if name in self.settings}
        return phases(
            [row.pqi for row in self.history], [row.score for row in self.history], **told
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all but the tensors as plain values."""
        rows = [
            {**asdict(row), "pqi_by_weight": dict(row.pqi_by_weight), "phase": phase}
            for row, phase in zip(self.history, self.phases(), strict=True)
        ]
        return {
            "settings": dict(self.settings),
            "best": self.best,
            "stopped": self.stopped,
            "survivors": self.masks.survivors,
            "history": rows,
        }

    def to_csv(self) -> str:
        """Return the history as a table: a line an iteration, a column a weight's PQ Index."""
        names = list(self.history[0].pqi_by_weight)
        plain = [f.name for f in fields(Row) if f.name != "pqi_by_weight"]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*plain, "phase", *(f"pqi {name}" for name in names)])
        for row, phase in zip(self.history, self.phases(), strict=True):
            each = [row.pqi_by_weight[name] for name in names]
            writer.writerow([*(getattr(row, name) for name in plain), phase, *each])
        return out.getvalue()

    def save(self, folder: Path) -> None:
        """Write ``history.json``, ``history.csv`` and ``masks.safetensors`` (bool) into a folder.

        Raises:
            ConfigError: ``folder`` is a file.
        """
        if folder.is_file():
            raise ConfigError(f"{folder} is a file; give a folder for the history and the masks.")
        from safetensors.torch import save

        write_atomic(folder / "history.json", json.dumps(self.to_dict(), indent=1))
        write_atomic(folder / "history.csv", self.to_csv())
        masks = {name: mask.contiguous() for name, mask in self.masks.kept.items()}
        write_atomic(folder / "masks.safetensors", save(masks))
