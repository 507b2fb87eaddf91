"""Scores of whole blocks, on decoders whose blocks are made to matter or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from laconic import zoo
from laconic.errors import ConfigError
from laconic.task import Task, TensorSplit
from laconic.weights.depth.scores import (
    SCORES,
    choose_blocks,
    losses_without,
    span_distances,
    stream_changes,
)
from laconic.weights.sites import blocks_of

pytest.importorskip("transformers", reason="needs the extra hf")
BLOCKS, IDLE = 6, (1, 4)


@pytest.fixture(scope="module")
def task() -> Task:
    ids = torch.randint(0, 64, (12, 10), generator=torch.Generator().manual_seed(0))
    split = TensorSplit({"input_ids": ids})
    return Task(kind="causal-lm", test=split, calibration=split, batch_size=5)


def decoder(idle: tuple[int, ...] = IDLE) -> nn.Module:
    """A Llama in which some blocks hardly change the stream."""
    model = zoo.tiny_llama(vocabulary=64, width=32, blocks=BLOCKS, heads=4)
    for index, block in enumerate(blocks_of(model).values()):
        held: Any = block
        scale = 1e-3 if index in idle else 20.0
        held.self_attn.o_proj.weight.data.mul_(scale)
        held.mlp.down_proj.weight.data.mul_(scale)
    return model.eval()


@pytest.mark.parametrize("score", ["shortgpt", "weight-subcloning"])
def test_idle_blocks_are_chosen(score: Any, task: Task) -> None:
    assert choose_blocks(decoder(), task, count=2, score=score) == list(IDLE)


def test_the_span_is_contiguous_and_the_most_idle(task: Task) -> None:
    assert choose_blocks(decoder((2, 3)), task, count=2, score="sliding-window") == [2, 3]
    one = stream_changes(decoder(), task).turned
    assert span_distances(decoder(), task, 1) == pytest.approx(one)
    assert choose_blocks(decoder(), task, count=0, score="sliding-window") == []


def test_losses_are_those_of_models_without_the_block(task: Task) -> None:
    from laconic import measure

    model = decoder()
    losses = losses_without(model, task)
    layers: Any = model.get_submodule("model.layers")
    for index in (0, 4):
        kept = [block for place, block in enumerate(layers) if place != index]
        smaller: Any = zoo.tiny_llama(vocabulary=64, width=32, blocks=BLOCKS - 1, heads=4)
        smaller.load_state_dict(model.state_dict(), strict=False)
        for place, block in enumerate(kept):
            smaller.model.layers[place].load_state_dict(block.state_dict())
        loss = measure.evaluate(smaller, task, split="calibration")["loss"]["value"]
        assert losses[index] == pytest.approx(loss, rel=1e-5)
    expected = sorted(sorted(range(BLOCKS), key=losses.__getitem__)[:2])
    assert choose_blocks(model, task, count=2, score="shortened-llama") == expected


def test_hand_worked_changes(task: Task) -> None:
    """Blocks that double or negate the stream: cosine 1 and -1, movement 1/2 and 2."""

    class Times(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Times(2.0), Times(-1.0)])

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            x = torch.stack([input_ids.float() + 1, input_ids.float() + 3], -1)
            for block in self.blocks:
                x = block(x)
            return x

    changes = stream_changes(Net(), task)
    assert changes.turned == pytest.approx([0.0, 2.0], abs=1e-6)
    assert changes.moved == pytest.approx([0.5, 2.0], abs=1e-6)


def test_mistakes_are_told(task: Task) -> None:
    with pytest.raises(ConfigError, match="at least one must stay"):
        choose_blocks(decoder(), task, count=BLOCKS, score="shortgpt")
    with pytest.raises(ConfigError, match=r"score='shortgtp'.*Did you mean 'shortgpt'"):
        choose_blocks(decoder(), task, count=1, score="shortgtp")  # type: ignore[arg-type]
    assert len(SCORES) == 4


def test_the_model_is_left_as_it_was(task: Task) -> None:
    model = decoder().train()
    held = {name: value.clone() for name, value in model.state_dict().items()}
    for score in SCORES:
        choose_blocks(model, task, count=1, score=score)
    assert model.training
    assert all(torch.equal(held[name], value) for name, value in model.state_dict().items())
