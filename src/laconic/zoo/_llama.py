"""Small language models of the Llama architecture, as transformers builds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laconic.errors import ConfigError
from laconic.extras import require
from laconic.zoo._seed import seeded

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

_BYTES = 256  # the vocabulary of datasets.encode_bytes, whose 0 ends a document


def tiny_llama(
    *,
    vocabulary: int = 512,
    width: int = 64,
    blocks: int = 2,
    heads: int = 8,
    kv_heads: int | None = None,
    hidden: int | None = None,
    context: int = 512,
    tied: bool = True,
    bos: int = 1,
    eos: int = 2,
    seed: int = 0,
) -> LlamaForCausalLM:
    """Build a small Llama (Touvron and others, 2023) with grouped-query attention.

    Args:
        vocabulary: Number of tokens.
        width: Channels; a multiple of ``heads``.
        blocks: Number of blocks.
        heads: Heads of the queries.
        kv_heads: Heads of keys and values, a divisor of ``heads``; half of ``heads`` where that
            is whole and this is None (Ainslie and others, 2023), else ``heads``.
        hidden: Channels of the gated layers; where None, 8/3 of ``width`` in steps of 32.
        context: Longest sequence.
        tied: The output layer shares the embedding's weights.
        bos: Token that begins a text.
        eos: Token that ends a text.
        seed: Seed of the initial weights; the global random state is left alone.

    Raises:
        ConfigError: A number below 1, or heads that do not divide what they must.
        MissingExtraError: transformers is not installed.

    Example:
        >>> tiny_llama().config.num_key_value_heads
        4
    """
    if kv_heads is None:
        kv_heads = heads if heads % 2 else heads // 2
    if hidden is None:
        hidden = -(-8 * width // 96) * 32
    _check(vocabulary, width, blocks, heads, kv_heads, hidden, context)
    transformers = require("transformers", "hf", purpose="tiny_llama")
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    with seeded(seed):
        model: LlamaForCausalLM = transformers.LlamaForCausalLM(config).eval()
    return model


def byte_llama(
    *,
    width: int = 96,
    blocks: int = 6,
    heads: int = 6,
    kv_heads: int | None = None,
    hidden: int | None = None,
    context: int = 512,
    tied: bool = True,
    seed: int = 0,
) -> LlamaForCausalLM:
    """Build a small Llama that reads bytes, as the language data sets give them by default.

    Args:
        width: Channels; a multiple of ``heads``.
        blocks: Number of blocks.
        heads: Heads of the queries.
        kv_heads: Heads of keys and values; half of ``heads`` where None.
        hidden: Channels of the gated layers; about 8/3 of ``width`` where None.
        context: Longest sequence.
        tied: The output layer shares the embedding's weights.
        seed: Seed of the initial weights; the global random state is left alone.

    Raises:
        ConfigError: A number below 1, or heads that do not divide what they must.
        MissingExtraError: transformers is not installed.
    """
    return tiny_llama(
        vocabulary=_BYTES,
        width=width,
        blocks=blocks,
        heads=heads,
        kv_heads=kv_heads,
        hidden=hidden,
        context=context,
        tied=tied,
        bos=0,
        eos=0,
        seed=seed,
    )


def _check(
    vocabulary: int, width: int, blocks: int, heads: int, kv_heads: int, hidden: int, context: int
) -> None:
    numbers = {
        "vocabulary": vocabulary,
        "width": width,
        "blocks": blocks,
        "heads": heads,
        "kv_heads": kv_heads,
        "hidden": hidden,
        "context": context,
    }
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"tiny_llama: {name}={value} must be at least 1.")
    if width % (2 * heads) or heads % kv_heads:
        raise ConfigError(
            f"tiny_llama: width={width}, heads={heads}, kv_heads={kv_heads}; twice heads must"
            " divide width (rotary positions turn pairs of channels) and kv_heads must divide"
            " heads. Use for example 64, 8 and 4."
        )
