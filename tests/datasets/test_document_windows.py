from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from laconic import datasets
from laconic.datasets import document_windows
from laconic.errors import ConfigError, DataError
from laconic.task import Task


def words(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def test_each_document_has_a_window_of_its_first_tokens() -> None:
    split = document_windows(["a bb", "ccc", "", "a bb ccc dddd e"], words, length=3)
    assert split.tensors["input_ids"].tolist() == [[1, 2, 0], [1, 2, 3]]
    assert split.tensors["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_documents_beyond_the_limit_are_not_read() -> None:
    read: list[str] = []

    def stream() -> object:
        for text in ("a b", "c d", "e f", "g h"):
            read.append(text)
            yield text

    assert len(document_windows(stream(), words, length=4, limit=2)) == 2  # type: ignore[arg-type]
    assert "g h" not in read


def test_what_gives_no_window_is_refused() -> None:
    with pytest.raises(DataError, match="no document has two tokens"):
        document_windows(["a", ""], words, length=3)
    with pytest.raises(ConfigError, match="whole numbers"):
        document_windows(["a"], lambda text: [0.5, text], length=3)  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="length=1"):
        document_windows(["a b"], words, length=1)


def test_the_loss_leaves_padding_out() -> None:
    split = document_windows(["a bb ccc", "a bb"], words, length=3)
    task = Task(kind="causal-lm", test=split)
    (batch,) = split.batches(2)
    logits = torch.randn(2, 3, 5)

    def by_hand(row: int, places: int) -> Tensor:
        return F.cross_entropy(
            logits[row, :places], batch["input_ids"][row, 1 : places + 1], reduction="sum"
        )

    wanted = (by_hand(0, 2) + by_hand(1, 1)) / 3
    torch.testing.assert_close(task.compute_loss(logits, batch), wanted)
    full = {"input_ids": batch["input_ids"]}
    assert not torch.allclose(task.compute_loss(logits, full), wanted)


@pytest.mark.skipif(
    "LACONIC_DATA" not in os.environ,
    reason="needs data files: set LACONIC_DATA to the folder that holds them",
)
@pytest.mark.parametrize("name", ["tinystories", "wikitext2", "calibration-text"])
def test_a_text_set_comes_by_document(name: str) -> None:
    task = datasets.load(name, length=64, limit=9, test_limit=3, by_document=True)
    packed = datasets.load(name, length=64, limit=9, test_limit=3)
    assert len(task.test) == len(packed.test) == 3
    (batch,) = task.test.batches(3)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
