"""Check an artefact from end to end and say what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from laconic.artifact.container import Container
from laconic.artifact.decode import PartsReader
from laconic.artifact.folder import check_size, checked_file, read_manifest, regular_file
from laconic.artifact.limits import MANIFEST, WEIGHTS
from laconic.artifact.manifest import FactoryRecord, Manifest
from laconic.artifact.read import load
from laconic.errors import ArtifactError, LaconicError


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, whether it holds, and what was found."""

    name: str
    passed: bool
    detail: str


def verify(path: Path | str, *, strict: bool = True) -> list[Check]:
    """Check every file, every stored tensor, and that the model can be built.

    Unlike ``load`` it does not stop at the first damage: it finds every damaged tensor.

    Args:
        path: Folder of the artefact.
        strict: Raise where a check does not pass; without it look at ``passed`` of each.

    Returns:
        The checks in order.

    Raises:
        ArtifactError: Something is damaged; names all of it.
    """
    checks = _checks(Path(path))
    failed = [check for check in checks if not check.passed]
    if failed and strict:
        reason = "; ".join(f"{check.name}: {check.detail}" for check in failed[1:])
        more = f" (also {reason})" if reason else ""
        raise ArtifactError(failed[0].name, f"{failed[0].detail}{more}")
    return checks


def _checks(folder: Path) -> list[Check]:
    try:
        manifest = read_manifest(folder)
    except ArtifactError as error:
        return [Check(MANIFEST, False, error.reason)]
    checks = [Check(MANIFEST, True, f"format {manifest.format}, digest matches")]
    for name, record in manifest.files.items():
        detail = f"{record.bytes} bytes, SHA-256 matches"
        checks.append(_check(name, partial(checked_file, folder, name, record), detail))
    checks += _check_parts(folder, manifest)
    if isinstance(manifest.architecture, FactoryRecord):
        detail = f"needs its own code: {manifest.architecture.reason}"
        checks.append(Check("architecture", True, detail))
    elif all(check.passed for check in checks):
        kind = f"builds as {manifest.architecture.kind}"
        checks.append(_check("architecture", lambda: load(folder, kernels="exact"), kind))
    return checks


def _check(name: str, look: Callable[[], object], detail: str) -> Check:
    try:
        look()
    except LaconicError as error:
        return Check(name, False, str(error))
    return Check(name, True, detail)


def _check_parts(folder: Path, manifest: Manifest) -> list[Check]:
    """Decode every tensor; one check for all sound ones, one for each that is not."""
    checks: list[Check] = []
    try:
        path = regular_file(folder, WEIGHTS)
        check_size(path, WEIGHTS, manifest.files[WEIGHTS])
        container = Container(path)
    except ArtifactError as error:
        return [Check("tensors", False, str(error))]
    with container:
        try:
            reader = PartsReader(manifest, container)
        except ArtifactError as error:
            return [Check("tensors", False, str(error))]
        sound = 0
        for names, read in ((manifest.forms, reader.form), (manifest.values, reader.value)):
            for name in names:
                try:
                    read(name)
                except ArtifactError as error:
                    checks.append(Check(name, False, str(error)))
                else:
                    sound += 1
    if sound:
        checks.insert(0, Check("tensors", True, f"{sound} decode, checksums match"))
    return checks
