"""Minibatches of a search: which documents are judged on, and how far into each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laconic.errors import ConfigError


@dataclass(frozen=True)
class Minibatch:
    """Documents that candidates are judged on; small, so that it travels to workers.

    Attributes:
        documents: Index of each document, none twice.
        lengths: How many tokens of it are taken, from its beginning.
    """

    documents: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens of all documents together."""
        return sum(self.lengths)

    def split(self, parts: int) -> list[Minibatch]:
        """Return the documents in at most ``parts`` pieces of about equally many documents."""
        pieces = np.array_split(np.arange(len(self.documents)), min(parts, len(self.documents)))
        return [
            Minibatch(
                tuple(self.documents[int(i)] for i in piece),
                tuple(self.lengths[int(i)] for i in piece),
            )
            for piece in pieces
        ]


class Sampler:
    """Draws minibatches of an exact number of tokens from a fixed set of documents.

    Args:
        lengths: Tokens of each document; 1 each where examples are counted instead of tokens.
        least: Fewest tokens of a document that can be judged: 2 for next-token prediction.
            Shorter documents are never drawn.

    Raises:
        ConfigError: No document has ``least`` tokens.
    """

    def __init__(self, lengths: Sequence[int], *, least: int = 1) -> None:
        self.lengths, self.least = tuple(int(n) for n in lengths), int(least)
        self.usable = np.array([i for i, n in enumerate(self.lengths) if n >= max(least, 1)])
        if not len(self.usable) or least < 1:
            raise ConfigError(
                f"sampler: none of {len(self.lengths)} documents has least={least} tokens (1 or "
                "more). Give longer documents."
            )

    @property
    def tokens(self) -> int:
        """Number of tokens that can be drawn."""
        return sum(self.lengths[int(i)] for i in self.usable)

    def check(self, tokens: int, what: str) -> None:
        """Raise ConfigError unless a minibatch of this many tokens can be drawn."""
        if not self.least <= tokens <= self.tokens:
            raise ConfigError(
                f"{what}: {tokens} tokens must be between {self.least} and the {self.tokens} of "
                "the search set. Ask for fewer or give more text."
            )

    def draw(self, tokens: int, rng: np.random.Generator) -> Minibatch:
        """Return a minibatch of exactly ``tokens`` tokens.

        Documents come in random order without replacement and the last one is cut. Where the
        cut would leave it fewer than ``least`` tokens, documents before it are cut instead.

        Args:
            tokens: Size; at most that of the set.
            rng: Source of the order.

        Raises:
            ConfigError: More tokens than there are, or fewer than can be judged.
        """
        self.check(tokens, "minibatch")
        taken: list[int] = []
        lengths: list[int] = []
        left = tokens
        for index in rng.permutation(self.usable):
            taken.append(int(index))
            lengths.append(min(left, self.lengths[int(index)]))
            left -= lengths[-1]
            if not left:
                break
        self._lend_to_last(lengths)
        return Minibatch(tuple(taken), tuple(lengths))

    def everything(self) -> Minibatch:
        """Return all usable documents, whole: the held-out set at the end of a search."""
        taken = tuple(int(i) for i in self.usable)
        return Minibatch(taken, tuple(self.lengths[i] for i in taken))

    def _lend_to_last(self, lengths: list[int]) -> None:
        """Move tokens from earlier documents to the last, so that it can be judged; in place."""
        short = self.least - lengths[-1]
        for place in reversed(range(len(lengths) - 1)):
            if short <= 0:
                return
            lent = min(short, lengths[place] - self.least)
            lengths[place] -= lent
            lengths[-1] += lent
            short -= lent
        if short > 0:
            raise ConfigError(
                f"minibatch: {sum(lengths)} tokens cannot be cut into documents of at least "
                f"{self.least}. Ask for a multiple of {self.least}."
            )
