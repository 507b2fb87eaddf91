"""search(): budgets are kept, nothing is worse than uniform, and a killed search goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from search_support import (
    class_task,
    classifier,
    decoder,
    language_task,
)

import laconic
from laconic import artifact, measure
from laconic.errors import BudgetError, ConfigError
from laconic.forms.layers import installed
from laconic.forms.sparse import Sparse
from laconic.search.run import search
from laconic.search.settings import Effort
from laconic.task import Task

pytest.importorskip("transformers", reason="needs the extra hf")
SHORT = Effort(generations=3, offspring=6, tokens=50)
DEPLOYED = ("model.safetensors", "laconic.json", "config.json")


def stat_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in DEPLOYED if (folder / name).exists())


@pytest.fixture(scope="module")
def text() -> Task:
    return language_task(count=24)


# --- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "budget"),
    [("rank", "1.5x"), ("sparsity", "1.7x")],
)
@pytest.mark.filterwarnings("ignore:search:laconic.errors.LaconicWarning")
def test_bytes_on_disk_keep_the_budget(
    levels: str, budget: str, text: Task, tmp_path: Path
) -> None:
    model = decoder(blocks=2)
    found = laconic.search(model, levels, text, budget=budget, effort=SHORT, out=tmp_path / "a")
    original = measure.dense_bytes(model)
    limit = int(original / float(budget[:-1]))
    size = stat_bytes(tmp_path / "a")
    assert size == found.result.report.compressed.bytes <= limit
    assert size >= 0.99 * limit or any("budget:" in w for w in found.result.report.warnings)
    assert found.held_out["winner"] <= found.held_out.get("uniform", 1e9) or found.is_uniform
    loaded = laconic.load(tmp_path / "a")
    kl = measure.logit_kl(model, loaded, text)["value"]
    assert kl == pytest.approx(found.result.report.compressed.metric("logit_kl").value, rel=1e-3)


@pytest.mark.filterwarnings("ignore:search:laconic.errors.LaconicWarning")
def test_zeros_are_exactly_as_many_as_asked(text: Task, tmp_path: Path) -> None:
    model = decoder(blocks=2)
    found = search(model, "sparsity", text, budget="60%", effort=SHORT, out=tmp_path / "a")
    forms = [held.form for held in installed(laconic.load(tmp_path / "a")).values()]
    assert forms
    kept = sum(form.values.rows * form.values.cols for form in forms if isinstance(form, Sparse))
    sizes = [form.rows * form.cols for form in forms]
    assert kept == sum(size - round(0.6 * size) for size in sizes)
    history = found.found.history
    assert {generation.cost for generation in history} == {kept}
    assert len(forms) == len(found.assignment)


def test_multiplications_are_counted_by_forms(tmp_path: Path) -> None:
    model, task = classifier(), class_task()
    found = search(model, "rank", task, budget="60%", cost="macs", method="dp", out=tmp_path / "a")
    dense = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    total = 0
    loaded = laconic.load(tmp_path / "a")
    forms = {name: held.form for name, held in installed(loaded).items()}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            form = forms.get(name)
            parts = form.children_forms().values() if form is not None else ()
            total += sum(f.rows * f.cols for f in parts) or parameter.numel()
    assert total == found.details["cost"] <= 0.6 * dense


def test_latency_of_levels_is_measured_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))
    found = search(
        classifier(), "bits", class_task(), budget="1s", cost="latency", method="dp",
        out=tmp_path / "a",
    )  # fmt: skip
    assert found.details["unit"] == "us"
    assert 0 < found.details["cost"] <= 1_000_000
    timings = json.loads((tmp_path / "cache" / "kernels.json").read_text())["timings_us"]
    assert any(key.startswith("level/") for key in timings)
    with pytest.raises(BudgetError, match="below what these levels can reach"):
        search(classifier(), "bits", class_task(), budget="1us", cost="latency", method="dp")


# --- verdicts -----------------------------------------------------------------------------------


def test_a_bad_winner_gives_way_to_uniform(
    text: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that finds the worst it can is not what is built."""
    from laconic.budget import SearchResult
    from laconic.search import state

    def worst(table: Any, fitness: Any, sampler: Any, *, budget: int, **rest: Any) -> SearchResult:
        return SearchResult("evolve", table.assignment([0] * len(table.sites)), 1.0)

    monkeypatch.setattr(state, "solver", lambda name: worst)
    found = search(decoder(blocks=2), "bits", text, budget="5x", out=tmp_path / "a")
    assert found.is_uniform
    assert found.reason.startswith("uniform is returned")
    assert len(set(found.assignment.values())) == 1
    assert found.held_out["uniform"] < found.held_out["winner"]
    assert found.reason in found.result.report.warnings


def test_depth_is_never_worse_than_the_scores(text: Task, tmp_path: Path) -> None:
    model = decoder()
    found = search(model, "depth", text, budget="25%", effort=SHORT, out=tmp_path / "a")
    built = measure.evaluate(found.result.model, text)["perplexity"]["value"]
    report = found.result.report
    assert report.compressed.metric("perplexity").value == pytest.approx(built)
    scores = {name: value for name, value in found.held_out.items() if name != "winner"}
    assert len(scores) == 4
    assert found.is_uniform == (found.held_out["winner"] > min(scores.values()))
    assert list(found.assignment.values()).count("dropped") == 2
    assert stat_bytes(tmp_path / "a") < 0.85 * measure.dense_bytes(model)
    rows = {row.name for row in report.sites}
    removed = artifact.inspect(tmp_path / "a")["architecture"].get("removed", [])
    assert rows
    assert removed or found.result.model.config.num_hidden_layers == 3


def test_the_given_model_and_random_state_are_left_alone(tmp_path: Path) -> None:
    model, state = classifier().train(), torch.get_rng_state()
    held = {name: value.clone() for name, value in model.state_dict().items()}
    search(model, "bits", class_task(), budget="6.5bits", effort=SHORT)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(held[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_find_what_one_finds(tmp_path: Path) -> None:
    from dataclasses import replace

    task = replace(class_task(), metrics={})  # a lambda does not travel
    one = search(classifier(), "bits", task, budget="6.5bits", effort=SHORT, threads=1)
    two = search(classifier(), "bits", task, budget="6.5bits", effort=SHORT, threads=1, workers=2)
    assert one.assignment == two.assignment
    assert [g.fitness for g in one.found.history[1:]] == [g.fitness for g in two.found.history[1:]]


def test_a_mistake_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="judges candidates on data"):
        search(classifier(), "bits", None, budget="4x", out=tmp_path / "a")
    with pytest.raises(BudgetError, match="below the smallest"):
        search(classifier(), "bits", class_task(), budget="60x", out=tmp_path / "a")
    with pytest.raises(ConfigError, match="fitness='k'"):
        search(classifier(), "bits", class_task(), budget="4x", fitness="k", out=tmp_path / "a")
    assert not list(tmp_path.iterdir())
