from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from laconic.cli.main import main
from laconic.report import write


def small_report(size: int, top1: float) -> dict[str, Any]:
    metric = {"top1": {"value": top1, "low": top1 - 0.01, "high": top1 + 0.01, "n": 500}}
    return {
        "original": {"bytes": 1_000_000, "metrics": {"top1": 0.98}},
        "compressed": {"bytes": size, "metrics": metric},
        "ratio": 1_000_000 / size,
        "recipe": {"name": "w4"},
    }


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    for name, size, top1 in (("one", 100_000, 0.95), ("two", 101_000, 0.97)):
        (tmp_path / name).mkdir()
        write(small_report(size, top1), tmp_path / name)
    return [str(tmp_path / "one"), str(tmp_path / "two")]


def test_table_json_and_page(runs: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["compare", *runs])
    assert done.exit_code == 0, done.output
    assert "At equal bytes: the sizes lie within 1.0 % of each other." in done.stdout
    assert done.stdout.index("│ two") < done.stdout.index("│ one")
    page = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["compare", *runs, "--json", "--html", str(page)])
    found = json.loads(done.stdout)
    assert found["equal_bytes"] is True
    assert [row["name"] for row in found["runs"]] == ["two", "one"]
    assert found["runs"][0]["bytes"] == 101_000
    assert "<svg" in page.read_text()
    done = CliRunner().invoke(main, ["compare", *runs, "--html", str(page)])
    assert done.exit_code == 1
    assert "--force" in done.stderr


def test_one_run_is_wrong_usage_and_a_folder_without_a_report_fails(
    runs: list[str], tmp_path: Path
) -> None:
    assert CliRunner().invoke(main, ["compare", runs[0]]).exit_code == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    done = CliRunner().invoke(main, ["compare", runs[0], str(empty)])
    assert done.exit_code == 1
    assert "there is no report" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_folders_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "small").mkdir(parents=True)
        write(small_report(90_000, 0.9), tmp_path / parent / "small")
    paths = [str(tmp_path / parent / "small") for parent in ("a", "b")]
    done = CliRunner().invoke(main, ["compare", *paths, "--json"])
    assert [row["name"] for row in json.loads(done.stdout)["runs"]] == paths
