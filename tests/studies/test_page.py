import json
from pathlib import Path

import pytest

from laconic.cli._studies import find_studies
from laconic.studies import studies_page
from laconic.studies.page import number, table

ROOT = Path(__file__).resolve().parents[2]
SAVED = sorted((ROOT / "results" / "studies").glob("*.json"))


def result_of(**changes):
    return {
        "study": "toy", "claim": "A | B.", "source": "Someone 2020", "scale": "small", "seed": 3,
        "device": "cpu", "passed": False, "seconds": 12.5, "warnings": [],
        "bars": [
            {"name": "error", "limit": 0.5, "value": 0.75, "passed": False},
            {"name": "order", "limit": 1.0, "strict": True, "value": 0.25, "passed": True},
        ],
        "figures": {
            "A": {
                "title": "A. Title", "about": "What.", "rows": [{"by": "x", "error": 0.123456}],
                "facts": {"bytes": 1200},
            }
        },
        "environment": {
            "cpu": {"model": "Some CPU"}, "threads": 1, "python": "3.11",
            "versions": {"torch": "2"},
        },
        **changes,
    }  # fmt: skip


def test_page_shows_bars_tables_and_the_command():
    page = studies_page([result_of()])
    for line in (
        "| [toy](#toy-small) | small | **falls short**, 1 of 2 bars | A \\| B. |",
        "| error | ≤ 0.5 | 0.75 | **falls short** |",
        "| order | < 1 | 0.25 | passed |",
        "| x | 0.123 |",
        "- bytes: 1200",
        "### A. Title",
    ):
        assert line in page.splitlines()
    assert "`laconic study run toy --scale small --seed 3`" in page


def test_page_names_a_study_that_passed():
    assert "passed, 2 of 2 bars" in studies_page(
        [result_of(passed=True, bars=[{**bar, "passed": True} for bar in result_of()["bars"]])]
    )


def test_page_without_results_has_an_empty_table():
    assert studies_page([]).rstrip().endswith("|---|---|---|---|")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.0123"), (1234.5, "1234"), (-2000.0, "-2000"), (7, "7"), (None, ""), ("a", "a")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_table_escapes_bars():
    assert table(["a"], [["x|y"]]).splitlines() == ["| a |", "|---|", "| x\\|y |"]


def test_the_committed_page_is_the_one_of_the_committed_results():
    results = [json.loads(path.read_text(encoding="utf-8")) for path in SAVED]
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    assert results
    assert page == studies_page(results), "run: laconic study table --docs docs/studies.md"


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_committed_results_were_held_against_the_bars_of_the_code(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    bars = find_studies()[result["study"]].bars[result["scale"]]
    assert result["bars"] == [
        bar.judge(saved["value"]) for bar, saved in zip(bars, result["bars"], strict=True)
    ]
    assert result["passed"] == all(bar["passed"] for bar in result["bars"])
    assert path.name == f"{result['study']}.{result['scale']}.json"
