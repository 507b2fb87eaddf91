"""Read quantized checkpoints of other tools: the packed codes become forms, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from laconic.artifact.exchange.layouts import (
    UnreadableError,
    read_awq,
    read_compressed_tensors,
    read_gptq,
)
from laconic.artifact.hub import no_bars
from laconic.errors import ArtifactError, UnsupportedModelError, nearest
from laconic.extras import require
from laconic.forms.base import Form
from laconic.forms.layers import install_
from laconic.forms.quantized import Quantized

_CONFIG = "config.json"
_KEY = "quantization_config"
# What marks a quantized layer, by method: a tensor that no plain layer has.
_MARKS = {"compressed-tensors": "weight_scale", "gptq": "qweight", "awq": "qweight"}
_READERS: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, Any], torch.dtype], Quantized]]
_READERS = {
    "compressed-tensors": read_compressed_tensors,
    "gptq": read_gptq,
    "awq": read_awq,
}


@dataclass(frozen=True)
class _Checkpoint:
    folder: Path
    config: dict[str, Any]
    told: dict[str, Any]

    @property
    def method(self) -> str:
        return str(self.told.get("quant_method"))


def is_quantized_checkpoint(folder: Path) -> bool:
    """Return whether a Hugging Face folder holds weights that another tool has quantized."""
    path = folder / _CONFIG
    return path.is_file() and _KEY in _json(path)


def import_checkpoint(folder: Path | str) -> nn.Module:
    """Load a quantized Hugging Face checkpoint; packed layers keep their codes as forms.

    Reads compressed-tensors (``pack-quantized`` and ``int-quantized``, and how inputs are rounded),
    GPTQ (groups in order) and AWQ (GEMM layout).

    Args:
        folder: Folder with ``config.json`` and safetensors files.

    Returns:
        A model of its own class, in eval mode, whose quantized layers hold
        :class:`~laconic.forms.Quantized` forms; saving it makes an artefact.

    Raises:
        ArtifactError: A file is missing or damaged, or its tensors do not belong together.
        UnsupportedModelError: A method or layout that no form stands for; says which.
        MissingExtraError: ``transformers`` is not installed.
    """
    checkpoint = _open(Path(folder))
    transformers = require("transformers", "hf", purpose="importing a checkpoint")
    names = checkpoint.config.get("architectures") or ["?"]
    cls = getattr(transformers, names[0], None)
    if cls is None:
        raise UnsupportedModelError(f"{folder}: its class {names[0]} is not in transformers.")
    plain = {key: value for key, value in checkpoint.config.items() if key != _KEY}
    config = cls.config_class.from_dict(plain)
    dtype = getattr(torch, str(plain.get("dtype") or plain.get("torch_dtype")), torch.float32)
    state, packed = _read(checkpoint, dtype)
    dense = {f"{name}.weight": form.dense() for name, form in packed.items()}
    model: nn.Module
    with no_bars(), torch.no_grad():
        model, told = cls.from_pretrained(
            None, config=config, state_dict=state | dense, dtype=dtype, output_loading_info=True
        )
    missing = sorted(told["missing_keys"])
    if missing:
        raise ArtifactError(_CONFIG, f"no tensor for {missing[0]} ({len(missing)} such)")
    for name, form in packed.items():
        _install(model, name, form, folder)
    model.eval()
    return model


def _open(folder: Path) -> _Checkpoint:
    if not (folder / _CONFIG).is_file():
        raise ArtifactError(str(folder / _CONFIG), "no such file; give a Hugging Face folder")
    config = _json(folder / _CONFIG)
    told = config.get(_KEY)
    if not isinstance(told, dict):
        raise ArtifactError(_CONFIG, f"holds no {_KEY}; load it as a plain model")
    checkpoint = _Checkpoint(folder, config, told)
    if checkpoint.method not in _READERS:
        raise UnsupportedModelError(
            f"{folder}: quant_method {checkpoint.method!r} cannot be imported."
            f"{nearest(checkpoint.method, _READERS)} Readable: {', '.join(_READERS)}."
        )
    return checkpoint


def _json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(path.name, f"is not JSON: {error}") from error
    if not isinstance(held, dict):
        raise ArtifactError(path.name, "is not a JSON object")
    return held


def _read(checkpoint: _Checkpoint, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Form]]:
    """Return the plain tensors, and a form for every packed layer."""
    shards = sorted(checkpoint.folder.glob("*.safetensors"))
    if not shards:
        raise ArtifactError(str(checkpoint.folder), "holds no .safetensors file")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except Exception as error:  # the reader of damaged files raises anything
            raise ArtifactError(shard.name, f"cannot be read: {error}") from error
    mark = f".{_MARKS[checkpoint.method]}"
    owners = {key.removesuffix(mark) for key in tensors if key.endswith(mark)}
    held: dict[str, dict[str, Tensor]] = {owner: {} for owner in sorted(owners)}
    for key in list(tensors):
        owner, _, leaf = key.rpartition(".")
        if owner in owners and leaf != "bias":
            held[owner][leaf] = tensors.pop(key)
    packed: dict[str, Form] = {}
    for owner, parts in held.items():
        settings = {**checkpoint.told, "module": owner}
        try:
            packed[owner] = _READERS[checkpoint.method](parts, settings, dtype)
        except UnreadableError as error:
            raise UnsupportedModelError(f"{owner}: {error}") from error
        except (KeyError, ValueError) as error:
            raise ArtifactError(checkpoint.folder.name, f"{owner}: {error}") from error
    return tensors, packed


def _install(model: nn.Module, name: str, form: Form, folder: Path | str) -> None:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{folder}: {name} is packed, but {type(model).__name__} of the installed transformers "
            "holds that weight inside another one."
        ) from error
    if not isinstance(module, nn.Linear):
        raise UnsupportedModelError(f"{folder}: {name} is packed, but no linear layer.")
    install_(model, f"{name}.weight", form)
