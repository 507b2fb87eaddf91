"""A run that is killed at any moment goes on to the same bytes; a wrong one is refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import resume_child
import torch
from resume_child import JOBS, LONG, model, run, task

from laconic import artifact
from laconic import runner as runner_module
from laconic.errors import ConfigError
from laconic.task import TensorSplit

FILES = ("model.safetensors", "laconic.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("unbroken")
    for job in JOBS:
        run(job, folder / job)
    return {job: contents(folder / job) for job in JOBS}


# --- kills --------------------------------------------------------------------------------------


def there(name: str) -> Callable[[Path], bool]:
    return lambda work: (work / name).exists()


def between(done: str, not_yet: str) -> Callable[[Path], bool]:
    return lambda work: (work / done).exists() and not (work / not_yet).exists()


def rewritten(name: str, times: int) -> Callable[[Path], bool]:
    """Whether a file was seen with that many contents: it is replaced after every step."""
    seen: set[tuple[int, int]] = set()

    def moment(work: Path) -> bool:
        if (work / name).exists():
            try:
                found = (work / name).stat()
                seen.add((found.st_ino, found.st_mtime_ns))
            except FileNotFoundError:  # replaced in between
                return False
        return len(seen) >= times

    return moment


MOMENTS: dict[str, tuple[str, Callable[[], Callable[[Path], bool]]]] = {
    "before the first step": ("long", lambda: there("job.json")),
    "first model saved, not marked": ("long", lambda: between("step-01", "step-01.json")),
    "first step done": ("long", lambda: there("step-01.json")),
    "in the first training": ("long", lambda: rewritten("step-02.training.pt", 4)),
    "trained model saved, not marked": ("long", lambda: between("step-02", "step-02.json")),
    "third step done": ("long", lambda: there("step-03.json")),
    "in the second training": ("long", lambda: rewritten("step-04.training.pt", 2)),
    "all steps done": ("long", lambda: there("step-04.json")),
    "while it is published": ("long", lambda: lambda work: any(work.glob(".out.*"))),
    "among trials of the budget": ("tight", lambda: rewritten("step-01.trial", 2)),
    "levels chosen": ("tight", lambda: there("step-01.json")),
    "in the training after the levels": ("tight", lambda: rewritten("step-02.training.pt", 3)),
    "in the second attempt": ("tight", lambda: there("step-01-try1.json")),
    "in the training of the second attempt": (
        "tight", lambda: rewritten("step-02-try1.training.pt", 3)
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """A process that has everything imported and forks one for each job."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, resume_child.__file__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def start_and_kill(
    server: subprocess.Popen[str], job: str, out: Path, moment: Callable[[Path], bool], *,
    resume: bool, wait: float,
) -> None:  # fmt: skip
    """Start the job as a process of its own and send it SIGKILL a little after a moment."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(f"{job}\t{out}\t{'resume' if resume else ''}\n")
    server.stdin.flush()
    child = int(server.stdout.readline())
    work = out.parent / f".{out.name}.work"
    deadline = time.monotonic() + 60
    while not moment(work) and not out.exists() and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(wait)
    os.kill(child, signal.SIGKILL)
    assert int(server.stdout.readline()) == -signal.SIGKILL
    assert not out.exists(), "nothing is published before all is done"
    assert (work / "job.json").exists()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_in_the_same_bytes(
    moment: str,
    tmp_path: Path,
    unbroken: dict[str, dict[str, bytes]],
    server: subprocess.Popen[str],
) -> None:
    job, make = MOMENTS[moment]
    out = tmp_path / "out"
    wait = random.Random(moment).uniform(0, 0.01)
    start_and_kill(server, job, out, make(), resume=False, wait=wait)
    result = run(job, out, resume=True)
    assert contents(out) == unbroken[job]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside it"
    assert result.report.compressed.bytes == sum(len(data) for data in contents(out).values())


def test_a_run_that_is_killed_again_and_again(
    tmp_path: Path, unbroken: dict[str, dict[str, bytes]], server: subprocess.Popen[str]
) -> None:
    out = tmp_path / "out"
    kills = ("first step done", "in the first training", "third step done")
    for number, moment in enumerate(kills):
        start_and_kill(server, "long", out, MOMENTS[moment][1](), resume=number > 0, wait=0)
    run("long", out, resume=True)
    assert contents(out) == unbroken["long"]


def test_the_tight_job_keeps_its_budget(unbroken: dict[str, dict[str, bytes]]) -> None:
    assert sum(map(len, unbroken["tight"].values())) <= 9000


# --- refusals -----------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that stopped in its third step; the path of its artefact."""
    work_on = runner_module.run_one_step

    def stop(run: Any, index: int, name: str) -> dict[str, Any]:
        if index == 2:
            raise KeyboardInterrupt
        return work_on(run, index, name)

    with monkeypatch.context() as patch:
        patch.setattr(runner_module, "run_one_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run("long", tmp_path / "out")
    assert (tmp_path / ".out.work" / "step-02.json").is_file()
    return tmp_path / "out"


def other_model() -> torch.nn.Module:
    net = model()
    with torch.no_grad():
        net[4].bias[0] += 1
    return net


def other_data() -> Any:
    held = task()
    x, y = held.train.tensors.values()  # type: ignore[union-attr]
    return replace(held, train=TensorSplit({"x": x, "y": y.flip(0)}))


OTHERS = {
    "recipe": {"recipe": LONG.replace("bits: 3", "bits: 2")},
    "seed": {"seed": 1},
    "budget": {"budget": "1MB"},
    "model": {"model": other_model()},
    "data": {"task": other_data()},
    "threads": {"threads": 2},
}


@pytest.mark.parametrize("what", OTHERS)
def test_an_unfinished_run_of_another_job_is_refused(what: str, stopped: Path) -> None:
    before = sorted(path.name for path in (stopped.parent / ".out.work").iterdir())
    with pytest.raises(ConfigError, match=r"\.out\.work belongs to a run with another .*--force"):
        run("long", stopped, resume=True, **OTHERS[what])
    assert sorted(path.name for path in (stopped.parent / ".out.work").iterdir()) == before


def test_an_unfinished_run_is_not_overwritten_by_itself(
    stopped: Path, unbroken: dict[str, dict[str, bytes]]
) -> None:
    with pytest.raises(ConfigError, match=r"holds an unfinished run.*--resume.*--force"):
        run("long", stopped)
    run("long", stopped, resume=True)
    assert contents(stopped) == unbroken["long"]


def test_force_starts_again(stopped: Path, unbroken: dict[str, dict[str, bytes]]) -> None:
    (stopped.parent / ".out.work" / "step-01" / "laconic.json").write_text("not what it was")
    run("long", stopped, force=True)
    assert contents(stopped) == unbroken["long"]
    assert not (stopped.parent / ".out.work").exists()


def test_resume_takes_finished_steps_as_they_are(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    work_on = runner_module.run_one_step

    def note(run: Any, index: int, name: str) -> dict[str, Any]:
        done.append(index)
        return work_on(run, index, name)

    monkeypatch.setattr(runner_module, "run_one_step", note)
    result = run("long", stopped, resume=True)
    assert done == [2, 3]
    assert [row.step for row in result.report.steps] == [
        "magnitude", "recover", "kmeans", "recover"
    ]  # fmt: skip


def test_resume_of_nothing_is_a_run(tmp_path: Path, unbroken: dict[str, dict[str, bytes]]) -> None:
    run("long", tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == unbroken["long"]


def test_resume_of_a_complete_run_only_reads(
    tmp_path: Path, unbroken: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("long", tmp_path / "out")
    leftover = tmp_path / ".out.work"  # as a kill between the last two moves leaves it
    leftover.mkdir()
    fingerprint = first.to_dict()["provenance"]["job"]
    (leftover / "job.json").write_text(f'{{"fingerprint": "{fingerprint}"}}')
    monkeypatch.setattr(artifact, "save", None)
    given = model()
    again = run("long", tmp_path / "out", resume=True, model=given)
    assert again.report == first.report
    x = torch.ones(2, 12)
    assert torch.equal(again.model(x), first.model(x))
    assert contents(tmp_path / "out") == unbroken["long"]
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), model().parameters(),
                                                 strict=True))  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_resume_onto_the_artefact_of_another_job_is_refused(tmp_path: Path) -> None:
    run("long", tmp_path / "out", recipe="steps: [kmeans]")
    held = contents(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"is complete and was made by a run with another"):
        run("long", tmp_path / "out", recipe="steps: [{kmeans: 3}]", resume=True)
    assert contents(tmp_path / "out") == held
    run("long", tmp_path / "out", recipe="steps: [{kmeans: 3}]", resume=True, force=True)
    assert contents(tmp_path / "out") != held
