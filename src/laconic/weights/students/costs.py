"""Costs that a reward may count in place of parameters: bytes on disk, and time."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from laconic import artifact
from laconic.weights.students.spec import architecture

_REPEATS = 15


def stored_bytes(model: nn.Module, example: Tensor) -> float:
    """Return the bytes of a student's artefact with nothing coded: it never takes more.

    Args:
        model: Student, trained or not.
        example: One example, (1, ...).
    """
    with tempfile.TemporaryDirectory(prefix="laconic-") as folder:
        report = artifact.save(
            model,
            Path(folder) / "student",
            architecture=architecture(model, example),
            effort="none",
        )
    return float(report.deployed_bytes)


def latency_seconds(model: nn.Module, example: Tensor) -> float:
    """Return the median time of one example on this device, after two warm runs, in seconds.

    It differs a little from run to run, so a resumed search keeps what it measured before.

    Args:
        model: Student in eval mode.
        example: One example, (1, ...).
    """
    taken = []
    with torch.no_grad():
        for number in range(_REPEATS + 2):
            start = time.perf_counter()
            model(example)
            if number >= 2:
                taken.append(time.perf_counter() - start)
    return median(taken)
