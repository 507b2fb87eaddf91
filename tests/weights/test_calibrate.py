from __future__ import annotations

import pytest
import torch
from calibration_oracle import ALL, check, gathered, naive, task_of
from torch import nn

from laconic.errors import ConfigError, LayerError
from laconic.forms.dense import Dense
from laconic.forms.layers import install_
from laconic.task import Task, TensorSplit
from laconic.weights.base import Site
from laconic.weights.calibrate import gather_
from laconic.weights.quantize.round_to_nearest import RoundToNearest
from laconic.weights.sites import find_sites

transformers = pytest.importorskip("transformers")


class Residual(nn.Module):
    """A block that adds to its input in place, as some models do."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, *, scale=1.0):
        h = self.norm(x)
        x += self.drop(self.out(torch.tanh(self.q(h) * self.k(h)))) * scale
        return x


class Stack(nn.Module):
    def __init__(self, width=12, depth=3):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.layers = nn.ModuleList(Residual(width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x, scale=0.5)
        return self.head(x)


def test_by_hand():
    model = nn.Sequential(nn.Linear(2, 1))
    x = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    found, _ = gathered(model, find_sites(model), task_of(x, size=1))
    statistics = found["0.weight"]
    assert statistics.count == 2
    assert statistics.gram.tolist() == [[5.0, -5.0], [-5.0, 10.0]]  # raw: no mean is taken off
    assert statistics.absmax.tolist() == [3.0, 4.0]
    assert statistics.absmean.tolist() == [2.0, 3.0]
    assert statistics.sumsq.tolist() == [5.0, 10.0]


@pytest.mark.parametrize("propagate", ["original", "compensated"])
@pytest.mark.parametrize("limit", [2**30, 1])
def test_blocks_match_whole_passes(propagate, limit):
    torch.manual_seed(0)
    model = Stack()
    task = task_of(torch.randn(10, 3, 5))
    sites = find_sites(model)
    found, groups = gathered(model, sites, task, propagate=propagate, limit_bytes=limit)
    for name, rows in naive(model, task, list(found)).items():
        check(found[name], rows)
    assert sorted(found) == sorted(site.name for site in sites)
    if limit > 1:
        assert groups[0] == ["first.weight"]
        assert groups[1] == [f"layers.0.{n}.weight" for n in ("q", "k", "out")]
        assert groups[-1] == ["head.weight"]
    assert found["layers.1.q.weight"] is found["layers.1.k.weight"]  # one sum for one input
    assert found["layers.1.q.weight"] is not found["layers.1.out.weight"]


def test_compensated_sees_the_error_before_a_block_and_not_inside_it():
    torch.manual_seed(0)
    model, original = Stack(), Stack()
    original.load_state_dict(model.state_dict())
    task = task_of(torch.randn(10, 3, 5))
    sites = {site.name: site for site in find_sites(original)}
    step, expected, seen = RoundToNearest(bits=2), {}, {}
    everything = dict.fromkeys(sites, ALL)
    for site in sites.values():  # all layers of the model at work are coarse already
        site.form = step.fit(site, torch.Generator())
        install_(model, site.name, site.form)
    better = RoundToNearest(bits=3)
    oracle = Stack()  # what a block should see: later blocks do not matter
    oracle.load_state_dict(original.state_dict())
    for group in gather_(model, list(sites.values()), task, everything, propagate="compensated"):
        names = [site.name for site in group]
        expected.update(naive(oracle, task, names))
        for site in group:
            seen[site.name] = site.statistics
        for site in group:
            fresh = better.fit(_plain(site), torch.Generator())
            install_(model, site.name, fresh)
            install_(oracle, site.name, fresh)
    assert len(seen) == len(sites)
    for name, rows in expected.items():
        check(seen[name], rows)
    differs = naive(original, task, ["head.weight"])["head.weight"]
    assert (expected["head.weight"] - differs).abs().max() > 0.05


def _plain(site):
    return Site(site.name, site.kind, Dense(site.original), site.original)


def test_statistics_live_for_one_group_only():
    model = Stack()
    sites = find_sites(model)
    held = []
    needs = {site.name: ALL for site in sites}
    for group in gather_(model, sites, task_of(torch.randn(4, 2, 5)), needs):
        held.append({site.name for site in sites if site.statistics is not None})
        assert held[-1] == {site.name for site in group}
    assert len(held) == 5
    assert all(site.statistics is None for site in sites)


def test_leaves_no_trace():
    model = Stack().train()
    model.layers[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    sites, task = find_sites(model), task_of(torch.randn(6, 2, 5))
    random = torch.get_rng_state()
    gathered(model, sites, task)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_blocks_that_do_not_form_a_chain_are_run_whole():
    class Skipping(Stack):
        def forward(self, x):
            x = self.first(x)
            for layer in self.layers:
                x = x + layer(torch.tanh(x))  # something happens between blocks
            return self.head(x)

    torch.manual_seed(0)
    model = Skipping()
    task = task_of(torch.randn(6, 2, 5))
    found, _ = gathered(model, find_sites(model), task)
    for name, rows in naive(model, task, list(found)).items():
        check(found[name], rows)


def test_chunks_are_bounded_by_bytes():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    task = task_of(torch.randn(4, 8))
    _, groups = gathered(
        model, find_sites(model), task, frozenset({"gram"}), limit_bytes=2 * 8 * 8 * 4
    )
    assert groups == [["0.weight", "1.weight"], ["2.weight", "3.weight"], ["4.weight"]]


def test_compensated_without_blocks_goes_layer_by_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    task = task_of(torch.randn(20, 6))
    sites = find_sites(model)
    needs = {site.name: ALL for site in sites}
    for group in gather_(model, sites, task, needs, propagate="compensated"):
        (site,) = group
        check(site.statistics, naive(model, task, [site.name])[site.name])
        install_(model, site.name, RoundToNearest(bits=2).fit(site, torch.Generator()))


def test_hugging_face_blocks_are_replayed_exactly():
    """Masks and positions differ by layer here: sliding and full attention take turns."""
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=4,
            head_dim=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=3,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="eager",
        )
    )
    ids = torch.randint(0, 50, (4, 12))
    split = TensorSplit({"input_ids": ids})
    task = Task(kind="causal-lm", test=split, calibration=split, batch_size=2)
    sites = [site for site in find_sites(model) if site.kind == "linear"]
    found, groups = gathered(model, sites, task)
    assert len(groups) == 4
    for name, rows in naive(model, task, list(found)).items():
        check(found[name], rows)
    assert model.config.use_cache is True


def test_errors_name_the_site():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    model = Unused()
    with pytest.raises(LayerError, match=r"idle.weight: no calibration row reached this layer"):
        gathered(model, find_sites(model), task_of(torch.randn(3, 4)))
    bad = torch.randn(3, 4)
    bad[1, 2] = float("nan")
    with pytest.raises(LayerError, match=r"used.weight: its inputs .* are NaN or infinite"):
        gathered(model, find_sites(model)[:1], task_of(bad))
    empty = Task(kind="classification", test=TensorSplit({"x": bad, "y": torch.zeros(3)}))
    with pytest.raises(ConfigError, match=r"1 layers need statistics and the task has no"):
        gathered(model, find_sites(model)[:1], empty)
    with pytest.raises(ConfigError, match=r"Give --data NAME"):
        gathered(model, find_sites(model)[:1], None)


def test_sites_that_need_nothing_come_first_and_run_nothing():
    model = nn.Sequential(nn.Linear(3, 3))
    sites = find_sites(model)
    assert list(gather_(model, sites, None, {})) == [sites]


def test_progress_counts_sites():
    class Heard:
        def __init__(self):
            self.total, self.done, self.ended = None, 0, False

        def start(self, label, total):
            self.total = total
            return 0

        def advance(self, id, n=1, note=""):
            self.done += n

        def finish(self, id):
            self.ended = True

    heard = Heard()
    model = Stack()
    gathered(model, find_sites(model), task_of(torch.randn(2, 2, 5)), progress=heard)
    assert (heard.total, heard.done, heard.ended) == (11, 11, True)
