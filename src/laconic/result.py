"""What a compression returns: the model, the report, and the artefact's folder."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from laconic import artifact
from laconic.errors import ConfigError
from laconic.files import folder_atomic
from laconic.report import read, to_json, write
from laconic.report.model import Report, parse


class TemporaryFolder:
    """A folder that goes when the last object that holds it goes, or the process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="laconic-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class Result:
    """A compressed model and what it cost.

    Attributes:
        model: The model as it loads from the artefact, in eval mode.
        report: What was measured; :meth:`to_dict` gives the content of ``report.json``.
        folder: The artefact.
    """

    model: nn.Module
    report: Report
    folder: Path
    _keep: TemporaryFolder | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path, model: nn.Module | None = None, *, device: str = "cpu") -> Result:
        """Return the result of a run that is complete.

        Args:
            folder: The artefact, with its report.
            model: A model of the same architecture that takes the weights, in place.
            device: Where the model shall lie.
        """
        return cls(artifact.load(folder, model=model, device=device), read(folder), folder)

    @classmethod
    def publish(
        cls,
        built: Path,
        folder: Path,
        report: dict[str, Any],
        *,
        model: nn.Module,
        force: bool,
        keep: TemporaryFolder | None,
    ) -> Result:
        """Copy a finished artefact to its place, with its report, in one step.

        Args:
            built: The artefact, in the work folder, where the copy is made ready too.
            folder: Its place.
            report: What was measured.
            model: The model as it was loaded from ``built``.
            force: Replace what stands at ``folder``.
            keep: What the result holds so that a temporary ``folder`` stays.
        """
        checked = parse(report)
        with folder_atomic(folder, force=force, inside=built.parent) as work:
            shutil.copytree(built, work, dirs_exist_ok=True)
            write(checked, work)
        return cls(model, checked, folder, keep)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return self.report.model_dump(mode="json")

    def to_json(self) -> str:
        """Return the report as the text of ``report.json``."""
        return to_json(self.report)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Copy the artefact with its reports to ``path``; return that.

        Raises:
            ConfigError: ``path`` is taken and ``force`` is not given, or is the artefact itself.
        """
        target = Path(path)
        if target.resolve() == self.folder.resolve():
            raise ConfigError(f"{target} is the artefact itself. Give another folder.")
        with folder_atomic(target, force=force) as work:
            shutil.copytree(self.folder, work, dirs_exist_ok=True)
        return target
