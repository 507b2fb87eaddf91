import json

import pytest
from click.testing import CliRunner

from laconic.cli import _studies
from laconic.cli.main import main
from laconic.studies import Bar, Findings, Section, Study


@pytest.fixture
def toy(monkeypatch):
    def protocol(conditions):
        rows = ({"by": "x", "error": 0.25},)
        return Findings({"error": 0.25 * conditions.seed}, {"A": Section("A.", "What.", rows)})

    study = Study(
        name="toy", claim="A claim.", source="Someone 2020", bars={"small": (Bar("error", 0.5),)},
        protocols={"small": protocol},
    )  # fmt: skip
    monkeypatch.setattr(_studies, "find_studies", lambda: {"toy": study})


def run(*args):
    return CliRunner().invoke(main, ["study", *args], catch_exceptions=False)


def test_result_is_saved_under_name_and_scale(toy, tmp_path):
    done = run("run", "toy", "--seed", "1", "--results", str(tmp_path))
    assert done.exit_code == 0
    saved = json.loads((tmp_path / "toy.small.json").read_text())
    assert saved["bars"] == [{"name": "error", "limit": 0.5, "value": 0.25, "passed": True}]


def test_result_is_saved_where_json_says(toy, tmp_path):
    file = tmp_path / "here.json"
    done = run("run", "toy", "--results", str(tmp_path / "no"), "--json", str(file))
    assert done.exit_code == 0
    assert json.loads(file.read_text())["study"] == "toy"
    assert not (tmp_path / "no").exists()


def test_json_without_a_file_goes_to_stdout(toy, tmp_path):
    done = run("run", "toy", "--results", str(tmp_path), "--json")
    assert json.loads(done.stdout) == json.loads((tmp_path / "toy.small.json").read_text())


def test_a_study_that_falls_short_exits_with_one_and_says_where(toy, tmp_path):
    done = run("run", "toy", "--seed", "3", "--results", str(tmp_path))
    assert done.exit_code == 1
    assert "toy falls short at scale small: error." in done.stderr


def test_table_writes_the_page(toy, tmp_path):
    run("run", "toy", "--results", str(tmp_path))
    page = tmp_path / "studies.md"
    done = run("table", "--results", str(tmp_path), "--docs", str(page))
    assert done.exit_code == 0
    assert "| [toy](#toy-small) | small | passed, 1 of 1 bars | A claim. |" in page.read_text()
