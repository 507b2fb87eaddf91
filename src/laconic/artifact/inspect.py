"""What an artefact holds, by file, by site and by part, without building the model."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from laconic import coding
from laconic.artifact.container import Container
from laconic.artifact.decode import PartsReader
from laconic.artifact.dtypes import itemsize
from laconic.artifact.encode import bundle_key, part_key
from laconic.artifact.folder import open_weights, read_manifest
from laconic.artifact.limits import DEPLOYED, MANIFEST
from laconic.artifact.manifest import FormRecord, Manifest, PartRecord
from laconic.forms.base import Form


def inspect(path: Path | str) -> dict[str, Any]:
    """Return what stands in an artefact, as plain JSON values.

    Args:
        path: Folder of the artefact.

    Returns:
        ``files`` and ``deployed_bytes`` as ``os.stat`` tells them; ``architecture``, ``recipe``
        and ``provenance``; ``sites``, one record for each form: ``name``, ``kind``, ``form``
        (with nesting), ``shape``, ``weights``, ``bytes_original``, ``bytes_stored``, ``bits`` a
        weight,
        ``entropy_bits`` a weight (order 0, of all symbols, without values such as scales) and
        ``tree``; ``values``, one for each other tensor; and totals: ``weights`` and ``bits``.

    Raises:
        ArtifactError: The artefact is damaged.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    with open_weights(folder, manifest) as stored:
        reader = PartsReader(manifest, stored)
        shares = _Shares(manifest, stored)
        sites = [_site(name, manifest, reader, shares) for name in manifest.forms]
        values = [
            {
                "name": name,
                "shape": record.shape,
                "dtype": record.dtype,
                "coder": record.coder or "bundle",
                "bytes_stored": shares.bytes_of(name, record),
            }
            for name, record in manifest.values.items()
        ]
    files = {name: (folder / name).stat().st_size for name in (*manifest.files, MANIFEST)}
    deployed = sum(size for name, size in files.items() if name in DEPLOYED)
    weights = sum(site["weights"] for site in sites)
    weights += sum(record.count for record in manifest.values.values())
    return {
        "format": manifest.format,
        "files": files,
        "deployed_bytes": deployed,
        "weights": weights,
        "bits": _ratio(8 * deployed, weights),
        "architecture": _architecture(manifest),
        "sites": sites,
        "values": values,
        "aliases": dict(manifest.aliases),
        "recipe": manifest.recipe,
        "provenance": manifest.provenance,
    }


def read_forms(path: Path | str) -> Iterator[tuple[str, Form]]:
    """Yield the name and the form of every compressed weight, without building the model.

    Args:
        path: Folder of the artefact.

    Raises:
        ArtifactError: The artefact is damaged.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    with open_weights(folder, manifest) as stored:
        reader = PartsReader(manifest, stored)
        for name in manifest.forms:
            yield name, reader.form(name)


def _architecture(manifest: Manifest) -> dict[str, Any]:
    told = manifest.architecture
    if told.kind == "huggingface":
        removed = {"removed": list(told.removed)} if told.removed else {}
        return {"kind": told.kind, "class": told.cls, **removed}
    if told.kind == "graph":
        return {"kind": told.kind, "modules": len(told.modules), "nodes": len(told.nodes)}
    return {"kind": told.kind, "factory": told.factory, "reason": told.reason}


class _Shares:
    """Stored bytes of parts; what lies in a bundle has its share of it."""

    def __init__(self, manifest: Manifest, stored: Container) -> None:
        self._stored = stored
        self._share = {
            dtype: _ratio(len(stored.raw(bundle_key(dtype))), record.bytes)
            for dtype, record in manifest.bundles.items()
        }

    def bytes_of(self, key: str, record: PartRecord) -> int:
        if record.coder:
            return len(self._stored.raw(key))
        return round(record.decoded_bytes * self._share[record.dtype])


def _site(name: str, manifest: Manifest, reader: PartsReader, shares: _Shares) -> dict[str, Any]:
    record = manifest.forms[name]
    tree, entropy, stored = _tree(name, record, (), reader, shares)
    weights = prod(record.shape)
    site = manifest.sites.get(name)
    return {
        "name": name,
        "kind": record.kind,
        "form": signature(record),
        "shape": record.shape,
        "layout": site.layout if site else "natural",
        "weights": weights,
        "bytes_original": weights * itemsize(record.dtype),
        "bytes_stored": stored,
        "bits": _ratio(8 * stored, weights),
        "entropy_bits": _ratio(entropy, weights),
        "tree": tree,
    }


def _tree(
    name: str, record: FormRecord, path: tuple[str, ...], reader: PartsReader, shares: _Shares
) -> tuple[dict[str, Any], float, int]:
    """Return the record of a form, the entropy of its symbols in bits, and its stored bytes."""
    parts, entropy, stored = {}, 0.0, 0
    for part, held in record.parts.items():
        key = part_key(name, path, part)
        size = shares.bytes_of(key, held)
        row: dict[str, Any] = {
            "shape": held.shape, "coder": held.coder or "bundle", "bytes_stored": size,
        }  # fmt: skip
        if isinstance(held.content, int):
            bits = coding.entropy(reader.symbols(key, held), held.content)
            row |= {"alphabet": held.content, "entropy_bits": bits}
            entropy += bits * held.count
        else:
            row["dtype"] = held.content
        parts[part] = row
        stored += size
    children = {}
    for child, below in record.children.items():
        inner = _tree(name, below, (*path, child), reader, shares)
        children[child] = inner[0]
        entropy, stored = entropy + inner[1], stored + inner[2]
    tree = {
        "kind": record.kind, "shape": record.shape, "dtype": record.dtype,
        "settings": record.settings, "parts": parts, "children": children,
    }  # fmt: skip
    return tree, entropy, stored


def signature(record: FormRecord) -> str:
    """Return the name of a form with nesting, for example ``"sparse(quantized)"``."""
    inner = ", ".join(signature(child) for child in record.children.values())
    return f"{record.kind}({inner})" if inner else record.kind


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
