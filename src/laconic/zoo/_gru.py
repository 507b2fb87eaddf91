"""A recurrent classifier of sequences."""

from __future__ import annotations

from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.zoo._seed import seeded


class GruClassifier(nn.Module):
    """Gated recurrent units, and a linear head on the last step.

    Shapes:
        x (batch, steps, features) or images (batch, 1, steps, features) -> (batch, classes)
    """

    def __init__(self, features: int, hidden: int, layers: int, classes: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of sequences."""
        states = self.gru(x.flatten(1, -2))[0]
        out: Tensor = self.head(states[:, -1])
        return out


def gru_classifier(
    *, features: int = 8, hidden: int = 64, layers: int = 1, classes: int = 10, seed: int = 0
) -> nn.Module:
    """Build a classifier of gated recurrent units (Cho and others, 2014).

    Sequences go in step by step, images of one channel row by row: the default reads ``digits``.

    Args:
        features: Numbers in a step, or pixels in a row.
        hidden: Units of a layer.
        layers: Recurrent layers.
        classes: Number of classes.
        seed: Seed of the initial weights; the global random state is left alone.

    Raises:
        ConfigError: A number below 1.
    """
    if min(features, hidden, layers, classes) < 1:
        raise ConfigError(
            f"gru_classifier: features={features}, hidden={hidden}, layers={layers},"
            f" classes={classes}; all must be at least 1. Use for example 8, 64, 1 and 10."
        )
    with seeded(seed):
        return GruClassifier(features, hidden, layers, classes).eval()
