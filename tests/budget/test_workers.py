"""Workers give the same numbers as one process, and their deaths are told."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from budget_support import (
    broken_factory,
    documents,
    dying_factory,
    noisy_factory,
)

from laconic.budget import LevelTable, bits_table, evolve, open_workers
from laconic.budget.workers import shares
from laconic.errors import BackendError, ConfigError, MissingExtraError

TABLE = bits_table({f"s{i}": 10 for i in range(6)}, [2, 3, 4])
ARGS = (6, 3, 0.01)


def found_with(**workers: object) -> dict[str, object]:
    with open_workers(noisy_factory, *ARGS, **workers) as fitness:  # type: ignore[arg-type]
        found = evolve(
            TABLE, fitness, documents(), budget=170, generations=3, offspring=5,
            stages=((2, 20), (1, 40)), initial=(4, 20),
        )  # fmt: skip
    return {k: v for k, v in found.to_dict().items() if k != "seconds"}


def test_processes_give_what_one_gives() -> None:
    assert found_with(workers=2, threads=1) == found_with()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.extra
def test_a_local_cluster_gives_what_one_process_gives() -> None:
    assert found_with(workers=2, threads=1, cluster="local") == found_with()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_a_cluster_without_ray_says_what_to_install() -> None:
    with (
        pytest.raises(MissingExtraError, match=r"laconic\[cluster\]"),
        open_workers(noisy_factory, *ARGS, cluster="local"),
    ):
        pass


@pytest.mark.parametrize("factory", [broken_factory, dying_factory])
def test_a_dead_worker_is_told(factory: object) -> None:
    table = LevelTable(["a"], ["x"], [[1]])
    with (
        open_workers(factory, workers=2, threads=1) as fitness,  # type: ignore[arg-type]
        pytest.raises(BackendError, match="a worker of 2 died"),
    ):
        fitness([table.assignment([0])] * 2, documents().everything())


def test_shares_are_even_and_in_order() -> None:
    given = [TABLE.assignment(list(np.full(6, i % 3))) for i in range(7)]
    cut = shares(given, 3)
    assert [len(part) for part in cut] == [3, 2, 2]
    assert [a for part in cut for a in part] == given
    assert len(shares(given[:1], 4)) == 1


@pytest.mark.parametrize("counts", [{"workers": 0}, {"threads": 0}])
def test_counts_below_one_are_refused(counts: dict[str, int]) -> None:
    with (
        pytest.raises(ConfigError, match="at least 1"),
        open_workers(noisy_factory, *ARGS, **counts),
    ):
        pass
