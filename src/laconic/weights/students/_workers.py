"""Children trained in this process, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from torch import Tensor

from laconic.errors import BackendError, ConfigError
from laconic.weights.students._fitting import InvalidChildError
from laconic.weights.students.spec import StudentSpec
from laconic.weights.students.train import ChildTraining, Lesson, Trained, train_child

_Arrays = dict[str, Any]


class Trainers:
    """Trains children, to the same weights whatever the number of workers.

    Args:
        lesson: What they are trained and judged on.
        training: How.
        seed: Source of their weights and of the order of batches.
        workers: Processes; 1 trains in this process.
        device: Where they are trained.

    Raises:
        ConfigError: ``workers`` is below 1.
    """

    def __init__(
        self, lesson: Lesson, training: ChildTraining, *, seed: int, workers: int, device: str
    ) -> None:
        if workers < 1:
            raise ConfigError(f"students: workers={workers} must be at least 1.")
        self.lesson, self.training, self.seed = lesson, training, seed
        self.workers, self.device = workers, device
        self._pool: ProcessPoolExecutor | None = None

    def close(self) -> None:
        """Stop the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def train(
        self, specs: Sequence[StudentSpec], weights: Mapping[str, Tensor] | None = None
    ) -> list[Trained | str]:
        """Return each child as trained, or why it could not be.

        Args:
            specs: Their architectures.
            weights: What they inherit; None: nothing.

        Raises:
            BackendError: A worker died.
        """
        if self.workers == 1:
            settings = (self.lesson, self.training, self.seed, weights, self.device)
            return [_attempt(spec, *settings) for spec in specs]
        if not specs:
            return []
        sent = None if weights is None else _arrays(weights)
        try:
            pool = self._pool = self._pool or self._open()
            futures = [pool.submit(_work, spec.to_json(), sent) for spec in specs]
            return [_received(future.result()) for future in futures]
        except BrokenProcessPool as error:
            raise BackendError(
                f"students: one of {self.workers} workers died, perhaps for want of memory, or "
                "because the script that started it has no guard of its start by "
                f"if __name__ == '__main__' ({error}). Use fewer workers; with resume= the search "
                "goes on where it stopped."
            ) from error

    def _open(self) -> ProcessPoolExecutor:
        settings = (
            _arrays(self.lesson.train),
            _arrays(self.lesson.validation),
            self.lesson.forward,
            self.training,
            self.seed,
            self.device,
        )
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, spawn, _enter, settings)


def _attempt(
    spec: StudentSpec,
    lesson: Lesson,
    training: ChildTraining,
    seed: int,
    weights: Mapping[str, Tensor] | None,
    device: str,
) -> Trained | str:
    try:
        return train_child(spec, lesson, training, seed=seed, inherited=weights, device=device)
    except InvalidChildError as error:
        return str(error)


_HELD: list[Any] = []  # in a worker process: what every child is trained with


def _arrays(tensors: Mapping[str, Tensor]) -> _Arrays:
    return {name: t.detach().cpu().numpy() for name, t in tensors.items()}


def _tensors(arrays: _Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}


def _enter(
    train: _Arrays,
    validation: _Arrays,
    forward: Any,
    training: ChildTraining,
    seed: int,
    device: str,
) -> None:
    lesson = Lesson(_tensors(train), _tensors(validation), forward)
    _HELD[:] = [lesson, training, seed, device]


def _work(text: str, weights: _Arrays | None) -> tuple[Any, ...] | str:
    lesson, training, seed, device = _HELD
    given = None if weights is None else _tensors(weights)
    made = _attempt(StudentSpec.from_json(text), lesson, training, seed, given, device)
    if isinstance(made, str):
        return made
    return made.accuracy, made.loss, made.seconds, _arrays(made.weights)


def _received(result: tuple[Any, ...] | str) -> Trained | str:
    if isinstance(result, str):
        return result
    accuracy, loss, seconds, weights = result
    return Trained(accuracy, loss, seconds, _tensors(weights))
