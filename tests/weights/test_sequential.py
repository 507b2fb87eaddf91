"""Layers of a block in the order in which they run, each seeing the compressed ones before it."""

from __future__ import annotations

import pytest
import torch
from calibration_oracle import naive, task_of
from torch import nn

from laconic import zoo
from laconic.errors import ConfigError
from laconic.forms.dense import Dense
from laconic.forms.layers import install_
from laconic.pipeline import compress
from laconic.recipe import Recipe
from laconic.task import Task, TensorSplit
from laconic.weights.calibrate import gather_
from laconic.weights.sites import find_sites

WANT = frozenset({"sumsq"})


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 8)
        self.out = nn.Linear(8, 6)

    def forward(self, x):
        return x + self.out(torch.tanh(self.left(x)) * self.right(x))


def model_of():
    return nn.Sequential(nn.Linear(5, 6), nn.Sequential(Block(), Block()), nn.Linear(6, 2))


def walk(model, task, *, sequential):
    """Shrink each site to 0.8 of itself as it comes; return what was seen, and the order."""
    sites, seen, groups = find_sites(model), {}, []
    for group in gather_(
        model, sites, task, {s.name: WANT for s in sites},
        propagate="compensated", sequential=sequential,
    ):  # fmt: skip
        groups.append([site.name for site in group])
        for site in group:
            seen[site.name] = site.statistics.sumsq.double()
            install_(model, site.name, Dense(site.original * 0.8))
    return seen, groups


def test_each_layer_sees_exactly_the_compressed_ones_before_it():
    torch.manual_seed(3)
    model, task = model_of(), task_of(torch.randn(12, 5))
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen, groups = walk(model, task, sequential=True)
    assert groups == [
        ["0.weight"],
        ["1.0.left.weight", "1.0.right.weight"], ["1.0.out.weight"],
        ["1.1.left.weight", "1.1.right.weight"], ["1.1.out.weight"],
        ["2.weight"],
    ]  # fmt: skip
    done: list[str] = []
    for group in groups:  # oracle: a fresh model with exactly the earlier groups changed
        fresh = model_of()
        fresh.load_state_dict({n: p * 0.8 if n in done else p for n, p in plain.items()})
        rows = naive(fresh, task, group)
        for name in group:
            torch.testing.assert_close(
                seen[name], rows[name].square().mean(0), rtol=1e-5, atol=1e-7
            )
        done += group


def test_without_it_a_block_sees_its_original_layers():
    torch.manual_seed(3)
    model, task = model_of(), task_of(torch.randn(12, 5))
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen, groups = walk(model, task, sequential=False)
    assert ["1.0.left.weight", "1.0.right.weight", "1.0.out.weight"] in groups
    fresh = model_of()
    fresh.load_state_dict({n: p * 0.8 if n == "0.weight" else p for n, p in plain.items()})
    rows = naive(fresh, task, ["1.0.out.weight"])["1.0.out.weight"]
    torch.testing.assert_close(seen["1.0.out.weight"], rows.square().mean(0), rtol=1e-5, atol=1e-7)


def test_needs_a_model_that_changes():
    model, task = model_of(), task_of(torch.randn(4, 5))
    sites = find_sites(model)
    with pytest.raises(ConfigError, match="sequential=True needs propagate='compensated'"):
        next(gather_(model, sites, task, {s.name: WANT for s in sites}, sequential=True))


@pytest.mark.parametrize("method", ["gptq: {bits: 3", "sparsegpt: {sparsity: 0.5", "wanda: {"])
def test_recipes_take_it(method):
    ids = torch.randint(0, 64, (16, 12), generator=torch.Generator().manual_seed(0))
    split = TensorSplit({"input_ids": ids})
    task = Task(kind="causal-lm", test=split, train=split, batch_size=8)
    model = zoo.tiny_llama(vocabulary=64, width=32, blocks=2, heads=4, hidden=48, context=32)
    comma = "" if method.endswith("{") else ", "
    forms = {}
    for value in ("true", "false"):
        recipe = Recipe.from_yaml(f"steps: [{method}{comma}true_sequential: {value}}}]")
        result = compress(model, recipe, task).model
        forms[value] = {
            s.name: s.form.dense().detach() for s in find_sites(result) if s.kind == "linear"
        }
    first = "model.layers.0.self_attn.q_proj.weight"
    later = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(forms["true"][first], forms["false"][first])
    assert not torch.equal(forms["true"][later], forms["false"][later])
