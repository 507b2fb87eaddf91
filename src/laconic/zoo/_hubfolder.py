"""stories260K as a Hugging Face folder, tokenizer included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laconic.errors import UnsupportedModelError
from laconic.extras import require
from laconic.files import folder_atomic
from laconic.zoo._scorebpe import BOS, EOS, FIRST_BYTE, FIRST_PIECE, UNKNOWN, ScoreBPE
from laconic.zoo._stories import stories260k

_SPECIAL = {UNKNOWN: "<unk>", BOS: "<s>", EOS: "</s>"}


def save_stories260k(folder: str | Path, *, force: bool = False) -> Path:
    """Write stories260K as a folder for ``AutoModelForCausalLM`` and ``AutoTokenizer``.

    Args:
        folder: Where; parents are made.
        force: Replace what stands there.

    Returns:
        The folder.

    Raises:
        ConfigError: The folder exists and ``force`` is not given.
        DataError: The published files are missing; says what to put where.
        MissingExtraError: transformers is not installed.
    """
    path = Path(folder)
    model, tokenizer = stories260k()
    fast = hub_tokenizer(tokenizer)
    with folder_atomic(path, force=force) as work:
        model.save_pretrained(work)
        fast.save_pretrained(work)
    return path


def hub_tokenizer(tokenizer: ScoreBPE) -> Any:
    """Return a tokenizer of transformers that gives the same tokens for every text.

    The pieces with their merges in order of score, bytes for unknown characters, one space
    before a text and the token that begins one. Only ``<s>`` and ``</s>`` in a text are read as
    the tokens that begin and end one, as everywhere in transformers; ``<unk>`` is text.

    Args:
        tokenizer: The tokenizer.

    Raises:
        UnsupportedModelError: A list of merges could give other tokens than the scores do.
        MissingExtraError: transformers is not installed.
    """
    merges = _merges(tokenizer)
    tokenizers = require("tokenizers", "hf", purpose="a tokenizer of transformers")
    transformers = require("transformers", "hf", purpose="a tokenizer of transformers")
    names = [_name(tokenizer, token) for token in range(len(tokenizer))]
    fast = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={name: token for token, name in enumerate(names)},
            merges=merges,
            byte_fallback=True,
        )
    )
    begin = _SPECIAL[BOS]
    fast.normalizer = tokenizers.normalizers.Prepend(" ")
    fast.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, BOS)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=begin,
        eos_token=_SPECIAL[EOS],
        clean_up_tokenization_spaces=False,
    )


def _name(tokenizer: ScoreBPE, token: int) -> str:
    if token in _SPECIAL:
        return _SPECIAL[token]
    if token < FIRST_PIECE:
        return f"<0x{token - FIRST_BYTE:02X}>"
    return tokenizer.pieces[token].decode("utf-8")


def _merges(tokenizer: ScoreBPE) -> list[tuple[str, str]]:
    """Return the pairs that merge, the best score first.

    Scores leave the order open between pairs that give the same piece: there the leftmost in
    the text comes first, here the one of smaller rank.
    """
    found: list[tuple[str, str]] = []
    ids, scores = tokenizer.ids, tokenizer.scores
    for piece in sorted(ids, key=lambda piece: -scores[ids[piece]]):
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        pairs = [(a, b) for a, b in cuts if a in ids and b in ids]
        if len(pairs) > 1 and _order_matters(tokenizer, piece, pairs):
            raise UnsupportedModelError(
                f"piece {piece!r} merges from {len(pairs)} pairs whose order depends on the text;"
                " a list of merges cannot say so. Use the tokenizer as it is."
            )
        found += [(a.decode("utf-8"), b.decode("utf-8")) for a, b in pairs]
    return found


def _order_matters(tokenizer: ScoreBPE, piece: bytes, pairs: list[tuple[bytes, bytes]]) -> bool:
    """Return whether merging one pair of a piece can keep another of the same piece from merging.

    It can where two such pairs share a token, or where the merged piece goes on to grow, before
    the other's turn, up to it: into one of its tokens, or from both into what lies between.
    """
    firsts, seconds = {a for a, _ in pairs}, {b for _, b in pairs}
    growth = _growth(tokenizer, piece)
    return (
        bool(firsts & seconds)
        or (any(left for left, _ in growth) and any(right for _, right in growth))
        or any(left.startswith((piece, *seconds)) for left, _ in growth)
        or any(right.endswith((piece, *firsts)) for _, right in growth)
    )


def _growth(tokenizer: ScoreBPE, piece: bytes) -> set[tuple[bytes, bytes]]:
    """Return what can join a piece on its left and right while no score is below its own."""
    ids = tokenizer.ids
    score = tokenizer.scores[ids[piece]]
    early = [other for other, token in ids.items() if tokenizer.scores[token] >= score]
    found: set[tuple[bytes, bytes]] = set()
    ahead = [(b"", b"")]
    while ahead:
        left, right = ahead.pop()
        whole = left + piece + right
        longer = [
            (other[: -len(whole)] + left, right)
            for other in early
            if other.endswith(whole) and other[: -len(whole)] in ids
        ]
        longer += [
            (left, right + other[len(whole) :])
            for other in early
            if other.startswith(whole) and other[len(whole) :] in ids
        ]
        ahead += [grown for grown in longer if grown not in found]
        found.update(longer)
    return found
