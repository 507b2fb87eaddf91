"""Latency and memory: the turns with processes that are played, the figures with real ones."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch import nn

from laconic import artifact
from laconic.errors import BackendError, ConfigError
from laconic.measure import latency, peak_memory

# Plays a process: the model's file says how. It writes down what it is asked to do.
PLAYER = """\
    #!{python} -SE
    import json, os, sys, time
    from pathlib import Path

    model, threads = Path(sys.argv[3]), sys.argv[5]
    part = json.loads(model.read_text())

    def note(what):
        with open({log!r}, "a") as log:
            log.write(json.dumps([model.name, *what]) + "\\n")

    def say(reply):
        print(json.dumps(reply), flush=True)

    note(["born", os.getpid(), threads, os.environ["OMP_NUM_THREADS"]])
    if part.get("dies") == "at birth":
        sys.stderr.write("first line\\n" * 9 + "no such kernel\\nabort\\n")
        sys.exit(3)
    if part.get("dies") == "slowly":
        time.sleep(60)
    say({{"ready": True}})
    for turn, line in enumerate(sys.stdin):
        order = json.loads(line)
        note([order["do"], order["batch_size"], order["calls"]])
        if turn == part.get("last", 99):
            if part["dies"] == "silently":
                os.close(1)
                time.sleep(60)
            say({{"error": "ValueError: bad shape"}}) if part["dies"] == "politely" else sys.exit(4)
        say({{"ms": [part["ms"] + part.get("more", 0) * turn] * order["calls"]}})
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that makes a variant of given behaviour."""
    script = tmp_path / "player"
    log = str(tmp_path / "log")
    script.write_text(dedent(PLAYER).format(python=sys.executable, log=log))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))

    def make(name: str, **part: Any) -> Path:
        (tmp_path / name).write_text(json.dumps(part))
        return tmp_path / name

    return make


def noted(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_variants_run_in_turns_and_the_order_is_reversed(
    play: Callable[..., Path], tmp_path: Path
) -> None:
    # A turn takes about 20 ms: one call of 40 ms, five calls of 4 ms.
    variants = {"slow": play("slow", ms=40.0, more=1.0), "fast": play("fast", ms=4.0)}
    found = latency(variants, torch.ones(1, 2), batch_sizes=(1, 8), threads=2, repeats=4, warmup=3)
    log = noted(tmp_path)
    births, orders = [n for n in log if n[1] == "born"], [n for n in log if n[1] != "born"]
    assert [n[0] for n in births] == ["slow", "fast"]
    assert [n[3:] for n in births] == [["2", "2"]] * 2
    assert all(gone(n[2]) for n in births)
    slow, fast = ["slow", "time", 1, 1], ["fast", "time", 1, 5]
    warm = [["slow", "time", 1, 3], ["fast", "time", 1, 3]]
    assert orders[:10] == [*warm, slow, fast, fast, slow, slow, fast, fast, slow]
    assert [[n, d, c] for n, d, b, c in orders[10:]] == [[n, d, c] for n, d, b, c in orders[:10]]
    assert {n[2] for n in orders[10:]} == {8}
    # Calls of 41, 42, 43, 44 ms: the quartiles lie at 41.75 and 43.25.
    assert found["slow"][1] == {
        "median": 42.5, "min": 41.0, "spread": 1.5, "batch_size": 1, "threads": 2, "repeats": 4,
    }  # fmt: skip
    assert found["fast"][8] == {
        "median": 4.0, "min": 4.0, "spread": 0.0, "batch_size": 8, "threads": 2, "repeats": 20,
    }  # fmt: skip
    assert found["slow"][8]["min"] == 46.0


def test_two_inputs_may_be_one_tensor(play: Callable[..., Path]) -> None:
    ids = torch.ones(4, 3, dtype=torch.int64)
    example = {"input_ids": ids[:2], "attention_mask": ids[:2]}
    assert latency({"a": play("a", ms=20.0)}, example, repeats=1)["a"][32]["min"] == 20.0


def test_a_single_call_is_its_own_summary(play: Callable[..., Path]) -> None:
    found = latency({"a": play("a", ms=50.0)}, torch.ones(1, 2), batch_sizes=[2], repeats=1)
    assert found["a"][2]["median"] == found["a"][2]["min"] == 50.0
    assert found["a"][2]["spread"] == 0.0


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"dies": "at birth"}, r"'bad': it ended \(exit code 3\): .*no such kernel \| abort$"),
        ({"dies": "later", "last": 2}, r"'bad': it ended \(exit code 4\): it said nothing$"),
        ({"dies": "silently", "last": 1}, r"'bad': it ended \(exit code -9\): it said nothing$"),
        ({"dies": "politely", "last": 1}, r"'bad': ValueError: bad shape$"),
    ],
)
def test_a_process_that_dies_is_an_error_with_what_it_said(
    play: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(sys.modules[latency.__module__], "_GRACE_S", 0.5)
    variants = {"good": play("good", ms=30.0), "bad": play("bad", ms=30.0, **part)}
    with pytest.raises(BackendError, match=message):
        latency(variants, torch.ones(1, 2), repeats=4)
    births = [n for n in noted(tmp_path) if n[1] == "born"]
    assert len(births) == 2
    assert all(gone(n[2]) for n in births)


def test_what_a_process_said_is_cut_to_its_last_lines(play: Callable[..., Path]) -> None:
    with pytest.raises(BackendError) as caught:
        latency({"bad": play("bad", dies="at birth")}, torch.ones(1, 2))
    assert str(caught.value).count("first line") == 3


def test_a_process_that_does_not_reply_is_ended(play: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"'bad': no reply in 0\.5 s \(exit code -9\)"):
        latency({"bad": play("bad", dies="slowly")}, torch.ones(1, 2), timeout_s=0.5)
    assert gone(noted(tmp_path)[0][2])
    with pytest.raises(BackendError, match=r"'model': no reply in 0\.5 s"):
        peak_memory(play("bad", dies="slowly"), torch.ones(1, 2), timeout_s=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": ()}, "batch_sizes=0 must be at least 1"),
        ({"batch_sizes": (4, 0)}, "batch_sizes=0 must be at least 1"),
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"repeats": 0}, "repeats=0 must be at least 1"),
        ({"warmup": 0}, "warmup=0 must be at least 1"),
    ],
)
def test_options_out_of_their_bounds(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"latency: {message}"):
        latency({"a": tmp_path}, torch.ones(1, 2), **options)


def test_variants_and_examples_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no variants"):
        latency({}, torch.ones(1, 2))
    with pytest.raises(ConfigError, match=r"variant 'a': .*nowhere does not exist"):
        latency({"a": tmp_path / "nowhere"}, torch.ones(1, 2))
    for example in ({}, torch.ones(0, 2), torch.tensor(1.0)):
        with pytest.raises(ConfigError, match="example needs tensors"):
            latency({"a": tmp_path}, example)


# Real processes


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("nets")
    sizes = {"small": 8, "large": 1500}
    for name, width in sizes.items():
        net = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width))
        artifact.save(net, folder / name)
    return {name: folder / name for name in sizes}


@pytest.fixture
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("_cache")
def test_artifacts_are_timed(nets: dict[str, Path]) -> None:
    found = latency(nets, torch.ones(1, 16), batch_sizes=(1, 64), repeats=2, warmup=2)
    assert {name: list(rows) for name, rows in found.items()} == {name: [1, 64] for name in nets}
    for rows in found.values():
        for size, timing in rows.items():
            assert 0 < timing["min"] <= timing["median"]
            assert timing["spread"] >= 0
            assert (timing["batch_size"], timing["threads"]) == (size, 1)
            assert timing["repeats"] >= 2


@pytest.mark.usefixtures("_cache")
def test_peak_memory_counts_the_weights_and_the_batch(nets: dict[str, Path]) -> None:
    # Two activations of 4000 x 1500 floats.
    found = peak_memory(nets["large"], torch.ones(1, 16), batch_size=4000)
    assert found["start_bytes"] > 10**7
    assert found["peak_bytes"] - found["start_bytes"] > 4 * 1500 * 1500 + 2 * 4 * 4000 * 1500


@pytest.mark.usefixtures("_cache")
def test_a_damaged_artifact_is_named_with_its_reason(nets: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "laconic.json").write_text("{}")
    with pytest.raises(BackendError, match=r"variant 'bad': ArtifactError: .*laconic\.json"):
        latency({"bad": tmp_path / "net"}, torch.ones(1, 16))
