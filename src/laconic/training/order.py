"""The order of batches: a pure function of seed and epoch, so that a run can be taken up."""

from __future__ import annotations

from collections.abc import Iterator

from laconic.errors import ConfigError
from laconic.seeds import generator_for
from laconic.task import Batch, Split


def batch_length(batch: Batch) -> int:
    """Return the number of examples of a batch."""
    return len(next(iter(batch.values())))


def epoch_length(split: Split, batch_size: int) -> int:
    """Return the steps of an epoch: whole batches only, and at least one."""
    return max(1, len(split) // batch_size)


class BatchOrder:
    """Walks a split epoch after epoch from any position.

    A last batch that is shorter than the first of its epoch is left out, so that batch
    normalisation never meets a single example.

    Args:
        split: Examples.
        batch_size: Examples of a batch.
        seed: Source of every epoch's order.
        epoch: Epoch to start in.
        offset: Batches of that epoch to pass over.
    """

    def __init__(
        self, split: Split, batch_size: int, seed: int, *, epoch: int = 0, offset: int = 0
    ) -> None:
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self.epoch, self.offset = epoch, offset
        self._running = self._walk(epoch)
        for _ in range(offset):
            next(self._running, None)

    def __next__(self) -> Batch:
        """Return the next batch; a new epoch begins where one ends."""
        batch = next(self._running, None)
        if batch is None:
            self.epoch, self.offset = self.epoch + 1, 0
            self._running = self._walk(self.epoch)
            batch = next(self._running, None)
        if batch is None:
            raise ConfigError("training data: the split gave no batch; it must hold examples.")
        self.offset += 1
        return batch

    def _walk(self, epoch: int) -> Iterator[Batch]:
        generator = generator_for(self._seed, "epoch", epoch)
        full, held = 0, None
        for batch in self._split.batches(self._batch_size, generator=generator):
            if held is not None:
                yield held
            held, full = batch, full or batch_length(batch)
        if held is not None and batch_length(held) >= full:
            yield held
