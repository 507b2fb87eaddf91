"""Studies on the command line, with a study that exists for this test alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from laconic import studies
from laconic.cli.main import main

CODE = """
from laconic.studies import Bar, Conditions, Findings, Section, Study

def small(conditions: Conditions) -> Findings:
    rows = ({"method": "ours", "error": 0.25}, {"method": "theirs", "error": 0.5})
    section = Section("Errors", "On nothing.", rows, {"rows": len(rows)})
    return Findings({"error": 0.25, "gap": float(conditions.seed)}, {"errors": section})

BARS = (Bar("error", 0.5), Bar("gap", 1.0, strict=True))
STUDY = Study(
    "half-error", "Ours halves the error.", "Nobody 2020", {"small": BARS, "full": BARS},
    {"small": small, "full": small},
)
run = STUDY.run
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "half_error.py").write_text(CODE)
    (tmp_path / "modules" / "_part.py").write_text("raise RuntimeError('parts are not loaded')")
    monkeypatch.setattr(studies, "__path__", [str(tmp_path / "modules")])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("laconic.studies.half_error", None)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["study", *args])


def test_a_study_is_listed_run_saved_and_shown(place: Path) -> None:
    assert json.loads(run("list", "--json").stdout) == [
        {"name": "half-error", "claim": "Ours halves the error.", "source": "Nobody 2020"}
    ]
    assert "half-error" in run("list").stdout
    done = run("run", "half-error")
    assert done.exit_code == 0, done.output
    assert "Errors" in done.stdout
    assert "at most 0.5" in done.stdout
    assert "below 1" in done.stdout
    (file,) = (place / "results" / "studies").glob("half-error?small.json")
    saved = json.loads(file.read_text())
    assert saved["passed"] is True
    assert saved["environment"]["threads"] >= 1
    table = run("table", "--docs", "page.md")
    assert "passed" in table.stdout
    assert "Ours halves the error." in (place / "page.md").read_text()


def test_one_that_falls_short_says_which_bar_and_ends_with_1(place: Path) -> None:
    done = run("run", "half-error", "--seed", "1", "--json")
    assert done.exit_code == 1
    assert done.stderr.endswith("laconic: half-error falls short at scale small: gap.\n")
    assert json.loads(done.stdout)["passed"] is False
    assert "falls short" in run("table").stdout
    assert [row["seed"] for row in json.loads(run("table", "--json").stdout)] == [1]


def test_unknown_studies_and_empty_tables_are_told(place: Path) -> None:
    done = run("run", "half-eror")
    assert done.exit_code == 1
    assert "Did you mean 'half-error'?" in done.stderr
    assert run("run", "half-error", "--scale", "huge").exit_code == 2
    done = run("table")
    assert done.exit_code == 0
    assert "No results in" in done.stderr
    (place / "results" / "studies").mkdir(parents=True)
    (place / "results" / "studies" / "odd.json").write_text("[1]")
    done = run("table")
    assert done.exit_code == 1
    assert "not the result of a study" in done.stderr
