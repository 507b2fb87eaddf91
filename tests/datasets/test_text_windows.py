"""From documents to windows, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.datasets import document_windows, encode_bytes, windows
from laconic.datasets._windows import language_task
from laconic.errors import ConfigError, DataError
from laconic.task import TensorSplit


def test_a_document_is_its_bytes_and_a_zero() -> None:
    assert encode_bytes("a\u00e4") == [97, 195, 164, 0]
    assert encode_bytes("") == [0]


def test_documents_follow_one_another_and_the_rest_is_dropped() -> None:
    ids = windows(["ab", "c", "de"], length=3).tensors["input_ids"]
    assert ids.tolist() == [[97, 98, 0], [99, 0, 100]]
    assert ids.dtype == torch.int64


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 9), max_size=12),
    length=st.integers(2, 7),
    limit=st.none() | st.integers(1, 9),
)
def test_windows_are_the_stream_in_order(
    lengths: list[int], length: int, limit: int | None
) -> None:
    documents, count = [], 0
    for size in lengths:
        documents.append(" ".join(str(count + i) for i in range(size)))
        count += size
    expected = count // length if limit is None else min(limit, count // length)

    def cut() -> TensorSplit:
        return windows(
            documents, lambda text: [int(w) for w in text.split()], length=length, limit=limit
        )

    if expected == 0:
        with pytest.raises(DataError, match=r"do not fill one window"):
            cut()
        return
    ids = cut().tensors["input_ids"]
    assert ids.shape == (expected, length)
    assert torch.equal(ids.flatten(), torch.arange(expected * length))


def test_documents_beyond_the_last_window_are_not_read() -> None:
    read = []

    def stream() -> Iterator[str]:
        for text in ("abc", "def", "ghi", "jkl"):
            read.append(text)
            yield text

    assert len(windows(stream(), length=4, limit=2)) == 2
    assert read == ["abc", "def"]


@pytest.mark.parametrize(
    "tokenizer",
    [
        lambda text: [0.5, 1.5],
        lambda text: [1.0, 2.0],
        lambda text: text,
        lambda text: None,
        lambda text: 7,
        lambda text: [True, False],
        lambda text: {"input_ids": [1, 2], "attention_mask": [1, 1]},
        lambda text: [[1, 2], [3, 4]],
    ],
    ids=["halves", "floats", "text", "nothing", "a number", "truths", "a mapping", "rows"],
)
@pytest.mark.parametrize("cut", [windows, document_windows])
def test_a_tokenizer_gives_whole_numbers(cut: Any, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"'stories': tokenizer must return a list of whole"):
        cut(["one two", "three"], tokenizer, length=2, name="stories")


def test_a_tokenizer_may_give_a_tensor() -> None:
    def encode(text: str) -> Any:
        return torch.tensor([len(word) for word in text.split()])

    assert windows(["a bb", "ccc d"], encode, length=2).tensors["input_ids"].tolist() == [
        [1, 2],
        [3, 1],
    ]
    found = document_windows(["a bb", "ccc d"], encode, length=2).tensors["input_ids"]
    assert found.tolist() == [[1, 2], [3, 1]]


@pytest.mark.parametrize("options", [{"length": 1}, {"length": 3, "limit": 0}, {"length": 2.0}])
def test_windows_have_bounds(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data set 'text': (length|limit)=.* whole number"):
        windows(["abcdef"], **options)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match="'text': 3 tokens do not fill one window of 4"):
        windows(["ab"], length=4)


def task(**options: Any) -> Any:
    given = {
        "seed": 0, "tokenizer": None, "length": 4, "limit": None, "test_limit": None,
        "calibration": 5, **options,
    }  # fmt: skip
    return language_task("mine", ["abcdefg"] * 10, ["tuvwxyz"] * 3, **given)


def test_a_language_task_is_cut_from_its_own_documents() -> None:
    whole = task()
    assert [len(whole.train), len(whole.test), len(whole.calibration)] == [20, 6, 5]
    train = {tuple(row) for row in whole.train.tensors["input_ids"].tolist()}
    assert train == {tuple(b"abcd"), (*b"efg", 0)}
    assert {tuple(r) for r in whole.test.tensors["input_ids"].tolist()} == {
        tuple(b"tuvw"),
        (*b"xyz", 0),
    }
    assert {tuple(r) for r in whole.calibration.tensors["input_ids"].tolist()} <= train
    assert (whole.name, whole.kind) == ("mine", "causal-lm")
    short = task(limit=3, test_limit=2, calibration=2)
    assert [len(short.train), len(short.test), len(short.calibration)] == [3, 2, 2]
    with pytest.raises(ConfigError, match="'mine': calibration=0"):
        task(calibration=0)


def test_the_seed_draws_the_calibration_windows() -> None:
    def drawn(seed: int) -> list[list[int]]:
        numbers = iter(range(1000))
        found = task(seed=seed, tokenizer=lambda text: [next(numbers) for _ in text])
        return found.calibration.tensors["input_ids"].tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len({tuple(row) for row in drawn(1)}) == 5  # without replacement
