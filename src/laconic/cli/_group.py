"""Groups and commands that load late, fail in one line and suggest the nearest name."""

from __future__ import annotations

import importlib
import re
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import click

from laconic.errors import LaconicError, LaconicWarning, nearest


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().meta["laconic.debug"] = True


def _break(line: str, room: int) -> list[str]:
    """Break a command line before options, never between an option and its value."""
    rows: list[str] = []
    for piece in re.split(r" (?=--)", line):
        if rows and len(rows[-1]) + 1 + len(piece) <= room:
            rows[-1] += f" {piece}"
        else:
            rows.append(f"    {piece}" if rows else piece)
    return rows


def debug_option() -> click.Option:
    """Return the option that shows where an error came from."""
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=_set_debug,
        is_eager=True,
        help="Show the whole traceback of an error.",
    )


class Command(click.Command):
    """A command with ``--debug`` and examples under its help.

    Args:
        examples: Command lines that work as they stand.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.params.append(debug_option())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """Write command lines, long ones broken as a shell takes them."""
    if not examples:
        return
    with formatter.section("Examples"):
        for line in examples:
            room = max(40, formatter.width - formatter.current_indent - 6)
            broken = _break(line, room)
            indent = " " * formatter.current_indent
            formatter.write(indent + f" \\\n{indent}".join(broken) + "\n")


class LazyGroup(click.Group):
    """A group that imports a sub-command's file when the sub-command is used.

    Args:
        lazy: Module and one-line help of each sub-command by its name; the module holds the
            command as ``command``.
        examples: Command lines shown under the help.
    """

    command_class = Command

    def __init__(
        self,
        *args: Any,
        lazy: Mapping[str, tuple[str, str]],
        examples: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy, self.examples = dict(lazy), tuple(examples)
        self.params.append(debug_option())

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a sub-command."""
        if cmd_name not in self.lazy:
            return None
        found = importlib.import_module(self.lazy[cmd_name][0]).command
        if not isinstance(found, click.Command):
            raise TypeError(f"{self.lazy[cmd_name][0]}.command is not a click command")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a sub-command; an unknown one is answered with the nearest name."""
        if args and args[0] not in self.lazy and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}.{nearest(args[0], self.lazy)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the sub-commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.lazy.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run; an error becomes one line and exit code 1, a warning of ours one line."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", LaconicWarning)
            warnings.showwarning = _show_warning(warnings.showwarning)
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
                raise
            except Exception as error:  # whatever it is, a user gets a line and not a traceback
                debug = bool(ctx.find_root().meta.get("laconic.debug"))
                if debug:
                    click.echo(traceback.format_exc(), err=True, nl=False)
                click.echo(f"laconic: error: {_told(error, debug=debug)}", err=True)
                ctx.exit(1)


def _told(error: Exception, *, debug: bool) -> str:
    text = one_line(str(error))
    if isinstance(error, LaconicError):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    more = "" if debug else " (not an error that laconic foresaw: --debug shows where it arose)"
    return f"{type(error).__name__}: {text}{more}"


def one_line(text: str) -> str:
    """Join the lines of a message."""
    return " ".join(text.split())


def _show_warning(fallback: Any) -> Any:
    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any
    ) -> None:
        if issubclass(category, LaconicWarning):
            click.echo(f"laconic: warning: {one_line(str(message))}", err=True)
        else:
            fallback(message, category, filename, lineno, *more)

    return show
