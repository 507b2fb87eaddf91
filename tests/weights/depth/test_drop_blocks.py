"""drop-blocks in recipes: alone, before other steps, resumed, and refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import laconic
from laconic import artifact, zoo
from laconic.errors import RecipeError
from laconic.forms.layers import installed
from laconic.recipe import Recipe
from laconic.task import Task, TensorSplit
from laconic.weights.depth.remove import compact_, take_out_
from laconic.weights.depth.scores import choose_blocks, parts_of_blocks
from laconic.weights.depth.subblocks import sub_blocks_of

pytest.importorskip("transformers", reason="needs the extra hf")
BLOCKS = 4


@pytest.fixture(scope="module")
def task() -> Task:
    ids = torch.randint(3, 40, (20, 12), generator=torch.Generator().manual_seed(0))
    return Task(
        kind="causal-lm",
        test=TensorSplit({"input_ids": ids[:6]}),
        train=TensorSplit({"input_ids": ids[6:]}),
        batch_size=4,
    )


def decoder() -> Any:
    return zoo.tiny_llama(vocabulary=40, width=32, blocks=BLOCKS, heads=4, hidden=48)


def recipe(*steps: str) -> Recipe:
    return Recipe.from_yaml("steps:\n" + "".join(f"  - {step}\n" for step in steps))


def logits(model: nn.Module, task: Task) -> torch.Tensor:
    with torch.no_grad():
        return task.forward(model, next(iter(task.test.batches(6))))


def test_blocks_are_gone_from_the_artefact(task: Task, tmp_path: Path) -> None:
    model = decoder()
    result = laconic.compress(model, recipe("drop-blocks: 0.5"), task, out=tmp_path / "a")
    gone = choose_blocks(model, task, count=2, score="shortgpt")
    expected = decoder()
    take_out_(expected, parts_of_blocks(sub_blocks_of(expected), gone))
    loaded: Any = laconic.load(tmp_path / "a")
    assert loaded.config.num_hidden_layers == BLOCKS - 2
    assert torch.equal(logits(loaded, task), logits(expected, task))
    assert torch.equal(logits(result.model, task), logits(expected, task))
    compact_(expected)
    artifact.save(expected, tmp_path / "b")
    sizes = [(tmp_path / f / "model.safetensors").stat().st_size for f in "ab"]
    assert sizes[0] == sizes[1]
    assert result.report.compressed.bytes == sum(
        (tmp_path / "a" / name).stat().st_size for name in artifact.DEPLOYED
    )


def test_other_steps_work_on_what_is_left(task: Task, tmp_path: Path) -> None:
    steps = (
        "drop-blocks: {score: named, where: {include: ['model.layers.1.*', '*.2.mlp.*']}}",
        "round-to-nearest: 4",
        "recover: 2 steps",
    )
    result = laconic.compress(decoder(), recipe(*steps), task, out=tmp_path / "a")
    names = {row.name for row in result.report.sites}
    assert not [name for name in names if ".layers.1." in name or ".2.mlp." in name]
    loaded: Any = laconic.load(tmp_path / "a")
    assert loaded.config.num_hidden_layers == BLOCKS - 1
    assert {held.form.kind for held in installed(loaded).values()} == {"quantized"}
    assert list(artifact.inspect(tmp_path / "a")["architecture"]["removed"]) == [
        "model.layers.1.mlp", "model.layers.1.post_attention_layernorm",
    ]  # fmt: skip
    assert result.report.steps[0].model_dump()["details"]["removed"] == [
        "model.layers.1.self_attn", "model.layers.1.mlp", "model.layers.2.mlp",
    ]  # fmt: skip


def test_a_budget_is_met_after_blocks_are_gone(task: Task, tmp_path: Path) -> None:
    result = laconic.compress(
        decoder(), recipe("drop-blocks: 0.25", "round-to-nearest: 4"), task, budget="21kB",
        out=tmp_path / "a",
    )  # fmt: skip
    size = sum((tmp_path / "a" / name).stat().st_size for name in artifact.DEPLOYED)
    assert size == result.report.compressed.bytes <= 21_000


def test_a_finished_run_is_taken_up(task: Task, tmp_path: Path) -> None:
    model = decoder()
    first = laconic.compress(model, recipe("drop-blocks: 0.5"), task, out=tmp_path / "a")
    again = laconic.compress(
        model, recipe("drop-blocks: 0.5"), task, out=tmp_path / "a", resume=True
    )
    assert again.report == first.report
    assert torch.equal(logits(again.model, task), logits(first.model, task))


def test_what_cannot_be_is_told(task: Task) -> None:
    with pytest.raises(RecipeError, match="looks at calibration data"):
        laconic.compress(decoder(), recipe("drop-blocks"))
    with pytest.raises(RecipeError, match="names none of the 8 parts whole"):
        laconic.compress(
            decoder(), recipe("drop-blocks: {score: named, where: {include: ['*q_proj*']}}"), task
        )
    with pytest.raises(RecipeError, match="do not apply to blocks"):
        recipe("drop-blocks: {where: {types: [linear]}}")
