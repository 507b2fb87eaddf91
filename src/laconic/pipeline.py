"""compress(): model + recipe + data + budget -> artefact + report, resumable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laconic import artifact, measure
from laconic.budget import Budget, parse_budget
from laconic.checkpoints import WorkFolder, fingerprint, is_finished
from laconic.dial import meet_budget
from laconic.errors import BudgetError, ConfigError, LaconicError
from laconic.files import refuse_existing
from laconic.outcome import build_report, compacted, example_of
from laconic.plan import make_plan
from laconic.progress import NullProgress, Progress
from laconic.recipe import Recipe
from laconic.result import Result, TemporaryFolder
from laconic.runner import Run, attach, frozen, run_steps
from laconic.task import Task
from laconic.weights.equalize.base import Rewrites

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


# Long for its signature and docstring: every setting of a run is named and told here once.
def compress(
    model: nn.Module,
    recipe: Recipe | str,
    task: Task | None = None,
    *,
    out: str | Path | None = None,
    budget: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    threads: int | None = None,
    resume: bool = False,
    force: bool = False,
    latency: bool = False,
    baselines: bool = False,
    source: Path | None = None,
    initial: nn.Module | None = None,
    progress: Progress | None = None,
) -> Result:
    """Compress a model by a recipe; the given model is not changed.

    Args:
        model: Trained model; its parameters may lie on any device.
        recipe: A recipe, the path of a YAML file, or the name of a built-in one.
        task: Data, loss and metrics. Without it no step may need data and quality is not
            measured. Without a train split recovery is data-free.
        out: Folder of the artefact; a temporary one that lives as long as the result if None.
        budget: Greatest size of the artefact: ``"1.5MB"``, ``"8x"`` or ``"3.0bits"`` a weight.
        device: Where the work is done.
        seed: Seed of everything random.
        threads: CPU threads; those of the process if None. Part of what fixes the bytes.
        resume: Go on where a killed run with the same arguments stopped.
        force: Replace ``out`` and what an unfinished run left.
        latency: Measure latency and peak memory, a process per variant; some twenty seconds.
        baselines: Also measure plain rounding at 8, 4, 3 and 2 bits for the trade-off plot.
        source: Folder of the original Hugging Face model, whose tokenizer files are taken along.
        initial: The model as it was before training, for steps that rewind to it.
        progress: Where progress is shown.

    Returns:
        The compressed model as it loads from the artefact, the report, and the folder.

    Raises:
        RecipeError: The recipe does not fit itself or the model.
        BudgetError: The budget is below the smallest size that the recipe reaches.
        ConfigError: ``out`` exists, or a setting is wrong.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    recipe.check()
    parsed = parse_budget(budget) if budget else None
    with thread_count(threads):
        make_plan(model, recipe)
        for step in recipe.steps:
            step.check_data(task)
            step.check_initial(initial is not None)
            if isinstance(step, Rewrites):
                step.check_model(model, task)
        job = {
            "budget": budget, "seed": seed, "device": device,
            "threads": torch.get_num_threads(), "task": describe_task(task),
        }  # fmt: skip
        first = {} if initial is None else {"initial": fingerprint(initial, {})}
        key = fingerprint(model, {**job, **first, "recipe": recipe.to_dict()}, task)
        keep = TemporaryFolder() if out is None else None
        folder = keep.path / "artifact" if keep else Path(str(out))
        place = folder.parent / f".{folder.name}.work"
        if resume and is_finished(folder, key, force=force):
            if place.exists():  # killed between the last two moves
                WorkFolder(place, key, resume=True, force=force).remove()
            return Result.open(folder, holder(folder, model, device), device=device)
        refuse_existing(folder, force=force)
        work = WorkFolder(place, key, resume=resume, force=force)
        run = Run(
            original=frozen(model, device),
            model=frozen(model, device),
            recipe=recipe,
            task=task,
            work=work,
            device=device,
            seed=seed,
            progress=progress or NullProgress(),
            architecture=artifact.Architecture.of(model, example_of(task) if task else None),
            provenance={
                **{name: value for name, value in job.items() if name != "budget"},
                "versions": measure.environment()["versions"],
            },
            extra_files=tokenizer_files(source),
            initial=initial,
        )
        attach(run)
        try:
            _run_all(run, parsed)
        except LaconicError as error:
            if isinstance(error, BudgetError) or not run.last_checkpoint:
                work.remove()  # nothing to go on from: the same arguments end here again
            raise
        built = work.model_path(run.last_checkpoint)
        loaded = artifact.load(built, model=frozen(model, device), device=device)
        deployed = compacted(run, built)
        report = build_report(
            run, built, loaded, budget=budget, latency=latency, baselines=baselines,
            deployed=deployed,
        )  # fmt: skip
        report["commands"] = [f"laconic {verb} {folder.name}" for verb in ("verify", "inspect")]
        report["provenance"] = {**run.provenance, "budget": budget, "job": key}
        if deployed != built:
            loaded = artifact.load(deployed, device=device)
        result = Result.publish(deployed, folder, report, model=loaded, force=force, keep=keep)
        work.remove()
        return result


def _run_all(run: Run, budget: Budget | None) -> None:
    if budget is None:
        run_steps(run)
        return
    run.budget_bytes = budget.bytes_for(
        original_bytes=measure.dense_bytes(run.original),
        weights=sum(site.original.numel() for site in run.sites),
    )
    meet_budget(run, run.budget_bytes)


def holder(folder: Path, model: nn.Module, device: str) -> nn.Module | None:
    """Return a copy of the model to load an artefact into; None where it is built by itself."""
    told = artifact.read_manifest(folder).architecture
    return None if told.kind == "huggingface" else frozen(model, device)


def tokenizer_files(source: Path | None) -> tuple[Path, ...]:
    """Return the files of a Hugging Face folder that belong to its tokenizer."""
    if source is None:
        return ()
    return tuple(path for name in _TOKENIZER if (path := source / name).is_file())


def describe_task(task: Task | None) -> dict[str, Any] | None:
    """Return what tells a task apart, as plain values."""
    if task is None:
        return None
    sizes = {
        name: len(split)
        for name in ("train", "calibration", "test")
        if (split := getattr(task, name)) is not None
    }
    return {"name": task.name, "kind": task.kind, "batch_size": task.batch_size, **sizes}


@contextmanager
def thread_count(count: int | None) -> Iterator[None]:
    """Set the CPU threads of torch for the time of a block; None leaves them."""
    held = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise ConfigError(f"threads={count} must be at least 1.")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(held)
