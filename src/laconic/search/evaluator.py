"""Judge assignments on a model: switch what changed, run what can differ, compare with dense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from laconic.budget import Assignment, Minibatch
from laconic.search.documents import Documents
from laconic.search.judge import Judge, make_judge
from laconic.search.streams import Streams, bytes_of
from laconic.search.units import Unit, detached, first_blocks, sharing_copy
from laconic.task import Batch, Task
from laconic.weights._flow import device_of, quiet

Choice = tuple[int, ...]
_LIMIT_BYTES = 2**30


@dataclass(frozen=True)
class EvaluatorJob:
    """All that an evaluator is built from; it travels to workers.

    Attributes:
        model: The dense model; evaluators work on a copy.
        units: Rows of the level table.
        task: Runs the model, and has its own loss and metrics.
        documents: What assignments are judged on.
        fitness: See :func:`laconic.search.judge.make_judge`.
        top_k: Classes of ``"topk_kl"``.
        device: Where to run.
        prefix: Reuse what blocks before the first changed one gave.
        limit_bytes: Most bytes of streams and targets that are held for one minibatch.
    """

    model: nn.Module
    units: Sequence[Unit]
    task: Task
    documents: Documents
    fitness: str = "kl"
    top_k: int = 512
    device: str = "cpu"
    prefix: bool = True
    limit_bytes: int = _LIMIT_BYTES


def build_evaluator(job: EvaluatorJob) -> ModelEvaluator:
    """Return an evaluator for a job: what a worker calls."""
    return ModelEvaluator(job)


@dataclass
class _Held:
    """One batch of a minibatch: what the dense model gave, and the streams of one candidate."""

    batch: Batch
    target: Any
    outputs: list[Any] = field(default_factory=list)


class ModelEvaluator:
    """Judges assignments, each by the whole model that it stands for.

    Assignments of a list are judged in the order in which they branch: neighbours share what the
    blocks before their first difference gave, and every shared beginning is computed once. The
    numbers are those of whole passes, bit for bit, whatever else is in the list.

    Args:
        job: Model, units, documents and fitness.

    Raises:
        ConfigError: A fitness that the task does not have.
    """

    def __init__(self, job: EvaluatorJob) -> None:
        self.job, self.judge = job, make_judge(job.fitness, job.task, top_k=job.top_k)
        at_home = device_of(job.model) == torch.device(job.device)
        self.original = sharing_copy(job.model) if at_home else deepcopy(job.model).to(job.device)
        self.model = deepcopy(self.original)
        self.units = detached(job.units)
        self.places = first_blocks(self.model, self.units)
        self.order = sorted(range(len(self.units)), key=lambda unit: self.places[unit])
        self.loaded: list[int | None] = [None] * len(self.units)
        self.streams, self.dense = Streams(self.model, job.task), Streams(self.original, job.task)
        self.targets = DenseTargets(self.dense, job)
        self.blocks_run = 0

    def apply(self, choice: Sequence[int]) -> int:
        """Put an assignment into the model, in place; return how many units were switched."""
        changed = [unit for unit, level in enumerate(choice) if self.loaded[unit] != level]
        for unit in changed:
            self.loaded[unit] = None  # unknown, should the switch fail half-way
            self.units[unit].put_(self.model, choice[unit])
            self.loaded[unit] = choice[unit]
        return len(changed)

    def logits(self, choice: Sequence[int], batch: Batch) -> Tensor:
        """Return the outputs of an assignment on a batch, by a whole pass."""
        self.apply(choice)
        moved = {key: tensor.to(self.job.device) for key, tensor in batch.items()}
        with quiet(self.model):
            return self.job.task.forward(self.model, moved)

    def __call__(self, assignments: list[Assignment], minibatch: Minibatch, /) -> list[float]:
        """Return the fitness of each assignment on the documents of a minibatch."""
        sums, counts = [0.0] * len(assignments), [0] * len(assignments)
        order = sorted(range(len(assignments)), key=lambda i: self._key(assignments[i].choice))
        with ExitStack() as stack:
            stack.enter_context(quiet(self.model))
            stack.enter_context(quiet(self.original))
            stack.enter_context(self.streams.opened())
            stack.enter_context(self.dense.opened())
            for held in self._held(minibatch):
                last: Choice | None = None
                for index in order:
                    choice = assignments[index].choice
                    self.apply(choice)
                    start = self._first_difference(last, choice)
                    for one in held:
                        total, count = self._judged(one, start)
                        sums[index] += total
                        counts[index] += count
                    last = choice
        return [self.judge.final(s / max(n, 1)) for s, n in zip(sums, counts, strict=True)]

    def _key(self, choice: Choice) -> tuple[int, ...]:
        return tuple(choice[unit] for unit in self.order)

    def _first_difference(self, last: Choice | None, choice: Choice) -> int:
        """Return the first block whose output may differ from the last candidate's."""
        if last is None or not self.job.prefix:
            return 0
        differing = [self.places[u] for u in self.order if last[u] != choice[u]]
        return differing[0] if differing else len(self.streams)

    def _judged(self, held: _Held, start: int) -> tuple[float, int]:
        start = min(start, len(held.outputs))
        self.blocks_run += len(self.streams) - start
        outputs = self.streams.run(held.batch, held.outputs, start)
        return self.judge.score(held.target, outputs, held.batch)

    def _held(self, minibatch: Minibatch) -> Iterator[list[_Held]]:
        """Yield the batches of a minibatch with their targets, as many as memory allows."""
        held: list[_Held] = []
        size = 0
        for numbers, batch in self.job.documents.batches(minibatch):
            moved = {key: tensor.to(self.job.device) for key, tensor in batch.items()}
            target = self.targets.of(numbers, moved)
            held.append(_Held(moved, target))
            size += self.targets.stream_bytes * _predictions(self.job.documents, moved)
            size += bytes_of(target)
            if size > self.job.limit_bytes:
                yield held
                held, size = [], 0
        if held:
            yield held


class DenseTargets:
    """What the dense model says of every document.

    Kept is the residual stream after its last block, or its outputs where these are smaller; the
    rest of the model, final norm and head, runs again on the stream when a batch is drawn. For a
    large vocabulary that is many times less, and the same numbers.

    Args:
        dense: The dense model, with its blocks open.
        job: Documents and fitness.

    Attributes:
        stream_bytes: What all blocks together give for one prediction.
    """

    def __init__(self, dense: Streams, job: EvaluatorJob) -> None:
        self.dense, self.job = dense, job
        self.judge: Judge = make_judge(job.fitness, job.task, top_k=job.top_k)
        self.kept: dict[int, Tensor] = {}
        self.as_outputs = False
        self.stream_bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(t.numel() * t.element_size() for t in self.kept.values())

    def of(self, numbers: list[int], batch: Batch) -> Any:
        """Return the targets of a batch; the first call runs the dense model on all documents."""
        if not self.stream_bytes:
            self._gather(range(len(self.job.documents)) if self.judge.dense else numbers[:1])
        if not self.judge.dense:
            return None
        return self.judge.target(self.outputs(numbers, batch), batch)

    def _gather(self, numbers: Sequence[int]) -> None:
        documents = self.job.documents
        for group, batch in documents.batches(documents.take(numbers)):
            moved = {key: tensor.to(self.job.device) for key, tensor in batch.items()}
            streams: list[Any] = []
            outputs = self.dense.run(moved, streams)
            given = sum(map(bytes_of, streams))
            self.stream_bytes = max(1, given // _predictions(documents, moved))
            if not self.judge.dense:
                return
            stream = streams[-1] if streams and isinstance(streams[-1], Tensor) else None
            if not self.kept:
                self.as_outputs = stream is None or outputs.numel() <= stream.numel()
            kept = outputs if self.as_outputs or stream is None else stream
            for place, number in enumerate(group):
                self.kept[number] = kept[place : place + 1].clone()

    def outputs(self, numbers: list[int], batch: Batch) -> Tensor:
        """Return the dense model's outputs on a batch, from what is kept."""
        rows = [self.kept[number] for number in numbers]
        if self.job.documents.text:
            length = batch["input_ids"].shape[1]
            rows = [row[:, :length] for row in rows]
        held = torch.cat(rows)
        return (
            held
            if self.as_outputs
            else self.dense.run(batch, [held] * len(self.dense), len(self.dense))
        )


def _predictions(documents: Documents, batch: Batch) -> int:
    first = next(iter(batch.values()))
    return first.shape[0] * (first.shape[1] if documents.text else 1)
