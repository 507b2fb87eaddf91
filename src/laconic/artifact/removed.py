"""Sub-blocks that were removed: what stands in their place, and how that is told on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Removed(nn.Module):
    """Stands where a part of a residual block was removed: it adds nothing, and holds nothing.

    An attention keeps its place in the cache of keys and values: it enters keys of width 1, so
    that positions, masks and the places of the other layers stay as they were.

    Args:
        outputs: How many values the part returned, the first of them what was added to the
            residual stream; 0 where it returned that alone.
        layer_idx: Place of an attention in the cache; None for anything else.
    """

    def __init__(self, outputs: int = 0, layer_idx: int | None = None) -> None:
        super().__init__()
        self.outputs, self.layer_idx = outputs, layer_idx

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros of the shape of the hidden states, and None for all other values."""
        hidden = _hidden_states(args, kwargs)
        if self.layer_idx is not None:
            _keep_place((*args, *kwargs.values()), self.layer_idx, hidden)
        nothing = torch.zeros_like(hidden)
        return (nothing, *[None] * (self.outputs - 1)) if self.outputs else nothing

    def record(self) -> list[int]:
        """Return how the manifest tells it: ``[outputs]`` or ``[outputs, layer_idx]``."""
        return [self.outputs, *([] if self.layer_idx is None else [self.layer_idx])]

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        return ", ".join(map(str, self.record()))


def _hidden_states(args: Iterable[Any], kwargs: Mapping[str, Any]) -> Tensor:
    named = kwargs.get("hidden_states")
    for value in (named, *args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise TypeError("a removed part was called without a tensor")


def _keep_place(values: Iterable[Any], layer_idx: int, hidden: Tensor) -> None:
    """Enter keys and values of width 1 into the cache among some arguments, if there is one."""
    for value in values:
        if hasattr(value, "get_seq_length") and hasattr(value, "update"):
            cache = getattr(value, "self_attention_cache", value)
            none = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[-2], 1)
            cache.update(none, none, layer_idx)
            return


def removed_in(model: nn.Module) -> dict[str, list[int]]:
    """Return the record of every removed part of a model by its path."""
    return {
        path: module.record()
        for path, module in model.named_modules()
        if isinstance(module, Removed)
    }


def remove_(model: nn.Module, records: Mapping[str, Sequence[int]]) -> None:
    """Take parts out of a model, in place, as their records tell.

    Raises:
        ValueError: The model has no such part.
    """
    for path, record in records.items():
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        if owner._modules.get(name) is None:
            raise ValueError(f"the model has no module {path!r}")
        owner._modules[name] = Removed(*record)


def refill_(model: nn.Module) -> None:
    """Put parts whose weights are all zero where parts were removed, in place.

    They add nothing either, and any tool that knows the model's class can hold them.
    """
    records = removed_in(model)
    if not records:
        return
    held: Any = model
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    with torch.device("meta"):
        whole: nn.Module = type(model)(held.config)
    for path in records:
        parent, _, name = path.rpartition(".")
        part = whole.get_submodule(path).to_empty(device="cpu").to(dtype).eval()
        for tensor in (*part.parameters(), *part.buffers()):
            tensor.data.zero_()
        model.get_submodule(parent)._modules[name] = part
