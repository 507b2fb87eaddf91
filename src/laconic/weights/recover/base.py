"""What a recovery step is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from laconic.progress import NullProgress, Progress
from laconic.task import Batch, Task


@dataclass(kw_only=True)
class RecoverJob:
    """A compressed model and what may help to recover it.

    Attributes:
        model: The compressed model; its parameters are changed in place.
        initial: The model as it was before training; None where nobody gave it.
        original: The model before compression, to learn from; may be None.
        task: Data and loss; without a train split recovery is data-free.
        seed: Source of order and randomness.
        device: Where to train.
        checkpoint: File that an interrupted run is taken up from.
        progress: Where progress is shown.
        example: A batch whose shapes and types drawn inputs take; the task's where None.
    """

    model: nn.Module
    original: nn.Module | None = None
    initial: nn.Module | None = None
    task: Task | None = None
    seed: int = 0
    device: str | torch.device = "cpu"
    checkpoint: Path | None = None
    progress: Progress = field(default_factory=NullProgress)
    example: Batch | None = None
