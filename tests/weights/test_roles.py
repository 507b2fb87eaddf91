"""Which norms, layers and layers belong together, on each kind of architecture and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_models import NAMES, tiny_model, tiny_task
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.task import Task, TensorSplit
from laconic.weights.roles import Roles, find_roles

# For each architecture, in its first block: norms and what reads them, passages, refusals.
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LLAMA = {
    "input_layernorm": QKV,
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
MOE = {"input_layernorm": QKV, "post_attention_layernorm": ("mlp.gate", "mlp.experts.gate_up_proj")}
VALUES = ("self_attn.v_proj", "self_attn.o_proj")
GATED = ("mlp.up_proj", "mlp.down_proj", 1)
FUSED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj", 1)
READERS = {
    "llama": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "mistral": LLAMA,
    "mixtral": MOE,
    "qwen-moe": MOE,
    "gpt2": {"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",)},
    "opt": {"self_attn_layer_norm": QKV, "final_layer_norm": ("fc1",)},
    "phi": {"input_layernorm": (*QKV, "mlp.fc1")},
    "bert": {},
    "vit": {
        "layernorm_before": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "layernorm_after": ("mlp.fc1",),
    },
}
PASSAGES = {  # source, target, columns that each row meets
    "llama": {(*VALUES, 2), GATED},
    "qwen3": {(*VALUES, 2), GATED},
    "gemma": {(*VALUES, 4), GATED},
    "mistral": {(*VALUES, 1), GATED},
    "mixtral": {(*VALUES, 2), FUSED},
    "qwen-moe": {(*VALUES, 2), FUSED},
    "gpt2": {("attn.c_attn", "attn.c_proj", 1)},
    "opt": {("self_attn.v_proj", "self_attn.out_proj", 1), ("fc1", "fc2", 1)},  # ReLU
    "phi": {("self_attn.v_proj", "self_attn.dense", 1)},
    "bert": {("attention.self.value", "attention.output.dense", 1)},
    "vit": {("attention.v_proj", "attention.o_proj", 1)},
}
REFUSED = {
    "qwen3": {"self_attn.q_norm": "no layer reads", "self_attn.k_norm": "no layer reads"},
    "gpt2": {"mlp.c_proj": "activation"},
    "phi": {"mlp.fc2": "activation"},
    "bert": {
        "attention.output.LayerNorm": "beside .*intermediate.dense.* something",
        "output.dense": "activation",
        "attention.self.query": "in another block",
    },
    "vit": {"mlp.fc2": "activation"},
}


def short(name: str, block: str) -> str:
    return name.removeprefix(f"{block}.").removesuffix(".weight")


def block_path(name: str) -> str:
    from laconic.weights.sites import blocks_of

    return next(iter(blocks_of(tiny_model(name))))


@pytest.fixture(scope="module")
def roles() -> dict[str, Roles]:
    return {name: find_roles(tiny_model(name), tiny_task(name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_readers_of_norms(name: str, roles: dict[str, Roles]) -> None:
    block = block_path(name)
    first = {
        short(r.norm, block): tuple(short(layer, block) for layer in r.layers)
        for r in roles[name].readers
        if r.block == 0
    }
    assert first == READERS[name]
    assert {r.offset for r in roles[name].readers} <= {1.0 if name == "gemma" else 0.0}
    second = [r for r in roles[name].readers if r.block == 1]
    assert len(second) == len(first)


@pytest.mark.parametrize("name", NAMES)
def test_passages(name: str, roles: dict[str, Roles]) -> None:
    block = block_path(name)
    first = {
        (short(p.source, block), short(p.target, block), p.repeats)
        for p in roles[name].passages
        if p.block == 0
    }
    assert first == PASSAGES[name]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_does_not_hold_says_why(name: str, roles: dict[str, Roles]) -> None:
    import re

    block = block_path(name)
    told = {short(r.name, block): r.reason for r in roles[name].refused if r.block == 0}
    for layer, reason in REFUSED[name].items():
        assert re.search(reason, told[layer]), told[layer]


def test_rows_and_columns_of_each_kind(roles: dict[str, Roles]) -> None:
    heads = next(p for p in roles["llama"].passages if "v_proj" in p.source)
    # Two heads of 8 share each of two groups of values.
    expected = [g * 8 + i for g in (0, 1) for _ in range(2) for i in range(8)]
    assert heads.columns.tolist() == expected
    joint = next(p for p in roles["gpt2"].passages)
    assert joint.rows.tolist() == list(range(64, 96))  # the last third of q, k and v
    experts = next(p for p in roles["mixtral"].passages if "experts" in p.source)
    assert experts.rows.tolist() == list(range(48, 96))  # the half that is not gated


def test_parents(roles: dict[str, Roles]) -> None:
    parents = {r.norm.split(".")[-1]: r.parent for r in roles["mixtral"].readers if r.block == 0}
    assert parents == {
        "input_layernorm": "model.layers.0.self_attn",
        "post_attention_layernorm": "model.layers.0.mlp",
    }
    assert roles["phi"].readers[0].parent == "model.layers.0"


@pytest.mark.parametrize("name", ["llama", "gemma", "mixtral"])
def test_half_precision_and_the_model_stays_as_it_was(name: str, roles: dict[str, Roles]) -> None:
    model = tiny_model(name, dtype=torch.bfloat16).train()
    held = {key: value.clone() for key, value in model.state_dict().items()}
    found = find_roles(model, tiny_task(name))
    assert [(r.norm, r.layers) for r in found.readers] == [
        (r.norm, r.layers) for r in roles[name].readers
    ]
    assert len(found.passages) == len(roles[name].passages)
    assert all(torch.equal(value, held[key]) for key, value in model.state_dict().items())
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# --- made by hand -------------------------------------------------------------------------------


def task_for(width: int) -> Task:
    x = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(16, dtype=torch.long)
    split = TensorSplit({"x": x, "y": y})
    return Task(kind="classification", test=split, train=split)


class Joint(nn.Module):
    """A gated layer that is one matrix; halves may alternate row by row."""

    def __init__(self, *, every_second: bool, gate_first: bool, shifted: bool = False) -> None:
        super().__init__()
        self.norm, self.both, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(6, 5)
        self.every_second, self.gate_first, self.shifted = every_second, gate_first, shifted

    def forward(self, x: Tensor) -> Tensor:
        out = self.both(self.norm(x))
        first, second = (out[:, ::2], out[:, 1::2]) if self.every_second else out.chunk(2, 1)
        gate, up = (first, second) if self.gate_first else (second, first)
        if self.shifted:  # as in GPT-OSS: up + 1 is not in proportion to up
            up = up + 1
        return self.down(F.silu(gate) * up)


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("every_second", [True, False])
def test_parts_of_a_joint_layer(every_second: bool, gate_first: bool) -> None:
    found = find_roles(Joint(every_second=every_second, gate_first=gate_first), task_for(8))
    (passage,) = found.passages
    start = int(gate_first)
    rows = range(start, 12, 2) if every_second else range(6 * start, 6 * start + 6)
    assert passage.rows.tolist() == list(rows)
    assert passage.block is None
    assert [r.layers for r in found.readers] == [("both.weight",)]


def test_a_shift_between_is_no_passage() -> None:
    found = find_roles(Joint(every_second=False, gate_first=True, shifted=True), task_for(8))
    assert not found.passages
    assert "proportion" in next(r.reason for r in found.refused if r.name == "down.weight")


class Leaky(nn.Module):
    """What the norm gives is also added to the output, ever so little."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.norm, self.layer, self.share = nn.LayerNorm(8), nn.Linear(8, 8), share

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(x)
        return self.layer(out) + self.share * out


@pytest.mark.parametrize("share", [1.0, 1e-3, 1e-4])
def test_another_reader_however_weak_is_seen(share: float) -> None:
    found = find_roles(Leaky(share), task_for(8))
    assert not found.readers
    assert "beside layer.weight something" in found.refused[0].reason
    assert find_roles(Leaky(0.0), task_for(8)).readers


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.norm(x))


def test_a_layer_that_is_tied_between_blocks_is_refused() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block(), Block()])
            self.blocks[2].layer.weight = self.blocks[0].layer.weight

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    found = find_roles(Chain(), task_for(8))
    assert [r.norm for r in found.readers] == ["blocks.1.norm"]
    tied = {r.name for r in found.refused if "tied to a weight in another place" in r.reason}
    assert tied == {"blocks.0.norm", "blocks.2.norm"}


def test_dead_units_of_a_relu_do_not_hide_the_passage() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    with torch.no_grad():
        net[0].bias[2] = -100.0
    (passage,) = find_roles(net, task_for(8)).passages
    assert passage.columns.tolist() == list(range(6))
    smooth = nn.Sequential(net[0], nn.Tanh(), net[2])
    assert not find_roles(smooth, task_for(8)).passages


def test_without_data_it_says_so() -> None:
    split = TensorSplit({"x": torch.randn(2, 8), "y": torch.zeros(2, dtype=torch.long)})
    with pytest.raises(ConfigError, match="no calibration or training examples"):
        find_roles(nn.Linear(8, 2), Task(kind="classification", test=split))
