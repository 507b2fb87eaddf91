"""Options that several commands share, and what they set up."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from laconic.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from torch import nn

    from laconic.task import Task

_Function = TypeVar("_Function", bound=Callable[..., Any])
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def run_options(function: _Function) -> _Function:
    """Add ``--seed``, ``--threads`` and ``--device``."""
    for option in (
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps."),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all by default."),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Seed of everything random.",
        ),
    ):
        function = option(function)
    return function


def json_option(function: _Function) -> _Function:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(
        function
    )


def weights_option(function: _Function) -> _Function:
    """Add ``--weights``."""
    return click.option(
        "--weights",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Weights for package.module:factory: .safetensors, or .pt with tensors alone.",
    )(function)


def data_options(function: _Function) -> _Function:
    """Add ``--data`` and ``--data-option``."""
    for option in (
        click.option(
            "--data-option",
            "data_options",
            multiple=True,
            metavar="KEY=VALUE",
            callback=pairs,
            help="An option of the data set, such as length=256; may be given again.",
        ),
        click.option(
            "--data",
            metavar="NAME",
            help="A data set such as digits or wikitext2, or package.module:factory of a Task.",
        ),
    ):
        function = option(function)
    return function


def out_options(function: _Function) -> _Function:
    """Add ``--out`` and ``--force``."""
    for option in (
        click.option("--force", is_flag=True, help="Replace what stands at --out."),
        click.option(
            "--out", type=click.Path(path_type=Path), required=True, help="Where to write."
        ),
    ):
        function = option(function)
    return function


def build_options(function: _Function) -> _Function:
    """Add what a command that leaves an artefact takes: ``--out`` to ``--baselines``."""
    for option in (
        click.option("--baselines", is_flag=True, help="Measure the naive baselines too."),
        click.option(
            "--latency", is_flag=True, help="Measure latency too, in turns with the original."
        ),
        click.option("--dry-run", is_flag=True, help="Print the plan and its bytes; do nothing."),
        click.option("--resume", is_flag=True, help="Go on where a stopped run left off."),
        click.option("--force", is_flag=True, help="Replace what stands at --out."),
        click.option("--out", type=click.Path(path_type=Path), help="Folder to write."),
    ):
        function = option(function)
    return function


def require_out(out: Path | None, *, dry_run: bool) -> None:
    """Refuse a run that would leave nothing.

    Raises:
        UsageError: Neither ``--out`` nor ``--dry-run`` is given.
    """
    if not dry_run and out is None:
        raise click.UsageError("--out FOLDER is needed (or --dry-run).")


def pairs(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE.")
        found[key.replace("-", "_")] = yaml.safe_load(value)
    return found


def budget_text(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    """Refuse a budget that cannot be read, as wrong usage."""
    if given is not None:
        from laconic.budget import parse_budget

        try:
            parse_budget(given)
        except ConfigError as error:
            raise click.BadParameter(str(error)) from error
    return given


def command_line(context: click.Context) -> str:
    """Return the line that runs a command again, without options that have their default."""
    path = context
    words: list[str] = []
    while path.parent is not None:  # the root has the name of the program, whatever ran it
        words.insert(0, path.info_name or "")
        path = path.parent
    words.insert(0, "laconic")
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif value not in (None, False, (), {}) and value != parameter.default:
            words += _spelt(parameter.opts[0], value)
    return shlex.join(words)


def _spelt(option: str, value: Any) -> list[str]:
    if value is True:
        return [option]
    if isinstance(value, tuple):
        return [word for item in value for word in (option, str(item))]
    if isinstance(value, dict):
        return [word for key, item in value.items() for word in (option, f"{key}={_yaml(item)}")]
    return [option, str(value)]


def _yaml(item: Any) -> str:
    """Return a value as a line of YAML that reads as the same value."""
    import yaml

    if isinstance(item, str) and yaml.safe_load(item) == item:
        return item
    return json.dumps(item)


def prepare(seed: int, threads: int | None, device: str) -> None:
    """Set seed and threads of this process and check that the device is there.

    Raises:
        BackendError: The device is not there; says which are.
    """
    import torch

    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    there += ["cuda"] if torch.cuda.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    if device not in there:
        raise BackendError(f"--device {device}: not on this machine, which has {', '.join(there)}.")


def load(
    model: str,
    weights: Path | None,
    data: str | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
) -> tuple[nn.Module, Task | None, Any | None]:
    """Load the model, and the task where ``--data`` is given, with the model's tokenizer."""
    from laconic.modelspec import load_model, load_task, require_fit

    if options and not data:
        raise click.UsageError("--data-option needs --data.")
    if data and ":" not in data:
        from laconic import datasets

        datasets.describe(data)  # a misspelt name fails before the model is loaded
    loaded, tokenizer = load_model(model, weights)
    task = load_task(data, tokenizer=tokenizer, seed=seed, options=options or {}) if data else None
    if task is not None:
        require_fit(loaded, task)
    return loaded, task, tokenizer


def require_artifact(folder: Path) -> None:
    """Refuse a folder that laconic did not write.

    Raises:
        ConfigError: It has no manifest.
    """
    if not (folder / "laconic.json").is_file():
        raise ConfigError(
            f"{folder} is not a folder that laconic wrote: it has no laconic.json. Give the --out "
            "of laconic compress."
        )


def require_apart(out: Path, *inputs: str | Path | None) -> None:
    """Refuse to write over what is read: ``--force`` would delete it first.

    Raises:
        ConfigError: ``out`` is one of the inputs, holds one, or holds the current folder.
    """
    target = out.resolve()
    for given in (*inputs, Path.cwd()):
        if (
            given is not None
            and Path(given).exists()
            and Path(given).resolve().is_relative_to(target)
        ):
            raise ConfigError(f"--out {out} holds {given}, which is read here. Give another --out.")


def example_options(function: _Function) -> _Function:
    """Add ``--data``, ``--input`` and ``--tokens``: where an input for the model comes from."""
    for option in (
        click.option(
            "--tokens",
            type=click.IntRange(min=2),
            default=64,
            show_default=True,
            help="Length of the input of a language model.",
        ),
        click.option(
            "--input",
            "input_shape",
            metavar="SHAPE",
            callback=_shape,
            help="Shape of a random input, such as 1,3,32,32.",
        ),
        click.option("--data", metavar="NAME", help="Take the input from this data set."),
    ):
        function = option(function)
    return function


def _shape(_: click.Context, __: click.Parameter, given: str | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    sizes = given.replace("x", ",").split(",")
    if not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        raise click.BadParameter(f"{given!r} is not a shape such as 1,3,32,32.")
    return tuple(int(size) for size in sizes)
