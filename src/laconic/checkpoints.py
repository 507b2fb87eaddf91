"""The work folder of a compression run: what makes it resumable after a kill.

Every finished step leaves an artefact and a small JSON beside it, in that order, each written
atomically; a step without its JSON never happened. The folder belongs to one job, told by the
fingerprint of model, recipe, data, seed, threads and budget.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.files import write_atomic
from laconic.report import read as read_report
from laconic.task import Task, TensorSplit


def fingerprint(model: nn.Module, job: dict[str, Any], task: Task | None = None) -> str:
    """Return the SHA-256 of a job: all that decides the bytes of the artefact.

    Args:
        model: Its tensors count.
        job: Recipe, seed, threads and the like, as plain values.
        task: Its examples count where they are held in memory.
    """
    digest = hashlib.sha256(json.dumps(job, sort_keys=True, default=str).encode())
    _add_tensors(digest, model.state_dict())
    for name in ("train", "calibration", "test"):
        split = getattr(task, name, None)
        if isinstance(split, TensorSplit):
            digest.update(name.encode())
            _add_tensors(digest, split.tensors)
    return digest.hexdigest()


def _add_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)


def is_finished(folder: Path, job: str, *, force: bool) -> bool:
    """Return whether the artefact of a job stands complete in a folder.

    Args:
        folder: Where the artefact belongs.
        job: Fingerprint of the job.
        force: An artefact of another job counts as none, for it may be replaced.

    Raises:
        ConfigError: The artefact of another job stands there.
    """
    if not (folder / "report.json").is_file():
        return False
    if read_report(folder).provenance.get("job") == job:
        return True
    if not force:
        raise ConfigError(
            f"{folder} is complete and was made by a run with another model, recipe, data, seed, "
            "thread count or budget. Choose another --out, or give --force to replace it."
        )
    return False


class WorkFolder:
    """Checkpoints of one run.

    Args:
        path: Folder of the run, beside the artefact that it makes.
        job: Fingerprint of the job.
        resume: Go on where an earlier run of the same job stopped.
        force: Throw away what an earlier run left.

    Raises:
        ConfigError: An unfinished run lies there and neither ``resume`` nor ``force`` is given,
            or it belongs to another job.
    """

    def __init__(self, path: Path, job: str, *, resume: bool, force: bool) -> None:
        self.path = path
        held = self._read(path / "job.json").get("fingerprint")
        if held and resume and held != job:
            raise ConfigError(
                f"{path} belongs to a run with another model, recipe, data, seed, thread count or "
                "budget. Give what that run was given, or --force to start again."
            )
        if path.exists() and not resume:
            if held and not force:
                raise ConfigError(
                    f"{path} holds an unfinished run. Give --resume to go on, or --force to "
                    "start again."
                )
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "job.json", json.dumps({"fingerprint": job}))

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def model_path(self, step: str) -> Path:
        """Return where the model after a step is kept, as an artefact."""
        return self.path / step

    def training_path(self, step: str) -> Path:
        """Return where a training step keeps its own checkpoint while it runs."""
        return self.path / f"{step}.training.pt"

    def finish(self, step: str, summary: dict[str, Any]) -> None:
        """Mark a step as done; its model must have been saved before."""
        write_atomic(self.path / f"{step}.json", json.dumps(summary))
        self.training_path(step).unlink(missing_ok=True)

    def finished(self, step: str) -> dict[str, Any] | None:
        """Return the summary of a finished step, or None."""
        return self._read(self.path / f"{step}.json") or None

    def remove(self) -> None:
        """Delete the folder: the run is complete, or can never be."""
        shutil.rmtree(self.path, ignore_errors=True)
