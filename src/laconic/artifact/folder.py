"""The files of an artefact: found, measured and hashed before they are read."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from laconic.artifact.container import Container
from laconic.artifact.decode import first_damage
from laconic.artifact.limits import CONFIG, MANIFEST, MAX_JSON_BYTES, WEIGHTS
from laconic.artifact.manifest import FileRecord, Manifest
from laconic.errors import ArtifactError
from laconic.files import sha256


def regular_file(folder: Path, name: str) -> Path:
    """Return the path of a file in the folder.

    Raises:
        ArtifactError: It is missing, not a regular file, or a link that leads out of the folder.
    """
    path = folder / name
    try:
        resolved, root = path.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ArtifactError(name, "missing") from error
    if not resolved.is_relative_to(root):
        raise ArtifactError(name, "is a link that leads out of the artefact's folder")
    if not stat.S_ISREG(resolved.stat().st_mode):
        raise ArtifactError(name, "is not a regular file")
    return resolved


def small_file(folder: Path, name: str) -> bytes:
    """Return the content of a JSON file.

    Raises:
        ArtifactError: It is missing or too large.
    """
    path = regular_file(folder, name)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ArtifactError(name, f"{path.stat().st_size} bytes are more than {MAX_JSON_BYTES}")
    return path.read_bytes()


def read_manifest(path: Path | str) -> Manifest:
    """Read and check the manifest of an artefact.

    Raises:
        ArtifactError: It is missing, damaged, hostile, or made by a newer laconic.
    """
    manifest = Manifest.from_bytes(small_file(Path(path), MANIFEST))
    if WEIGHTS not in manifest.files:
        raise ArtifactError(MANIFEST, f"does not list {WEIGHTS}")
    if manifest.architecture.kind == "huggingface" and CONFIG not in manifest.files:
        raise ArtifactError(MANIFEST, f"does not list {CONFIG}")
    return manifest


def checked_file(folder: Path, name: str, record: FileRecord) -> Path:
    """Return the path of a file whose size and SHA-256 are those of its record.

    Raises:
        ArtifactError: They are not, or the file is missing.
    """
    path = regular_file(folder, name)
    check_size(path, name, record)
    if sha256(path) != record.sha256:
        raise ArtifactError(name, "damaged: its SHA-256 does not match the manifest")
    return path


def check_size(path: Path, name: str, record: FileRecord) -> None:
    """Raise unless a file has the size of its record."""
    size = path.stat().st_size
    if size != record.bytes:
        word = "cut short" if size < record.bytes else "trailing bytes"
        raise ArtifactError(name, f"{word}: {size} bytes, the manifest says {record.bytes}")


def open_weights(folder: Path, manifest: Manifest) -> Container:
    """Map the weights and check them against the manifest, reading each byte once.

    Raises:
        ArtifactError: They are damaged.
    """
    record = manifest.files[WEIGHTS]
    path = regular_file(folder, WEIGHTS)
    check_size(path, WEIGHTS, record)
    container = Container(path)
    if hashlib.sha256(container.whole()).hexdigest() != record.sha256:
        reason = "damaged: its SHA-256 does not match the manifest"
        raise ArtifactError(WEIGHTS, reason, tensor=first_damage(manifest, container))
    return container
