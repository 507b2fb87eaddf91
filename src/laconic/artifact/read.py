"""Load an artefact: checked first, then built, then filled."""

from __future__ import annotations

import importlib
import warnings
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from laconic.artifact import graph, hub, strictjson
from laconic.artifact.decode import PartsReader
from laconic.artifact.dtypes import DTYPES, itemsize
from laconic.artifact.folder import checked_file, open_weights, read_manifest, small_file
from laconic.artifact.limits import (
    CONFIG,
    GENERATION,
    MANIFEST,
    MAX_CACHED_BYTES,
    MAX_CACHED_EXPANSION,
    UNTRUSTED,
    WEIGHTS,
)
from laconic.artifact.manifest import FactoryRecord, GraphRecord, HuggingFaceRecord, Manifest
from laconic.artifact.removed import remove_
from laconic.artifact.tree import BufferKind, ensure_, find, named_tensors, put_
from laconic.errors import ArtifactError, LaconicWarning, UnsupportedModelError
from laconic.forms.base import Form
from laconic.forms.kernels import prepare_
from laconic.forms.layers import Installed, install_, installed
from laconic.units import format_bytes

Kernels = Literal["auto", "exact", "dense", "int8"]


def load(
    path: Path | str,
    *,
    model: nn.Module | None = None,
    device: torch.device | str = "cpu",
    kernels: Kernels = "auto",
    trust_factory: bool = False,
) -> nn.Module:
    """Load a model in eval mode; no code comes from the artefact.

    Args:
        path: Folder of the artefact.
        model: A model of the same architecture that takes the forms and values, in place. Needed
            where the artefact only names the code that makes it.
        device: Where the model shall lie.
        kernels: How forms run: the fastest exact way as measured here (``"auto"``), always their
            own (``"exact"``), or as in ``forms.kernels``.
        trust_factory: Import and call the factory that the artefact names. It runs whatever that
            code does: only for artefacts that you made.

    Raises:
        ArtifactError: A file is missing, damaged, hostile, or from a newer laconic.
        UnsupportedModelError: The model needs its own code; says what to give.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        if name != WEIGHTS:
            checked_file(folder, name, record)
    place = torch.device(device)
    with open_weights(folder, manifest) as stored:
        parts = PartsReader(manifest, stored)
        made = model if model is not None else _build(folder, manifest, place, trust_factory)
        _take_out(made, manifest)
        fill_(made, manifest, parts, given=model is not None)
    made.to(place)
    made.eval()
    if manifest.forms:
        prepare_(made, _affordable(manifest, kernels))
    return made


def _affordable(manifest: Manifest, kernels: Kernels) -> Kernels:
    """Return how forms may run: by themselves where dense tensors would take too much memory."""
    dense = sum(prod(form.shape) * itemsize(form.dtype) for form in manifest.forms.values())
    stored = manifest.files[WEIGHTS].bytes
    if kernels == "exact" or dense <= max(MAX_CACHED_BYTES, stored * MAX_CACHED_EXPANSION):
        return kernels
    warnings.warn(
        f"kernels={kernels!r}: dense tensors of {format_bytes(dense)} from {format_bytes(stored)} "
        "are not built; forms run by themselves. Give kernels='exact', or call "
        "forms.kernels.prepare_ if there is room.",
        LaconicWarning,
        stacklevel=3,
    )
    return "exact"


def _build(folder: Path, manifest: Manifest, device: torch.device, trust: bool) -> nn.Module:
    told = manifest.architecture
    if isinstance(told, HuggingFaceRecord):
        return _build_hugging_face(folder, manifest, told)
    if isinstance(told, GraphRecord):
        return _build_graph(manifest, told, device)
    if not trust:
        raise UnsupportedModelError(
            f"{folder.name} holds the weights of {told.factory} but not its structure "
            f"({told.reason}). Build the model with its own code and give it: "
            "load(path, model=...). Where that code is importable and you trust the artefact, "
            "load(path, trust_factory=True) calls it."
        )
    return _call_factory(told)


def _build_hugging_face(folder: Path, manifest: Manifest, told: HuggingFaceRecord) -> nn.Module:
    config = strictjson.loads(small_file(folder, CONFIG), file=CONFIG)
    largest = max((prod(shape) for shape in _shapes(manifest).values()), default=0)
    count = len(manifest.forms) + len(manifest.values) + len(manifest.aliases)
    model = hub.build(told.cls, config, largest=largest, count=count)
    if GENERATION in manifest.files:
        held: Any = model
        settings = strictjson.loads(small_file(folder, GENERATION), file=GENERATION)
        try:
            held.generation_config = type(held.generation_config).from_dict(settings)
        except UNTRUSTED as error:
            raise ArtifactError(GENERATION, f"not settings for generation: {error}") from error
    return model


def _take_out(model: nn.Module, manifest: Manifest) -> None:
    """Take the parts out of a model, in place, that the artefact says were removed."""
    told = manifest.architecture
    if not isinstance(told, HuggingFaceRecord) or not told.removed:
        return
    try:
        remove_(model, told.removed)
    except UNTRUSTED as error:
        raise ArtifactError(MANIFEST, f"removed: {error}") from error


def _build_graph(manifest: Manifest, told: GraphRecord, device: torch.device) -> nn.Module:
    model = graph.skeleton(told)
    for name, shape in _shapes(manifest).items():
        first = manifest.aliases.get(name, name)
        held = manifest.forms.get(first) or manifest.values[first]
        try:
            kind = _buffer_kind(manifest, first)
            ensure_(model, name, shape=shape, dtype=DTYPES[held.dtype], buffer=kind)
        except UNTRUSTED as error:
            raise ArtifactError(MANIFEST, f"{error}", tensor=name) from error
    graph.connect_(model, told, device)
    return model


def _buffer_kind(manifest: Manifest, name: str) -> BufferKind:
    if name not in manifest.buffers:
        return ""
    return "transient" if name in manifest.transient else "persistent"


def _shapes(manifest: Manifest) -> dict[str, list[int]]:
    """Return the shape of every parameter and buffer, aliases included."""
    found = {name: record.shape for name, record in manifest.values.items()}
    for name, form in manifest.forms.items():
        site = manifest.sites.get(name)
        found[name] = site.parameter_shape if site else form.shape
    return found | {alias: found[name] for alias, name in manifest.aliases.items()}


def _call_factory(told: FactoryRecord) -> nn.Module:
    module, _, name = told.factory.partition(":")
    try:
        made: Any = importlib.import_module(module)
        for atom in name.split("."):
            made = getattr(made, atom)
        made = made()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{told.factory} cannot be called without arguments here: {error}. Build the model "
            "and give it: load(path, model=...)."
        ) from error
    if not isinstance(made, nn.Module):
        raise UnsupportedModelError(f"{told.factory} gave {type(made).__name__}, not a module.")
    return made


def fill_(model: nn.Module, manifest: Manifest, parts: PartsReader, *, given: bool) -> None:
    """Put all forms and values of an artefact into a model, in place.

    Args:
        model: Model whose parameters may lie on the meta device.
        manifest: Records of the artefact.
        parts: Where forms and values come from.
        given: The model is the caller's: constants of a graph have no place in it.

    Raises:
        ArtifactError: A tensor without a place, a place without a tensor, or another shape.
    """
    placed: set[int] = set()
    others: dict[str, list[str]] = {}
    for alias, name in manifest.aliases.items():
        others.setdefault(name, []).append(alias)
    for name in manifest.forms:
        form = parts.form(name)
        placed |= {id(tensor) for tensor in (*form.parameters(), *form.buffers())}
        for place in (name, *others.get(name, ())):
            _install(model, manifest, name, place, form)
    told = manifest.architecture
    constants = set(told.constants) if given and isinstance(told, GraphRecord) else set()
    for name in manifest.values:
        if name in constants:
            continue
        tensor = parts.value(name)
        for place in (name, *others.get(name, ())):
            tensor = _put(model, place, tensor)
        placed.add(id(tensor))
    for held in named_tensors(model, without=placed):
        if held.tensor.is_meta or held.persistent:
            raise ArtifactError(MANIFEST, "the model has it, the artefact not", tensor=held.name)


def _install(model: nn.Module, manifest: Manifest, name: str, place: str, form: Form) -> None:
    site = manifest.sites.get(name)
    shape = tuple(site.parameter_shape) if site else form.shape
    held = find(model, place)
    if held is None:
        before = _forms(model).get(place)
        if before and before.form is form:
            return  # installing it at another name has put it here too
        have = before.parameter_shape if before else None
    else:
        have = tuple(held.shape)
    if have != shape:
        reason = f"is {list(shape)}, the model has {list(have) if have else 'no such parameter'}"
        raise ArtifactError(MANIFEST, reason, tensor=place)
    if held is not None and held.is_floating_point() != form.dtype.is_floating_point:
        reason = f"is {form.dtype}, the model has {held.dtype}"
        raise ArtifactError(MANIFEST, reason, tensor=place)
    layout = site.layout if site else "natural"
    try:
        install_(model, place, form, layout=layout, parameter_shape=shape)
    except UNTRUSTED as error:
        raise ArtifactError(MANIFEST, f"cannot be installed: {error}", tensor=place) from error


def _forms(model: nn.Module) -> dict[str, Installed]:
    """Return what is installed by every name."""
    found = installed(model)
    return found | {alias: held for held in found.values() for alias in held.aliases}


def _put(model: nn.Module, place: str, tensor: Tensor) -> Tensor:
    held = find(model, place)
    if held is None:
        raise ArtifactError(MANIFEST, "the artefact has it, the model not", tensor=place)
    if held.shape != tensor.shape:
        have = list(held.shape)
        raise ArtifactError(
            MANIFEST, f"is {list(tensor.shape)}, the model has {have}", tensor=place
        )
    floating = held.is_floating_point() and tensor.is_floating_point()
    if held.dtype != tensor.dtype and not floating:
        raise ArtifactError(
            MANIFEST, f"is {tensor.dtype}, the model has {held.dtype}", tensor=place
        )
    put_(model, place, tensor)
    now = find(model, place)
    return tensor if now is None else now
