"""Three parts of the data: what levels are fitted on, searched on, and judged on in the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from laconic.errors import ConfigError
from laconic.search.documents import Documents
from laconic.task import Batch, Split, Task

_TOKENS, _EXAMPLES = 2**17, 4096  # most of the search data, unless more is asked for
_HELD_OUT = 4  # one of so many documents is held out


@dataclass(frozen=True)
class SearchData:
    """Documents of a search, and the task with a calibration split that shares none held out.

    Attributes:
        task: The task; its calibration data are those given, or documents that are searched on.
        documents: All documents.
        searched: Numbers of those that candidates are judged on.
        held_out: Numbers of those that only the winner and its rivals meet.
    """

    task: Task
    documents: Documents
    searched: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclass(frozen=True)
class ExampleSplit:
    """Examples held one by one.

    Attributes:
        examples: Batches of one example.
    """

    examples: Sequence[Batch]

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield neighbours of one shape together, at most ``size`` of them."""
        order = list(range(len(self.examples)))
        if generator is not None:
            order = torch.randperm(len(order), generator=generator).tolist()
        start = 0
        while start < len(order):
            first, stop = _shapes(self.examples[order[start]]), start
            while (
                stop < len(order)
                and stop - start < size
                and _shapes(self.examples[order[stop]]) == first
            ):
                stop += 1
            rows = [self.examples[number] for number in order[start:stop]]
            yield {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
            start = stop

    def take(self, count: int) -> ExampleSplit:
        """Return the first ``count`` examples."""
        return ExampleSplit(self.examples[:count])


def _shapes(example: Batch) -> tuple[tuple[str, torch.Size], ...]:
    return tuple((key, tensor.shape) for key, tensor in sorted(example.items()))


def search_data(task: Task, *, limit: int | None = None) -> SearchData:
    """Divide the training examples of a task; where it has none, those for calibration.

    The last quarter is held out: text from other places. The test split is never looked at.

    Args:
        task: The task.
        limit: Most documents; as many as hold 131 072 tokens, or 4096 examples, where None.

    Raises:
        ConfigError: There are not two documents.
    """
    source: Split | None = task.train if task.train is not None else task.calibration
    if source is None:
        raise ConfigError(
            f"search: task {task.name!r} has neither training nor calibration examples; a search "
            "judges candidates on data. Give --data NAME, or a Task with train."
        )
    documents = Documents.of(task, source, limit=limit or _usual(task, source))
    usable = [n for n, length in enumerate(documents.lengths) if length >= documents.least]
    if len(usable) < 2:
        raise ConfigError(
            f"search: task {task.name!r} has {len(usable)} document that can be judged; at least "
            "two are needed, one of them held out. Give shorter windows or more data."
        )
    cut = len(usable) - max(1, len(usable) // _HELD_OUT)
    searched, held_out = tuple(usable[:cut]), tuple(usable[cut:])
    if task.calibration is None or task.train is None:
        own = ExampleSplit([documents.examples[n] for n in searched]).take(512)
        task = replace(task, calibration=own)
    return SearchData(task, documents, searched, held_out)


def _usual(task: Task, source: Split) -> int:
    if task.kind != "causal-lm":
        return min(len(source), _EXAMPLES)
    first = next(iter(source.batches(1)))
    return max(2, min(len(source), _TOKENS // max(1, int(first["input_ids"].shape[1]))))
