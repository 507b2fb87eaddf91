"""Networks and CIFAR-10 of the PQI study."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import DataError
from laconic.seeds import generator_for
from laconic.task import Batch, Task, TensorSplit

_IMAGE = 3 * 32 * 32
_ROWS = 10_000  # images in a file
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_FOLDER = "cifar10/cifar-10-batches-bin"
_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


def conv_net(
    widths: Sequence[int] = (64, 128, 256, 512), *, channels: int = 1, seed: int = 0
) -> nn.Module:
    """Build the paper's convolutional network: 3x3, batch norm, ReLU, pool, again; then a head.

    Args:
        widths: Channels of each convolution.
        channels: Channels of the image.
        seed: Seed of the initial weights: Kaiming normal by fan-out, as in the paper.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for place, (inputs, outputs) in enumerate(pairwise((channels, *widths)), 1):
            layers[f"conv{place}"] = _conv(inputs, outputs)
            layers[f"norm{place}"] = nn.BatchNorm2d(outputs)
            layers[f"act{place}"] = nn.ReLU()
            if place < len(widths):
                layers[f"pool{place}"] = nn.MaxPool2d(2)
        layers["mean"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(widths[-1], 10)
    nn.init.zeros_(layers["linear"].get_parameter("bias"))
    return nn.Sequential(layers)


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        plain = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if plain else nn.Sequential(
            _conv(inputs, outputs, stride, size=1), nn.BatchNorm2d(outputs)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def resnet18(*, width: int = 64, classes: int = 10, seed: int = 0) -> nn.Module:
    """Build ResNet-18 for 32x32 images: a 3x3 stem and stages of 1, 2, 4 and 8 times the width.

    Source: He et al. 2016, table 1, with the stem for small images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=_conv(3, width), norm=nn.BatchNorm2d(width), act=nn.ReLU()
        )
        inputs = width
        for stage, factor in enumerate((1, 2, 4, 8), 1):
            outputs = factor * width
            layers[f"stage{stage}"] = nn.Sequential(
                _Block(inputs, outputs, 1 if stage == 1 else 2), _Block(outputs, outputs, 1)
            )
            inputs = outputs
        layers["mean"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(inputs, classes)
    nn.init.zeros_(layers["linear"].get_parameter("bias"))
    return nn.Sequential(layers)


def _conv(inputs: int, outputs: int, stride: int = 1, *, size: int = 3) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv


@dataclass(frozen=True)
class Flipped:
    """Training images flipped at random and cropped after reflection of the border.

    Args:
        split: Images under ``x``, (N, channels, height, width), and ``y``.
        border: Pixels that are reflected on every side.
    """

    split: TensorSplit
    border: int = 4

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield batches; the generator draws their order, the flips and the crops."""
        drawn = generator or generator_for(0, "flips")
        for batch in self.split.batches(size, generator=generator):
            x = F.pad(batch["x"], (self.border,) * 4, mode="reflect")
            count, _, rows, cols = batch["x"].shape
            flips = torch.rand(count, generator=drawn) < 0.5
            x = torch.where(flips[:, None, None, None], x.flip(-1), x)
            tops = torch.randint(2 * self.border + 1, (2, count), generator=drawn)
            down = tops[0][:, None] + torch.arange(rows)
            along = tops[1][:, None] + torch.arange(cols)
            each = torch.arange(count)[:, None, None]
            crops = x[each, :, down[:, :, None], along[:, None, :]].permute(0, 3, 1, 2)
            yield {**batch, "x": crops.contiguous()}


def flipped(task: Task) -> Task:
    """Return a task whose training images are flipped and cropped at random.

    Raises:
        DataError: Its training examples are not held in memory.
    """
    if not isinstance(task.train, TensorSplit):
        raise DataError(f"task {task.name!r}: flips need training images held in memory.")
    return replace(task, train=Flipped(task.train))


def whole_cifar10(batch_size: int = 250) -> Task:
    """Load all of CIFAR-10 from its binary version, channels normalised.

    Raises:
        DataError: A file is missing or has another size; says where it belongs.
    """
    folder = _cifar_folder()
    train = [_read(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    test = _read(folder / "test_batch.bin")
    return Task(
        kind="classification",
        test=TensorSplit({"x": test[0], "y": test[1]}),
        train=TensorSplit({"x": images, "y": labels}),
        batch_size=batch_size,
        name="cifar10, complete",
    )


def _cifar_folder() -> Path:
    cache = os.environ.get("LACONIC_CACHE")
    own = (Path(cache) if cache else Path.home() / ".cache" / "laconic") / "datasets"
    given = os.environ.get("LACONIC_DATA")
    places = [*([Path(given)] if given else []), own]
    found = next((place / _FOLDER for place in places if (place / _FOLDER).is_dir()), None)
    if found is None:
        raise DataError(
            f"study 'pqi-sap', scale full: all of CIFAR-10 is needed. Unpack {_SOURCE} so that "
            f"$LACONIC_DATA/{_FOLDER}/data_batch_1.bin exists; or use --scale small."
        )
    return found


def _read(path: Path) -> tuple[Tensor, Tensor]:
    size = path.stat().st_size if path.is_file() else 0
    if size != _ROWS * (1 + _IMAGE):
        raise DataError(
            f"{path.name}: {size} bytes, not {_ROWS * (1 + _IMAGE)}. Unpack {_SOURCE} again."
        )
    rows = torch.from_numpy(np.fromfile(path, np.uint8).reshape(_ROWS, 1 + _IMAGE))
    images = rows[:, 1:].reshape(-1, 3, 32, 32).float() / 255
    mean, std = torch.tensor(_MEAN)[:, None, None], torch.tensor(_STD)[:, None, None]
    return (images - mean) / std, rows[:, 0].long()
