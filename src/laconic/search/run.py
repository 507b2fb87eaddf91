"""search(): model + levels + task + budget -> the levels to take, and the artefact made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laconic import artifact
from laconic.checkpoints import WorkFolder, fingerprint, is_finished
from laconic.errors import BackendError, ConfigError, LaconicError
from laconic.files import refuse_existing
from laconic.pipeline import describe_task, holder, thread_count, tokenizer_files
from laconic.progress import NullProgress, Progress
from laconic.result import Result, TemporaryFolder
from laconic.runner import frozen
from laconic.search.finish import SearchOutcome, opened, published
from laconic.search.goal import Cost, parse_goal
from laconic.search.settings import Effort, Method
from laconic.search.state import Searching, open_fitness
from laconic.task import Task
from laconic.weights.base import Where

_WITHOUT_DATA = ("dp", "uniform")


# Long for its signature and docstring: every setting of a search is named and told here once.
def search(
    model: nn.Module,
    levels: str,
    task: Task | None = None,
    *,
    budget: str,
    method: Method = "evolve",
    cost: Cost = "bytes",
    fitness: str = "kl",
    effort: Effort | None = None,
    where: Where | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    threads: int | None = None,
    workers: int = 1,
    cluster: str | None = None,
    examples: int | None = None,
    families: Sequence[float] = (),
    coding: artifact.Effort = "fast",
    resume: bool = False,
    force: bool = False,
    latency: bool = False,
    baselines: bool = False,
    source: Path | None = None,
    progress: Progress | None = None,
) -> SearchOutcome:
    """Search which level each weight (or part) of a model takes; the given model is not changed.

    Args:
        model: Trained model.
        levels: ``"bits"``, ``"sparsity"``, ``"rank"``, ``"mixed"``, ``"depth"``, or a YAML file;
            see :func:`laconic.search.levels.level_set`.
        task: Its training examples are calibrated, searched and judged on, in parts that share
            nothing; its test split is only measured on. Methods ``dp`` and ``uniform`` do without.
        budget: ``8x``, ``1.5MB`` or ``3.0bits`` on disk; ``70%`` zeros for sparsity, removed parts
            for depth, or what remains of ``cost``; ``40ms`` for ``cost="latency"``.
        method: ``evolve``, ``dp``, ``greedy``, ``random``, ``uniform``, ``owl`` or ``policy``.
        cost: What the budget counts: ``bytes`` on disk, ``macs``, or ``latency`` on this device.
        fitness: What is made small; see :func:`laconic.search.judge.make_judge`.
        effort: Length of the search.
        where: Which weights; all that have levels where None.
        out: Folder of the artefact; a temporary one that lives as long as the result if None.
        device: Where the work is done.
        seed: Seed of everything random.
        threads: CPU threads; those of the process if None.
        workers: Processes that judge candidates.
        cluster: Address of a Ray cluster, or ``"local"``.
        examples: Most documents or examples to search on.
        families: Also search each family of the levels alone, and all together, at these multiples
            of a budget in bytes, for curves at equal bytes.
        coding: Entropy coding of the artefact.
        resume: Go on where a killed search with the same arguments stopped.
        force: Replace ``out`` and what an unfinished run left.
        latency: Measure latency and peak memory of the result too.
        baselines: Also measure every uniform level, for the trade-off plot.
        source: Folder of the original Hugging Face model, for its tokenizer files.
        progress: Where progress is shown.

    Returns:
        The artefact with its report, the levels, and how they were found.

    Raises:
        BudgetError: The budget is outside what the levels can attain.
        ConfigError: Settings that do not go together, or no data to judge on.
    """
    goal, how = parse_goal(budget), effort or Effort()
    _check(levels, method, task)
    if families and (goal.kind != "bytes" or levels == "depth"):
        raise ConfigError("search: families are compared at equal bytes; give a size or a ratio.")
    with thread_count(threads):
        job: dict[str, Any] = {
            "levels": _told(levels), "budget": budget, "method": method, "cost": cost,
            "fitness": fitness, "effort": vars(how), "where": vars(where or Where()), "seed": seed,
            "device": device, "threads": torch.get_num_threads(), "examples": examples,
            "coding": coding, "task": describe_task(task), "families": list(families),
        }  # fmt: skip
        key = fingerprint(model, job, task)
        keep = TemporaryFolder() if out is None else None
        folder = keep.path / "artifact" if keep else Path(str(out))
        place = folder.parent / f".{folder.name}.work"
        if resume and is_finished(folder, key, force=force):
            if place.exists():  # killed between the last two moves
                WorkFolder(place, key, resume=True, force=force).remove()
            return opened(Result.open(folder, holder(folder, model, device), device=device))
        refuse_existing(folder, force=force)
        work = WorkFolder(place, key, resume=resume, force=force)
        try:
            searching = Searching(
                frozen(model, device), levels, task, work, how,
                {**job, "job": key}, progress or NullProgress(), tokenizer_files(source),
            )  # fmt: skip
            with open_fitness(searching, workers=workers, threads=threads, cluster=cluster) as fit:
                searching.find(fit)
        except LaconicError as error:
            if not isinstance(error, BackendError):
                work.remove()  # the same arguments end here again
            raise
        outcome = published(
            searching, folder, goal=goal, latency=latency, baselines=baselines, force=force,
            keep=keep,
        )  # fmt: skip
        work.remove()
        return outcome


def _check(levels: str, method: str, task: Task | None) -> None:
    if task is None and method not in _WITHOUT_DATA:
        raise ConfigError(
            f"search: method={method!r} judges candidates on data and there is none. Give --data "
            f"NAME or a Task, or one of {list(_WITHOUT_DATA)}, which read the table of errors."
        )
    if levels == "depth" and (method in ("uniform", "owl") or task is None):
        raise ConfigError(
            f"search: levels='depth' with method={method!r}"
            f"{' and without data' if task is None else ''} says nothing of which parts to remove. "
            "Give data and one of 'evolve', 'greedy', 'random', 'dp' or 'policy'."
        )


def _told(levels: str) -> str:
    """Return the levels as they fix the answer: the content of a file."""
    path = Path(levels)
    return path.read_text(encoding="utf-8") if path.is_file() else levels
