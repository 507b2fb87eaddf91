"""Parts of blocks are found by what they do, and a model without them is really smaller."""

from __future__ import annotations

import subprocess
import sys
import warnings
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic import artifact
from laconic.artifact.removed import Removed
from laconic.errors import ArtifactError, ConfigError, UnsupportedModelError
from laconic.weights.depth.remove import (
    chosen_parts,
    compact_,
    dropped_count,
    same_function,
    take_out_,
)
from laconic.weights.depth.subblocks import SubBlock, sub_blocks_of, taken_out
from laconic.weights.sites import blocks_of, find_sites

transformers = pytest.importorskip("transformers", reason="needs the extra hf")

BLOCKS, VOCABULARY = 4, 50
_PLAIN = {
    "hidden_size": 32, "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "vocab_size": 50,
    "intermediate_size": 48, "max_position_embeddings": 32, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_GROUPED = {**_PLAIN, "num_key_value_heads": 2, "head_dim": 8}
_SLIDING = ["sliding_attention", "full_attention"] * 2
_GPT2 = {
    "n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 32, "vocab_size": 50,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def build(config: str, model: str, settings: dict[str, Any]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
        with torch.no_grad():
            for parameter in built.parameters():
                if parameter.dim() >= 2:
                    parameter.normal_(0, parameter.shape[-1] ** -0.5)
                else:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return built.eval()


MODELS = {
    "llama": partial(build, "LlamaConfig", "LlamaForCausalLM", _GROUPED),
    "gpt2": partial(build, "GPT2Config", "GPT2LMHeadModel", _GPT2),
    "opt": partial(build, "OPTConfig", "OPTForCausalLM",
                   {**_PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "mistral": partial(build, "MistralConfig", "MistralForCausalLM", _GROUPED),
    "qwen3": partial(build, "Qwen3Config", "Qwen3ForCausalLM", _GROUPED),
    "gemma": partial(build, "GemmaConfig", "GemmaForCausalLM", _GROUPED),
    "gemma3": partial(build, "Gemma3TextConfig", "Gemma3ForCausalLM",
                      {**_GROUPED, "sliding_window": 4, "layer_types": _SLIDING}),
    "phi": partial(build, "PhiConfig", "PhiForCausalLM", _PLAIN),
}  # fmt: skip


def ids(count: int = 3, length: int = 9) -> Tensor:
    return torch.randint(2, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))


def part(parts: list[SubBlock], block: int, kind: str) -> SubBlock:
    return next(p for p in parts if (p.block, p.kind) == (block, kind))


def pruned(model: nn.Module) -> nn.Module:
    """The first attention, the whole second block, and the third feed-forward part are gone."""
    parts = sub_blocks_of(model)
    masked = deepcopy(model)
    gone = [(0, "attention"), (1, "attention"), (1, "mlp"), (2, "mlp")]
    take_out_(masked, [part(parts, *place) for place in gone])
    return masked


def logits(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=x, use_cache=False).logits
    return found


def stepwise(model: Any, x: Tensor) -> Tensor:
    """One token a call, with the cache."""
    found, cache = [], None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library renames an argument
        for place in range(x.shape[1]):
            out = model(input_ids=x[:, place : place + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
    return torch.cat(found, 1)


def written(model: Any, x: Tensor, *, cache: bool) -> Tensor:
    mask = torch.ones_like(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Tensor = model.generate(
            x, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=cache
        )
    return found


@pytest.mark.parametrize("name", MODELS)
def test_parts_are_found_and_add_up(name: str) -> None:
    model = MODELS[name]()
    parts = sub_blocks_of(model)
    assert [(p.block, p.kind) for p in parts] == [
        (block, kind) for block in range(BLOCKS) for kind in ("attention", "mlp")
    ]
    assert [p.layer_idx for p in parts if p.kind == "attention"] == list(range(BLOCKS))
    inside = sum(
        p.numel()
        for part in parts
        for member in (*part.members, *part.norms)
        for p in model.get_submodule(f"{part.block_path}.{member}").parameters()
    )
    shared = sum(p.numel() for block in blocks_of(model).values() for p in block.parameters())
    left = BLOCKS * 2 * 32 if name == "phi" else 0  # one norm serves both parts of its blocks
    assert inside == shared - left


@pytest.mark.parametrize("name", MODELS)
def test_a_removed_part_adds_nothing(name: str) -> None:
    """Against weights of nought in the last layer of the part, and bias of nought."""
    model = MODELS[name]()
    parts = sub_blocks_of(model)
    for kind in ("attention", "mlp"):
        gone = part(parts, 1, kind)
        zeroed = deepcopy(model)
        for member in gone.members:
            for parameter in zeroed.get_submodule(f"{gone.block_path}.{member}").parameters():
                parameter.data.zero_()
        with taken_out(model, [gone]):
            out = logits(model, ids())
        torch.testing.assert_close(out, logits(zeroed, ids()), rtol=0, atol=2e-5)
        assert not torch.equal(out, logits(model, ids()))


@pytest.mark.parametrize("name", MODELS)
def test_the_artefact_is_smaller_and_the_same_model(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    masked = pruned(model)
    small = deepcopy(masked)
    moved = compact_(small)
    assert len(moved) == BLOCKS - 1
    saved = artifact.save(small, tmp_path / "small")
    whole = artifact.save(model, tmp_path / "whole")
    assert saved.deployed_bytes < 0.75 * whole.deployed_bytes
    loaded = artifact.load(tmp_path / "small")
    assert loaded.config.num_hidden_layers == BLOCKS - 1
    assert type(loaded) is type(model)
    for other in (small, loaded):
        assert torch.equal(logits(other, ids()), logits(masked, ids()))
        torch.testing.assert_close(stepwise(other, ids()), logits(masked, ids()), rtol=0, atol=1e-5)
        for cache in (True, False):
            assert torch.equal(
                written(other, ids(), cache=cache), written(masked, ids(), cache=True)
            )
    assert same_function(masked, loaded)
    assert artifact.inspect(tmp_path / "small")["architecture"]["removed"]
    assert all(check.passed for check in artifact.verify(tmp_path / "small"))


def test_a_masked_model_keeps_its_names_and_loads_into_the_original(tmp_path: Path) -> None:
    model = MODELS["llama"]()
    masked = pruned(model)
    artifact.save(masked, tmp_path / "a")
    again = artifact.load(tmp_path / "a", model=deepcopy(model))
    assert torch.equal(logits(again, ids()), logits(masked, ids()))
    assert {site.name for site in find_sites(masked)} < {site.name for site in find_sites(model)}
    assert [site.block for site in find_sites(masked) if "o_proj" in site.name] == [2, 3]
    assert len(blocks_of(masked)) == BLOCKS


def test_dense_export_is_a_folder_for_anyone(tmp_path: Path) -> None:
    masked = pruned(MODELS["opt"]())
    compact_(masked)
    artifact.save(masked, tmp_path / "a")
    artifact.export_dense(tmp_path / "a", tmp_path / "dense")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = transformers.OPTForCausalLM.from_pretrained(tmp_path / "dense").eval()
    torch.testing.assert_close(logits(plain, ids()), logits(masked, ids()), rtol=0, atol=1e-5)


def test_loads_where_the_search_was_never_seen(tmp_path: Path) -> None:
    masked = pruned(MODELS["gemma3"]())
    compact_(masked)
    artifact.save(masked, tmp_path / "a")
    expected = written(masked, ids(1), cache=True)[0].tolist()
    code = (
        "import sys, warnings, torch; warnings.simplefilter('ignore'); torch.set_num_threads(1)\n"
        "import laconic\n"
        f"model = laconic.load({str(tmp_path / 'a')!r})\n"
        f"x = torch.tensor({ids(1).tolist()})\n"
        "out = model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=8,"
        " do_sample=False)\n"
        "assert not any(name.startswith(('laconic.search', 'laconic.weights.depth'))"
        " for name in sys.modules)\n"
        "sys.stdout.write(str(out[0].tolist()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == str(expected)


def test_a_model_that_counts_its_layers_is_told_apart(tmp_path: Path) -> None:
    """GPT-2 with attention scaled by its layer's number is another model once renumbered."""
    masked = pruned(build("GPT2Config", "GPT2LMHeadModel",
                          {**_GPT2, "scale_attn_by_inverse_layer_idx": True}))  # fmt: skip
    small = deepcopy(masked)
    compact_(small)
    artifact.save(small, tmp_path / "small")
    artifact.save(masked, tmp_path / "masked")
    assert not same_function(masked, artifact.load(tmp_path / "small"))
    assert same_function(masked, artifact.load(tmp_path / "masked"))


def test_what_cannot_be_done_is_told() -> None:
    bert = build("BertConfig", "BertForMaskedLM", _PLAIN)
    with pytest.raises(UnsupportedModelError, match=r"layer\.0: without its parts"):
        sub_blocks_of(bert)
    with pytest.raises(UnsupportedModelError, match="no list of residual blocks"):
        sub_blocks_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    model = MODELS["llama"]()
    parts = sub_blocks_of(model)
    with pytest.raises(ConfigError, match=r"no part 'model\.layers\.1\.self_atn'.*self_attn"):
        chosen_parts(parts, ["model.layers.1.self_atn"])
    take_out_(model, parts)
    with pytest.raises(UnsupportedModelError, match="every block is empty"):
        compact_(model)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"model.layers.9.mlp": [0]}, "removed"),
        ({"model.nowhere": [0]}, "removed"),
        ({"model.layers.0.mlp": [-1]}, "greater than or equal"),
        ({"model.layers.0.mlp": []}, "at least 1 item"),
        ({"model.layers.0.mlp": [0, 1, 2]}, "at most 2 items"),
    ],
)
def test_hostile_records_are_refused(
    record: dict[str, list[int]], reason: str, tmp_path: Path
) -> None:
    import hashlib

    masked = pruned(MODELS["llama"]())
    artifact.save(masked, tmp_path / "a")
    file = tmp_path / "a" / "laconic.json"
    import json

    body = json.loads(file.read_bytes())
    del body["digest"]
    body["architecture"]["removed"] = record
    rest = json.dumps(body, separators=(",", ":"))[1:].encode()
    file.write_bytes(b'{"digest":"%s",' % hashlib.sha256(rest).hexdigest().encode() + rest)
    with pytest.raises(ArtifactError, match=reason):
        artifact.load(tmp_path / "a")


def test_counts_are_rounded_down() -> None:
    assert [dropped_count(share, 10) for share in (0.0, 0.25, 0.3, 0.39, 1.0)] == [0, 2, 3, 3, 10]


def test_removed_says_what_it_returns() -> None:
    x = torch.ones(2, 3, 4)
    assert torch.equal(Removed()(x), torch.zeros(2, 3, 4))
    out = Removed(3)(attention_mask=None, hidden_states=x)
    assert torch.equal(out[0], torch.zeros(2, 3, 4))
    assert out[1:] == (None, None)
    assert not Removed(2, 1).state_dict()
