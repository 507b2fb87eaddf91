"""From the tensors of one packed layer to a form, for each layout that other tools write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from laconic.artifact.exchange.words import unpack_columns, unpack_rows
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
    """Return the form of a ``pack-quantized`` layer."""
    weights = _group_of(told)
    bits, kind = int(weights["num_bits"]), weights.get("type", "int")
    if kind != "int":
        raise UnreadableError(f"weights of type {kind!r} are no integer codes")
    if "weight_g_idx" in parts:
        raise UnreadableError("columns in another order than the groups (g_idx) cannot be read")
    version = tuple(int(n) for n in re.findall(r"\d+", str(told.get("version", "")))[:2])
    if bits not in _ALWAYS_UNGAPPED and (not version or version < _UNGAPPED):
        raise UnreadableError(
            f"codes of {bits} bits written by compressed-tensors {told.get('version', '?')} leave "
            "gaps in their words; versions from 0.14 on can be read"
        )
    rows, cols = (int(n) for n in parts["weight_shape"].tolist())
    codes = unpack_rows(parts["weight_packed"], bits, cols)
    zero = None
    if "weight_zero_point" in parts:
        zero = unpack_columns(parts["weight_zero_point"], bits, rows)
    return _form(codes, parts["weight_scale"], zero, bits, dtype)


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
    """Return the weight arguments of the group that a layer belongs to."""
    module = str(told["module"])
    groups = list((told.get("config_groups") or {}).values())
    fitting = [g for g in groups if any(_targets(t, module) for t in g.get("targets") or ())]
    if not fitting:
        raise ValueError("belongs to none of the config_groups")
    exact = [g for g in fitting if "Linear" not in g["targets"]] or fitting
    weights = exact[0].get("weights")
    if not isinstance(weights, dict) or "num_bits" not in weights:
        raise ValueError("its config_group says nothing of the weights")
    return weights


def _targets(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target in ("Linear", module)


def _form(
    codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, dtype: torch.dtype
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
    )
