from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import warnings

import click
import pytest
from click.testing import CliRunner

from laconic.cli._group import Command, LazyGroup
from laconic.cli.main import COMMANDS, EXAMPLES, main
from laconic.cli.study import COMMANDS as STUDY_COMMANDS
from laconic.errors import ConfigError, LaconicWarning

HEAVY = ("torch", "numpy", "rich", "jinja2", "pydantic", "yaml", "transformers")


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=60)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from laconic.cli.main import main\n"
        "for args in (['--help'], ['--version'], ['study', '--help'], ['compress', '--help']):\n"
        "    try: main(args)\n"
        "    except SystemExit as end: assert end.code == 0, end.code\n"
        f"print('heavy:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
    assert all(name in done.stdout for name in COMMANDS)


def test_help_loads_no_sub_command() -> None:
    code = (
        "import sys; from laconic.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print([m for m in sys.modules if m.startswith('laconic.cli.')])"
    )
    assert "['laconic.cli._group', 'laconic.cli.main']" in run("-c", code).stdout


def every_command() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for prefix, table in (((), COMMANDS), (("study",), STUDY_COMMANDS)):
        for name, (module, _) in table.items():
            found.append((" ".join((*prefix, name)), importlib.import_module(module).command))
    return found


@pytest.mark.parametrize(("name", "command"), every_command())
def test_every_command_has_help_with_examples(name: str, command: click.Command) -> None:
    done = CliRunner().invoke(main, [*name.split(), "--help"])
    assert done.exit_code == 0, done.output
    assert isinstance(command, Command | LazyGroup)
    assert command.examples
    assert "Examples:\n  laconic" in done.output
    assert "--debug" in done.output
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.help, parameter.name  # type: ignore[attr-defined]


def test_every_example_parses() -> None:
    lines = [*EXAMPLES, *(line for _, command in every_command() for line in command.examples)]  # type: ignore[attr-defined]
    for line in lines:
        words = shlex.split(re.sub(r" > .*", "", line))
        assert words.pop(0) == "laconic"
        command: click.Command = main
        while isinstance(command, LazyGroup):
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, line
            command = found
        known = {option for parameter in command.params for option in parameter.opts}
        given = [word for word in words if word.startswith("--")]
        assert set(given) <= known, line


def test_run_options_stand_wherever_something_runs() -> None:
    commands = dict(every_command())
    for name in ("compress", "measure", "bench", "export", "doctor", "study run"):
        options = {o for parameter in commands[name].params for o in parameter.opts}
        assert {"--seed", "--threads", "--device"} <= options, name
    for name, command in commands.items():
        if name not in ("study", "gradients"):  # groups
            assert any("--json" in parameter.opts for parameter in command.params), name


def test_wrong_usage_is_exit_code_2_with_the_nearest_name() -> None:
    done = CliRunner().invoke(main, ["comprss"])
    assert done.exit_code == 2
    assert "Did you mean 'compress'?" in done.stderr
    done = CliRunner().invoke(main, ["study", "lst"])
    assert done.exit_code == 2
    assert "Did you mean 'list'?" in done.stderr
    assert CliRunner().invoke(main, ["compress", "x", "--recipe", "w4"]).exit_code == 2


def failing(*args: str) -> click.testing.Result:
    group = LazyGroup("laconic", lazy={"fail": (__name__, "Fails.")})
    return CliRunner().invoke(group, args)


@click.command(cls=Command)
@click.option("--warn", is_flag=True, help="Warn first.")
def command(warn: bool) -> None:
    """Fail."""
    if warn:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("group_size=128\nbecame 64", LaconicWarning, stacklevel=1)
    raise ConfigError("layer: bits=9\n  must be at most 8.")


def test_an_error_is_one_line_on_stderr_and_exit_code_1() -> None:
    done = failing("fail")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr == "laconic: error: layer: bits=9 must be at most 8.\n"


@pytest.mark.parametrize("args", [("--debug", "fail"), ("fail", "--debug")])
def test_debug_shows_the_traceback(args: tuple[str, ...]) -> None:
    done = failing(*args)
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("laconic: error: layer: bits=9 must be at most 8.\n")


def test_a_warning_of_ours_is_one_line_on_stderr() -> None:
    done = failing("fail", "--warn")
    assert done.stderr.startswith("laconic: warning: group_size=128 became 64\n")


def test_version() -> None:
    done = CliRunner().invoke(main, ["--version"])
    assert re.fullmatch(r"laconic \d+\.\d+\.\d+\n", done.output)


@pytest.mark.parametrize("asked", [False, True])
def test_no_colour_when_asked(asked: bool) -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    code = (
        "from rich.text import Text\n"
        "from laconic.cli._output import show\n"
        "show(Text('slower', style='yellow'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment | ({"NO_COLOR": "1"} if asked else {}),
        timeout=60,
    )
    assert "slower" in done.stdout
    assert ("\x1b[33m" in done.stdout) is not asked
