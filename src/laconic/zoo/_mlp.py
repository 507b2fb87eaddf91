"""Networks of linear layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from laconic.errors import ConfigError, nearest
from laconic.zoo._seed import seeded

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def mlp(
    sizes: Sequence[int] = (784, 300, 100, 10), *, activation: str = "relu", seed: int = 0
) -> nn.Module:
    """Build linear layers ``fc1``, ``fc2``, ... with an activation between them.

    Inputs of any shape are flattened: (batch, ...) -> (batch, last size).

    Args:
        sizes: Numbers of inputs, hidden channels and outputs.
        activation: ``relu``, ``gelu``, ``tanh`` or ``sigmoid``.
        seed: Seed of the initial weights; the global random state is left alone.

    Raises:
        ConfigError: Fewer than two sizes, one below 1, or an unknown activation.

    Example:
        >>> [name for name, _ in mlp((64, 32, 10)).named_children()]
        ['flatten', 'fc1', 'act1', 'fc2']
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ConfigError(
            f"mlp: sizes={tuple(sizes)} must be two or more numbers of at least 1."
            " Use for example (784, 300, 100, 10)."
        )
    if activation not in _ACTIVATIONS:
        raise ConfigError(
            f"mlp: no activation {activation!r}.{nearest(activation, _ACTIVATIONS)}"
            f" There are: {', '.join(_ACTIVATIONS)}."
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    with seeded(seed):
        for place, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            if place > 1:
                layers[f"act{place - 1}"] = _ACTIVATIONS[activation]()
            layers[f"fc{place}"] = nn.Linear(inputs, outputs)
    return nn.Sequential(layers).eval()
