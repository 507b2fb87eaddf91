"""The cache inside models and ``generate()``."""

from __future__ import annotations

import inspect

import pytest
import torch

import laconic
from laconic import zoo
from laconic.context import KvSettings
from laconic.errors import ConfigError

transformers = pytest.importorskip("transformers")
ARGUMENTS = inspect.signature(transformers.LlamaForCausalLM.forward).parameters
NAME = "cache" if "cache" in ARGUMENTS else "past_key_values"  # transformers renamed it


@pytest.fixture(scope="module")
def model():
    return zoo.tiny_llama(vocabulary=96, width=64, blocks=2, heads=4, kv_heads=2, context=256)


def ids_of(tokens, *, batch=2, below=96):
    source = torch.Generator().manual_seed(0)
    return torch.randint(3, below, (batch, tokens), generator=source)


def generated(model, ids, cache, **options):
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0} | options
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, **{NAME: cache}, **options)


def small(**changed):
    return laconic.kv_cache(**({"bits": 2, "group": 8, "residual": 16} | changed))


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}],
    ids=["greedy", "beam", "crop"],
)
def test_a_window_without_end_changes_nothing(model, options):
    ids = ids_of(21, batch=1 if "prompt_lookup_num_tokens" in options else 2)
    plain = generated(model, ids, transformers.DynamicCache(), eos_token_id=None, **options)
    cache = small(residual=None)
    assert torch.equal(generated(model, ids, cache, eos_token_id=None, **options), plain)
    assert cache.nbytes == cache.full_nbytes


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}]
)
def test_generates_in_two_bits(model, options):
    ids = ids_of(50)
    cache = small()
    found = generated(model, ids, cache, eos_token_id=None, **options)
    rows = 2 * options.get("num_return_sequences", 1)
    assert found.shape == (rows, 90)
    assert cache.get_seq_length() == 89
    assert [layer.held_keys.rounded for layer in cache.layers] == [80, 80]
    assert [layer.held_values.rounded for layer in cache.layers] == [73, 73]
    assert cache.nbytes < 0.45 * cache.full_nbytes


def test_token_by_token_is_prefill(model):
    ids = ids_of(45)
    at_once, stepwise = small(), small()
    with torch.no_grad():
        first = model(ids, **{NAME: at_once}).logits
        assert torch.equal(first, model(ids).logits)  # a first call attends to exact states
        for t in range(45):
            model(ids[:, t : t + 1], **{NAME: stepwise})
    one, other = at_once.layers[0], stepwise.layers[0]  # the first block's states are the same
    for a, b in ((one.held_keys, other.held_keys), (one.held_values, other.held_values)):
        assert (a.length, a.rounded) == (b.length, b.rounded)
        torch.testing.assert_close(a.old.states(), b.old.states(), rtol=0.02, atol=0.05)
        torch.testing.assert_close(a.recent, b.recent, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_more_bits_are_nearer(model, bits):
    ids = ids_of(60)
    with torch.no_grad():
        exact = model(ids).logits[:, 40:]
        cache = small(bits=bits)
        model(ids[:, :40], **{NAME: cache})
        steps = [model(ids[:, t : t + 1], **{NAME: cache}).logits for t in range(40, 60)]
    gap = float((torch.cat(steps, 1) - exact).norm() / exact.norm())
    assert gap < {2: 0.25, 4: 0.05, 8: 0.004}[bits]
    assert gap > 0


def test_bytes_of_the_paper_s_setting():
    model = zoo.tiny_llama(vocabulary=32, width=128, blocks=1, heads=2, kv_heads=2, context=1024)
    cache = laconic.kv_cache()
    with torch.no_grad():
        model.half()(ids_of(1024, below=32), **{NAME: cache})
    # 1024 tokens: all keys and 896 values in 2 bits with two half floats for 32 of them.
    values = 2 * 2 * 64  # batch, heads, channels
    codes = values * (1024 + 896)
    assert cache.nbytes == codes // 4 + 2 * 2 * codes // 32 + values * 128 * 2
    assert cache.full_nbytes / cache.nbytes > 4.19  # 16 / 3 but for the window


def test_layers_that_do_not_attend_to_all_keep_their_own_cache():
    config = transformers.Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(config).eval()
    ids = ids_of(20, below=64)
    plain = generated(model, ids, transformers.DynamicCache(config=config), eos_token_id=None)
    cache = small(residual=None, config=config)
    assert torch.equal(generated(model, ids, cache, eos_token_id=None), plain)
    kinds = [type(layer).__name__ for layer in cache.layers]
    assert kinds == ["DynamicSlidingWindowLayer", "KvLayer"]
    rounded = small(config=config)
    generated(model, ids, rounded, eos_token_id=None)
    assert rounded.nbytes < rounded.full_nbytes


@pytest.mark.parametrize("name", ["GPT2", "OPT"])
def test_other_models(name):
    sizes = {
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
        "OPT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "ffn_dim": 64, "max_position_embeddings": 128, "word_embed_proj_dim": 32},
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(vocab_size=64, **sizes[name])
    lm = {"GPT2": "GPT2LMHeadModel", "OPT": "OPTForCausalLM"}[name]
    torch.manual_seed(0)
    model = getattr(transformers, lm)(config).eval()
    ids = ids_of(30, below=64)
    plain = generated(model, ids, transformers.DynamicCache(), eos_token_id=None)
    assert torch.equal(generated(model, ids, small(residual=None), eos_token_id=None), plain)
    assert generated(model, ids, small(), eos_token_id=None).shape == plain.shape


def test_reset_and_rows(model):
    cache = small()
    with torch.no_grad():
        model(ids_of(40), **{NAME: cache})
    full = cache.full_nbytes
    cache.batch_repeat_interleave(2)
    assert cache.full_nbytes == 2 * full
    cache.batch_select_indices(torch.tensor([0]))
    assert cache.full_nbytes == full // 2
    cache.crop(-7)
    assert cache.get_seq_length() == 33
    cache.layers[0].crop(20)
    assert cache.layers[0].get_seq_length() == 20
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes) == (0, 0)
    with torch.no_grad():
        model(ids_of(40), **{NAME: cache})
    assert cache.get_seq_length() == 40


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"bits": 9}, r"^kv-cache: bits=9 must be between 1 and 8"),
        ({"residual": 30}, r"residual=30 must be a multiple of group=8.*Use 32"),
        ({"keys": "tokens"}, r"keys='tokens' must be one of .* Did you mean 'token'"),
        ({"group": 0}, r"group=0 must be at least 1"),
    ],
)
def test_settings_are_checked(wrong, match):
    with pytest.raises(ConfigError, match=match):
        small(**wrong)
    assert KvSettings() == KvSettings(bits=2, group=32, residual=128, keys="channel")
