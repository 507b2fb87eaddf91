"""The texts and examples of a search: drawn by number, cut to a length, and put into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.budget import Minibatch
from laconic.errors import ConfigError
from laconic.task import Batch, Split, Task

_TEXT = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class Documents:
    """Examples that assignments are judged on.

    Attributes:
        examples: One batch of one example each.
        lengths: Tokens of each, without padding at its end; 1 each where examples are counted.
        text: Whether lengths are tokens.
        batch_size: Most examples of a batch.
    """

    examples: tuple[Batch, ...]
    lengths: tuple[int, ...]
    text: bool
    batch_size: int

    @classmethod
    def of(cls, task: Task, split: Split, *, limit: int | None = None) -> Documents:
        """Take the examples of a split.

        Raises:
            ConfigError: The split is empty, or none of its texts has two tokens.
        """
        found: list[Batch] = []
        for batch in split.batches(task.batch_size):
            size = len(next(iter(batch.values())))
            found += [{key: t[i : i + 1] for key, t in batch.items()} for i in range(size)]
            if limit is not None and len(found) >= limit:
                break
        examples = tuple(found[:limit])
        text = task.kind == "causal-lm"
        lengths = tuple(_length(example) if text else 1 for example in examples)
        if text and all(_is_plain(e, n) for e, n in zip(examples, lengths, strict=True)):
            examples = tuple(  # padding is cut away: a mask would only slow things down
                {key: t for key, t in e.items() if key != "attention_mask"} for e in examples
            )
        if not examples or (text and max(lengths) < 2):
            raise ConfigError(f"search: task {task.name!r} has no examples that can be judged.")
        return cls(examples, lengths, text, task.batch_size)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def least(self) -> int:
        """Fewest tokens of a document that can be judged."""
        return 2 if self.text else 1

    def take(self, numbers: Sequence[int]) -> Minibatch:
        """Return a minibatch of whole documents; texts of a single token are left out."""
        usable = [n for n in numbers if self.lengths[n] >= self.least]
        return Minibatch(tuple(usable), tuple(self.lengths[n] for n in usable))

    def batches(self, minibatch: Minibatch) -> Iterator[tuple[list[int], Batch]]:
        """Yield the batches of a minibatch, each with the numbers of its documents.

        Neighbours that are cut to the same length come together.
        """
        pairs = list(zip(minibatch.documents, minibatch.lengths, strict=True))
        start = 0
        while start < len(pairs):
            length, stop = pairs[start][1], start
            while stop < len(pairs) and pairs[stop][1] == length and stop - start < self.batch_size:
                stop += 1
            numbers = [number for number, _ in pairs[start:stop]]
            rows = [self._cut(number, length) for number in numbers]
            yield numbers, {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
            start = stop

    def _cut(self, number: int, length: int) -> dict[str, Tensor]:
        example = self.examples[number]
        if not self.text:
            return dict(example)
        return {key: t[:, :length] if key in _TEXT else t for key, t in example.items()}


def _length(example: Batch) -> int:
    """Return the tokens of a text up to its last one that is no padding."""
    mask = example.get("attention_mask")
    whole = int(example["input_ids"].shape[1])
    if mask is None:
        return whole
    real = mask[0].nonzero()
    return int(real[-1]) + 1 if len(real) else 0


def _is_plain(example: Batch, length: int) -> bool:
    mask = example.get("attention_mask")
    return mask is None or bool((mask[:, :length] != 0).all())
