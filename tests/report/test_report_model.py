from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from laconic.errors import ArtifactError, ConfigError
from laconic.report import parse, read, to_json, write


def test_unknown_key_is_refused_with_the_nearest(sample: dict[str, Any]) -> None:
    sample["kernel"] = {}
    with pytest.raises(ConfigError, match=r"report\.json: kernel: .*Did you mean 'kernels'"):
        parse(sample)


def test_missing_and_wrong_values_name_the_key(sample: dict[str, Any]) -> None:
    sample["compressed"]["bytes"] = -5
    with pytest.raises(ConfigError, match=r"compressed\.bytes: .*got -5"):
        parse(sample)
    del sample["compressed"]
    with pytest.raises(ConfigError, match="compressed: Field required"):
        parse(sample)


def test_ratio_must_agree_with_the_bytes(sample: dict[str, Any]) -> None:
    sample["ratio"] = 9.0
    with pytest.raises(ConfigError, match=r"ratio=9\.0 but the bytes give 8\.01"):
        parse(sample)


def test_interval_must_be_in_order(sample: dict[str, Any]) -> None:
    sample["original"]["metrics"]["top1"] |= {"low": 0.99, "high": 0.9}
    with pytest.raises(ConfigError, match=r"low=0\.99 lies above high=0\.9"):
        parse(sample)


def test_latency_comes_as_a_number_a_timing_or_by_batch_size(sample: dict[str, Any]) -> None:
    for given, expected in (
        (2.5, {1: 2.5}),
        ({"median": 3.0, "batch_size": 32}, {32: 3.0}),
        ({"1": {"median": 2.0}, "32": {"median": 8.0}}, {1: 2.0, 32: 8.0}),
        (None, {}),
    ):
        sample["original"]["latency_ms"] = given
        found = parse(sample).original.latency_ms
        assert {size: timing.median for size, timing in found.items()} == expected


def test_write_then_read_gives_the_same_report(sample: dict[str, Any], tmp_path: Path) -> None:
    sample["compressed"]["metrics"]["perplexity"] = {"value": float("inf")}
    write(sample, tmp_path)
    again = read(tmp_path)
    assert again == parse(sample)
    assert again.compressed.metric("perplexity").value == float("inf")  # type: ignore[union-attr]
    assert {file.name for file in tmp_path.iterdir()} == {"report.json", "report.html"}
    assert json.loads(to_json(again))["compressed"]["metrics"]["perplexity"]["value"] == "inf"


def test_a_report_that_does_not_fit_writes_nothing(sample: dict[str, Any], tmp_path: Path) -> None:
    sample["steps"][0]["seconds"] = "soon"
    with pytest.raises(ConfigError, match=r"steps\.0\.seconds"):
        write(sample, tmp_path)
    assert not list(tmp_path.iterdir())


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="laconic compress"):
        read(tmp_path)
    (tmp_path / "report.json").write_text("{not json")
    with pytest.raises(ArtifactError, match="not JSON"):
        read(tmp_path)
