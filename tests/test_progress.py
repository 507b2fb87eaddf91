"""Progress reports: nothing on stdout, few lines in a log."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from laconic.progress import NullProgress, PlainProgress, Progress, RichProgress, progress_on


@pytest.mark.parametrize("make", [NullProgress, PlainProgress, RichProgress])
def test_all_keep_the_protocol_and_leave_stdout_alone(
    make: type[Progress], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = make()
    assert isinstance(progress, Progress)
    outer, inner = progress.start("sites", 2), progress.start("steps", None)
    for _ in range(3):
        progress.advance(inner, 5, note="loss 0.1")
    progress.finish(inner)
    progress.advance(outer)
    progress.finish(outer)
    assert capsys.readouterr().out == ""


def test_plain_lines_are_rare_and_complete() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, every_s=60.0)
    id = progress.start("train", 1000)
    for step in range(1000):
        progress.advance(id, note=f"loss {step}")
    progress.finish(id)
    first, last = stream.getvalue().splitlines()
    assert first == "train ..."
    assert last.startswith("train: 1000/1000 in ")
    assert last.endswith("loss 999, finished")
    eager = PlainProgress(stream := io.StringIO(), every_s=0.0)
    id = eager.start("count", None)
    eager.advance(id, 7)
    assert stream.getvalue().splitlines()[1].startswith("count: 7 in ")


def test_lines_where_there_is_no_terminal() -> None:
    assert isinstance(progress_on(io.StringIO()), PlainProgress)
    assert isinstance(progress_on(), PlainProgress)


def test_import_brings_neither_torch_nor_rich() -> None:
    code = "import sys, laconic.progress; sys.exit(bool({'torch', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
