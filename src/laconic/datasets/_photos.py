"""500 photographs of ImageNet's classes, for nets that were trained on all of it."""

from __future__ import annotations

import csv
import io
import zipfile
from typing import Any

import numpy as np
import torch

from laconic.datasets._description import dataset
from laconic.datasets._files import DataFile, find
from laconic.datasets._splits import check_at_least
from laconic.errors import ConfigError
from laconic.extras import require
from laconic.task import Task, TensorSplit

_ORIGIN = "https://github.com/EliSchwartz/imagenet-sample-images"
IMAGES = DataFile(
    "imagenet_samples/images.zip",
    "0a3ab26ddbad56fe23dcc067d5cf7258e375e0d0be0bbada154b65bcf5bc33a2",
    recipe=f"a zip of the images of even class indexes of {_ORIGIN}, shorter side scaled to 256,"
    " centre 256x256, JPEG quality 90",
)
LABELS = DataFile(
    "imagenet_samples/labels.csv",
    "dc7b74021b2b25338e54989ee5f87ea71fde8c2e1a199d85464fd3f4cff2234b",
    recipe="a table with the columns file, class_index, wnid, name",
)


@dataset(
    "imagenet-samples",
    summary="500 photographs, one for each even class of ImageNet-1k; half calibrate, half test",
    kind="classification",
    licence="ImageNet terms: non-commercial research",
    source=_ORIGIN,
    files=(IMAGES, LABELS),
)
def load_imagenet_samples(
    *, seed: int = 0, calibration: int = 100, scale: tuple[float, float] = (0.0, 1.0)
) -> Task:
    """Load one image each of 500 classes of ImageNet-1k, its centre 224x224.

    They come from the training part of ImageNet: a net that was trained on it scores higher
    than published. There is no training split.

    Args:
        seed: Draws which images are for calibration; the others are for the test.
        calibration: Images for calibration, 1..499; use 0 to test with all 500.
        scale: Values for black and white, for example ``(-1, 1)`` for MobileNet.

    Shapes:
        x (N, 3, 224, 224) float32; y (N,) int64 in 0..999

    Raises:
        ConfigError: ``calibration`` outside 0..499.
        DataError: A file is missing or damaged.
        MissingExtraError: Pillow is not installed.
    """
    check_at_least("imagenet-samples", "calibration", calibration, 0)
    pillow = require("PIL.Image", "images", purpose="data set 'imagenet-samples'")
    with find(LABELS).open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    if calibration >= len(rows):
        raise ConfigError(
            f"data set 'imagenet-samples': calibration={calibration} must leave images for the"
            f" test; give 0..{len(rows) - 1}."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = sorted(order[:calibration])
    rest = sorted(order[calibration:])
    return Task(
        kind="classification",
        test=_read([rows[i] for i in rest], pillow, scale),
        calibration=_read([rows[i] for i in chosen], pillow, scale) if chosen else None,
        batch_size=32,
        name="imagenet-samples",
    )


def _read(rows: list[dict[str, str]], pillow: Any, scale: tuple[float, float]) -> TensorSplit:
    black, white = scale
    x = torch.empty(len(rows), 3, 224, 224)
    with zipfile.ZipFile(find(IMAGES)) as archive:
        for place, row in enumerate(rows):
            with pillow.open(io.BytesIO(archive.read(row["file"]))) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB"))[16:240, 16:240])
            x[place] = pixels.permute(2, 0, 1).float() * ((white - black) / 255) + black
    return TensorSplit({"x": x, "y": torch.tensor([int(row["class_index"]) for row in rows])})
