"""Real data sets as tasks: where they come from, checksums, splits.

``digits`` and ``stdlib-text`` come with the packages that are installed anyway. The others are
files, looked for under the folder named by ``LACONIC_DATA``, then in the cache, then downloaded
where their source is one plain file; each is checked against its SHA-256.
"""

from __future__ import annotations

from laconic.datasets._catalogue import describe, load, names
from laconic.datasets._description import Description
from laconic.datasets._files import DataFile, find
from laconic.datasets._windows import Tokenizer, document_windows, encode_bytes, windows

__all__ = [
    "DataFile",
    "Description",
    "Tokenizer",
    "describe",
    "document_windows",
    "encode_bytes",
    "find",
    "load",
    "names",
    "windows",
]
