"""stories260K: a language model of 260 032 parameters that tells short stories."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from laconic.datasets import DataFile, find
from laconic.errors import DataError
from laconic.zoo._llama import tiny_llama
from laconic.zoo._scorebpe import BOS, EOS, ScoreBPE, read_score_bpe

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

_SOURCE = "https://huggingface.co/karpathy/tinyllamas/resolve/main/stories260K"
WEIGHTS = DataFile(
    "weights_stories260k/stories260K.bin",
    "b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696",
    recipe=f"{_SOURCE}/stories260K.bin, as it is",
)
TOKENIZER = DataFile(
    "weights_stories260k/tok512.bin",
    "037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312",
    recipe=f"{_SOURCE}/tok512.bin, as it is",
)
_HEADER = struct.Struct("<7i")
_NAMES = ("width", "hidden", "blocks", "heads", "kv_heads", "vocabulary", "context")


def stories260k() -> tuple[LlamaForCausalLM, ScoreBPE]:
    """Load stories260K, trained by A. Karpathy on TinyStories (Eldan and Li, 2023).

    Five blocks of 64 channels, eight heads of queries on four of keys and values, 512 tokens,
    embedding and output tied. Its files are looked for as those of the data sets are.

    Returns:
        The model in eval mode, and its tokenizer, which puts the token that begins a text first.

    Raises:
        DataError: A file is missing or damaged; says what to put where.
        MissingExtraError: transformers is not installed.
    """
    model = read_llama2c(find(WEIGHTS))
    return model, read_score_bpe(find(TOKENIZER), model.config.vocab_size)


def read_llama2c(path: Path) -> LlamaForCausalLM:
    """Read a checkpoint of llama2.c, format 0: seven numbers, then all tensors as float32.

    There, neighbouring channels of a head turn together; in transformers, those that are half a
    head apart. The rows of the query and key layers are put in that order, which leaves the
    function of the model as it was.

    Args:
        path: Checkpoint with tied or separate output layer.

    Raises:
        DataError: Numbers that are none of such a model, or a file of another size.
    """
    data = path.read_bytes()
    if len(data) < _HEADER.size:
        raise DataError(f"{path.name}: {len(data)} bytes are no checkpoint. Fetch it again.")
    sizes = dict(zip(_NAMES, _HEADER.unpack_from(data), strict=True))
    tied = sizes["vocabulary"] > 0  # the format says "not tied" by a sign
    sizes["vocabulary"] = abs(sizes["vocabulary"])
    expected = _expected_bytes(sizes, tied=tied) if min(sizes.values()) > 0 else -1
    if expected != len(data):
        raise DataError(
            f"{path.name}: {len(data)} bytes do not fit its header {sizes}. Give a checkpoint of"
            " llama2.c in format 0 (export.py --version 0)."
        )
    model = tiny_llama(**sizes, tied=tied, bos=BOS, eos=EOS)
    values = torch.from_numpy(np.frombuffer(data, "<f4", offset=_HEADER.size).copy())
    model.load_state_dict(_tensors(values, sizes, tied=tied))
    return model


def _shapes(sizes: dict[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """Return the tensors in the order of the file; those of the blocks are stacked."""
    blocks, width, hidden = sizes["blocks"], sizes["width"], sizes["hidden"]
    keys = width // sizes["heads"] * sizes["kv_heads"]
    return [
        ("model.embed_tokens", (sizes["vocabulary"], width)),
        ("input_layernorm", (blocks, width)),
        ("self_attn.q_proj", (blocks, width, width)),
        ("self_attn.k_proj", (blocks, keys, width)),
        ("self_attn.v_proj", (blocks, keys, width)),
        ("self_attn.o_proj", (blocks, width, width)),
        ("post_attention_layernorm", (blocks, width)),
        ("mlp.gate_proj", (blocks, hidden, width)),
        ("mlp.down_proj", (blocks, width, hidden)),
        ("mlp.up_proj", (blocks, hidden, width)),
        ("model.norm", (width,)),
    ]


def _expected_bytes(sizes: dict[str, int], *, tied: bool) -> int:
    numbers = sum(int(np.prod(shape)) for _, shape in _shapes(sizes))
    numbers += sizes["context"] * (sizes["width"] // sizes["heads"])  # tables of the rotation
    numbers += 0 if tied else sizes["vocabulary"] * sizes["width"]
    return _HEADER.size + 4 * numbers


def _tensors(values: Tensor, sizes: dict[str, int], *, tied: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    place = 0
    for name, shape in _shapes(sizes):
        count = int(np.prod(shape))
        tensor = values[place : place + count].view(shape)
        place += count
        if name.startswith("model."):
            found[f"{name}.weight"] = tensor
            continue
        for block, part in enumerate(tensor):
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                part = halves(part, sizes["width"] // sizes["heads"])
            found[f"model.layers.{block}.{name}.weight"] = part
    output = found["model.embed_tokens.weight"]
    found["lm_head.weight"] = output if tied else values[-output.numel() :].view_as(output)
    return found


def halves(weight: Tensor, head: int) -> Tensor:
    """Move rows so that the two that turn together are half a head apart, not neighbours.

    Args:
        weight: Rows of all heads, (heads * head, columns).
        head: Rows of a head.

    Example:
        >>> halves(torch.arange(4.0)[:, None], 4).flatten().tolist()
        [0.0, 2.0, 1.0, 3.0]
    """
    pairs = weight.view(-1, head // 2, 2, weight.size(1))
    return pairs.transpose(1, 2).reshape(weight.shape)
