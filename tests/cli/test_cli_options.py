from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from laconic.cli._group import Command
from laconic.cli._options import (
    budget_text,
    command_line,
    data_options,
    example_options,
    prepare,
    run_options,
)
from laconic.cli._output import plain
from laconic.cli.main import main
from laconic.errors import BackendError


@click.command("probe", cls=Command)
@click.argument("model")
@click.option("--budget", callback=budget_text)
@click.option("--force", is_flag=True)
@data_options
@run_options
def probe(**values: object) -> None:
    click.echo(json.dumps({key: str(value) for key, value in values.items()}))
    click.echo(command_line(click.get_current_context()))


@click.command("shape", cls=Command)
@example_options
def shape(**values: object) -> None:
    click.echo(str(values["input_shape"]))


def test_the_command_line_comes_back_without_defaults() -> None:
    args = ["my net", "--budget", "8x", "--data", "digits", "--data-option", "limit=5", "--force"]
    done = CliRunner().invoke(probe, [*args, "--seed", "3", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1] == (
        "laconic 'my net' --budget 8x --force --data digits --data-option limit=5 --seed 3"
    )


@pytest.mark.parametrize("given", ["8y", "fast", "0.5x", "-3MB"])
def test_a_wrong_budget_is_wrong_usage(given: str) -> None:
    done = CliRunner().invoke(probe, ["m", f"--budget={given}"])
    assert done.exit_code == 2
    assert "budget" in done.stderr.lower()


def test_data_options_are_typed_and_checked() -> None:
    done = CliRunner().invoke(
        probe, ["m", "--data-option", "length=256", "--data-option", "some-name=yes please"]
    )
    assert "{'length': 256, 'some_name': 'yes please'}" in done.stdout
    assert CliRunner().invoke(probe, ["m", "--data-option", "length"]).exit_code == 2


@pytest.mark.parametrize(("given", "expected"), [("1,3,8,8", "(1, 3, 8, 8)"), ("2x5", "(2, 5)")])
def test_shapes(given: str, expected: str) -> None:
    assert CliRunner().invoke(shape, ["--input", given]).stdout.strip() == expected
    assert CliRunner().invoke(shape, ["--input", "1,0"]).exit_code == 2


def test_a_device_that_is_not_there_says_which_are() -> None:
    with pytest.raises(BackendError, match=r"--device cuda:99: not on this machine, which has cpu"):
        prepare(0, None, "cuda:99")


def test_plain_values_are_json() -> None:
    held = {1: float("inf"), "b": (1, 2.5), "c": Path("x")}
    assert json.dumps(plain(held), allow_nan=False) == '{"1": "inf", "b": [1, 2.5], "c": "x"}'


def test_recipes_and_methods_answer() -> None:
    done = CliRunner().invoke(main, ["recipes", "--json"])
    assert {"w4", "w8", "deep-compression"} <= {row["name"] for row in json.loads(done.stdout)}
    text = CliRunner().invoke(main, ["recipes", "w4"]).stdout
    from laconic.recipe import Recipe

    assert Recipe.from_yaml(text) == Recipe.load("w4")
    rows = json.loads(CliRunner().invoke(main, ["methods", "--json"]).stdout)
    bits = next(row for row in rows if row["name"] == "round-to-nearest")["settings"][0]
    assert bits["name"] == "bits"
    assert (bits["default"], bits["low"], bits["high"]) == (4, 2, 8)
    done = CliRunner().invoke(main, ["methods", "gtpq"])
    assert done.exit_code == 1
    assert "Did you mean 'gptq'?" in done.stderr
    assert "'auto' or 'channel'" in CliRunner().invoke(main, ["methods", "gptq"]).stdout
