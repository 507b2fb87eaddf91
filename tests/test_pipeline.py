"""compress() from end to end: budgets, plans, scopes, what is written and what is left alone."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic import artifact
from laconic.errors import BudgetError, ConfigError, LaconicError, RecipeError
from laconic.forms.layers import installed
from laconic.pipeline import compress
from laconic.plan import make_plan
from laconic.recipe import Recipe
from laconic.result import Result
from laconic.task import Task, TensorSplit

DEPLOYED = ("model.safetensors", "laconic.json", "config.json")
EVERYTHING = "where: {types: [linear, conv, experts, embedding]}"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def task() -> Task:
    x = draw(448, 16)
    y = x[:, :4].argmax(1)
    return Task(
        kind="classification",
        test=TensorSplit({"x": x[:64], "y": y[:64]}),
        train=TensorSplit({"x": x[64:], "y": y[64:]}),
        name="argmax",
    )


def mlp(width: int = 128) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4),
        )  # fmt: skip


class Tagger(nn.Module):
    """A table, two dense layers: sites of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.table(ids).mean(1))))


def recipe(*steps: str, **top: str) -> Recipe:
    head = "".join(f"{key}: {value}\n" for key, value in top.items())
    return Recipe.from_yaml(head + "steps:\n" + "".join(f"  - {step}\n" for step in steps))


def stat_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in DEPLOYED if (folder / name).exists())


def bits_of(model: nn.Module) -> dict[str, bytes]:
    return {
        name: t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, t in model.state_dict().items()
    }


# --- budgets ------------------------------------------------------------------------------------

ROUND = "round-to-nearest: {bits: 4}"
BUDGETS = [
    ("quantize", (ROUND,), "16kB"),
    ("quantize", (ROUND,), "7.5x"),
    ("quantize", (ROUND,), "5bits"),
    ("share", ("kmeans",), "17kB"),
    ("prune", ("magnitude",), "60kB"),
    ("sparse, then coded", ("magnitude: {sparsity: 0.6}", "kmeans"), "14kB"),
    ("second order", ("gptq",), "5.5bits"),
    ("factor", ("svd: {keep: 0.5}",), "90kB"),
    ("correct", ("round-to-nearest: 2", "eora: {rank: 16, metric: identity}"), "20kB"),
    ("train after", ("kmeans", "recover: 5 steps"), "16kB"),
    ("correct after", (ROUND, "eora: {rank: 4, metric: identity}"), "26kB"),
    ("prune second", ("round-to-nearest: {bits: 8, where: {include: ['0.*']}}", "magnitude: "
     "{sparsity: 0.5, where: {exclude: ['0.*']}}", "recover: 3 steps"), "60kB"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "asked"), [row[1:] for row in BUDGETS], ids=[f"{r[0]} {r[2]}" for r in BUDGETS]
)
@pytest.mark.filterwarnings("ignore:.*calibration inputs span:laconic.errors.LaconicWarning")
def test_budget_is_met(steps: tuple[str, ...], asked: str, task: Task, tmp_path: Path) -> None:
    result = compress(mlp(), recipe(*steps), task, budget=asked, out=tmp_path / "small")
    original = result.report.original.bytes
    assert original is not None
    weights = sum(row.weights for row in result.report.sites)
    number = float(re.match(r"[\d.]+", asked)[0])  # type: ignore[index]
    limit = {"B": number * 1000, "x": original / number, "s": number * weights / 8}[asked[-1]]
    size = stat_bytes(tmp_path / "small")
    assert result.report.budget == {"asked": asked, "bytes": int(limit)}
    assert size == result.report.compressed.bytes <= limit
    reasons = [text for text in result.report.warnings if text.startswith("budget:")]
    assert size >= 0.99 * limit or reasons, f"{size} of {limit} without a reason"
    assert not (size >= 0.99 * limit and reasons)
