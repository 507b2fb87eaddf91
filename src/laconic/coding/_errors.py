"""The one error of this room."""

from __future__ import annotations

from laconic.errors import LaconicError


class CodingError(LaconicError, ValueError):
    """Symbols that cannot be coded, or coded bytes that are damaged, hostile or too long."""
