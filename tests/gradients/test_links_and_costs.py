"""Links, launched ranks, the clock and the cost model."""

from __future__ import annotations

from pathlib import Path

import pytest

from laconic.errors import CommunicationError, ConfigError
from laconic.gradients.costs import all_gather_seconds, all_reduce_seconds
from laconic.gradients.launch import run_ranks
from laconic.gradients.links import LinksUnavailableError, Place, shaped_links
from laconic.gradients.timing import summarize


def test_a_ring_takes_what_two_thirds_of_a_second_are() -> None:
    # 2 (N-1)/N * 4 MB at 12.5 MB/s: 0.32 s for two ranks, 0.48 s for four.
    assert all_reduce_seconds(4_000_000, 2, megabits=100, latency_s=0) == pytest.approx(0.32)
    assert all_reduce_seconds(4_000_000, 4, megabits=100, latency_s=0) == pytest.approx(0.48)
    assert all_gather_seconds(40_000, 4, megabits=100, latency_s=0) == pytest.approx(0.0096)
    assert all_gather_seconds(0, 4, megabits=100, latency_s=0.01) == pytest.approx(0.03)
    assert all_reduce_seconds(9, 1, megabits=1) == all_gather_seconds(9, 1, megabits=1) == 0


@pytest.mark.parametrize("wrong", [{"ranks": 0}, {"megabits": 0.0}, {"latency_s": -1.0}])
def test_costs_refuse_what_cannot_be(wrong: dict[str, float]) -> None:
    given = {"ranks": 2, "megabits": 1.0, "latency_s": 0.0} | wrong
    with pytest.raises(ConfigError, match="cost model"):
        all_gather_seconds(1, int(given.pop("ranks")), **given)


def test_loopback_needs_no_rights() -> None:
    with shaped_links(3, None) as places:
        assert places == (Place("127.0.0.1", "lo"),) * 3
        received, sent = places[0].traffic()
    assert received >= 0
    assert sent >= 0


@pytest.mark.parametrize(("ranks", "rate"), [(0, None), (65, 1.0), (2, 0.0), (2, -1.0)])
def test_links_refuse_numbers_out_of_range(ranks: int, rate: float | None) -> None:
    with pytest.raises(ConfigError, match="links: "), shaped_links(ranks, rate):
        pass


def test_namespaces_go_when_the_context_ends() -> None:
    try:
        with shaped_links(2, 50) as places:
            names = [place.prefix[-1] for place in places]
            assert all(Path("/var/run/netns", name).exists() for name in names)
            assert [place.address for place in places] == ["10.77.0.1", "10.77.0.2"]
            assert places[0].environment()["GLOO_SOCKET_IFNAME"] == places[0].device
    except LinksUnavailableError as error:
        pytest.skip(f"network namespaces are not allowed here: {error}")
    assert not any(Path("/var/run/netns", name).exists() for name in names)


def test_ranks_get_their_places_and_say_what_they_found(tmp_path: Path) -> None:
    (tmp_path / "rank_echo.py").write_text(
        "import json, os, sys\n"
        "told = json.load(open(sys.argv[1]))\n"
        "keys = ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'GLOO_SOCKET_IFNAME', 'OMP_NUM_THREADS')\n"
        "json.dump({**told, **{k: os.environ[k] for k in keys}}, open(sys.argv[2], 'w'))\n"
    )
    with pytest.MonkeyPatch.context() as patch, shaped_links(2, None) as places:
        patch.setenv("PYTHONPATH", str(tmp_path))
        found = run_ranks("rank_echo", {"word": 7}, places, timeout_s=60)
    assert [rank["RANK"] for rank in found] == ["0", "1"]
    assert found[1] == {
        "word": 7, "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def test_a_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    (tmp_path / "rank_fails.py").write_text(
        "import os, time\n"
        "if os.environ['RANK'] == '1':\n"
        "    raise SystemExit('no such thing')\n"
        "time.sleep(600)\n"
    )
    with pytest.MonkeyPatch.context() as patch, shaped_links(2, None) as places:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(CommunicationError, match=r"rank 1 ended with 1:\nno such thing"):
            run_ranks("rank_fails", {}, places, timeout_s=60)


def test_ranks_that_hang_are_stopped(tmp_path: Path) -> None:
    (tmp_path / "rank_hangs.py").write_text("import time\ntime.sleep(600)\n")
    with pytest.MonkeyPatch.context() as patch, shaped_links(1, None) as places:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(CommunicationError, match=r"not done after 0\.5 s"):
            run_ranks("rank_hangs", {}, places, timeout_s=0.5)


def test_the_slowest_rank_of_each_step_counts() -> None:
    def rank(*seconds: float) -> dict[str, object]:
        steps = [{"seconds": s, "compress": s / 4, "transfer": s / 2} for s in seconds]
        return {"topk": {"steps": steps, "bytes": {"sent": 10, "received": 30}}}

    (row,) = summarize([rank(0.1, 0.2, 0.3), rank(0.3, 0.1, 0.1)])
    assert row == {
        "variant": "topk", "step_ms": 300.0, "compute_ms": 75.0, "compress_ms": 75.0,
        "transfer_ms": 150.0, "sent_bytes": 10, "received_bytes": 30,
    }  # fmt: skip
