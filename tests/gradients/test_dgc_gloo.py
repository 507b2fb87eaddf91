"""DGC and L-GreCo on real processes."""

from __future__ import annotations

from typing import Any

import gradient_dgc_ranks as work
import pytest
from gradient_ranks import run_ranks


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    results = run_ranks(work.everything, 4, tmp_path_factory.mktemp("ranks") / "four")
    for rank, result in enumerate(results):
        assert "error" not in result, f"rank {rank}: {result['error']}"
        assert "exit" not in result, f"rank {rank} ended: {result['exit']}"
    return results


def test_replicas_stay_bit_equal_with_jitter(four: list[dict[str, Any]]) -> None:
    for result in four:
        part = result["replicas"]
        assert part["equal"]
        assert part["residuals differ"]
        assert part["report"] == pytest.approx(0.05, rel=0.02)
        assert part["losses"][-1] < part["losses"][0]


def test_no_collective_leaves_the_thread_of_backward(four: list[dict[str, Any]]) -> None:
    for result in four:
        assert result["replicas"]["threads"] == 1
        assert result["lgreco"]["threads"] == 1


def test_virtual_ranks_are_what_real_ones_do(four: list[dict[str, Any]]) -> None:
    for result in four:
        assert result["on_virtual_ranks"]["difference"] < 1e-6


def test_all_entries_without_masking_is_ddp_with_sgd(four: list[dict[str, Any]]) -> None:
    for result in four:
        assert result["dense_sgd"]["difference"] < 1e-6


def test_accumulated_micro_batches_are_one_step(four: list[dict[str, Any]]) -> None:
    for result in four:
        assert result["accumulation"]["difference"] < 1e-6
        assert result["accumulation"]["steps"] == 3


def test_ranks_in_unequal_numbers_of_groups_meet(four: list[dict[str, Any]]) -> None:
    assert [result["uneven_groups"]["sum"] for result in four] == [1.0, 1.0, 5.0, 5.0]


def test_machines_of_two_ranks(four: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(four):
        part = result["machines"]
        assert part["equal"]
        assert part["difference"] < 1e-6
        assert (part["handed"] > 0) == (rank % 2 == 0)
        assert "all must be equally large" in part["refused"]


def test_ranks_of_powersgd_change_on_all_ranks_alike(four: list[dict[str, Any]]) -> None:
    for result in four:
        part = result["lgreco"]
        assert part["equal"]
        assert part["q"]
        assert [period["step"] for period in part["periods"]] == [6, 10, 14]
        for mine, first in zip(part["periods"], four[0]["lgreco"]["periods"], strict=True):
            assert mine == first
            assert mine["bytes"] < mine["uniform_bytes"]


def test_norm_of_the_whole_model_is_known_before_the_first_bucket(
    four: list[dict[str, Any]],
) -> None:
    for result in four:
        part = result["whole_norm"]
        assert part["buckets"] >= 3
        assert part["factor"] < 1
        assert part["difference"] < 1e-4
