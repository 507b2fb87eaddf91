"""The message that one rank sends for one bucket: a head, a flag byte a tensor, then sections.

```
0   digest of the layout      8 bytes   the same on all ranks, or somebody is set up differently
8   step                      8 bytes   the same on all ranks, or somebody is ahead
16  flags                     1 byte a tensor: bit 0 "used here", bit 1 "finite here"
    zeros up to a multiple of 16
    section of the 1st tensor, zeros up to a multiple of 16
    section of the 2nd tensor ...
```

Sections begin at multiples of 16 bytes, so that each can be viewed as any type. The size follows
from shapes and settings alone: every rank knows it without asking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGN = 16
HEAD_BYTES = 16
USED, FINITE = 1, 2
FORMAT = 1


def aligned(size: int) -> int:
    """Return ``size`` rounded up to a multiple of 16.

    >>> [aligned(0), aligned(1), aligned(16), aligned(17)]
    [0, 16, 16, 32]
    """
    return -(-size // ALIGN) * ALIGN


@dataclass(frozen=True)
class Layout:
    """Where everything lies in a message of one bucket.

    Attributes:
        names: The tensors, in the order of the bucket.
        starts: First byte of each tensor's section.
        sizes: Bytes of each section, without the zeros behind it.
        total: Bytes of the whole message.
        digest: 63-bit number of names, sizes and settings.
    """

    names: tuple[str, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    total: int
    digest: int

    @classmethod
    def of(cls, names: Sequence[str], sizes: Sequence[int], settings: str = "") -> Layout:
        """Lay out sections of the given sizes; ``settings`` only enters the digest."""
        starts, at = [], HEAD_BYTES + aligned(len(names))
        for size in sizes:
            starts.append(at)
            at += aligned(size)
        words = repr((FORMAT, tuple(names), tuple(sizes), settings)).encode()
        digest = int.from_bytes(hashlib.sha256(words).digest()[:8], "little") >> 1
        return cls(tuple(names), tuple(starts), tuple(sizes), at, digest)

    def empty(self, step: int, device: torch.device) -> Tensor:
        """Return a message (total,) uint8 with its head written and zeros behind it."""
        message = torch.zeros(self.total, dtype=torch.uint8, device=device)
        message[:HEAD_BYTES].view(torch.int64).copy_(torch.tensor([self.digest, step]))
        return message

    @property
    def body(self) -> int:
        """First byte behind head and flags."""
        return HEAD_BYTES + aligned(len(self.names))

    def section(self, message: Tensor, at: int) -> Tensor:
        """Return the view of tensor ``at`` in a message (total,) or in messages (N, total)."""
        return message[..., self.starts[at] : self.starts[at] + self.sizes[at]]

    def flags(self, message: Tensor) -> Tensor:
        """Return the view of the flag bytes, (tensors,) or (N, tensors)."""
        return message[..., HEAD_BYTES : HEAD_BYTES + len(self.names)]

    def heads(self, messages: Tensor) -> Tensor:
        """Return digest and step of each message, (N, 2) int64."""
        return messages[:, :HEAD_BYTES].contiguous().view(torch.int64)


def as_bytes(values: Tensor) -> Tensor:
    """Return the bytes of a contiguous tensor, (n * itemsize,) uint8, as a view."""
    return values.reshape(-1).view(torch.uint8)


def as_values(section: Tensor, dtype: torch.dtype) -> Tensor:
    """Return bytes (n * itemsize,) as values (n,); a view where the bytes are aligned."""
    if section.storage_offset() % dtype.itemsize:
        section = section.clone()
    return section.view(dtype)
