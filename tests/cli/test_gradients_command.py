"""``laconic gradients``: exact bytes before any training, and steps timed for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from laconic.cli.main import main
from laconic.report.stacked import Bar, stacked_bars

NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "gradient_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_the_plan_counts_every_byte(here: Path) -> None:
    words = ["gradients", "plan", "gradient_net:build", "--method", "top-k", "--set", "density=0.1"]
    found = CliRunner().invoke(main, [*words, "--ranks", "4", "--link", "100", "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.output)
    tensors = told["tensors"]
    assert tensors["1.bias"] == {"route": "dense", "shape": [96], "bytes": 384, "dense_bytes": 384}
    kept = -(-64 * 96 // 10)
    assert tensors["1.weight"]["bytes"] >= kept * 4 + 64 * 96 // 8  # values, and a bitmap at most
    assert told["step_bytes"] == sum(row["bytes"] for row in tensors.values())
    assert told["dense_bytes"] == 4 * (64 * 96 + 96 + 96 * 10 + 10)
    (link,) = told["expected"]
    gathered = sum(r["bytes"] for r in tensors.values() if r["route"] == "gather")
    reduced = told["step_bytes"] - gathered
    seconds = (3 * gathered + 1.5 * reduced) / 12.5e6 + 9 * 50e-6
    assert link["seconds"] == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "top-kk"], "Did you mean 'top-k'"),
        (["--method", "top-k", "--set", "denisty=0.1"], "Did you mean 'density'"),
        (["--method", "top-k", "--set", "density=7"], "density=7"),
        (["--method", "top-k", "--set", "density"], "not KEY=VALUE"),
        (["--method", "l-greco"], "add --adaptive"),
        (["--method", "powersgd", "--adaptive"], "--adaptive needs --data"),
    ],
)
def test_mistakes_are_told(here: Path, words: list[str], said: str) -> None:
    found = CliRunner().invoke(main, ["gradients", "plan", "gradient_net:build", *words])
    assert found.exit_code != 0
    assert said in (found.output + str(found.exception))


def test_adaptive_plans_take_fewer_bytes_at_no_larger_error(here: Path) -> None:
    words = ["gradients", "plan", "gradient_net:build", "--method", "powersgd", "--set", "rank=4",
             "--adaptive", "--data", "digits", "--json"]  # fmt: skip
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    chosen = told["adaptive"]
    assert chosen["bytes"] <= chosen["uniform_bytes"]
    assert chosen["error"] <= chosen["limit"] == chosen["uniform_error"]
    coded = sum(r["bytes"] for r in told["tensors"].values() if r["route"] == "reduce")
    assert coded == chosen["bytes"]


def test_steps_are_timed_on_real_ranks(here: Path) -> None:
    words = ["gradients", "bench", "gradient_net:build", "--data", "digits", "--steps", "3",
             "--warmup", "2", "--method", "top-k", "--set", "density=0.05", "--adaptive",
             "--plot", "steps.svg", "--json"]  # fmt: skip
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    (link,) = told["links"]
    rows = {row["variant"]: row for row in link["rows"]}
    assert set(rows) == {
        "DDP",
        "PyTorch fp16",
        "PyTorch PowerSGD",
        "l-greco (top-k)",
        "no exchange",
    }
    mine = rows["l-greco (top-k)"]
    parts = mine["compute_ms"] + mine["compress_ms"] + mine["transfer_ms"]
    assert parts >= mine["step_ms"] - 0.01
    assert 0 < mine["sent_bytes"] < 4 * (64 * 96 + 96 + 96 * 10 + 10) // 4
    assert link["kernel_bytes_of_rank_0"]["sent"] > 0
    assert (here / "steps.svg").read_text().count("<svg") == 1


def test_bench_needs_data(here: Path) -> None:
    found = CliRunner().invoke(main, ["gradients", "bench", "gradient_net:build"])
    assert found.exit_code == 2
    assert "--data NAME is needed" in found.output


def test_bars_are_as_long_as_their_parts() -> None:
    panels = {"100 Mbit/s": [Bar("a<b", (1.0, 2.0, 3.0)), Bar("whole", (6.0, 0.0, 0.0), False)]}
    svg = stacked_bars(panels, ("compute", "compress", "transfer"), unit="ms")
    assert svg.count("<rect") == 3 + 3 + 1
    assert "a&lt;b" in svg
    assert "a<b" not in svg
