"""The search that is killed: it takes its time, so that a kill can be aimed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from search_support import class_task, classifier

from laconic.budget import loop
from laconic.search import database
from laconic.search.run import search
from laconic.search.settings import Effort

EFFORT = Effort(generations=6, offspring=6, tokens=40)


def run(out: Path, **more: Any) -> Any:
    torch.set_num_threads(1)
    return search(
        classifier(), "bits", class_task(), budget="6.5bits", effort=EFFORT, out=out, **more
    )


def slowed(work: Any) -> Any:
    def slow(*args: Any, **kwargs: Any) -> Any:
        value = work(*args, **kwargs)
        time.sleep(0.15)
        return value

    return slow


if __name__ == "__main__":
    database.FormDatabase.put = slowed(database.FormDatabase.put)  # type: ignore[method-assign]
    loop.Loop._save = slowed(loop.Loop._save)  # type: ignore[method-assign]
    run(Path(sys.argv[1]), resume=sys.argv[2] == "resume")
