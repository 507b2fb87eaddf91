"""Every exception a user can meet, all under ``LaconicError``.

Each class also inherits the built-in that people would expect, so ``except ValueError`` works.
Messages have four parts: where, what came, what is allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LaconicError(Exception):
    """Base of all errors that laconic raises on purpose."""


class ConfigError(LaconicError, ValueError):
    """A setting is out of its bounds or of the wrong type."""


class BudgetError(LaconicError, ValueError):
    """A budget cannot be met; says the smallest size that can be reached."""


class LayerError(LaconicError, ValueError):
    """A method does not fit one layer; names the layer."""


class UnsupportedModelError(LaconicError, NotImplementedError):
    """The model has a structure that this command cannot work on."""


class RecipeError(LaconicError, ValueError):
    """A recipe is malformed, or two of its steps do not compose."""


class ArtifactError(LaconicError, OSError):
    """An artefact on disk is damaged, hostile, or from a newer version.

    Args:
        file: File name inside the artefact, for example ``model.safetensors``.
        reason: What is wrong.
        tensor: Tensor or part name, where one is concerned.
    """

    def __init__(self, file: str, reason: str, *, tensor: str | None = None) -> None:
        self.file, self.reason, self.tensor = file, reason, tensor
        where = f"{file}: {tensor}" if tensor else file
        super().__init__(f"{where}: {reason}")


class BackendError(LaconicError, RuntimeError):
    """A device, kernel or external program failed."""


class CommunicationError(LaconicError, RuntimeError):
    """A collective between ranks failed; names the collective, the bucket and the step."""


class DataError(LaconicError, FileNotFoundError):
    """A data set is missing or its checksum is wrong; says what to do."""


class MissingExtraError(LaconicError, ImportError):
    """An optional dependency is not installed; says the install line."""


class LaconicWarning(UserWarning):
    """Something the user can act on: a fall-back, a clamp, a skipped site."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest allowed name, else the empty string."""
    close = get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
