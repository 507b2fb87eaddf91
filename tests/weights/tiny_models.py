"""One tiny random model of each kind of architecture in transformers, and data to run it on.

The sizes differ from each other wherever a mix-up of axes could hide: width, hidden width,
vocabulary, heads and key-value heads. Norm gains and biases are drawn too, so that a method that
forgets one of them is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic.task import Task, TensorSplit

WIDTH, HIDDEN, HEADS, VOCABULARY, LENGTH, BLOCKS = 32, 48, 4, 50, 12, 2

_COMMON = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS}
_DECODER = {
    **_COMMON,
    "vocab_size": VOCABULARY,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2, "head_dim": WIDTH // HEADS}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}


def _model(config: str, model: str, settings: dict[str, Any]) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return built


_BUILD: dict[str, Callable[[], nn.Module]] = {
    "llama": partial(  # grouped-query attention; embedding and head tied
        _model, "LlamaConfig", "LlamaForCausalLM", {**_GROUPED, "tie_word_embeddings": True}
    ),
    "qwen3": partial(_model, "Qwen3Config", "Qwen3ForCausalLM", _GROUPED),  # norms of q and k
    "gemma": partial(  # norms with a gain of 1 + weight; one key-value head
        _model, "GemmaConfig", "GemmaForCausalLM", {**_GROUPED, "num_key_value_heads": 1}
    ),
    "mistral": partial(  # as many key-value heads as heads
        _model, "MistralConfig", "MistralForCausalLM", {**_GROUPED, "num_key_value_heads": HEADS}
    ),
    "mixtral": partial(
        _model, "MixtralConfig", "MixtralForCausalLM", {**_EXPERTS, "num_local_experts": 4}
    ),
    "qwen-moe": partial(
        _model, "Qwen3MoeConfig", "Qwen3MoeForCausalLM",
        {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "norm_topk_prob": True},
    ),
    "gpt2": partial(  # Conv1D, one weight for q, k and v, GELU
        _model, "GPT2Config", "GPT2LMHeadModel",
        {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "n_inner": HIDDEN,
         "n_positions": 32, "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0},
    ),
    "opt": partial(  # LayerNorm, biases, ReLU
        _model, "OPTConfig", "OPTForCausalLM",
        {**_COMMON, "ffn_dim": HIDDEN, "vocab_size": VOCABULARY, "max_position_embeddings": 32,
         "word_embed_proj_dim": WIDTH, "pad_token_id": 1},
    ),
    "phi": partial(_model, "PhiConfig", "PhiForCausalLM", _DECODER),  # attention and MLP parallel
    "bert": partial(  # norms after the residual, which they feed too
        _model, "BertConfig", "BertForMaskedLM", {**_DECODER, "type_vocab_size": 2}
    ),
    "vit": partial(
        _model, "ViTConfig", "ViTForImageClassification",
        {**_COMMON, "intermediate_size": HIDDEN, "image_size": 8, "patch_size": 2,
         "num_channels": 3, "num_labels": 5},
    ),
}  # fmt: skip

NAMES = tuple(_BUILD)


def tiny_model(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a random model of an architecture, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _BUILD[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2:  # outputs of about unit size, so that no branch is idle
                    parameter.normal_(0, parameter.shape[-1] ** -0.5)
                else:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def tiny_batch(name: str, *, count: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Return inputs for an architecture."""
    source = torch.Generator().manual_seed(seed)
    if name == "vit":
        return {"x": torch.randn(count, 3, 8, 8, generator=source)}
    return {"input_ids": torch.randint(2, VOCABULARY, (count, LENGTH), generator=source)}


def tiny_task(name: str, *, count: int = 24) -> Task:
    """Return a task with drawn data: a quarter is the test split, the rest for training."""
    batch, test = tiny_batch(name, count=count), count // 4
    kind = "classification" if name == "vit" else "causal-lm"
    if name == "vit":
        batch["y"] = batch["x"].flatten(1)[:, :5].argmax(1)
    return Task(
        kind=kind,
        test=TensorSplit({key: value[:test] for key, value in batch.items()}),
        train=TensorSplit({key: value[test:] for key, value in batch.items()}),
        batch_size=8,
        name="drawn",
    )
