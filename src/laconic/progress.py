"""Progress of long work: what is running, how far it is, and nothing on stdout."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType, Protocol, TextIO, cast, runtime_checkable

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars
    from rich.progress import TaskID as BarId

TaskId = NewType("TaskId", int)


@runtime_checkable
class Progress(Protocol):
    """Takes reports of progress; one object may carry several labels at once."""

    def start(self, label: str, total: int | None) -> TaskId:
        """Announce a piece of work of ``total`` units; None where it is not known."""
        ...

    def advance(self, id: TaskId, n: int = 1, note: str = "") -> None:
        """Report that ``n`` more units are done; ``note`` is a word on how it goes."""
        ...

    def finish(self, id: TaskId) -> None:
        """Report that the work is over, whether or not all of its units were done."""
        ...


class NullProgress:
    """Says nothing."""

    def start(self, label: str, total: int | None) -> TaskId:
        """Take the announcement and stay silent."""
        return TaskId(0)

    def advance(self, id: TaskId, n: int = 1, note: str = "") -> None:
        """Stay silent."""

    def finish(self, id: TaskId) -> None:
        """Stay silent."""


@dataclass
class _Line:
    label: str
    total: int | None
    begun: float
    shown: float
    done: int = 0
    note: str = ""


class PlainProgress:
    """Writes one line every few seconds: for log files and pipes.

    Args:
        stream: Where lines go; standard error where None.
        every_s: Least seconds between two lines of the same piece of work.
    """

    def __init__(self, stream: TextIO | None = None, *, every_s: float = 5.0) -> None:
        self._stream, self._every_s = stream, every_s
        self._lines: dict[TaskId, _Line] = {}
        self._count = 0

    def start(self, label: str, total: int | None) -> TaskId:
        """Announce a piece of work and write its first line."""
        self._count += 1
        now = time.monotonic()
        self._lines[TaskId(self._count)] = _Line(label, total, now, now)
        self._write(f"{label} ...")
        return TaskId(self._count)

    def advance(self, id: TaskId, n: int = 1, note: str = "") -> None:
        """Count ``n`` units; write a line where the last one is old enough."""
        line, now = self._lines[id], time.monotonic()
        line.done, line.note = line.done + n, note or line.note
        if now - line.shown >= self._every_s:
            line.shown = now
            self._write(_sentence(line, now))

    def finish(self, id: TaskId) -> None:
        """Write the last line of a piece of work."""
        line = self._lines.pop(id)
        self._write(f"{_sentence(line, time.monotonic())}, finished")

    def _write(self, text: str) -> None:
        stream = self._stream or sys.stderr
        stream.write(f"{text}\n")
        stream.flush()


def _sentence(line: _Line, now: float) -> str:
    share = f"{line.done}" if line.total is None else f"{line.done}/{line.total}"
    note = f", {line.note}" if line.note else ""
    return f"{line.label}: {share} in {now - line.begun:.1f} s{note}"


class RichProgress:
    """Draws bars on a terminal, on standard error; they vanish when all work is finished."""

    def __init__(self) -> None:
        self._bars: RichBars | None = None
        self._open: set[TaskId] = set()

    def start(self, label: str, total: int | None) -> TaskId:
        """Add a bar; the display opens with the first one."""
        if self._bars is None:
            self._bars = _rich_bars()
            self._bars.start()
        id = TaskId(int(self._bars.add_task(label, total=total, note="")))
        self._open.add(id)
        return id

    def advance(self, id: TaskId, n: int = 1, note: str = "") -> None:
        """Move a bar on."""
        if self._bars is None or id not in self._open:
            return
        bar = cast("BarId", id)
        if note:
            self._bars.update(bar, advance=n, note=note)
        else:
            self._bars.advance(bar, n)

    def finish(self, id: TaskId) -> None:
        """Take a bar down; the display closes with the last one."""
        self._open.discard(id)
        if self._bars is not None and not self._open:
            self._bars.stop()
            self._bars = None


def _rich_bars() -> RichBars:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )


def progress_on(stream: TextIO | None = None) -> RichProgress | PlainProgress:
    """Return bars where standard error is a terminal, else lines.

    Args:
        stream: A stream to write lines to, whatever it is; standard error where None.
    """
    if stream is None and sys.stderr.isatty():
        return RichProgress()
    return PlainProgress(stream)
