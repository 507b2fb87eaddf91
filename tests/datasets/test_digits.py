"""The digits: sizes, shares of classes, and which examples are where."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from laconic import datasets
from laconic.errors import ConfigError, MissingExtraError
from laconic.task import Task

sklearn = pytest.importorskip("sklearn.datasets")


def parts(task: Task) -> list[dict[str, torch.Tensor]]:
    return [part.tensors for part in (task.train, task.test, task.calibration)]  # type: ignore[union-attr]


def rows(tensors: dict[str, torch.Tensor]) -> list[tuple[Any, ...]]:
    """One hashable row an example: grey levels, then the label."""
    grey = (tensors["x"] * 16).round().long().flatten(1)
    return [(*x, y) for x, y in zip(grey.tolist(), tensors["y"].tolist(), strict=True)]


def test_sizes_shapes_and_values() -> None:
    task = datasets.load("digits")
    train, test, calibration = parts(task)
    assert [len(p["y"]) for p in (train, test, calibration)] == [1000, 797, 256]
    assert task.classes == tuple("0123456789")
    assert task.kind == "classification"
    for part in (train, test, calibration):
        assert part["x"].shape[1:] == (1, 8, 8)
        assert part["x"].dtype == torch.float32
        assert part["y"].dtype == torch.int64
        assert part["x"].min() == 0
        assert part["x"].max() == 1


def test_every_original_example_is_in_one_part() -> None:
    train, test, calibration = parts(datasets.load("digits"))
    images, labels = sklearn.load_digits(return_X_y=True)
    whole = [(*map(int, x), int(y)) for x, y in zip(images, labels, strict=True)]
    assert sorted(rows(train) + rows(test)) == sorted(whole)
    assert not set(rows(train)) & set(rows(test))
    assert set(rows(calibration)) <= set(rows(train))
    assert len(set(rows(calibration))) == 256


def test_each_part_has_its_share_of_each_class() -> None:
    train, test, _ = parts(datasets.load("digits"))
    counts = torch.bincount(train["y"], minlength=10)
    total = counts + torch.bincount(test["y"], minlength=10)
    assert ((counts - total * 1000 / 1797).abs() < 1).all()


def test_the_seed_draws_the_calibration_alone() -> None:
    np.random.seed(5)  # noqa: NPY002  the split must not depend on the global state
    first = parts(datasets.load("digits", seed=1))
    state, numbers = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    again, other = parts(datasets.load("digits", seed=1)), parts(datasets.load("digits", seed=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002
    for left, right in zip(first, again, strict=True):
        assert torch.equal(left["x"], right["x"])
    for left, right in zip(first[:2], other[:2], strict=True):
        assert torch.equal(left["x"], right["x"])
    assert not torch.equal(first[2]["x"], other[2]["x"])


def test_options_choose_how_many() -> None:
    whole, limited = datasets.load("digits"), datasets.load("digits", limit=20, calibration=5)
    assert rows(limited.train.tensors) == rows(whole.train.tensors)[:20]  # type: ignore[union-attr]
    assert set(rows(limited.calibration.tensors)) <= set(rows(limited.train.tensors))  # type: ignore[union-attr]
    assert [len(limited.train), len(limited.test), len(limited.calibration)] == [20, 797, 5]  # type: ignore[arg-type]
    assert len(datasets.load("digits", limit=20).calibration) == 20  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"limit": 0}, {"calibration": 0}, {"limit": 2.5}, {"limit": True}]
)
def test_options_out_of_their_bounds(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigError, match=rf"'digits': {name}={value} must be a whole number"):
        datasets.load("digits", **options)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'laconic\[science\]'"):
        datasets.load("digits")
