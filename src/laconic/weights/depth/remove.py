"""Take parts out of a decoder, and make the decoder really smaller where whole blocks are gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from laconic.artifact.hub import is_hugging_face
from laconic.artifact.removed import Removed
from laconic.errors import ConfigError, UnsupportedModelError, nearest
from laconic.weights._flow import quiet
from laconic.weights.depth.subblocks import SubBlock, exchange_, probe
from laconic.weights.sites import blocks_of

_CLOSE = 1e-4  # largest difference of logits, over their largest, that counts as the same model


def chosen_parts(parts: Sequence[SubBlock], names: Sequence[str]) -> list[SubBlock]:
    """Return parts by their names.

    Raises:
        ConfigError: A name that no part has; has the nearest one.
    """
    known = {part.name: part for part in parts}
    for name in names:
        if name not in known:
            raise ConfigError(f"depth: the model has no part {name!r}.{nearest(name, known)}")
    return [known[name] for name in names]


def take_out_(model: nn.Module, parts: Sequence[SubBlock]) -> None:
    """Take parts out of a model, in place: it has the same blocks, and each part adds nothing.

    All names stay as they are. :func:`compact_` then deletes the blocks that are left empty.

    Raises:
        UnsupportedModelError: The model is none of transformers, whose artefact tells what was
            removed.
    """
    if parts and not is_hugging_face(model):
        raise UnsupportedModelError(
            f"{type(model).__name__}: parts are removed from models of transformers alone."
        )
    for part in parts:
        for path, module in part.replacements().items():
            exchange_(model, path, module)


def emptied_blocks(model: nn.Module) -> list[int]:
    """Return the indices of blocks of which nothing is left but vectors that do nothing."""
    return [
        index
        for index, block in enumerate(blocks_of(model).values())
        if any(isinstance(module, Removed) for module in block.modules())
        and not any(p.dim() >= 2 for p in block.parameters())
    ]


def compact_(model: nn.Module) -> dict[str, str]:
    """Delete blocks that are left empty, in place, and number the others anew.

    The numbers that layers keep for the cache of keys and values, the count of layers in the
    configuration, and its lists with an entry for each layer follow.

    Returns:
        The new path of every block that is left, by its old one.

    Raises:
        UnsupportedModelError: Every block is empty, or the configuration has no count of layers.
    """
    blocks, gone = blocks_of(model), set(emptied_blocks(model))
    kept = [index for index in range(len(blocks)) if index not in gone]
    paths = list(blocks)
    if not gone:
        return dict(zip(paths, paths, strict=True))
    if not kept:
        raise UnsupportedModelError("depth: every block is empty; leave at least one part.")
    _shorten_config(model, len(blocks), kept)
    parent = paths[0].rpartition(".")[0]
    owner = model.get_submodule(parent)
    modules = list(blocks.values())
    owner._modules.clear()
    moved: dict[str, str] = {}
    for new, old in enumerate(kept):
        owner._modules[str(new)] = modules[old]
        moved[paths[old]] = f"{parent}.{new}"
        inner: list[Any] = list(modules[old].modules())
        for module in inner:
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx += new - old
    return moved


def _shorten_config(model: nn.Module, layers: int, kept: Sequence[int]) -> None:
    whole: Any = getattr(model, "config", None)
    config = whole.get_text_config(decoder=True) if hasattr(whole, "get_text_config") else whole
    if getattr(config, "num_hidden_layers", None) != layers:
        raise UnsupportedModelError(
            f"{type(model).__name__}: config.num_hidden_layers is not its {layers} blocks; the "
            "configuration cannot be told which are gone."
        )
    lists = {
        key: value
        for key, value in vars(config).items()
        if isinstance(value, list) and len(value) == layers and ("layer" in key or "block" in key)
    }
    config.num_hidden_layers = len(kept)
    for key, value in lists.items():
        setattr(config, key, [value[index] for index in kept])


def same_function(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two language models give the same logits on a short drawn text."""
    inputs = probe(one)
    logits = [_logits(model, inputs) for model in (one, other)]
    if logits[0].shape != logits[1].shape:
        return False
    gap = (logits[0] - logits[1]).abs().max()
    return bool(gap <= _CLOSE * logits[0].abs().max().clamp_min(1e-12))


def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with quiet(model):
        found: Any = model(**inputs)
    logits: Tensor = found.logits
    return logits.float()


def dropped_count(share: float, of: int) -> int:
    """Return how many of some blocks or parts a share is, rounded down.

    >>> dropped_count(0.25, 6), dropped_count(0.3, 10)
    (1, 3)
    """
    return int(share * of + 1e-9)
