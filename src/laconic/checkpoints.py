"""The work folder of a compression run: what makes it resumable after a kill.

Every finished step leaves an artefact and a small JSON beside it, in that order, each written
atomically; a step without its JSON never happened. The folder belongs to one job, told by the
fingerprint of model, recipe, data, seed, threads and budget.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laconic.errors import ConfigError
from laconic.files import write_atomic


def fingerprint(model: nn.Module, job: dict[str, Any]) -> str:
    """Return the SHA-256 of a job: the model's tensors and everything that decides the bytes."""
    digest = hashlib.sha256(json.dumps(job, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


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

    def remember(self, name: str, make: Any) -> Any:
        """Return a JSON value made once and kept: measured after a resume it might differ."""
        held = self._read(self.path / f"{name}.value.json")
        if not held:
            held = {"value": make()}
            write_atomic(self.path / f"{name}.value.json", json.dumps(held))
        return held["value"]

    def remove(self) -> None:
        """Delete the folder: the run is complete."""
        shutil.rmtree(self.path)
