"""From the tensors of one packed layer to a form, for each layout that other tools write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from laconic.artifact.exchange.words import unpack_columns, unpack_rows
from laconic.errors import ConfigError
from laconic.forms.activations import Activations, Granularity
from laconic.forms.quantized import Quantized

# AWQ packs eight columns into a word, the even ones into its lower half.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_UNGAPPED = (0, 14)  # first version of compressed-tensors that packs 3, 5, 6, 7 bits without gaps
_ALWAYS_UNGAPPED = (1, 2, 4, 8)


class UnreadableError(ValueError):
    """A layout that no form stands for."""


def read_compressed_tensors(
    parts: Mapping[str, Tensor], told: Mapping[str, Any], dtype: torch.dtype
) -> Quantized:
    """Return the form of a ``pack-quantized`` or ``int-quantized`` layer."""
    group = _group_of(told)
    weights = group["weights"]
    bits, kind = int(weights["num_bits"]), weights.get("type", "int")
    if kind != "int":
        raise UnreadableError(f"weights of type {kind!r} are no integer codes")
    if "weight_g_idx" in parts:
        raise UnreadableError("columns in another order than the groups (g_idx) cannot be read")
    for beyond in ("output_activations", "kv_cache_scheme"):
        if group.get(beyond) or told.get(beyond):
            raise UnreadableError(f"{beyond} cannot be read: no form rounds what comes out")
    inputs = _inputs_of(group)
    fixed = parts["input_scale"].float().reshape(1) if inputs and inputs.static else None
    zero = parts.get("weight_zero_point")
    if "weight_packed" not in parts:
        codes = _unsigned(parts["weight"], bits)
        zero = None if zero is None else _unsigned(zero, bits)
        return _form(codes, parts["weight_scale"], zero, bits, dtype, inputs, fixed)
    version = tuple(int(n) for n in re.findall(r"\d+", str(told.get("version", "")))[:2])
    if bits not in _ALWAYS_UNGAPPED and (not version or version < _UNGAPPED):
        raise UnreadableError(
            f"codes of {bits} bits written by compressed-tensors {told.get('version', '?')} leave "
            "gaps in their words; versions from 0.14 on can be read"
        )
    rows, cols = (int(n) for n in parts["weight_shape"].tolist())
    codes = unpack_rows(parts["weight_packed"], bits, cols)
    zero = None if zero is None else unpack_columns(zero, bits, rows)
    return _form(codes, parts["weight_scale"], zero, bits, dtype, inputs, fixed)


def _unsigned(codes: Tensor, bits: int) -> Tensor:
    if codes.dtype != torch.int8:
        raise UnreadableError(f"weights of type {codes.dtype} are no integer codes")
    return codes.to(torch.int16).add(2 ** (bits - 1)).to(torch.uint8)


def _inputs_of(group: Mapping[str, Any]) -> Activations | None:
    """Return how a layer of the group rounds its inputs."""
    told = group.get("input_activations")
    if not told:
        return None
    strategy, dynamic = told.get("strategy") or "tensor", bool(told.get("dynamic"))
    if told.get("type", "int") != "int" or strategy not in ("token", "tensor"):
        raise UnreadableError(f"inputs rounded to {told.get('type')} a {strategy} cannot be read")
    if strategy == "token" and not dynamic:
        raise UnreadableError("inputs with a static scale a token cannot be read")
    granularity: Granularity = "token" if strategy == "token" else "tensor"
    try:
        return Activations(
            bits=int(told["num_bits"]),
            granularity=granularity if dynamic else "static",
            symmetric=bool(told.get("symmetric", True)),
        )
    except ConfigError as error:
        raise UnreadableError(str(error)) from error


def read_gptq(
    parts: Mapping[str, Tensor], told: Mapping[str, Any], dtype: torch.dtype
) -> Quantized:
    """Return the form of a GPTQ layer, format 1: zero points are stored less one."""
    bits = int(told["bits"])
    if told.get("checkpoint_format", "gptq") not in ("gptq", "gptq_v2"):
        raise UnreadableError(f"checkpoint_format {told['checkpoint_format']!r} is not gptq")
    codes = unpack_columns(parts["qweight"], bits, parts["qweight"].shape[0] * 32 // bits).T
    cols = codes.shape[1]
    scale = parts["scales"].T.contiguous()
    group = cols // scale.shape[1]
    order = parts.get("g_idx")
    if order is not None and not torch.equal(order.long(), torch.arange(cols) // group):
        raise UnreadableError(
            "its columns are in another order than its groups (act-order without static groups)"
        )
    stored = unpack_rows(parts["qzeros"], bits, scale.shape[0]).T.to(torch.int16)
    zero = stored + (0 if told.get("checkpoint_format") == "gptq_v2" else 1)
    if bool((zero >= 2**bits).any()):
        raise UnreadableError(f"a zero point of {2**bits} does not fit {bits} bits")
    return _form(codes.contiguous(), scale, zero.to(torch.uint8).contiguous(), bits, dtype)


def read_awq(parts: Mapping[str, Tensor], told: Mapping[str, Any], dtype: torch.dtype) -> Quantized:
    """Return the form of an AWQ layer in the GEMM layout."""
    bits = int(told.get("bits") or told.get("w_bit") or 0)
    if bits != 4 or str(told.get("version", "gemm")).lower() != "gemm":
        raise UnreadableError(
            f"AWQ {told.get('version')!r} at {bits} bits; 4 bits in GEMM can be read"
        )
    codes, scale = _awq(parts["qweight"]).T, parts["scales"].T
    zero = _awq(parts["qzeros"]).T.contiguous()
    return _form(codes.contiguous(), scale.contiguous(), zero, bits, dtype)


def _awq(words: Tensor) -> Tensor:
    """Return (rows, 8 * words) uint8 of words (rows, words) int32."""
    shifts = torch.tensor(_AWQ_PLACES, dtype=torch.int32) * 4
    codes = (words.unsqueeze(-1) >> shifts) & 15
    return codes.flatten(1).to(torch.uint8)


def _group_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the group that a layer belongs to."""
    module = str(told["module"])
    groups = list((told.get("config_groups") or {}).values())
    fitting = [g for g in groups if any(_targets(t, module) for t in g.get("targets") or ())]
    if not fitting:
        raise ValueError("belongs to none of the config_groups")
    exact = [g for g in fitting if "Linear" not in g["targets"]] or fitting
    group: dict[str, Any] = exact[0]
    if not isinstance(group.get("weights"), dict) or "num_bits" not in group["weights"]:
        raise ValueError("its config_group says nothing of the weights")
    return group


def _targets(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target in ("Linear", module)


def _form(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    dtype: torch.dtype,
    inputs: Activations | None = None,
    input_scale: Tensor | None = None,
) -> Quantized:
    if scale.dim() != 2 or not scale.shape[1] or codes.shape[1] % scale.shape[1]:
        raise ValueError(f"scales {tuple(scale.shape)} do not divide codes {tuple(codes.shape)}")
    return Quantized(
        codes,
        scale,
        zero,
        bits=bits,
        group_size=codes.shape[1] // scale.shape[1],
        shape=tuple(codes.shape),
        dtype=dtype,
        symmetric=zero is None,
        activations=inputs,
        input_scale=input_scale,
    )
