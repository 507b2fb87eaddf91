"""What a reader accepts at most, so that a hostile file cannot make it allocate or loop at will."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

FORMAT = 1
"""Version of the layout on disk that this code writes, and the newest that it reads."""

MANIFEST = "laconic.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
GENERATION = "generation_config.json"
DEPLOYED = (WEIGHTS, MANIFEST, CONFIG)
"""Files that are needed to run a model; their sizes are the deployed bytes."""

MAX_JSON_BYTES = 32 * 2**20
"""Greatest size of a JSON file or header."""

MAX_DIMENSIONS = 16
MAX_EXTENT = 2**40
MAX_ELEMENTS = 2**46
"""Greatest number of axes, extent of one axis, and elements of a tensor."""

MAX_ALPHABET = 2**16
"""Greatest alphabet of symbols."""

MAX_DEPTH = 12
"""Greatest depth of a tree of forms and of containers in a graph's arguments."""

MAX_EXPANSION = 1024
"""Greatest number of decoded bytes for one stored byte, ``FREE_BYTES`` aside."""

MAX_FORM_EXPANSION = 4096
"""Greatest number of elements that a form stands for, for one byte of its decoded parts."""

MAX_CACHED_BYTES = 2**30
MAX_CACHED_EXPANSION = 256
"""Dense bytes, and dense bytes for a stored one, above which forms always run by themselves: a
loader that built dense tensors to time them would take what a small file asks for."""

FREE_BYTES = 2**24
"""Decoded bytes of a whole artefact that may go beyond ``MAX_EXPANSION``, so that constant
tensors may be tiny."""

FREE_ELEMENTS = 2**16
"""Elements of a form that are always allowed."""

MAX_NODES = 50_000
"""Greatest number of nodes in a graph."""

BUNDLED_BYTES = 2048
"""Values up to this size are put together in one bundle for each dtype."""

UNTRUSTED = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ArithmeticError,
    MemoryError, SyntaxError,
)  # fmt: skip
"""What code that meets hostile settings, shapes or symbols may raise before it notices."""


class Allowance:
    """Keeps account of what an artefact decodes to beyond ``MAX_EXPANSION`` of what is stored.

    >>> Allowance().takes(10**9, 1000)
    False
    """

    def __init__(self) -> None:
        self.left = FREE_BYTES

    def takes(self, decoded: int, stored: int) -> bool:
        """Return whether one more part is allowed, and put it to the account if so."""
        beyond = max(0, decoded - stored * MAX_EXPANSION)
        if beyond > self.left:
            return False
        self.left -= beyond
        return True


def shape_problem(shape: Sequence[int]) -> str | None:
    """Return why a shape is refused, or None."""
    if len(shape) > MAX_DIMENSIONS:
        return f"{len(shape)} axes are more than {MAX_DIMENSIONS}"
    if any(n < 0 or n > MAX_EXTENT for n in shape):
        return f"shape {list(shape)} has an extent outside 0..{MAX_EXTENT}"
    if prod(shape) > MAX_ELEMENTS:
        return f"shape {list(shape)} has more than {MAX_ELEMENTS} elements"
    return None
