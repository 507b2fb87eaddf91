"""Byte-pair encoding by scores: the tokenizer of llama2.c."""

from __future__ import annotations

import heapq
import math
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from laconic.errors import DataError

UNKNOWN, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3  # tokens 3 to 258 stand for the 256 bytes
FIRST_PIECE = FIRST_BYTE + 256


@dataclass(frozen=True)
class ScoreBPE:
    """Pieces of text with scores; neighbours merge into the piece of the highest score.

    Characters that are no piece become bytes. A text is preceded by one space, which decoding
    takes away again. It is a function of text to token numbers, as the data sets want one.

    Args:
        pieces: The bytes of each token; 0, 1, 2 are unknown, begin and end, and 3 to 258 the
            256 bytes.
        scores: A score for each; the highest is merged first, the leftmost among equal ones.

    Source: R. Sennrich, B. Haddow, A. Birch, 2016, Neural Machine Translation of Rare Words with
    Subword Units; scores as in T. Kudo and J. Richardson, 2018, SentencePiece.
    """

    pieces: Sequence[bytes]
    scores: Sequence[float]
    bos: int = field(default=BOS, init=False)
    eos: int = field(default=EOS, init=False)

    def __len__(self) -> int:
        return len(self.pieces)

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text, with the token that begins one."""
        return self.encode(text)

    def encode(self, text: str, *, add_special_tokens: bool = True, end: bool = False) -> list[int]:
        """Return the tokens of a text.

        Args:
            text: Any text; an empty one has no tokens but the special ones.
            add_special_tokens: Put the token that begins a text before it.
            end: Put the token that ends a text behind it.
        """
        known: dict[str, list[int]] = {}
        tokens: list[int] = []
        for chunk in self._chunks(" " + text) if text else []:
            if chunk not in known:
                known[chunk] = self._merge(self._characters(chunk))
            tokens.extend(known[chunk])
        return [*([self.bos] if add_special_tokens else []), *tokens, *([self.eos] if end else [])]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of tokens; bytes that are no UTF-8 become replacement characters.

        Args:
            ids: Token numbers.
            skip_special_tokens: Leave out unknown, begin and end.

        Raises:
            DataError: A number that is no token.
        """
        parts: list[bytes] = []
        for token in map(int, ids):
            if not 0 <= token < len(self.pieces):
                raise DataError(
                    f"decode: token {token} is not between 0 and {len(self.pieces) - 1}."
                    " Give tokens of this very tokenizer."
                )
            if token >= FIRST_BYTE or not skip_special_tokens:
                parts.append(self._bytes(token))
        data = b"".join(parts)
        return data.removeprefix(b" ").decode("utf-8", errors="replace")

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The token of every piece that text can become: no special one and no byte."""
        return {self.pieces[i]: i for i in range(FIRST_PIECE, len(self.pieces))}

    @cached_property
    def _splits(self) -> bool:
        """Whether a space only ever begins a piece, so that nothing merges across its left."""
        return not any(b" " in self.pieces[i][1:] for i in range(FIRST_PIECE, len(self.pieces)))

    def _chunks(self, text: str) -> list[str]:
        return re.findall(r" [^ ]*|[^ ]+", text) if self._splits else [text]

    def _bytes(self, token: int) -> bytes:
        return (
            bytes([token - FIRST_BYTE]) if FIRST_BYTE <= token < FIRST_PIECE else self.pieces[token]
        )

    def _characters(self, text: str) -> list[int]:
        found: list[int] = []
        for character in text:
            data = character.encode("utf-8", "surrogatepass")
            if data in self.ids:
                found.append(self.ids[data])
            else:
                found.extend(byte + FIRST_BYTE for byte in data)
        return found

    def _merge(self, tokens: list[int]) -> list[int]:
        """Merge, best score first, leftmost first among equal scores, until nothing merges."""
        end = len(tokens)
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))
        alive = list(tokens)  # -1 where a token went into the one before it
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right >= end:
                return
            joined = self.ids.get(self.pieces[alive[left]] + self.pieces[alive[right]])
            if joined is not None:
                score = -self.scores[joined]
                heapq.heappush(heap, (score, left, alive[left], alive[right], joined))

        for place in range(end - 1):
            offer(place, place + 1)
        while heap:
            _, left, first, second, joined = heapq.heappop(heap)
            right = after[left]
            if right >= end or alive[left] != first or alive[right] != second:
                continue  # one of the two has changed since
            alive[left], alive[right] = joined, -1
            after[left] = after[right]
            if after[left] < end:
                before[after[left]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [token for token in alive if token >= 0]


def read_score_bpe(path: Path, size: int) -> ScoreBPE:
    """Read the tokenizer file of llama2.c.

    Args:
        path: The longest piece's length, then score, length and bytes of each piece.
        size: Number of pieces.

    Raises:
        DataError: The file ends early, has more, or holds no such pieces.
    """
    data = path.read_bytes()
    pieces: list[bytes] = []
    scores: list[float] = []
    place = 4
    while place + 8 <= len(data) and len(pieces) < size:
        score, length = struct.unpack_from("<fi", data, place)
        piece = data[place + 8 : place + 8 + length] if length > 0 else b""
        if not math.isfinite(score) or not piece or len(piece) != length:
            raise DataError(
                f"{path.name}: piece {len(pieces)} is damaged (score {score}, length {length})."
                " Remove the file and fetch it again."
            )
        pieces.append(piece)
        scores.append(score)
        place += 8 + length
    if len(pieces) != size or place != len(data):
        raise DataError(
            f"{path.name}: {len(pieces)} pieces in {place} of {len(data)} bytes, expected {size}"
            " in all of them. Give the tokenizer file of this very model."
        )
    return ScoreBPE(tuple(pieces), tuple(scores))
