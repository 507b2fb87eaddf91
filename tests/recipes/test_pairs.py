"""Every ordered pair of methods composes, or is refused before any work for a stated reason."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from laconic import artifact, registry
from laconic.errors import RecipeError
from laconic.pipeline import compress
from laconic.plan import make_plan
from laconic.recipe import Recipe
from laconic.task import Task, TensorSplit
from laconic.weights.base import Step, Where

METHODS = [entry.name for entry in registry.entries()]
SETTINGS: dict[str, dict[str, Any]] = {
    "eora": {"rank": 2},
    "recover": {"steps": 2},
    "sap": {"rewind": None, "iterations": 1, "epochs": 1},  # no initial weights are at hand
}

# Words of the reasons for which pairs are refused.
ALONE = "nothing to compensate"
EMPTY = "nothing to recover"
DENSE = "factors are taken of a dense weight"
ZEROS = "zeros save nothing in it"
ONCE = "no dense part left"
WHOLE = "columns are split off a dense weight"
PLAIN = "it takes a dense weight, or a sparse one"
RESCALED = "it rescales dense weights"
BLOCKS = "needs a decoder of transformers"  # and is tested on decoders

ROUNDING = ("hqq", "kmeans", "nf4", "round-to-nearest")  # take whatever is dense
QUANTIZED = ("gptq", "outlier-split", *ROUNDING)  # leave nothing dense
PRUNED = ("magnitude", "sap", "sparsegpt", "wanda")
# What may not follow what, on a model that is dense before: {(first, second): reason}.
REFUSED = {
    **{(first, "drop-blocks"): BLOCKS for first in METHODS},
    **{("drop-blocks", second): BLOCKS for second in METHODS},
    ("drop-blocks", "eora"): ALONE,
    ("drop-blocks", "recover"): EMPTY,
    **{("eora", second): ALONE for second in METHODS},
    **{("recover", second): EMPTY for second in METHODS},
    **{(first, "svd"): DENSE for first in ("svd", *PRUNED, *QUANTIZED)},
    **{(first, second): ZEROS for first in ("svd", *QUANTIZED) for second in PRUNED},
    **{(first, "gptq"): PLAIN for first in ("svd", *QUANTIZED)},
    **{(first, second): ONCE for first in QUANTIZED for second in ROUNDING},
    **{(first, "outlier-split"): WHOLE for first in ("svd", *PRUNED, *QUANTIZED)},
    ("smoothquant", "eora"): ALONE,
    ("smoothquant", "recover"): EMPTY,
    **{(first, "smoothquant"): RESCALED for first in ("svd", *PRUNED, *QUANTIZED)},
}

# The same for the two methods that need a step before them, after one that gives it.
REFUSED_AFTER = {
    "round-to-nearest": {
        ("eora", "drop-blocks"): BLOCKS,
        ("recover", "drop-blocks"): BLOCKS,
        ("eora", "svd"): DENSE,
        **{("eora", second): ZEROS for second in PRUNED},
        ("eora", "gptq"): PLAIN,
        ("eora", "outlier-split"): WHOLE,
        ("eora", "smoothquant"): RESCALED,
        ("recover", "smoothquant"): RESCALED,
        ("recover", "svd"): DENSE,
        ("recover", "outlier-split"): WHOLE,
        **{("recover", second): ZEROS for second in PRUNED},
        ("recover", "gptq"): PLAIN,
        **{("recover", second): ONCE for second in ROUNDING},
    },
    "magnitude": {
        ("eora", "drop-blocks"): BLOCKS,
        ("recover", "drop-blocks"): BLOCKS,
        ("eora", "svd"): DENSE,
        **{("eora", second): ZEROS for second in PRUNED},
        ("eora", "gptq"): PLAIN,
        ("eora", "outlier-split"): WHOLE,
        ("eora", "smoothquant"): RESCALED,
        ("recover", "smoothquant"): RESCALED,
        ("recover", "svd"): DENSE,
        ("recover", "outlier-split"): WHOLE,
    },
}


def step_of(method: str) -> Step:
    step: Step = registry.get(method).cls(**SETTINGS.get(method, {}))
    return step


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def task() -> Task:
    x = draw(128, 12)
    y = x[:, :4].argmax(1)
    return Task(
        kind="classification",
        test=TensorSplit({"x": x[:32], "y": y[:32]}),
        train=TensorSplit({"x": x[32:], "y": y[32:]}),
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        norm = nn.LayerNorm(16)
        nn.init.normal_(norm.bias)
        between = nn.Sequential(nn.Tanh(), norm)
        return nn.Sequential(nn.Linear(12, 16), between, nn.Linear(16, 8))


def check(
    steps: list[str], reason: str | None, model: nn.Module, task: Task, out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe = Recipe(steps=tuple(step_of(name) for name in steps))
    if reason is not None:
        monkeypatch.setattr(artifact, "save", None)  # any work would end in a checkpoint
        monkeypatch.setattr(artifact.Architecture, "of", None)
        with pytest.raises(RecipeError, match=re.escape(reason)):
            compress(model, recipe, task, out=out)
        assert not list(out.parent.iterdir())
        return
    result = compress(model, recipe, task, out=out)
    assert [row.step for row in result.report.steps] == steps
    x = draw(5, 12, seed=3)
    assert torch.equal(artifact.load(out)(x), result.model(x))
    held = dict(artifact.load(out, model=deepcopy(model)).named_parameters())
    assert held.keys() == dict(result.model.named_parameters()).keys()
    for name, parameter in result.model.named_parameters():
        assert torch.equal(held[name], parameter)


@pytest.mark.parametrize("first", METHODS)
@pytest.mark.parametrize("second", METHODS)
def test_pair(
    first: str, second: str, model: nn.Module, task: Task, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    reason = REFUSED.get((first, second))
    check([first, second], reason, model, task, tmp_path / "out", monkeypatch)


TRIPLES = [
    (before, first, second)
    for before in REFUSED_AFTER
    for first in ("eora", "recover")
    for second in METHODS
]


@pytest.mark.parametrize(("before", "first", "second"), TRIPLES, ids=[" ".join(t) for t in TRIPLES])
def test_pair_after_a_step(
    before: str, first: str, second: str, model: nn.Module, task: Task, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    reason = REFUSED_AFTER[before].get((first, second))
    check([before, first, second], reason, model, task, tmp_path / "out", monkeypatch)


def test_the_tables_name_methods_that_are_there() -> None:
    pairs = [*REFUSED, *(pair for table in REFUSED_AFTER.values() for pair in table)]
    assert {name for pair in pairs for name in pair} <= set(METHODS)


@pytest.mark.parametrize(
    ("first", "second"), sorted(pair for pair in REFUSED if pair[0] != "drop-blocks")
)
def test_refused_pairs_are_refused_by_the_plan_alone(
    first: str, second: str, model: nn.Module
) -> None:
    """Also where each step has a scope, which reading the recipe cannot judge."""
    scope = Where(include=("0.*", "2.*"))
    steps = tuple(
        registry.get(name).cls(**SETTINGS.get(name, {}), where=scope) for name in (first, second)
    )
    Recipe(steps=steps).check()
    with pytest.raises(RecipeError, match=re.escape(REFUSED[first, second])):
        make_plan(model, Recipe(steps=steps))


def test_steps_on_other_sites_compose(model: nn.Module, task: Task, tmp_path: Path) -> None:
    """A pair that is refused on one weight is none where the scopes do not meet."""
    text = """
    steps:
      - kmeans: {bits: 3, where: {include: ["0.*"]}}
      - gptq: {bits: 4, where: {include: ["2.*"]}}
    """
    result = compress(model, Recipe.from_yaml(text), task, out=tmp_path / "out")
    assert {row.name: row.form for row in result.report.sites} == {
        "0.weight": "codebook", "2.weight": "quantized"
    }  # fmt: skip
