"""Leaf modules of a graph: from a ``torch.nn`` module to its class and settings, and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from laconic.artifact.allowed import constructor, module_classes
from laconic.artifact.arguments import from_json, to_json
from laconic.errors import UnsupportedModelError

_RECURRENT = (
    "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
)  # fmt: skip
_USUAL: dict[str, Any] = {
    "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False,
    "proj_size": 0, "nonlinearity": "tanh",
}  # fmt: skip
_LOST = {"min_value", "max_value"}  # of Hardtanh: old names of min_val and max_val
_MANY_LAYERS = 1024
_LARGEST = 2**40


def is_leaf(module: nn.Module) -> bool:
    """Return whether a module is exactly of an allowed class."""
    return module_classes().get(type(module).__name__) is type(module)


def describe(module: nn.Module, *, where: str) -> list[Any]:
    """Return ``[class, settings]`` of a leaf module; default settings are left out.

    Raises:
        UnsupportedModelError: A module of this class and these settings gives other tensors.
    """
    cls = type(module)
    settings = _settings(module)
    defaults = {p.name: p.default for p in constructor(cls)}
    written = {
        name: to_json(_lists(value), lambda _: None)
        for name, value in settings.items()
        if name not in defaults or not _is_default(value, defaults[name])
    }
    record = [cls.__name__, written] if written else [cls.__name__]
    rebuilt, held = build(record).state_dict(), module.state_dict()
    if {k: v.shape for k, v in rebuilt.items()} != {k: v.shape for k, v in held.items()}:
        raise UnsupportedModelError(f"{where}: {cls.__name__} holds tensors that are not its own")
    if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
        raise UnsupportedModelError(f"{where}: hooks cannot be stored")
    return record


def build(record: list[Any]) -> nn.Module:
    """Build a leaf module on the meta device from ``[class, settings]``.

    Raises:
        ValueError: An unknown class or settings that do not belong to it.
    """
    name, settings = record[0] if record else None, record[1] if len(record) > 1 else {}
    if len(record) > 2 or not isinstance(name, str) or not isinstance(settings, dict):
        raise ValueError("a module must be [class, settings]")
    if name not in module_classes():
        raise ValueError(f"module class {name[:80]!r} is not allowed")
    cls = module_classes()[name]
    allowed = {p.name for p in constructor(cls)} | set(_extra_settings(cls))
    if not set(settings) <= allowed:
        raise ValueError(f"{name} has no settings {sorted(set(settings) - allowed)[:3]}")
    values = {
        key: from_json(value, _no_nodes, torch.device("cpu")) for key, value in settings.items()
    }
    _check_numbers(values)
    with torch.device("meta"), warnings.catch_warnings():
        # Nothing is initialised on the meta device: a tensor without elements is no news here.
        warnings.filterwarnings("ignore", message="Initializing zero-element", category=UserWarning)
        return cls(**values).eval()


def _is_default(value: Any, default: Any) -> bool:
    """Return whether a setting is the default, for all axes where it has one for each."""
    if value is default or value == default:
        return True
    return isinstance(value, tuple) and default is not None and set(value) == {default}


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _no_nodes(index: int) -> Any:
    raise ValueError(f"settings of a module cannot hold node {index}")


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Bound what a constructor might loop over or allocate."""
    if isinstance(values.get("num_layers", 1), int) and values.get("num_layers", 1) > _MANY_LAYERS:
        raise ValueError(f"more than {_MANY_LAYERS} layers in one module")
    for name, value in values.items():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, list | tuple | dict) and len(item) > 64:
                raise ValueError(f"{name} is too long")
            if isinstance(item, int) and abs(item) > _LARGEST:
                raise ValueError(f"{name}={item} is too large")
        if isinstance(value, list | tuple | str) and len(value) > 64:
            raise ValueError(f"{name} is too long")


def _extra_settings(cls: type[nn.Module]) -> tuple[str, ...]:
    if not issubclass(cls, nn.RNNBase):
        return ()
    return (*_RECURRENT, "proj_size" if cls is nn.LSTM else "nonlinearity")


def _settings(module: nn.Module) -> dict[str, Any]:
    cls = type(module)
    if isinstance(module, nn.RNNBase):
        names = [n for n in _extra_settings(cls) if hasattr(module, n)]
        defaults: dict[str, Any] = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
        }
        defaults |= {"bidirectional": False, "proj_size": 0, "nonlinearity": "tanh"}
        found = {name: getattr(module, name) for name in names}
        return {n: v for n, v in found.items() if n not in defaults or v != defaults[n]}
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        return _transformer_settings(module)
    names = [p.name for p in constructor(cls) if p.name not in _LOST]
    settings = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if isinstance(module, nn.MultiheadAttention):
        settings["bias"] = module.in_proj_bias is not None
        settings["add_bias_kv"] = module.bias_k is not None
        if module._qkv_same_embed_dim:
            settings["kdim"] = settings["vdim"] = None
    elif "bias" in settings and not isinstance(settings["bias"], bool):
        settings["bias"] = settings["bias"] is not None
    if settings.get("affine") is False or settings.get("elementwise_affine") is False:
        settings.pop("bias", None)
    return settings


def _transformer_settings(
    module: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer,
) -> dict[str, Any]:
    activations = {F.relu: "relu", F.gelu: "gelu"}
    if module.activation not in activations:
        raise UnsupportedModelError(f"activation {module.activation} of a layer cannot be stored")
    return {
        "d_model": module.self_attn.embed_dim,
        "nhead": module.self_attn.num_heads,
        "dim_feedforward": module.linear1.out_features,
        "dropout": module.dropout.p,
        "activation": activations[module.activation],
        "layer_norm_eps": module.norm1.eps,
        "batch_first": module.self_attn.batch_first,
        "norm_first": module.norm_first,
        "bias": module.linear1.bias is not None,
    }
