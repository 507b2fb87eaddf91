"""``laconic search --levels layers`` from end to end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from laconic import artifact
from laconic.cli.main import main

CODE = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 10),
    )
"""
MODEL = ("student_net:build", "--weights", "w.safetensors", "--data", "digits")
QUICK = (
    "--data-option", "limit=160", "--student-option", "epochs=1", "--student-option", "lr=0.004",
    "--student-option", "final_epochs=1", "--student-option", "keep=[max-pool]",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("students")
    (folder / "student_net.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        import student_net

        torch.manual_seed(0)
        save_file(student_net.build().state_dict(), folder / "w.safetensors")
        yield folder
    sys.modules.pop("student_net", None)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["search", *MODEL, "--levels", "layers", *words])


def test_a_student_within_the_budget_and_back(place: Path) -> None:
    made = run("--budget", "2x", "--generations", "2", "--out", "small", *QUICK)
    assert made.exit_code == 0, made.stderr
    assert "student" in made.stdout
    files = artifact.inspect(place / "small")["files"]
    original = (place / "w.safetensors").stat().st_size
    assert sum(files[name] for name in ("model.safetensors", "laconic.json")) <= original / 2
    assert artifact.load(place / "small")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert not (place / ".small.work").exists()
    told = json.loads((place / "small" / "search" / "result.json").read_text())
    assert [stage["stage"] for stage in told["stages"]] == ["removal", "shrinkage"]


def test_macs_and_json(place: Path) -> None:
    words = ("--cost", "macs", "--generations", "1", "--student-option", "stages=removal", "--json")
    made = run("--budget", "60%", "--out", "fast", *words, *QUICK)
    assert made.exit_code == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["student"]["macs"] <= 0.6 * told["teacher"]["macs"]
    assert told["bytes"] > 0


def test_the_plan_is_the_units(place: Path) -> None:
    plan = run("--budget", "2x", "--dry-run", "--json")
    assert plan.exit_code == 0, plan.stderr
    units = json.loads(plan.stdout)
    assert [unit["fixed"] for unit in units] == ["first layer", "", "", "", "gives the output"]
    assert "may go" in run("--budget", "2x", "--dry-run").stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--fitness", "kl"), 2, "--fitness does not go with --levels layers"),
        (("--method", "dp"), 2, "--method dp does not go with --levels layers"),
        (("--student-option", "epoch=2"), 2, "Did you mean 'epochs'?"),
        (("--student-option", "epochs=many"), 1, "epochs='many' must be a number"),
        (("--cost", "macs"), 1, "does not go with --cost macs"),
    ],
)
def test_mistakes_are_told(place: Path, words: tuple[str, ...], code: int, message: str) -> None:
    made = run("--budget", "2x", "--out", "wrong", *words)
    assert made.exit_code == code
    assert message in made.stderr
    assert not (place / "wrong").exists()


def test_a_budget_out_of_reach_says_what_can_be_reached(place: Path) -> None:
    made = run("--budget", "500B", "--out", "none", "--generations", "1", *QUICK)
    assert made.exit_code == 1
    assert "the smallest child has" in made.stderr
