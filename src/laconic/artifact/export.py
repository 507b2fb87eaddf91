"""Back to dense: what any other tool can read."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laconic.artifact import container, strictjson
from laconic.artifact.container import Payload
from laconic.artifact.decode import PartsReader
from laconic.artifact.dtypes import dtype_name, raw_bytes
from laconic.artifact.folder import checked_file, open_weights, read_manifest
from laconic.artifact.hub import no_bars
from laconic.artifact.limits import CONFIG, GENERATION, WEIGHTS
from laconic.artifact.manifest import GraphRecord, HuggingFaceRecord, Manifest
from laconic.artifact.read import load
from laconic.artifact.removed import refill_
from laconic.errors import LaconicWarning
from laconic.files import folder_atomic, refuse_existing, write_atomic
from laconic.forms.base import Form
from laconic.forms.layers import densify_, from_form, installed

GRAPH = "graph.json"


def export_dense(path: Path | str, out: Path | str, *, force: bool = False) -> Path:
    """Write the model of an artefact with dense weights.

    Args:
        path: Folder of the artefact.
        out: Folder to make. A Hugging Face model becomes a folder for ``from_pretrained``, in
            which parts that were removed from blocks are there again, all zero; any other a
            ``model.safetensors`` with the keys of the original state dict, and ``graph.json``
            where the artefact holds a graph.
        force: Replace what stands at ``out``.

    Raises:
        ArtifactError: The artefact is damaged.
        ConfigError: ``out`` is taken and ``force`` is not given.

    Warns:
        LaconicWarning: Layers round their inputs in the artefact, and plain layers do not.
    """
    folder, target = Path(path), Path(out)
    refuse_existing(target, force=force)
    manifest = read_manifest(folder)
    with folder_atomic(target, force=force) as work:
        if isinstance(manifest.architecture, HuggingFaceRecord):
            model: Any = load(folder, kernels="exact")
            warn_plain_inputs(forms_of(model))
            densify_(model)
            refill_(model)
            with no_bars():
                model.save_pretrained(work)
            for file in work.iterdir():
                file.chmod(0o644)  # whoever may read the folder may read its weights
        else:
            with open_weights(folder, manifest) as stored:
                parts = PartsReader(manifest, stored)
                warn_plain_inputs({name: parts.form(name) for name in manifest.forms})
                tensors = dense_state(manifest, parts)
            container.write(work / WEIGHTS, [_payload(*item) for item in tensors.items()])
        if isinstance(manifest.architecture, GraphRecord):
            told = manifest.architecture.model_dump(mode="json")
            write_atomic(work / GRAPH, strictjson.dumps(told))
        for name, record in manifest.files.items():
            if name not in (WEIGHTS, CONFIG, GENERATION):
                shutil.copyfile(checked_file(folder, name, record), work / name)
    return target


def forms_of(model: nn.Module) -> dict[str, Form]:
    """Return the installed forms of a model by the name of their parameter."""
    return {name: held.form for name, held in installed(model).items()}


def warn_plain_inputs(forms: Mapping[str, Form]) -> None:
    """Warn of forms that round their inputs, where plain layers will take their place."""
    rounding = [
        name
        for name, form in forms.items()
        if any(getattr(inner, "activations", None) is not None for _, inner in form.walk())
    ]
    if rounding:
        warnings.warn(
            f"{len(rounding)} layers round their inputs, {rounding[0]} among them, and plain "
            "layers do not: the export computes with exact inputs, so it is not what was measured.",
            LaconicWarning,
            stacklevel=3,
        )


def dense_state(manifest: Manifest, parts: PartsReader) -> dict[str, Tensor]:
    """Return the state dict that an artefact stands for, aliases included."""
    state: dict[str, Tensor] = {}
    for name in manifest.forms:
        form, site = parts.form(name), manifest.sites.get(name)
        with torch.no_grad():
            dense = form.dense()
            if site:
                dense = from_form(dense, site.layout, tuple(site.parameter_shape))
        state[name] = dense.detach()
    for name in manifest.values:
        if name not in manifest.transient:
            state[name] = parts.value(name)
    state |= {alias: state[name] for alias, name in manifest.aliases.items() if name in state}
    return state


def _payload(name: str, tensor: Tensor) -> Payload:
    data = raw_bytes(tensor).data
    return Payload(name, dtype_name(tensor.dtype, where=name), tuple(tensor.shape), data)
