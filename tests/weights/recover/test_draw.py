"""Inputs drawn without data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.seeds import generator_for
from laconic.task import TensorSplit
from laconic.weights.recover.draw import Noise, draw_inputs, input_statistics

MEAN, STD = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.5, 1.5, 1.0])


def seen_by(model: nn.Module, *, batches: int = 60) -> nn.Module:
    """Let batch norms gather statistics on data of known mean and deviation."""
    source = torch.Generator().manual_seed(0)
    model.train()
    with torch.no_grad():
        for _ in range(batches):
            x = torch.randn(64, 3, 10, 10, generator=source)
            model(x * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1))
    return model.eval()


def test_statistics_of_a_norm_on_the_input() -> None:
    mean, std = input_statistics(seen_by(nn.BatchNorm2d(3)), torch.zeros(2, 3, 10, 10))
    assert mean.shape == std.shape == (3, 1, 1)
    assert torch.allclose(mean.flatten(), MEAN, atol=0.05)
    assert torch.allclose(std.flatten(), STD, rtol=0.05)


@pytest.mark.parametrize("bias", [False, True])
def test_statistics_through_the_first_convolution(bias: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=bias), nn.BatchNorm2d(16), nn.ReLU())
    mean, std = input_statistics(seen_by(model), torch.zeros(2, 3, 10, 10))
    assert torch.allclose(mean.flatten(), MEAN, atol=0.1)
    assert torch.allclose(std.flatten(), STD, rtol=0.1)


def test_standard_noise_where_nothing_is_known() -> None:
    for model in (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Sequential(nn.Flatten())):
        mean, std = input_statistics(model.train(), torch.zeros(2, 3, 10, 10))
        assert (mean.item(), std.item()) == (0.0, 1.0)
        assert model.training


def test_noise_is_fresh_in_each_epoch_and_repeatable() -> None:
    model = seen_by(nn.BatchNorm2d(3))
    split = draw_inputs(
        model, {"x": torch.zeros(4, 3, 10, 10)}, seed=0, tokens="uniform", device="cpu"
    )
    assert isinstance(split, Noise)
    drawn = [
        torch.cat([b["x"] for b in split.batches(512, generator=generator_for(0, epoch))])
        for epoch in (0, 0, 1)
    ]
    assert drawn[0].shape == (len(split), 3, 10, 10)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.allclose(drawn[0].mean((0, 2, 3)), MEAN, atol=0.1)
    assert torch.allclose(drawn[0].std((0, 2, 3)), STD, rtol=0.1)


class Chain(nn.Module):
    """A language model that knows one rule: after t comes (t + 1) mod 7."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return 50.0 * nn.functional.one_hot((input_ids + 1) % 7, 7).float()


def test_text_is_what_the_model_would_write() -> None:
    example = {"input_ids": torch.zeros(2, 12, dtype=torch.int64)}
    split = draw_inputs(Chain(), example, seed=3, tokens="generated", device="cpu")
    assert isinstance(split, TensorSplit)
    ids = split.tensors["input_ids"]
    assert ids.shape[1] == 12
    assert torch.equal(ids[:, 1:], (ids[:, :-1] + 1) % 7)
    assert len(ids[:, 0].unique()) == 7
    again = draw_inputs(Chain(), example, seed=3, tokens="generated", device="cpu")
    assert torch.equal(again.tensors["input_ids"], ids)  # type: ignore[attr-defined]


def test_uniform_tokens_cover_the_vocabulary() -> None:
    example = {"input_ids": torch.zeros(2, 12, dtype=torch.int64)}
    split = draw_inputs(Chain(), example, seed=3, tokens="uniform", device="cpu")
    counts = split.tensors["input_ids"].flatten().bincount()  # type: ignore[attr-defined]
    assert len(counts) == 7
    assert counts.max() < 1.1 * counts.min()


@pytest.mark.parametrize(
    "example",
    [
        {"x": torch.zeros(2, 3, dtype=torch.int64)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)},
        {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "pixels": torch.zeros(2, 3)},
    ],
)
def test_what_cannot_be_drawn_is_named(example: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match=rf"without training data.*{max(example)}"):
        draw_inputs(Chain(), example, seed=0, tokens="uniform", device="cpu")
