"""MNIST and Fashion-MNIST: 28x28 grey images in the idx format."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from laconic.datasets._description import dataset
from laconic.datasets._files import DataFile, find
from laconic.datasets._splits import check_at_least, draw, shorten
from laconic.errors import DataError
from laconic.task import Task, TensorSplit

_MNIST_URL = "http://yann.lecun.com/exdb/mnist/"
_FASHION = (
    "the first {count} items, in the original order, of {name} from"
    " https://github.com/zalandoresearch/fashion-mnist, as idx with that count in its header"
)


def _mnist(name: str, sha256: str, content: str) -> DataFile:
    return DataFile(f"mnist/{name}", sha256, content, f"{_MNIST_URL}{name}")


def _fashion(name: str, sha256: str, count: str, original: str) -> DataFile:
    recipe = _FASHION.format(count=count, name=original)
    return DataFile(f"fashion_mnist/{name}", sha256, recipe=recipe)


MNIST = (
    _mnist(
        "train-images-idx3-ubyte.gz",
        "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    _mnist(
        "train-labels-idx1-ubyte.gz",
        "fc607395669ec21321ea83e4b82c0544b7e8e63ff5b34337c06bc0a17cc0da3c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    _mnist(
        "t10k-images-idx3-ubyte.gz",
        "167310007f03058885c7e95e6c0b19c20de5c7fd3031f4cbdadc9014a523d80b",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    _mnist(
        "t10k-labels-idx1-ubyte.gz",
        "ec02e7948609e5754d47881c09b8afdd8dfa60600b9e5388c8c54a67069ec772",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)
FASHION = (
    _fashion(
        "train-first20000-images-idx3-ubyte.gz",
        "6833bf9e158da70ee91a28ef3fd3f53f5543627b2eacf7adc5136a0f72d4543a",
        "20 000",
        "train-images-idx3-ubyte.gz",
    ),
    _fashion(
        "train-first20000-labels-idx1-ubyte.gz",
        "8c92c2e07b232e86cb328eb4c0209b958aeb078a7d12ffbc8ff42df96953b73e",
        "20 000",
        "train-labels-idx1-ubyte.gz",
    ),
    _fashion(
        "test-first5000-images-idx3-ubyte.gz",
        "05a49dcfdfcd51ba4d308154d444b2185775d8f2a423af887629709b4a4645b1",
        "5 000",
        "t10k-images-idx3-ubyte.gz",
    ),
    _fashion(
        "test-first5000-labels-idx1-ubyte.gz",
        "4b1a8d8c0e7c5222dc1a01ff6643a8b890a27e1874f7535b74bab0a3af3477ce",
        "5 000",
        "t10k-labels-idx1-ubyte.gz",
    ),
)
_CLOTHES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


@dataset(
    "mnist",
    summary="handwritten digits, 28x28 grey: 60 000 to train on, 10 000 to test with",
    kind="classification",
    licence="CC BY-SA 3.0 (as commonly stated; the authors give none)",
    source=_MNIST_URL,
    files=MNIST,
)
def load_mnist(*, seed: int = 0, limit: int | None = None, calibration: int = 512) -> Task:
    """Load MNIST (LeCun, Cortes and Burges, 1998), complete.

    Args:
        seed: Draws the calibration examples.
        limit: At most this many training examples, the first of them; all where None.
        calibration: Examples for calibration, drawn from the training ones.

    Shapes:
        x (N, 1, 28, 28) float32 in [0, 1]; y (N,) int64
    """
    return _load("mnist", MNIST, tuple("0123456789"), seed, limit, calibration)


@dataset(
    "fashion-mnist",
    summary="clothing, 28x28 grey: the first 20 000 to train on, the first 5 000 to test with",
    kind="classification",
    licence="MIT",
    source="https://github.com/zalandoresearch/fashion-mnist",
    files=FASHION,
)
def load_fashion_mnist(*, seed: int = 0, limit: int | None = None, calibration: int = 512) -> Task:
    """Load the first part of Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017).

    Args:
        seed: Draws the calibration examples.
        limit: At most this many training examples, the first of them; all where None.
        calibration: Examples for calibration, drawn from the training ones.

    Shapes:
        x (N, 1, 28, 28) float32 in [0, 1]; y (N,) int64
    """
    return _load("fashion-mnist", FASHION, _CLOTHES, seed, limit, calibration)


def _load(
    name: str,
    files: tuple[DataFile, ...],
    classes: tuple[str, ...],
    seed: int,
    limit: int | None,
    calibration: int,
) -> Task:
    check_at_least(name, "limit", limit, 1)
    check_at_least(name, "calibration", calibration, 1)
    train_x, train_y, test_x, test_y = (read_idx(find(file)) for file in files)
    train = shorten(_split(train_x, train_y), limit)
    return Task(
        kind="classification",
        test=_split(test_x, test_y),
        train=train,
        calibration=draw(train, calibration, seed),
        classes=classes,
        name=name,
    )


def read_idx(path: Path) -> Tensor:
    """Read a gzipped idx file of bytes: images (N, rows, cols) or labels (N,), uint8.

    Raises:
        DataError: Not an idx file of bytes, or its size does not fit its header.
    """
    data = gzip.decompress(path.read_bytes())
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path.name}: not an idx file of unsigned bytes. Remove it and reload.")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if body.size != np.prod(shape, dtype=np.int64):
        raise DataError(
            f"{path.name}: the header says {shape} but {body.size} bytes follow."
            " Remove it and reload."
        )
    return torch.from_numpy(body.reshape(shape).copy())


def _split(x: Tensor, y: Tensor) -> TensorSplit:
    return TensorSplit({"x": x.float().div_(255).unsqueeze(1), "y": y.long()})
