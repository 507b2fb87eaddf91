"""Write a compressed causal LM in the layout of compressed-tensors, as vLLM and others load it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from laconic.artifact.exchange.adapter import write_adapter
from laconic.artifact.exchange.scheme import Grid, Scheme, correction_of, grid_of
from laconic.artifact.exchange.words import pack_columns, pack_rows
from laconic.artifact.export import forms_of, warn_plain_inputs
from laconic.artifact.folder import read_manifest
from laconic.artifact.hub import no_bars
from laconic.artifact.limits import CONFIG, GENERATION, WEIGHTS
from laconic.artifact.manifest import HuggingFaceRecord
from laconic.artifact.read import load
from laconic.errors import ConfigError
from laconic.files import folder_atomic, refuse_existing, write_atomic
from laconic.forms.activations import Activations
from laconic.forms.base import Form
from laconic.forms.layers import densify_, install_, installed
from laconic.forms.lowrank import LowRank

# Linear layers that serving engines run as one matrix: they must share one scheme.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
ADAPTER = "adapter"


@dataclass
class ExportReport:
    """What an export wrote.

    Attributes:
        packed: Scheme of every layer that was written packed.
        dense: Layers that were compressed and had to be written dense, with the reason.
        adapter: Layers whose low-rank correction went into the adapter.
    """

    packed: dict[str, str] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)
    adapter: list[str] = field(default_factory=list)


def export_compressed_tensors(
    path: Path | str, out: Path | str, *, force: bool = False, mixed: bool = False
) -> ExportReport:
    """Write the model of an artefact as a compressed-tensors checkpoint.

    Linear layers on a plain grid of 1 to 8 bits are written packed (``pack-quantized``), or as one
    byte a weight where their inputs are rounded too (``int-quantized``); N:M sparse ones with
    their zeros spelt out, for no current engine reads a sparse layout. The low-rank correction of
    a sum goes into ``adapter/``, a PEFT LoRA with alpha = rank. Everything else is written dense,
    embeddings and heads among it.

    Args:
        path: Folder of the artefact of a Hugging Face model.
        out: Folder to make, for ``from_pretrained`` and ``vllm serve``.
        force: Replace what stands at ``out``.
        mixed: Allow layers that engines fuse (q, k, v; gate, up) to differ in scheme. Such a
            checkpoint loads in transformers and is refused by vLLM.

    Returns:
        What was written packed, dense and as an adapter.

    Raises:
        ArtifactError: The artefact is damaged.
        ConfigError: Not a Hugging Face model, no layer to pack, fused layers that differ, a scale
            that the model's float type cannot hold, inputs rounded as the layout cannot say, or
            ``out`` is taken.

    Warns:
        LaconicWarning: Layers that are written dense round their inputs in the artefact.
    """
    folder, target = Path(path), Path(out)
    refuse_existing(target, force=force)
    manifest = read_manifest(folder)
    if not isinstance(manifest.architecture, HuggingFaceRecord):
        raise ConfigError(
            f"{folder}: compressed-tensors checkpoints hold Hugging Face models, and this artefact "
            "holds another. Use --to dense or --to onnx."
        )
    model: Any = load(folder, kernels="exact")
    grids, corrections, report = _collect(model)
    if not grids:
        why = "; ".join(f"{n}: {r}" for n, r in list(report.dense.items())[:3]) or "none is"
        raise ConfigError(f"{folder}: no linear layer is quantized on a plain grid ({why}).")
    if not mixed:
        _check_fused({name: grid.scheme for name, grid in grids.items()})
    warn_plain_inputs({n: f for n, f in forms_of(model).items() if n in report.dense})
    with folder_atomic(target, force=force) as work:
        _write_model(work, model, grids)
        if corrections:
            write_adapter(work / ADAPTER, corrections)
        for file in work.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # whoever may read the folder may read its weights
        for name in manifest.files:
            if name not in (WEIGHTS, CONFIG, GENERATION):
                shutil.copyfile(folder / name, work / name)
    return report


def _write_model(work: Path, model: Any, grids: Mapping[str, Grid]) -> None:
    """Write the model as transformers saves it, then put the packed layers in its shards."""
    densify_(model)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    with no_bars():
        model.save_pretrained(work)
    _rewrite_shards(work, {f"{name}.weight": _tensors(grid) for name, grid in grids.items()})
    _write_config(work, {n: g.scheme for n, g in grids.items()}, sorted(linears - set(grids)))


def _collect(model: Any) -> tuple[dict[str, Grid], dict[str, LowRank], ExportReport]:
    """Return what can be packed and corrected, by module name; install bases without them."""
    grids: dict[str, Grid] = {}
    corrections: dict[str, LowRank] = {}
    report = ExportReport()
    for name, held in installed(model).items():
        owner = name.removesuffix(".weight")
        reason = _not_linear(model, owner, held.layout, held.aliases)
        pair = correction_of(held.form)
        base = pair[0] if pair else held.form
        grid = None if reason else grid_of(base)
        if grid is None:
            report.dense[name] = reason or f"{base.signature} is no plain grid of codes"
            continue
        _check_inputs(grid.scheme.inputs, name)
        grids[owner] = _in_model_type(grid, held.form, name)
        report.packed[owner] = str(grid.scheme)
        if pair:
            corrections[owner] = pair[1]
            report.adapter.append(owner)
            install_(model, name, base, layout=held.layout)
    return grids, corrections, report


def _not_linear(model: nn.Module, owner: str, layout: str, aliases: tuple[str, ...]) -> str | None:
    if aliases:
        return "its weight is shared with another layer"
    if layout != "natural":
        return f"its weight is stored {layout}, which engines do not read packed"
    module = model.get_submodule(owner)
    if not isinstance(module, nn.Linear):
        return f"{type(module).__name__} layers are read dense"
    return "engines keep the head dense" if owner.endswith("lm_head") else None


def _in_model_type(grid: Grid, form: Form, name: str) -> Grid:
    """Return the grid with scales in the type that the weight stands for, or refuse."""
    scale = grid.scale.to(form.dtype)
    if not torch.equal(scale.float(), grid.scale.float()):
        told = str(form.dtype).removeprefix("torch.")
        raise ConfigError(
            f"{name}: its scales are {str(grid.scale.dtype).removeprefix('torch.')} and a {told} "
            f"checkpoint must hold them as {told}, which would change the model's values. "
            f"Compress again with scale_dtype: {told}."
        )
    return replace(grid, scale=scale)


def _check_inputs(inputs: Activations | None, name: str) -> None:
    """Refuse a rounding of inputs that the layout has no words for."""
    if inputs is not None and inputs.clip != 1:
        raise ConfigError(
            f"{name}: its inputs are rounded with clip={inputs.clip}, and compressed-tensors knows "
            "the whole range only. Compress again with activations clip: 1.0."
        )


def _check_fused(schemes: Mapping[str, Scheme]) -> None:
    for name, scheme in schemes.items():
        stem, _, leaf = name.rpartition(".")
        for group in _FUSED:
            if leaf != group[0]:
                continue
            others = {o: schemes.get(f"{stem}.{o}") for o in group}
            if len(set(others.values())) > 1:
                told = ", ".join(f"{o}: {s or 'dense'}" for o, s in others.items())
                raise ConfigError(
                    f"{stem}: serving engines run {', '.join(group)} as one matrix, but their "
                    f"schemes differ ({told}). Give them the same setting, or export with --mixed "
                    f"for engines that do not fuse. {name} is {scheme}."
                )


def _tensors(grid: Grid) -> dict[str, Tensor]:
    """Return what stands for ``weight`` in the checkpoint, by the end of its name."""
    bits, scale = grid.scheme.bits, grid.scale.contiguous()
    if grid.scheme.inputs is None:
        size = torch.tensor(grid.codes.shape, dtype=torch.int64)
        held = {"weight_packed": pack_rows(grid.codes, bits), "weight_shape": size}
        zero = None if grid.zero is None else pack_columns(grid.zero, bits)
    else:
        held = {"weight": _signed(grid.codes, bits)}
        zero = None if grid.zero is None else _signed(grid.zero, bits)
    held["weight_scale"] = scale
    if zero is not None:
        held["weight_zero_point"] = zero
    if grid.input_scale is not None:
        held["input_scale"] = grid.input_scale.to(scale.dtype)
    return held


def _signed(codes: Tensor, bits: int) -> Tensor:
    return codes.to(torch.int16).sub(2 ** (bits - 1)).to(torch.int8)


def _rewrite_shards(work: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Exchange the dense weights in the saved shards for their packed tensors."""
    place: dict[str, str] = {}
    for shard in sorted(work.glob("*.safetensors")):
        held: dict[str, Tensor] = {}
        with safe_open(shard, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                if key in tensors:
                    stem = key.removesuffix("weight")
                    held |= {f"{stem}{end}": tensor for end, tensor in tensors[key].items()}
                else:
                    held[key] = file.get_tensor(key)
        save_file(held, shard, metadata={"format": "pt"})
        place |= dict.fromkeys(held, shard.name)
    index = work / f"{WEIGHTS}.index.json"
    if index.is_file():
        total = sum(shard.stat().st_size for shard in work.glob("*.safetensors"))
        told = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
        write_atomic(index, json.dumps(told, indent=2).encode())


def _write_config(work: Path, schemes: Mapping[str, Scheme], ignore: list[str]) -> None:
    """Add the quantization to ``config.json``: a group for each scheme."""
    by_scheme: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        by_scheme.setdefault(scheme, []).append(name)
    one = len(by_scheme) == 1
    groups = {
        f"group_{index}": {
            "targets": ["Linear"] if one else names,
            "weights": _arguments(scheme),
            "input_activations": _input_arguments(scheme.inputs),
            "output_activations": None,
            "format": _format(scheme),
        }
        for index, (scheme, names) in enumerate(by_scheme.items())
    }
    formats = {_format(scheme) for scheme in by_scheme}
    config = json.loads((work / CONFIG).read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "version": "0.14.0",  # the first that packs 3, 5, 6 and 7 bits without gaps
        "ignore": ignore,
        "config_groups": groups,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    write_atomic(work / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def _format(scheme: Scheme) -> str:
    return "pack-quantized" if scheme.inputs is None else "int-quantized"


def _input_arguments(inputs: Activations | None) -> dict[str, Any] | None:
    if inputs is None:
        return None
    return {
        "num_bits": inputs.bits,
        "type": "int",
        "symmetric": inputs.symmetric,
        "strategy": "token" if inputs.granularity == "token" else "tensor",
        "dynamic": not inputs.static,
    }


def _arguments(scheme: Scheme) -> dict[str, Any]:
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
