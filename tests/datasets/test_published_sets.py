"""The published files, where they are: sizes that the descriptions promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets_support import needs_data

from laconic import datasets
from laconic.datasets import _language

pytestmark = needs_data


def sizes(task: Any) -> tuple[int, int]:
    return len(task.train), len(task.test)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("mnist", {}, (60_000, 10_000)),
        ("fashion-mnist", {}, (20_000, 5_000)),
        ("cifar10", {}, (4_000, 5_000)),
        ("cifar10", {"jpeg": True, "test": "lossless"}, (10_000, 200)),
    ],
)
def test_images(name: str, options: dict[str, Any], expected: tuple[int, int]) -> None:
    if name == "cifar10":
        pytest.importorskip("PIL.Image")
    task = datasets.load(name, **options)
    assert sizes(task) == expected
    assert len(task.calibration) == 512  # type: ignore[arg-type]
    for part in (task.train, task.test):
        tensors = part.tensors  # type: ignore[union-attr]
        assert tensors["x"].aminmax() == (0.0, 1.0)
        counts = torch.bincount(tensors["y"], minlength=10)
        assert len(counts) == len(task.classes) == 10
        assert counts.min() > 0.6 * counts.float().mean()


def test_photographs() -> None:
    pytest.importorskip("PIL.Image")
    task = datasets.load("imagenet-samples", calibration=450)
    parts = (task.test.tensors, task.calibration.tensors)  # type: ignore[union-attr,attr-defined]
    labels = torch.cat([part["y"] for part in parts])
    assert [len(part["y"]) for part in parts] == [50, 450]
    assert sorted(labels.tolist()) == list(range(0, 1000, 2))
    assert parts[0]["x"].shape == (50, 3, 224, 224)


def by_words(text: str) -> list[int]:
    return [1] * (len(text.split()) + text.count("\n"))  # Mikolov counts the line's end


def test_penn_treebank_has_the_published_numbers_of_words() -> None:
    task = datasets.load("ptb", tokenizer=by_words, length=10)
    assert sizes(task) == (92_958, 7_376)


def test_stories() -> None:
    assert len(_language.stories()) == 76
    task = datasets.load("tinystories", by_document=True)
    assert sizes(task) == (61, 15)


def test_articles() -> None:
    assert sizes(datasets.load("wikitext2", by_document=True)) == (48, 12)


@pytest.mark.parametrize("author", ["bronte", "shakespeare"])
def test_novels(author: str) -> None:
    train, test = sizes(datasets.load("gutenberg", author=author))
    assert test / (train + test) == pytest.approx(0.1, abs=0.002)


@pytest.mark.parametrize("source", ["c4", "wikipedia"])
def test_text_to_calibrate_with(source: str) -> None:
    task = datasets.load("calibration-text", source=source, by_document=True, length=32)
    train, test = sizes(task)
    assert 0.19 < test / (train + test) < 0.21
    if source == "c4":
        assert train + test == 300
