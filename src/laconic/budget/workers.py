"""Several workers that judge candidates: processes of this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from laconic.budget.search import Fitness

Factory = Callable[..., Fitness]


def open_workers(
    factory: Factory,
    *args: Any,
    workers: int = 1,
    threads: int | None = None,
    cluster: str | None = None,
) -> AbstractContextManager[Fitness]:
    """Return a context whose value is a fitness that shares its work among workers.

    Each worker calls ``factory(*args)`` once and keeps what it returns.

    Args:
        factory: A function of a module (workers import it) that builds the fitness.
        args: What it is called with; sent to every worker once, so plain values and paths.
        workers: Processes; 1 judges in this process.
        threads: Threads of torch in each process; an equal share of the processors where None.
        cluster: Address of a Ray cluster, or ``"local"`` to start one here; None: no Ray.
    """
    raise NotImplementedError
