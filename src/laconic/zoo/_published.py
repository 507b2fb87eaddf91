"""Published weights by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from laconic.datasets import DataFile, find
from laconic.errors import ConfigError, nearest
from laconic.zoo._mlp import mlp
from laconic.zoo._resnet import resnet20, resnet32, resnet56
from laconic.zoo._stories import stories260k

_RESNETS = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/d5489e89/pretrained_models"


def _resnet_file(name: str, digest: str) -> DataFile:
    file = f"{name}-{digest[:8]}.th"
    return DataFile(f"weights_resnet_cifar10/{file}", digest, recipe=f"{_RESNETS}/{file}, as it is")


RESNET20 = _resnet_file(
    "resnet20", "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"
)
RESNET32 = _resnet_file(
    "resnet32", "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850"
)
RESNET56 = _resnet_file(
    "resnet56", "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"
)
MNIST_MLP = DataFile(
    "weights_mnist_mlp/mlp_784_128_32_10.safetensors",
    "8dee24200324c4afc9a3bbcd58334c94ab4174c391770cfa48d8ce7ce3a8b4f3",
    recipe="the values of https://github.com/ml5js/ml5-data-and-models, models/mnist, as"
    " hidden1.weights (784, 128), hidden1.biases (128,), hidden2, softmax_linear",
)


def trained_resnet20() -> nn.Module:
    """Load ResNet-20 as Y. Idelbayev trained it on CIFAR-10: 91.7 % on the original test images.

    It wants images as ``datasets.load("cifar10", normalise=True)`` gives them.
    """
    return _load_resnet(resnet20(), RESNET20)


def trained_resnet32() -> nn.Module:
    """Load ResNet-32 as Y. Idelbayev trained it on CIFAR-10: 92.6 % on the original test images.

    It wants images as ``datasets.load("cifar10", normalise=True)`` gives them.
    """
    return _load_resnet(resnet32(), RESNET32)


def trained_resnet56() -> nn.Module:
    """Load ResNet-56 as Y. Idelbayev trained it on CIFAR-10: 93.4 % on the original test images.

    It wants images as ``datasets.load("cifar10", normalise=True)`` gives them.
    """
    return _load_resnet(resnet56(), RESNET56)


def _load_resnet(model: nn.Module, file: DataFile) -> nn.Module:
    held = torch.load(find(file), map_location="cpu", weights_only=True)["state_dict"]
    tensors = {name.removeprefix("module."): tensor for name, tensor in held.items()}
    # Written before batch norms counted their batches.
    counts = {n: t for n, t in model.state_dict().items() if n.endswith("num_batches_tracked")}
    model.load_state_dict({**counts, **tensors})
    return model


def trained_mnist_mlp() -> nn.Module:
    """Load three linear layers, 784-128-32-10, that ml5.js publishes for MNIST."""
    held = load_file(find(MNIST_MLP))
    model = mlp((784, 128, 32, 10))
    names = {"fc1": "hidden1", "fc2": "hidden2", "fc3": "softmax_linear"}
    tensors = {f"{own}.weight": held[f"{name}.weights"].T for own, name in names.items()}
    tensors |= {f"{own}.bias": held[f"{name}.biases"] for own, name in names.items()}
    model.load_state_dict(tensors)
    return model


_PUBLISHED: dict[str, Callable[[], Any]] = {
    "mnist-mlp": trained_mnist_mlp,
    "resnet20": trained_resnet20,
    "resnet32": trained_resnet32,
    "resnet56": trained_resnet56,
    "stories260k": stories260k,
}


def published() -> list[str]:
    """Return the names that :func:`pretrained` knows, in alphabetical order."""
    return sorted(_PUBLISHED)


def pretrained(name: str) -> Any:
    """Load a network with its published weights, in eval mode.

    The files are looked for under ``LACONIC_DATA``, then in the cache.

    Args:
        name: One of :func:`published`.

    Returns:
        The module; for a language model, the module and its tokenizer.

    Raises:
        ConfigError: Unknown name; has the nearest one.
        DataError: A file is missing or damaged; says what to put where.
    """
    if name not in _PUBLISHED:
        raise ConfigError(
            f"no published weights {name!r}.{nearest(name, _PUBLISHED)}"
            f" There are: {', '.join(published())}."
        )
    return _PUBLISHED[name]()
