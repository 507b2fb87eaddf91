from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_support import quantized, read_body, same_tensors, sign_files, write_body
from torch import nn

from laconic import artifact
from laconic.errors import ArtifactError
from laconic.forms import install_, installed

transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")

IDS = torch.tensor([[1, 5, 9, 2]])


def _llama(*, tied: bool = False, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
        max_position_embeddings=128, pad_token_id=0, **more,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def _compressed(model: Any) -> Any:
    for name, _ in list(model.named_parameters()):
        if "proj" in name:
            install_(model, name, quantized(model.get_parameter(name)))
    install_(model, "model.embed_tokens.weight", quantized(model.model.embed_tokens.weight))
    return model


def _load(path: Path) -> Any:
    return artifact.load(path, kernels="exact")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_comes_back_as_its_own_class(
    tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    model = _compressed(_llama(tied=tied, dtype=dtype))
    report = artifact.save(model, tmp_path / "a")
    assert set(report.files) == {"model.safetensors", "laconic.json", "config.json"}
    assert report.deployed_bytes == sum(report.files.values())
    loaded = _load(tmp_path / "a")
    assert type(loaded) is type(model)
    assert same_tensors(loaded, model)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert loaded(IDS).logits.dtype == dtype
    assert loaded.config.dtype == dtype
    settings = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(loaded.generate(IDS, **settings), model.generate(IDS, **settings))
    if tied:
        assert installed(loaded)["model.embed_tokens.weight"].aliases == ("lm_head.weight",)
        assert "lm_head.weight" not in artifact.read_manifest(tmp_path / "a").values


def test_plain_tied_weights_are_one_parameter(tmp_path: Path) -> None:
    model = _llama(tied=True)
    artifact.save(model, tmp_path / "a")
    loaded = _load(tmp_path / "a")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert same_tensors(loaded, model)


def test_buffers_outside_the_state_dict_are_right(tmp_path: Path) -> None:
    model = _llama()
    artifact.save(model, tmp_path / "a")
    values = artifact.read_manifest(tmp_path / "a").values
    assert not [name for name in values if "inv_freq" in name]  # the configuration gives them
    assert torch.equal(
        _load(tmp_path / "a").model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq
    )
    model.model.rotary_emb.inv_freq *= 0.5  # what no configuration gives is stored
    artifact.save(model, tmp_path / "b")
    assert torch.equal(
        _load(tmp_path / "b").model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq
    )
    assert "model.rotary_emb.inv_freq" in artifact.read_manifest(tmp_path / "b").values


def test_transposed_layers_of_gpt2(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    name = "transformer.h.0.mlp.c_fc.weight"
    weight = model.get_parameter(name).detach().t().contiguous()
    install_(model, name, quantized(weight), layout="transposed")
    artifact.save(model, tmp_path / "a")
    loaded = _load(tmp_path / "a")
    assert installed(loaded)[name].layout == "transposed"
    assert installed(loaded)[name].parameter_shape == (32, 128)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    out = artifact.export_dense(tmp_path / "a", tmp_path / "dense")
    dense = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(dense(IDS).logits, model(IDS).logits)


def test_stacked_experts(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=3,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).eval()
    name = "model.layers.0.mlp.experts.gate_up_proj"
    weight = model.get_parameter(name).detach()
    install_(model, name, quantized(weight.reshape(-1, weight.shape[-1])), layout="stacked")
    artifact.save(model, tmp_path / "a")
    loaded = _load(tmp_path / "a")
    assert installed(loaded)[name].parameter_shape == tuple(weight.shape)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_is_a_folder_for_from_pretrained(tmp_path: Path, dtype: torch.dtype) -> None:
    model = _llama()
    for parameter in model.parameters():  # as from_pretrained does; .to() would round buffers too
        parameter.data = parameter.data.to(dtype)
    _compressed(model)
    (tmp_path / "tokenizer.json").write_text("{}")
    artifact.save(model, tmp_path / "a", extra_files=[tmp_path / "tokenizer.json"])
    out = artifact.export_dense(tmp_path / "a", tmp_path / "dense")
    assert (out / "tokenizer.json").read_text() == "{}"
    dense = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert dense.dtype == dtype
    assert torch.equal(dense(IDS).logits, model(IDS).logits)
    assert not (out / "laconic.json").exists()


def test_generation_settings_are_kept_where_they_differ(tmp_path: Path) -> None:
    model = _llama()
    model.generation_config.max_new_tokens = 3
    model.generation_config.eos_token_id = [2, 7]
    artifact.save(model, tmp_path / "a")
    loaded = _load(tmp_path / "a")
    assert loaded.generation_config.eos_token_id == [2, 7]
    assert torch.equal(loaded.generate(IDS), model.generate(IDS))


def test_a_class_of_ones_own_needs_its_code(tmp_path: Path) -> None:
    class Mine(transformers.LlamaForCausalLM):  # type: ignore[misc, name-defined]
        pass

    model = Mine(_llama().config).eval()
    told = artifact.Architecture.of(model)
    assert told.kind == "factory"
    artifact.save(model, tmp_path / "a", architecture=told)
    again = artifact.load(tmp_path / "a", model=Mine(_llama().config))
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_where_the_model_came_from_is_not_written(tmp_path: Path) -> None:
    model = _llama()
    model.save_pretrained(tmp_path / "source")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "source")
    artifact.save(model, tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def _forged(folder: Path, **changed: Any) -> Path:
    artifact.save(_llama(), folder / "a")
    path = folder / "a" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    sign_files(folder / "a")
    return folder / "a"


@pytest.mark.parametrize(
    "changed",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": "2"},
        {"vocab_size": 10**13},
        {"hidden_size": 10**9},
        {"hidden_size": 0},
        {"head_dim": 10**11},
        {"num_attention_heads": 0},
        {"hidden_act": "os.system"},
        {"model_type": "nothing"},
        {"model_type": ["llama"]},
        {"model_type": "gpt2"},
        {"architectures": ["GPT2LMHeadModel"]},
        {"architectures": "LlamaForCausalLM"},
        {"dtype": "load"},
        {"dtype": "int8"},
        {"dtype": None},
        {"rope_parameters": {"rope_type": "nothing"}},
        {"rope_parameters": [1]},
    ],
    ids=str,
)
def test_hostile_configurations_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError):
        _load(_forged(tmp_path, **changed))


def test_keys_that_fetch_code_are_ignored(tmp_path: Path) -> None:
    folder = _forged(
        tmp_path,
        auto_map={"AutoModelForCausalLM": "evil--repo.Model"},
        quantization_config={"quant_method": "gptq", "bits": 4},
        _attn_implementation="evil/kernels",
        attn_implementation="evil/kernels",
        trust_remote_code=True,
    )
    loaded = _load(folder)
    assert type(loaded) is transformers.LlamaForCausalLM
    assert torch.equal(loaded(IDS).logits, _llama()(IDS).logits)


@pytest.mark.parametrize("name", ["PreTrainedModel", "LlamaConfig", "pipeline", "nn", "AutoModel"])
def test_only_model_classes_are_built(tmp_path: Path, name: str) -> None:
    folder = _forged(tmp_path, architectures=[name])
    body = read_body(folder)
    body["architecture"]["class"] = name
    write_body(folder, body)
    with pytest.raises(ArtifactError):
        _load(folder)


def test_building_does_not_touch_global_state(tmp_path: Path) -> None:
    artifact.save(_llama(dtype=torch.bfloat16), tmp_path / "a")
    register, state = nn.Module.register_parameter, torch.get_rng_state()
    _load(tmp_path / "a")
    assert nn.Module.register_parameter is register
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), state)
