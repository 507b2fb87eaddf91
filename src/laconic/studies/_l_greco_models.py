"""Networks and data of the L-GreCo study."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from laconic import datasets, zoo
from laconic.errors import ConfigError, DataError, LaconicWarning
from laconic.studies._pqi_sap_models import Flipped, resnet18
from laconic.task import Task, TensorSplit

_PIXELS = 3 * 32 * 32
_FOLDER = "cifar100/cifar-100-binary"
_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
_MEAN, _STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def images(seed: int) -> tuple[Callable[[], nn.Module], Task, str]:
    """Return a residual net, its images and a word on both: CIFAR-10 where its files are.

    Warns:
        LaconicWarning: The files are missing; a smaller net on digits takes their place.
    """
    try:
        task = datasets.load("cifar10", seed=seed, normalise=True)
    except DataError as error:
        warnings.warn(
            f"study 'l-greco': a small net on digits in the place of ResNet-20: {error}",
            LaconicWarning,
            stacklevel=2,
        )
        digits = datasets.load("digits", seed=seed)
        told = (
            "FALLBACK, as the files of CIFAR-10 are not here: two residual blocks of 16 and 32 "
            "channels on scikit-learn's digits"
        )
        return lambda: zoo.conv_bn_residual(seed=seed), digits, told
    return lambda: zoo.resnet20(seed=seed), task, "ResNet-20 on 4 000 images of CIFAR-10"


def whole_cifar100() -> Task:
    """Load CIFAR-100 from its binary version: channels normalised, training images flipped.

    Raises:
        DataError: A file is missing or has another size; says where it belongs.
    """
    cache = os.environ.get("LACONIC_CACHE")
    own = (Path(cache) if cache else Path.home() / ".cache" / "laconic") / "datasets"
    given = os.environ.get("LACONIC_DATA")
    places = [*([Path(given)] if given else []), own]
    folder = next((place / _FOLDER for place in places if (place / _FOLDER).is_dir()), None)
    if folder is None:
        raise DataError(
            f"study 'l-greco', scale full: CIFAR-100 is needed. Unpack {_SOURCE} so that "
            f"$LACONIC_DATA/{_FOLDER}/train.bin exists; or use --scale small."
        )
    train = _read(folder / "train.bin", 50_000)
    return Task(
        kind="classification",
        test=_read(folder / "test.bin", 10_000),
        train=Flipped(train),
        name="cifar100",
    )


def _read(path: Path, count: int) -> TensorSplit:
    size = path.stat().st_size if path.is_file() else 0
    if size != count * (2 + _PIXELS):
        raise DataError(
            f"{path.name}: {size} bytes, not {count * (2 + _PIXELS)}. Unpack {_SOURCE}."
        )
    rows = torch.from_numpy(np.fromfile(path, np.uint8).reshape(count, 2 + _PIXELS))
    x = rows[:, 2:].reshape(-1, 3, 32, 32).float() / 255
    mean, std = torch.tensor(_MEAN)[:, None, None], torch.tensor(_STD)[:, None, None]
    return TensorSplit({"x": (x - mean) / std, "y": rows[:, 1].long()})


def build_task(spec: dict[str, Any]) -> Task:
    """Return the data that a job names.

    Raises:
        ConfigError: A name that is not known.
    """
    name, options = spec["name"], spec.get("options", {})
    if name == "cifar100":
        return whole_cifar100()
    if name in ("stdlib-text", "digits"):
        return replace(datasets.load(name, **options), batch_size=64)
    raise ConfigError(f"study 'l-greco': data {name!r}: use stdlib-text, digits or cifar100.")


def build_model(spec: dict[str, Any], seed: int) -> nn.Module:
    """Return the network that a job names, with initial weights of a seed.

    Raises:
        ConfigError: A name that is not known.
    """
    known: dict[str, Callable[..., nn.Module]] = {
        "byte-llama": zoo.byte_llama,
        "resnet18": resnet18,
        "conv-bn-residual": zoo.conv_bn_residual,
    }
    if spec["name"] not in known:
        raise ConfigError(
            f"study 'l-greco': network {spec['name']!r} is none of {', '.join(known)}."
        )
    return known[spec["name"]](seed=seed, **spec.get("options", {}))
