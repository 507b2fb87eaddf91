"""Write a model as an artefact: atomic, and the same bytes each time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laconic.artifact import container
from laconic.artifact.architecture import Architecture
from laconic.artifact.encode import Effort, PartsWriter, plain_json
from laconic.artifact.limits import DEPLOYED, MANIFEST, WEIGHTS
from laconic.artifact.manifest import FileRecord, GraphRecord, Manifest, SiteRecord
from laconic.artifact.tree import named_tensors
from laconic.errors import ConfigError
from laconic.files import folder_atomic, refuse_existing, sha256, write_atomic
from laconic.forms.layers import installed

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class SaveReport:
    """What was written.

    Attributes:
        path: Folder of the artefact.
        files: Bytes of every file, as ``os.stat`` tells them.
        tensors: Stored bytes by parameter name, without the records that describe them.
    """

    path: Path
    files: Mapping[str, int]
    tensors: Mapping[str, int]

    @property
    def deployed_bytes(self) -> int:
        """Bytes of the files that are needed to run the model."""
        return sum(size for name, size in self.files.items() if name in DEPLOYED)


def save(
    model: nn.Module,
    path: Path | str,
    *,
    architecture: Architecture | None = None,
    recipe: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    effort: Effort = "fast",
    force: bool = False,
    extra_files: Sequence[Path] = (),
) -> SaveReport:
    """Save a model: its forms as they are, everything else without loss.

    Args:
        model: Model with forms installed, or a plain one; it is not changed.
        path: Folder to make.
        architecture: How its modules are told; ``Architecture.of(model)`` where None.
        recipe: Recipe that made the model, kept in the manifest.
        provenance: Versions and seeds, kept in the manifest; nothing that changes from one run
            to the next.
        effort: How hard parts are coded: ``"fast"`` decodes fast, ``"smallest"`` is smallest,
            ``"none"`` leaves values as they are.
        force: Replace what stands at ``path``.
        extra_files: Files that belong to the model, such as those of its tokenizer; copied.

    Raises:
        ConfigError: ``path`` is taken and ``force`` is not given.
        UnsupportedModelError: A tensor or setting that cannot be stored.
    """
    folder = Path(path)
    refuse_existing(folder, force=force)
    told = architecture or Architecture.of(model)
    writer = PartsWriter(effort)
    tensors = _gather(model, told, writer)
    others = {**told.files, **_read_extra(extra_files, taken=told.files)}
    with folder_atomic(folder, force=force) as work:
        container.write(work / WEIGHTS, writer.payloads)
        for name, data in others.items():
            write_atomic(work / name, data)
        files = {name: _file_record(work / name) for name in (WEIGHTS, *sorted(others))}
        manifest = Manifest(
            format=1,
            files=files,
            architecture=told.record,
            recipe=plain_json(dict(recipe or {}), where="recipe"),
            provenance=plain_json(dict(provenance or _versions()), where="provenance"),
            **tensors,
        )
        write_atomic(work / MANIFEST, manifest.to_bytes())
    sizes = {name: (folder / name).stat().st_size for name in (*files, MANIFEST)}
    return SaveReport(folder, sizes, writer.stored)


def _gather(model: nn.Module, told: Architecture, writer: PartsWriter) -> dict[str, Any]:
    """Code every tensor; return the fields of the manifest that tell of them."""
    sites = installed(model)
    inside = {
        id(tensor)
        for site in sites.values()
        for tensor in (*site.form.parameters(), *site.form.buffers())
    }
    forms = {name: writer.form(name, sites[name].form) for name in sorted(sites)}
    layouts = {
        name: SiteRecord(layout=site.layout, parameter_shape=list(site.parameter_shape))
        for name, site in sorted(sites.items())
        if site.layout != "natural" or tuple(site.parameter_shape) != site.form.shape
    }
    aliases = {alias: name for name, site in sites.items() for alias in site.aliases}
    values, buffers, transient = {}, [], set(told.constants)
    modules = told.record.modules if isinstance(told.record, GraphRecord) else None
    kept = sorted(
        (held for held in named_tensors(model, without=inside) if _is_kept(held, told)),
        key=lambda held: held.name,
    )
    for held in kept:
        values[held.name] = writer.value(held.name, held.tensor)
        aliases |= dict.fromkeys(held.aliases, held.name)
        if held.buffer and modules is not None and not _inside(held.name, modules):
            buffers.append(held.name)
            transient |= set() if held.persistent else {held.name}
    for name in sorted(set(told.constants) - set(values)):  # a loaded graph has them as buffers
        values[name] = writer.value(name, told.constants[name])
        buffers.append(name)
    return {
        "forms": forms,
        "sites": layouts,
        "values": values,
        "buffers": sorted(buffers),
        "transient": sorted(transient),
        "aliases": dict(sorted(aliases.items())),
        "bundles": writer.bundles(),
    }


def _inside(name: str, modules: Iterable[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in modules)


def _is_kept(held: Any, told: Architecture) -> bool:
    return bool(held.persistent or told.kind == "graph" or held.name in told.extra_buffers)


def _file_record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=sha256(path))


def _read_extra(paths: Iterable[Path], *, taken: Mapping[str, bytes]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in paths:
        if not _FILE_NAME.fullmatch(path.name) or path.name in {*taken, *found, MANIFEST, WEIGHTS}:
            raise ConfigError(
                f"extra file {path.name!r}: its name must be plain and not one of the artefact's "
                "own files. Rename it or leave it out."
            )
        found[path.name] = path.read_bytes()
    return found


def _versions() -> dict[str, str]:
    return {"laconic": version("laconic"), "torch": torch.__version__}
