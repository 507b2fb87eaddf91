"""Shifted images: where they go, what comes in, and what stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from laconic.datasets.shifted import ShiftedSplit
from laconic.errors import ConfigError
from laconic.task import Split, TensorSplit


def split(count: int = 40, channels: int = 2, height: int = 4, width: int = 6) -> TensorSplit:
    """Images without a zero and without an equal pair, numbered by y."""
    pixels = torch.arange(1.0, count * channels * height * width + 1)
    y = torch.arange(count)
    return TensorSplit({"x": pixels.view(count, channels, height, width), "y": y, "z": y * 2.5})


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """Move an image pixel by pixel; what comes in is zero."""
    out = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                out[:, row, column] = image[:, row - down, column - right]
    return out


def drawn(shifted: ShiftedSplit, seed: int, size: int = 7) -> dict[str, Tensor]:
    batches = list(shifted.batches(size, generator=torch.Generator().manual_seed(seed)))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("pixels", [1, 2])
def test_every_image_is_some_shift_of_its_own_original(pixels: int) -> None:
    plain = split()
    found = drawn(ShiftedSplit(plain, pixels), seed=0)
    assert found["x"].shape == plain.tensors["x"].shape
    assert found["x"].dtype == torch.float32
    assert sorted(found["y"].tolist()) == list(range(40))
    assert found["y"].tolist() != list(range(40))
    assert torch.equal(found["z"], found["y"] * 2.5)
    reach, seen = range(-pixels, pixels + 1), set()
    for image, y in zip(found["x"], found["y"].tolist(), strict=True):
        original = plain.tensors["x"][y]
        fits = [(d, r) for d in reach for r in reach if torch.equal(image, moved(original, d, r))]
        assert len(fits) == 1  # no two shifts of such an image are equal
        seen.update(fits)
    assert {d for d, _ in seen} == {r for _, r in seen} == set(reach)
    assert any(d != r for d, r in seen)


def test_all_nine_shifts_come_up_alike() -> None:
    ones = TensorSplit({"x": torch.ones(9000, 1, 3, 3)})
    x = drawn(ShiftedSplit(ones), seed=1, size=512)["x"][:, 0]
    # The count of rows and columns left tells how far, the corner left which way.
    kinds, counts = torch.unique(x, dim=0, return_counts=True)
    assert len(kinds) == 9
    assert ((counts - 1000).abs() < 150).all()  # five standard deviations of a binomial


def test_what_comes_in_is_zero_even_where_the_edge_is_not() -> None:
    bright = TensorSplit({"x": torch.full((50, 1, 3, 3), 9.0)})
    x = drawn(ShiftedSplit(bright, 2), seed=2)["x"]
    assert set(x.unique().tolist()) == {0.0, 9.0}
    assert (x.sum((1, 2, 3)) >= 9.0).all()  # one pixel at least stays: 3 - 2 each way


def test_walked_in_order_the_images_are_as_they_were() -> None:
    plain = split(10)
    shifted = ShiftedSplit(plain, 3)
    assert isinstance(shifted, Split)
    assert len(shifted) == 10
    pairs = zip(shifted.batches(4), plain.batches(4), strict=True)
    for ours, theirs in pairs:
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_generator_decides_and_the_images_stay() -> None:
    plain = split()
    before = plain.tensors["x"].clone()
    shifted, state = ShiftedSplit(plain), torch.get_rng_state()
    first, again, other = drawn(shifted, 3), drawn(shifted, 3), drawn(shifted, 4)
    assert torch.equal(first["x"], again["x"])
    assert not torch.equal(first["x"], other["x"])
    assert torch.equal(plain.tensors["x"], before)
    assert torch.equal(torch.get_rng_state(), state)
    source = torch.Generator().manual_seed(3)
    epochs = [torch.cat([b["x"] for b in shifted.batches(7, generator=source)]) for _ in range(2)]
    assert not torch.equal(*epochs)


@pytest.mark.parametrize(
    ("tensors", "pixels"),
    [
        ({"x": torch.ones(2, 1, 3, 3)}, 0),
        ({"x": torch.ones(2, 3, 3)}, 1),
        ({"input_ids": torch.ones(2, 1, 3, 3)}, 1),
    ],
)
def test_what_cannot_be_shifted_is_refused(tensors: dict[str, Tensor], pixels: int) -> None:
    with pytest.raises(ConfigError, match=rf"ShiftedSplit: pixels={pixels} must be .*images"):
        ShiftedSplit(TensorSplit(tensors), pixels)
