"""Optional imports: the one door through which extras come in."""

from __future__ import annotations

import importlib
from types import ModuleType

from laconic.errors import MissingExtraError


def require(module: str, extra: str, *, purpose: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Args:
        module: Dotted module name, for example ``"sklearn.datasets"``.
        extra: The extra of this package that installs it.
        purpose: What needs it, at the start of the message, for example ``"ONNX export"``.

    Raises:
        MissingExtraError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the extra {extra!r}: pip install 'laconic[{extra}]' ({error})"
        ) from error
