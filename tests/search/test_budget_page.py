"""docs/budget.md says what there is: levels, methods, options and the file of levels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from laconic.budget import SOLVERS
from laconic.cli.search import command
from laconic.search.goal import parse_goal
from laconic.search.judge import FITNESSES
from laconic.search.levels import KINDS, read_levels

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "budget.md").read_text(encoding="utf-8")


def first_column(heading: str) -> list[str]:
    section = PAGE.partition(f"## {heading}")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)[1:]
    return [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]


def test_tables_name_what_there_is() -> None:
    assert set(first_column("Methods")) == set(SOLVERS)
    assert set(first_column("Levels")) == {*KINDS, "FILE.yaml"}
    assert all(f"`{name}`" in PAGE for name in FITNESSES)


def test_budgets_and_options_are_real() -> None:
    for text in first_column("Budgets"):
        if not text.startswith("--"):
            parse_goal(text)
    known = {option for parameter in command.params for option in parameter.opts}
    searching = set(re.findall(r"--[a-z][a-z-]*", PAGE)) - {"--recipe"}
    assert searching <= known


def test_the_file_of_levels_is_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "own.yaml").write_text(text)
    levels = read_levels(tmp_path / "own.yaml")
    assert levels.names == ("3 bits", "3 bits + rank 32", "2:4 at 4 bits", "as it is", "dropped")
    assert levels.calibration == 0
    assert levels.family("corrected") == ["3 bits + rank 32"]


@pytest.mark.parametrize("name", ["report.html", "assignment.json", "search.html", "search.json"])
def test_files_of_the_result_are_told(name: str) -> None:
    assert f"`{name}`" in PAGE
