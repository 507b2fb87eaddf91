"""The two networks for MNIST on which pruning and sharing of weights were first reported."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from laconic.zoo._mlp import mlp
from laconic.zoo._seed import seeded


def lenet_300_100(*, seed: int = 0) -> nn.Module:
    """Build LeNet-300-100 (LeCun and others, 1998), 266 610 parameters.

    Images of 28x28 go in, logits of ten classes come out.

    Args:
        seed: Seed of the initial weights; the global random state is left alone.
    """
    return mlp((784, 300, 100, 10), seed=seed)


def lenet5(*, seed: int = 0) -> nn.Module:
    """Build LeNet-5 in the size that papers on compression use, 431 080 parameters.

    Two convolutions of 20 and 50 channels and linear layers of 500 and 10, as in S. Han and
    others, 2015, Learning both Weights and Connections, table 3; the network of LeCun and
    others, 1998, is smaller. (batch, 1, 28, 28) -> (batch, 10).

    Args:
        seed: Seed of the initial weights; the global random state is left alone.
    """
    with seeded(seed):
        layers = OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(800, 500),
            act=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        )
        return nn.Sequential(layers).eval()
