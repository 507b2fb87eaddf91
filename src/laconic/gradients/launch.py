"""Start the ranks of a measurement as processes of their own, each in its place."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laconic.errors import CommunicationError
from laconic.gradients.links import Place

_POLL_S = 0.05
_LAST_LINES = 12


def run_ranks(
    module: str,
    spec: Mapping[str, Any],
    places: Sequence[Place],
    *,
    threads: int = 1,
    timeout_s: float = 600.0,
) -> list[dict[str, Any]]:
    """Run ``python -m module`` once a rank and return what each rank wrote.

    A rank finds ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT`` in its environment,
    as under torchrun, and two arguments: a JSON file with ``spec``, and the file to write its own
    JSON to.

    Args:
        module: What every rank runs.
        spec: Handed over as JSON.
        places: One for each rank; see :func:`laconic.gradients.links.shaped_links`.
        threads: Threads of each rank.
        timeout_s: Seconds until all ranks are stopped.

    Raises:
        CommunicationError: A rank failed or was too late; has the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="laconic-ranks-") as folder:
        work = Path(folder)
        (work / "spec.json").write_text(json.dumps(dict(spec)), encoding="utf-8")
        port = _free_port()
        ranks = [
            _start(module, rank, place, places, port=port, work=work, threads=threads)
            for rank, place in enumerate(places)
        ]
        try:
            _wait(ranks, work, timeout_s)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        return [json.loads((work / f"{rank}.json").read_text()) for rank in range(len(places))]


def _start(
    module: str,
    rank: int,
    place: Place,
    places: Sequence[Place],
    *,
    port: int,
    work: Path,
    threads: int,
) -> subprocess.Popen[bytes]:
    told = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(len(places)),
        "MASTER_ADDR": places[0].address,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        **place.environment(),
    }
    command = [*place.prefix, sys.executable, "-m", module]
    with (work / f"{rank}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, str(work / "spec.json"), str(work / f"{rank}.json")],
            env={**os.environ, **told},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait(ranks: Sequence[subprocess.Popen[bytes]], work: Path, timeout_s: float) -> None:
    """Return when all ranks are done; the first that fails ends the wait."""
    limit = time.monotonic() + timeout_s
    while any(process.poll() is None for process in ranks):
        failed = [r for r, process in enumerate(ranks) if process.poll() not in (None, 0)]
        if failed:
            break
        if time.monotonic() > limit:
            raise CommunicationError(f"{len(ranks)} ranks were not done after {timeout_s:g} s.")
        time.sleep(_POLL_S)
    for rank, process in enumerate(ranks):
        if process.poll() not in (None, 0):
            said = (work / f"{rank}.log").read_text(errors="replace").splitlines()
            tail = "\n".join(said[-_LAST_LINES:])
            raise CommunicationError(f"rank {rank} ended with {process.returncode}:\n{tail}")


def _free_port() -> int:
    """Return a port that is free here; a private network has all of them free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
