"""Handwritten digits, 8x8 grey, from scikit-learn: a real data set that needs no download."""

from __future__ import annotations

from typing import Any

import torch

from laconic.datasets._description import dataset
from laconic.datasets._splits import check_at_least, draw, shorten
from laconic.extras import require
from laconic.task import Task, TensorSplit

_TRAIN = 1000


@dataset(
    "digits",
    summary="handwritten digits, 8x8 grey: 1000 to train on, 797 to test with",
    kind="classification",
    licence="CC BY 4.0",
    source="UCI Optical Recognition of Handwritten Digits, as shipped with scikit-learn",
)
def load_digits(*, seed: int = 0, limit: int | None = None, calibration: int = 256) -> Task:
    """Load scikit-learn's digits with a fixed split that keeps the share of each class.

    Args:
        seed: Draws the calibration examples.
        limit: At most this many training examples, the first of them; all where None.
        calibration: Examples for calibration, drawn from the training ones.

    Shapes:
        x (N, 1, 8, 8) float32 in [0, 1]; y (N,) int64 in 0..9

    Raises:
        ConfigError: An option below 1.
        MissingExtraError: scikit-learn is not installed.
    """
    check_at_least("digits", "limit", limit, 1)
    check_at_least("digits", "calibration", calibration, 1)
    purpose = "data set 'digits'"
    source = require("sklearn.datasets", "science", purpose=purpose)
    selection = require("sklearn.model_selection", "science", purpose=purpose)
    images, labels = source.load_digits(return_X_y=True)
    parts: list[Any] = selection.train_test_split(
        images, labels, train_size=_TRAIN, stratify=labels, random_state=0
    )
    x_train, x_test, y_train, y_test = map(torch.as_tensor, parts)
    train = shorten(_split(x_train, y_train), limit)
    return Task(
        kind="classification",
        test=_split(x_test, y_test),
        train=train,
        calibration=draw(train, calibration, seed),
        classes=tuple("0123456789"),
        name="digits",
    )


def _split(x: torch.Tensor, y: torch.Tensor) -> TensorSplit:
    images = (x.float() / 16).reshape(-1, 1, 8, 8)  # grey levels are 0..16
    return TensorSplit({"x": images, "y": y.long()})
