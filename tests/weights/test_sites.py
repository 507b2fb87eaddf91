from __future__ import annotations

import pytest
import torch
from torch import nn

from laconic.forms.dense import Dense
from laconic.forms.layers import install_, to_form
from laconic.weights.quantize.round_to_nearest import RoundToNearest
from laconic.weights.sites import blocks_of, find_sites, unsupported

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}


def by_name(model):
    return {site.name: site for site in find_sites(model)}


def test_plain_layers():
    model = nn.Sequential(
        nn.Embedding(10, 8),
        nn.Conv1d(8, 6, 3, groups=2),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.BatchNorm2d(6),
        nn.Linear(6, 4),
    )
    found = [(s.name, s.kind, s.layout, s.form.shape, s.groups) for s in find_sites(model)]
    assert found == [
        ("0.weight", "embedding", "natural", (10, 8), 1),
        ("1.weight", "conv", "natural", (6, 4, 3), 2),
        ("2.weight", "conv", "natural", (6, 1, 3, 3), 6),
        ("4.weight", "linear", "natural", (4, 6), 1),
    ]
    assert unsupported(model) == {}
    assert by_name(model)["4.weight"].original.data_ptr() == model[4].weight.data_ptr()


def test_gpt2_is_transposed_and_tied():
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=64,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    sites = by_name(model)
    assert sites["transformer.wte.weight"].aliases == ("lm_head.weight",)
    assert "lm_head.weight" not in sites
    first = sites["transformer.h.1.attn.c_attn.weight"]
    assert (first.layout, first.form.shape, first.block) == ("transposed", (48, 16), 1)
    assert torch.equal(first.original, model.transformer.h[1].attn.c_attn.weight.T)
    assert sites["transformer.wpe.weight"].block is None
    assert list(blocks_of(model)) == ["transformer.h.0", "transformer.h.1"]
    assert unsupported(model) == {}


@pytest.mark.parametrize(
    ("name", "extra", "layout", "experts"),
    [
        ("Mixtral", {"num_local_experts": 4}, "stacked", "mlp.experts"),
        ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 16}, "stacked", "mlp.experts"),
        ("GptOss", {"num_local_experts": 4, **ROPE}, "stacked-transposed", "mlp.experts"),
    ],
)  # fmt: skip
def test_stacked_experts(name, extra, layout, experts):
    config = getattr(transformers, f"{name}Config")(
        **SMALL, num_experts_per_tok=2, head_dim=8, **extra
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    sites = by_name(model)
    for key in ("gate_up_proj", "down_proj"):
        site = sites[f"model.layers.1.{experts}.{key}"]
        parameter = model.get_parameter(site.name)
        assert (site.kind, site.layout, site.groups, site.block) == ("experts", layout, 4, 1)
        assert torch.equal(site.original, to_form(parameter.detach(), layout))
    width = sites[f"model.layers.1.{experts}.gate_up_proj"].form.cols
    assert width == 32  # inputs of the first weight are the hidden states
    assert sites[f"model.layers.1.{experts}.down_proj"].form.rows == 4 * 32


def test_stacked_layout_follows_sizes_not_names():
    class Experts(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.expert_count = 3
            self.one, self.two = nn.Parameter(torch.randn(first)), nn.Parameter(torch.randn(second))

    def layouts(*shapes):
        return [site.layout for site in find_sites(Experts(*shapes))]

    assert layouts((3, 20, 8), (3, 8, 10)) == ["stacked"] * 2
    assert layouts((3, 8, 20), (3, 10, 8)) == ["stacked-transposed"] * 2
    # The same sizes both ways and names that say nothing: not guessed.
    unclear = Experts((3, 8, 8), (3, 8, 8))
    assert find_sites(unclear) == []
    assert "sizes do not tell" in unsupported(unclear)["one"]
    # A stack without a count of experts beside it is a plain parameter.
    assert layouts((4, 20, 8), (4, 8, 10)) == []


def test_mixture_of_linear_experts_is_not_taken_for_the_blocks():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(8))

    model = nn.ModuleDict({"layers": nn.ModuleList([Block(), Block()])})
    assert list(blocks_of(model)) == ["layers.0", "layers.1"]


def test_longest_list_of_blocks():
    def stage(count):
        return nn.Sequential(*(nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()) for _ in range(count)))

    model = nn.ModuleDict({"a": stage(2), "b": stage(3), "c": stage(2)})
    assert list(blocks_of(model)) == ["b.0", "b.1", "b.2"]
    assert blocks_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == {}


def test_what_is_not_supported_is_listed_with_a_reason():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(4, 4)
            self.attention = nn.MultiheadAttention(4, 2)
            self.up = nn.ConvTranspose2d(2, 2, 3)
            self.cube = nn.Conv3d(1, 1, 3)
            self.bag = nn.EmbeddingBag(4, 4)
            self.bounded = nn.Embedding(4, 4, max_norm=1.0)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.token = nn.Parameter(torch.zeros(1, 1, 4))
            self.vector = nn.Parameter(torch.zeros(4))
            self.plain = nn.Linear(4, 4)

    model = Odd()
    assert [site.name for site in find_sites(model)] == ["plain.weight"]
    reasons = unsupported(model)
    for name, word in {
        "gru.weight_ih_l0": "fused kernel",
        "attention.in_proj_weight": "MultiheadAttention",
        "attention.out_proj.weight": "MultiheadAttention",
        "up.weight": "ConvTranspose2d",
        "cube.weight": "Conv3d",
        "bag.weight": "EmbeddingBag",
        "bounded.weight": "max_norm",
        "normed.parametrizations.weight.original1": "remove_parametrizations",
        "token": "plain parameter (1, 1, 4) of Odd",
    }.items():
        assert word in reasons[name]
    assert "vector" not in reasons
    weights = {n for n, p in model.named_parameters() if p.dim() >= 2}
    assert set(reasons) == weights - {"plain.weight"}


def test_installed_forms_are_found_again():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 3))
    tied = nn.Linear(4, 3)
    tied.weight = model[2].weight
    model.append(tied)
    before = by_name(model)
    assert before["2.weight"].aliases == ("3.weight",)
    forms = {}
    for name, site in before.items():
        forms[name] = RoundToNearest().fit(site, torch.Generator())
        install_(model, name, forms[name], layout=site.layout)
    after = by_name(model)
    assert list(after) == list(before)
    for name, site in after.items():
        assert site.form is forms[name]
        assert torch.equal(site.original, forms[name].dense())
        assert (site.kind, site.groups, site.aliases) == (
            before[name].kind, before[name].groups, before[name].aliases
        )  # fmt: skip
    assert unsupported(model) == {}


def test_the_other_experts_are_found_beside_an_installed_form():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_experts = 2
            self.up = nn.Parameter(torch.randn(2, 5, 12))
            self.down = nn.Parameter(torch.randn(2, 6, 5))

    model = nn.ModuleDict({"experts": Experts()})
    site = by_name(model)["experts.up"]
    assert site.layout == "stacked-transposed"
    install_(model, site.name, Dense(site.original), layout=site.layout)
    after = by_name(model)
    assert {name: s.layout for name, s in after.items()} == dict.fromkeys(
        ("experts.up", "experts.down"), "stacked-transposed"
    )
    assert [s.kind for s in after.values()] == ["experts", "experts"]
