"""Several workers that judge candidates: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from laconic.budget.sampler import Minibatch
from laconic.budget.search import Fitness
from laconic.budget.table import Assignment
from laconic.errors import BackendError, ConfigError
from laconic.extras import require

Factory = Callable[..., Fitness]
_LOCAL: dict[str, Any] = {"include_dashboard": False}
_HELD: list[Fitness] = []  # in a worker process: what its factory built


@contextmanager
def open_workers(
    factory: Factory,
    *args: Any,
    workers: int = 1,
    threads: int | None = None,
    cluster: str | None = None,
) -> Iterator[Fitness]:
    """Give a fitness that shares its work among workers, for as long as the block runs.

    Each worker calls ``factory(*args)`` once and keeps what it returns. Results are those of one
    worker, bit for bit, where the fitness of an assignment depends on nothing else.

    Args:
        factory: A function of a module that builds the fitness; workers import the module, so
            a script that uses processes guards its own start by ``if __name__ == "__main__"``.
        args: What it is called with; sent to every worker once, so plain values and paths.
        workers: Processes, at least 1; 1 without a cluster judges in this process.
        threads: Threads of torch in each process; an equal share of the processors where None.
        cluster: Address of a Ray cluster, or ``"local"`` to start one here; None: no Ray.

    Raises:
        ConfigError: ``workers`` or ``threads`` is below 1.
        MissingExtraError: A cluster is named and Ray is not installed.
        BackendError: A worker died.
    """
    if workers < 1 or (threads is not None and threads < 1):
        raise ConfigError(
            f"workers={workers}, threads={threads}: both must be at least 1; leave threads out "
            "for an equal share of the processors."
        )
    each = threads or max(1, (os.cpu_count() or 1) // workers)
    if cluster is not None:
        with _ray(factory, args, workers, each, cluster) as fitness:
            yield fitness
    elif workers == 1:
        yield factory(*args)
    else:
        with ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _build, (factory, args, each)
        ) as pool:
            yield _Processes(pool, workers)


def _build(factory: Factory, args: tuple[Any, ...], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    _HELD[:] = [factory(*args)]


def _judge(assignments: list[Assignment], minibatch: Minibatch) -> list[float]:
    return _HELD[0](assignments, minibatch)


def shares(assignments: Sequence[Assignment], workers: int) -> list[list[Assignment]]:
    """Return neighbours in equal shares; no empty ones.

    >>> [len(share) for share in shares([None] * 5, 3)]
    [2, 2, 1]
    """
    cuts = np.array_split(np.arange(len(assignments)), workers)
    return [[assignments[int(i)] for i in cut] for cut in cuts if len(cut)]


class _Processes:
    """A fitness that shares its list among the processes of a pool."""

    def __init__(self, pool: ProcessPoolExecutor, workers: int) -> None:
        self.pool, self.workers = pool, workers

    def __call__(self, assignments: list[Assignment], minibatch: Minibatch, /) -> list[float]:
        try:
            futures = [
                self.pool.submit(_judge, share, minibatch)
                for share in shares(assignments, self.workers)
            ]
            return [value for future in futures for value in future.result()]
        except BrokenProcessPool as error:
            raise BackendError(
                f"a worker of {self.workers} died, perhaps for want of memory or because its "
                f"factory failed ({error}). Use fewer workers; a search with a checkpoint goes on "
                "from its last generation."
            ) from error


@contextmanager
def _ray(
    factory: Factory, args: tuple[Any, ...], workers: int, threads: int, address: str
) -> Iterator[Fitness]:
    ray = require("ray", "cluster", purpose=f"a search on the cluster {address!r}")
    started = not ray.is_initialized()
    if started:
        local = _LOCAL | {"num_cpus": workers, "runtime_env": _same_path()}
        try:
            ray.init(address=address, log_to_driver=False, **(local if address == "local" else {}))
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise BackendError(
                f"no Ray cluster at {address!r} ({error}). Start one with 'ray start --head', or "
                "use 'local'."
            ) from error
    try:
        yield _Actors(ray, factory, args, workers, threads)
    finally:
        if started:
            ray.shutdown()


def _same_path() -> dict[str, dict[str, str]]:
    """Return a runtime environment in which workers find the modules that this process finds."""
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}


class _Judge:
    """What lives in a Ray worker."""

    def __init__(self, factory: Factory, args: tuple[Any, ...], threads: int) -> None:
        _build(factory, args, threads)

    def judge(self, assignments: list[Assignment], minibatch: Minibatch) -> list[float]:
        return _judge(assignments, minibatch)


class _Actors:
    """A fitness that shares its list among the actors of a Ray cluster."""

    def __init__(
        self, ray: ModuleType, factory: Factory, args: tuple[Any, ...], workers: int, threads: int
    ) -> None:
        self.ray = ray
        remote = ray.remote(_Judge)
        self.actors = [remote.remote(factory, args, threads) for _ in range(workers)]

    def __call__(self, assignments: list[Assignment], minibatch: Minibatch, /) -> list[float]:
        parts = shares(assignments, len(self.actors))
        pending = [
            actor.judge.remote(part, minibatch)
            for actor, part in zip(self.actors, parts, strict=False)
        ]
        try:
            return [float(value) for part in self.ray.get(pending) for value in part]
        except self.ray.exceptions.RayError as error:
            raise BackendError(
                f"a worker of {len(self.actors)} on the Ray cluster failed: {error}. A search "
                "with a checkpoint goes on from its last generation."
            ) from error
