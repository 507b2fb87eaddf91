"""From documents to windows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from laconic.datasets._splits import check_at_least, draw
from laconic.errors import ConfigError, DataError
from laconic.task import Task, TensorSplit

Tokenizer = Callable[[str], list[int]]


def encode_bytes(text: str) -> list[int]:
    """Return the UTF-8 bytes of a document and a closing 0: a vocabulary of 256.

    Example:
        >>> encode_bytes("ab")
        [97, 98, 0]
    """
    return [*text.encode(), 0]


def windows(
    documents: Iterable[str],
    tokenizer: Tokenizer = encode_bytes,
    *,
    length: int,
    limit: int | None = None,
    name: str = "text",
) -> TensorSplit:
    """Cut documents, one after another, into windows that do not overlap.

    Each document is tokenized on its own; what is left over at the end of all is dropped.
    Documents beyond the last window needed are not read.

    Args:
        documents: Texts, in order.
        tokenizer: Text to token numbers; by default bytes with 0 after each document.
        length: Tokens in a window, at least 2.
        limit: At most this many windows; all where None.
        name: Data set, for messages.

    Returns:
        ``input_ids`` (windows, length) int64.

    Raises:
        ConfigError: ``length`` below 2, ``limit`` below 1, or a tokenizer that does not return
            whole numbers.
        DataError: Not enough text for one window.
    """
    check_at_least(name, "length", length, 2)
    check_at_least(name, "limit", limit, 1)
    ids: list[int] = []
    for document in documents:
        ids.extend(_encode(tokenizer, document, name))
        if limit is not None and len(ids) >= limit * length:
            break
    tokens = _tensor(ids, name)
    count = len(tokens) // length
    if limit is not None:
        count = min(count, limit)
    if count == 0:
        raise DataError(
            f"data set {name!r}: {len(tokens)} tokens do not fill one window of {length}."
            " Use a smaller length."
        )
    return TensorSplit({"input_ids": tokens[: count * length].reshape(count, length)})


def document_windows(
    documents: Iterable[str],
    tokenizer: Tokenizer = encode_bytes,
    *,
    length: int,
    limit: int | None = None,
    name: str = "text",
) -> TensorSplit:
    """Give each document a window: its first tokens, padded at the end with 0.

    Documents of fewer than two tokens, which predict nothing, are left out.

    Args:
        documents: Texts, in order.
        tokenizer: Text to token numbers; by default bytes with 0 after each document.
        length: Most tokens of a document, at least 2.
        limit: At most this many documents; all where None.
        name: Data set, for messages.

    Returns:
        ``input_ids`` and ``attention_mask`` (documents, longest) int64; the mask is 0 at padding.

    Raises:
        ConfigError: ``length`` below 2, ``limit`` below 1, or a tokenizer that does not return
            whole numbers.
        DataError: No document has two tokens.
    """
    check_at_least(name, "length", length, 2)
    check_at_least(name, "limit", limit, 1)
    rows: list[Tensor] = []
    for document in documents:
        if limit is not None and len(rows) == limit:
            break
        row = _tensor(_encode(tokenizer, document, name)[:length], name)
        if len(row) > 1:
            rows.append(row)
    if not rows:
        raise DataError(f"data set {name!r}: no document has two tokens. Use another tokenizer.")
    sizes = torch.tensor([len(row) for row in rows])
    ids = pad_sequence(rows, batch_first=True)
    mask = (torch.arange(ids.size(1)) < sizes[:, None]).long()
    return TensorSplit({"input_ids": ids, "attention_mask": mask})


def _encode(tokenizer: Tokenizer, document: str, name: str) -> list[int]:
    found: Any = tokenizer(document)
    if hasattr(found, "tolist"):  # a tensor or an array
        found = found.tolist()
    if not isinstance(found, list):
        raise _no_numbers(name, f"it returned {type(found).__name__}")
    return found


def _tensor(ids: list[int], name: str) -> Tensor:
    if not ids:
        return torch.empty(0, dtype=torch.int64)
    try:
        tensor = torch.tensor(ids)  # without a type: one would round halves silently
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_numbers(name, str(error)) from error
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.dtype is torch.bool:
        raise _no_numbers(name, f"it returned things like {ids[0]!r}")
    return tensor.long()


def _no_numbers(name: str, why: str) -> ConfigError:
    return ConfigError(
        f"data set {name!r}: tokenizer must return a list of whole numbers ({why})."
        " Pass for example tokenizer=lambda text: hf_tokenizer.encode(text)."
    )


def language_task(
    name: str,
    train: Iterable[str],
    test: Iterable[str],
    *,
    seed: int,
    tokenizer: Tokenizer | None,
    length: int,
    limit: int | None,
    test_limit: int | None,
    calibration: int,
    by_document: bool = False,
) -> Task:
    """Build the task of a language data set from its documents."""
    check_at_least(name, "calibration", calibration, 1)
    encode = tokenizer or encode_bytes
    cut = document_windows if by_document else windows
    learn = cut(train, encode, length=length, limit=limit, name=name)
    return Task(
        kind="causal-lm",
        test=cut(test, encode, length=length, limit=test_limit, name=name),
        train=learn,
        calibration=draw(learn, calibration, seed),
        batch_size=16,
        name=name,
    )
