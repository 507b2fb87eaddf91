"""Runs the steps of a recipe over a model, each behind a checkpoint."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laconic import artifact, measure
from laconic.checkpoints import WorkFolder
from laconic.errors import ConfigError, LaconicWarning
from laconic.forms.dense import Dense
from laconic.forms.layers import install_, installed, to_form
from laconic.plan import require_selection
from laconic.progress import Progress
from laconic.recipe import Recipe
from laconic.seeds import generator_for
from laconic.task import Task
from laconic.weights.base import LayerStep, ModelStep, Site, Step
from laconic.weights.calibrate import gather_
from laconic.weights.equalize.base import RewriteJob, Rewrites
from laconic.weights.recover.base import RecoverJob
from laconic.weights.sites import find_sites


@dataclass
class Run:
    """State of one compression: the original, the model at work, and what was done so far.

    Where a step has rewritten the model, ``reference`` is the original rewritten in the same way,
    and ``told`` what the step said of it, by its index.
    """

    original: nn.Module
    model: nn.Module
    recipe: Recipe
    task: Task | None
    work: WorkFolder
    device: str
    seed: int
    progress: Progress
    architecture: artifact.Architecture | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    extra_files: tuple[Path, ...] = ()
    initial: nn.Module | None = None
    reference: nn.Module | None = None
    told: dict[int, dict[str, Any]] = field(default_factory=dict)
    budget_bytes: int | None = None
    last_checkpoint: str = ""
    sites: list[Site] = field(default_factory=list)
    every_site: list[Site] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def equivalent(self) -> nn.Module:
        """The original, rewritten where steps rewrote the model: what sites are compared with."""
        return self.original if self.reference is None else self.reference

    def step(self, index: int) -> Step:
        """Return a step of the recipe, informed by what it found when it rewrote the model."""
        step, told = self.recipe.steps[index], self.told.get(index)
        return step.informed(told) if isinstance(step, Rewrites) and told else step

    def generator(self, step: int, site: str) -> torch.Generator:
        """Return the source of randomness of one step at one site."""
        return generator_for(self.seed, step, site)


def run_steps(run: Run, *, first: int = 0, stop: int | None = None, tag: str = "") -> None:
    """Run the steps ``first`` to ``stop``, taking up finished ones from the work folder.

    Args:
        run: The run; its model and sites are changed in place.
        first: Index of the first step.
        stop: Index after the last step; all of them if None.
        tag: Part of the checkpoint names; tells attempts at a budget apart.
    """
    for index in range(first, len(run.recipe.steps) if stop is None else stop):
        checkpointed(run, index, tag, run_one_step)


def checkpointed(
    run: Run,
    index: int,
    tag: str,
    work: Callable[[Run, int, str], dict[str, Any]],
    *,
    label: str | None = None,
) -> None:
    """Do the work of a step, or take what a killed run left of it once it was finished.

    The run goes on with the model as it loads from the checkpoint: a run that was killed and
    taken up again then sees the very same as one that never stopped.

    Args:
        run: The run.
        index: Index of the step.
        tag: Part of the checkpoint's name.
        work: ``(run, index, checkpoint name) -> details``; changes ``run.model`` in place.
        label: What the report calls the step; the name of its method if None.
    """
    name = f"step-{index + 1:02d}{tag}"
    summary = run.work.finished(name)
    if summary is None:
        start = time.perf_counter()
        with told_once() as said:
            details = work(run, index, name)
        saved = save_state(run, name)
        quality = measure.evaluate(run.model, run.task, device=run.device) if run.task else None
        summary = {
            "step": label or run.recipe.steps[index].method_name,
            "seconds": round(time.perf_counter() - start, 3),
            "bytes_after": saved,
            "metrics_after": quality,
            **({"details": details} if details else {}),
            **({"warnings": said} if said else {}),
        }
        run.work.finish(name, summary)
    else:
        recall(run, name)
    run.steps.append(summary)
    run.last_checkpoint = name
    if index + 1 < len(run.recipe.steps):
        restore(run, name)


@contextmanager
def told_once() -> Iterator[list[str]]:
    """Give each warning of the block on once, and yield a list that then holds laconic's own."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield told
    once = {(str(w.message), w.category, w.filename, w.lineno): w for w in said}
    told += [str(w.message) for w in once.values() if issubclass(w.category, LaconicWarning)]
    for w in once.values():
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno, source=w.source)


def run_one_step(run: Run, index: int, name: str) -> dict[str, Any]:
    """Run one step of the recipe on the model; return what it says of itself."""
    told = rewrite(run, index, name)
    step = run.recipe.steps[index]
    if isinstance(step, ModelStep):
        job = RecoverJob(
            model=run.model,
            original=run.original,
            initial=run.initial,
            task=run.task,
            seed=run.seed + index,
            device=run.device,
            checkpoint=run.work.training_path(name),
            progress=run.progress,
        )
        return {**told, **step.run_(job)}
    run_layer_step(run, index)
    return told


def rewrite(run: Run, index: int, name: str) -> dict[str, Any]:
    """Let a step give the model and the original other weights of the same function, if it does.

    The rewritten original is kept beside the checkpoint ``name``; the model is not.
    """
    step = run.recipe.steps[index]
    if not isinstance(step, Rewrites):
        return {}
    reference = frozen(run.equivalent, run.device)
    job = RewriteJob(model=run.model, reference=reference, task=run.task, progress=run.progress)
    told = run.told[index] = step.rewrite_(job)
    place = run.work.model_path(f"{name}-reference")
    artifact.save(reference, place, architecture=run.architecture, effort="none", force=True)
    refer(run, reference)
    return told


def rewrite_ahead(run: Run, indices: range) -> None:
    """Let steps rewrite the model before their levels are chosen, behind own checkpoints."""
    for index in indices:
        if not isinstance(run.recipe.steps[index], Rewrites):
            continue
        name = f"step-{index + 1:02d}-rewritten"
        held = run.work.finished(name)
        if held is None:
            with told_once() as said:
                told = rewrite(run, index, name)
            save_state(run, name)
            held = {"told": told, "warnings": said}
            run.work.finish(name, held)
        run.told[index] = held["told"]
        run.notes += held["warnings"]
        run.last_checkpoint = name
        recall(run, name)
        restore(run, name)


def recall(run: Run, name: str) -> None:
    """Take up the original as the step of a checkpoint rewrote it, if it did."""
    place = run.work.model_path(f"{name}-reference")
    if place.is_dir():
        skeleton = frozen(run.original, run.device)
        refer(run, artifact.load(place, model=skeleton, device=run.device, kernels="exact"))


def refer(run: Run, reference: nn.Module | None) -> None:
    """Let sites be compared with a rewritten original from now on; with the original if None."""
    if reference is not run.reference:
        run.reference, run.every_site = reference, []
        attach(run)


def run_layer_step(run: Run, index: int) -> None:
    """Fit one step at every site that it selects and put the new forms into the model."""
    step = run.step(index)
    if not isinstance(step, LayerStep):
        raise ConfigError(f"step {index + 1} ({step.method_name}) does not work site by site.")
    selected = require_selection(step, run.sites, index + 1)
    resolved = step.resolve(selected)
    bar = run.progress.start(f"{index + 1}. {step.method_name}", len(selected))
    for group in gathered(run, step, selected, resolved):
        for site in group:
            fitted = resolved[site.name].fit(site, run.generator(index, site.name))
            site.form = fitted
            install_(run.model, site.name, fitted, layout=site.layout)
            run.progress.advance(bar, note=site.name)
    run.progress.finish(bar)


def gathered(
    run: Run, step: LayerStep, selected: list[Site], resolved: dict[str, LayerStep]
) -> Iterator[list[Site]]:
    """Yield the selected sites in groups, with the statistics that their step asks for."""
    data = run.task is not None and len(run.task.calibration_split() or ())
    needs = {
        name: step.needs | (step.wishes if data else frozenset())
        for name, step in ((site.name, resolved[site.name]) for site in selected)
    }
    if not any(needs.values()):
        yield selected
        return
    compensated = step.propagate == "compensated"
    yield from gather_(
        run.model if compensated else run.equivalent,
        selected,
        run.task,
        needs,
        propagate=step.propagate,
        sequential=step.sequential,
        progress=run.progress,
    )


def save_state(run: Run, name: str) -> int:
    """Save the model at work as the checkpoint of a step; return its bytes on disk."""
    saved = artifact.save(
        run.model,
        run.work.model_path(name),
        architecture=run.architecture and run.architecture.without_removed(run.model),
        # Each record names its coder, so the recipe's coding says nothing more, and takes bytes.
        recipe={key: value for key, value in run.recipe.to_dict().items() if key != "coding"},
        provenance=run.provenance,
        effort=run.recipe.coding,
        force=True,
        extra_files=run.extra_files,
    )
    return int(saved.deployed_bytes)


def restore(run: Run, name: str) -> None:
    """Take the model after a step from the work folder."""
    run.model = artifact.load(
        run.work.model_path(name),
        model=frozen(run.original, run.device),
        device=run.device,
        kernels="exact",
    )
    attach(run)


def reset(run: Run) -> None:
    """Go back to the original model, as before the first step."""
    run.model = frozen(run.original, run.device)
    attach(run)


def attach(run: Run) -> None:
    """Let every site stand for what the model at work holds; it never shares the original's.

    Sites of parts that were removed from blocks are not among the run's sites.
    """
    forms = {path: held.form for path, held in installed(run.model).items()}
    run.every_site = run.every_site or find_sites(run.equivalent)
    present = {name for name, _ in run.model.named_parameters(remove_duplicate=False)}
    run.sites = [s for s in run.every_site if s.name in forms or s.name in present]
    for site in run.sites:
        held = forms.get(site.name)
        if held is None:
            value = run.model.get_parameter(site.name).detach()
            held = Dense(to_form(value, site.layout))
        site.form = held


def frozen(model: nn.Module, device: str) -> nn.Module:
    """Return a copy of a model on a device, in eval mode and without gradients."""
    copy = deepcopy(model).to(device).eval()
    return copy.requires_grad_(False)
