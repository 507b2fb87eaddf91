"""Every mistake is one line on stderr and exit code 1; wrong usage is exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from laconic.cli._group import Command, LazyGroup
from laconic.cli._options import command_line, data_options
from laconic.cli.main import main

CODE = """
import torch
from torch import nn
from laconic.task import Task, TensorSplit

def build():
    return nn.Sequential(nn.Linear(16, 4))

def needs(width):
    return build()

def breaks():
    raise ValueError("first line\\nsecond line")

def task(size=16):
    x = torch.zeros(4, size)
    return Task(
        kind="classification", name="zeros", test=TensorSplit({"x": x, "y": torch.arange(4)})
    )
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("errors")
    (folder / "wrong_net.py").write_text(CODE)
    (folder / "broken_net.py").write_text("raise KeyError('at import')")
    (folder / "junk.pt").write_text("hello there")
    torch.save(nn.Linear(2, 2), folder / "whole.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder
    for name in ("wrong_net", "broken_net"):
        sys.modules.pop(name, None)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("wrong_net:needs",), "needs() raised TypeError"),
        (("wrong_net:breaks",), "breaks() raised ValueError: first line second line."),
        (("broken_net:build",), "importing broken_net raised KeyError: 'at import'"),
        (("wrong_net:bulid",), "Did you mean 'build'?"),
        (("wrong_net:build", "--weights", "junk.pt"), "junk.pt: not a file of tensors alone"),
        (("wrong_net:build", "--weights", "whole.pt"), "whole.pt: not a file of tensors alone"),
        (("wrong_net:build", "--data", "wrong_net:breaks"), "--data 'wrong_net:breaks': breaks()"),
        (
            ("wrong_net:build", "--data", "wrong_net:task", "--data-option", "length=3"),
            "task(length=3) raised TypeError",
        ),
        (
            ("wrong_net:build", "--data", "wrong_net:task", "--data-option", "size=8"),
            "data 'zeros' does not fit Sequential: an example with x (1, 8), y (1,) raised",
        ),
        (("wrong_net:build", "--data", "digits"), "data 'digits' does not fit Sequential"),
        (("wrong_net:build", "--device", "cuda:99"), "not on this machine, which has cpu"),
    ],
)
def test_mistakes_are_one_line(place: Path, args: tuple[str, ...], said: str) -> None:
    done = run("compress", *args, "--recipe", "w8", "--out", "never")
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("laconic: error: ")
    assert said in done.stderr
    assert not list(place.glob("*never*"))


def test_the_weights_file_is_never_written_over(place: Path) -> None:
    before = (place / "whole.pt").read_bytes()
    args = ("compress", "wrong_net:build", "--weights", "whole.pt", "--recipe", "w8")
    done = run(*args, "--out", "whole.pt", "--force")
    assert done.exit_code == 1
    assert "which is read here" in done.stderr
    assert (place / "whole.pt").read_bytes() == before


@click.command(cls=Command)
@click.argument("kind")
def command(kind: str) -> None:
    """Fail in ways that nothing foresees."""
    if kind == "pipe":
        raise BrokenPipeError
    if kind == "file":
        raise PermissionError(13, "Permission denied", "some/file")
    raise RuntimeError("two\nlines")


def failing(*args: str) -> Result:
    return CliRunner().invoke(LazyGroup("laconic", lazy={"fail": (__name__, "Fails.")}), args)


def test_an_error_that_nobody_foresaw_is_one_line_too() -> None:
    done = failing("fail", "any")
    assert done.exit_code == 1
    assert done.stderr == (
        "laconic: error: RuntimeError: two lines "
        "(not an error that laconic foresaw: --debug shows where it arose)\n"
    )
    done = failing("--debug", "fail", "any")
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("laconic: error: RuntimeError: two lines\n")


def test_an_error_of_the_system_names_the_file() -> None:
    assert failing("fail", "file").stderr == "laconic: error: some/file: Permission denied\n"


def test_a_closed_pipe_is_no_error_of_ours() -> None:
    assert "laconic: error" not in failing("fail", "pipe").stderr


@click.group("whatever-ran-it")
def tree() -> None:
    """Hold a command."""


@tree.command("leaf")
@data_options
def leaf(data: str | None, data_options: dict[str, object]) -> None:
    """Print the line that runs this again."""
    click.echo(command_line(click.get_current_context()))


def test_the_line_that_runs_it_again_keeps_types_and_forgets_the_program() -> None:
    args = ["leaf", "--data", "x"]
    for option in ("a=true", "b='5'", "c=[1, 2]", "d=word", "e=null"):
        args += ["--data-option", option]
    done = CliRunner().invoke(tree, args)
    again = CliRunner().invoke(tree, ["leaf", *_words(done.stdout)[2:]])
    assert done.stdout.startswith("laconic leaf --data x ")
    assert again.stdout == done.stdout
    assert """'b="5"'""" in done.stdout
    assert "--data-option a=true" in done.stdout


def _words(line: str) -> list[str]:
    import shlex

    return shlex.split(line)
