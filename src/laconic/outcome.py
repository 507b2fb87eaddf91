"""Measures what a finished run made, and puts the report together."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laconic import artifact, measure, registry
from laconic.forms.kernels import decide
from laconic.forms.layers import install_, installed
from laconic.runner import Run, frozen
from laconic.task import Batch, Task, model_inputs
from laconic.weights.base import SITE_KINDS, LayerStep, Where
from laconic.weights.depth.remove import compact_, emptied_blocks, same_function
from laconic.weights.sites import find_sites, unsupported

_PRIMARY = {"classification": "top1", "causal-lm": "perplexity", "regression": "mse"}
_BASELINE_BITS = (8, 4, 3, 2)


def compacted(run: Run, built: Path) -> Path:
    """Return the artefact without the blocks of which nothing is left; ``built`` if all have parts.

    Where the smaller model is another function, as when layers are scaled by their number, the
    empty blocks stay and the run notes it.
    """
    small = artifact.load(built, model=frozen(run.original, run.device), kernels="exact")
    if not emptied_blocks(small):
        return built
    compact_(small)
    path = run.work.model_path("compact")
    artifact.save(
        small,
        path,
        recipe=artifact.read_manifest(built).recipe,
        provenance=run.provenance,
        effort=run.recipe.coding,
        force=True,
        extra_files=run.extra_files,
    )
    masked = artifact.load(built, model=frozen(run.original, run.device), kernels="exact")
    if same_function(masked, artifact.load(path, kernels="exact")):
        return path
    run.notes.append(
        "depth: blocks of which nothing is left stay in the model as empty ones, for its layers "
        "depend on their numbers."
    )
    return built


def build_report(
    run: Run,
    built: Path,
    model: nn.Module,
    *,
    budget: str | None,
    latency: bool,
    baselines: bool,
    deployed: Path | None = None,
) -> dict[str, Any]:
    """Measure the finished artefact beside the original.

    Args:
        run: The run, all steps done.
        built: Folder of the artefact, with the names of the original.
        model: The model as it was loaded from there.
        budget: The budget as it was asked for.
        latency: Measure latency and peak memory too, a process per variant.
        baselines: Measure plain rounding at several bits too.
        deployed: Folder of the artefact that is published, where blocks were deleted from it.
    """
    task = run.task
    original_bytes = measure.dense_bytes(run.original)
    files = measure.model_bytes(deployed or built)
    size = sum(files.values())
    running = measure_running(run, deployed or built) if latency else {}
    original = {
        "bytes": original_bytes,
        "metrics": _quality(run.original, run),
        **running.get("original", {}),
    }
    compressed: dict[str, Any] = {
        "bytes": size,
        "files": files,
        "metrics": _quality(model, run),
        **running.get("compressed", {}),
    }
    if task and task.kind in ("classification", "causal-lm"):
        kl = measure.logit_kl(run.original, model, task, device=run.device)
        compressed["metrics"] |= {"logit_kl": kl}
    return {
        "name": run.recipe.name,
        "task": {} if task is None else {"data": task.name, "examples": len(task.test)},
        "primary_metric": primary_metric(task),
        "original": original,
        "compressed": compressed,
        "ratio": original_bytes / size,
        **({"budget": {"asked": budget, "bytes": run.budget_bytes}} if budget else {}),
        "steps": run.steps,
        "sites": site_rows(run, built, model),
        "recipe": run.recipe.to_dict(),
        "environment": measure.environment(),
        "provenance": run.provenance,
        "skipped": unsupported(run.original),
        "trade_off": _trade_off(run, original, compressed) if baselines and task else [],
        "kernels": {name: chosen.kernel for name, chosen in decide(model).items()},
        "warnings": [*run.notes, *(w for step in run.steps for w in step.get("warnings", ()))],
    }


def primary_metric(task: Task | None) -> str | None:
    """Return the metric of the headline; None without a task."""
    if task is None:
        return None
    return _PRIMARY.get(task.kind) or next(iter(task.metrics), "loss")


def _quality(model: nn.Module, run: Run) -> dict[str, Any]:
    return measure.evaluate(model, run.task, device=run.device) if run.task else {}


def site_rows(run: Run, built: Path, model: nn.Module) -> list[dict[str, Any]]:
    """Return one row a site: bytes, bits, entropy and errors."""
    stored = {row["name"]: row for row in artifact.inspect(built)["sites"]}
    forms = {name: held.form for name, held in installed(model).items()}
    errors = measure.output_errors(run.equivalent, model, run.task) if run.task and forms else {}
    rows = []
    for site in run.sites:
        form = forms.get(site.name, site.form)
        weights = site.original.numel()
        row = stored.get(site.name, {})
        dense = form.dense().detach().float()
        norm = site.original.float().norm()
        gap = (dense.reshape(-1) - site.original.float().reshape(-1)).norm()
        rows.append(
            {
                "name": site.name,
                "kind": site.kind,
                "form": form.signature,
                "shape": list(site.original.shape),
                "weights": weights,
                "bytes_original": weights * site.original.element_size(),
                "bytes_stored": row.get("bytes_stored"),
                "bits": row.get("bits"),
                "entropy_bits": row.get("entropy_bits"),
                "error": float(gap / norm.clamp_min(1e-30)),
                "output_error": errors.get(site.name),
                "aliases": list(site.aliases),
            }
        )
    return rows


def example_of(task: Task) -> Tensor | dict[str, Tensor]:
    """Return one example of a task's inputs, by name where there are several or for text."""
    batch: Batch = next(iter(task.test.batches(1)))
    inputs = model_inputs(batch)
    if len(inputs) > 1 or "input_ids" in inputs:
        return inputs
    return next(iter(inputs.values()))


def measure_running(run: Run, built: Path) -> dict[str, dict[str, Any]]:
    """Time original and compressed artefact in turns, a process each; note their peak memory."""
    if run.task is None:
        return {}
    example, threads = example_of(run.task), torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="laconic-") as folder:
        dense = Path(folder) / "original"
        artifact.save(run.original, dense, architecture=run.architecture, effort="none")
        variants = {"original": dense, "compressed": built}
        timings = measure.latency(variants, example, threads=threads)
        return {
            name: {
                "latency_ms": dict(timings[name]),
                "memory_bytes": measure.peak_memory(path, example, threads=threads)["peak_bytes"],
            }
            for name, path in variants.items()
        }


def _trade_off(
    run: Run, original: dict[str, Any], compressed: dict[str, Any]
) -> list[dict[str, Any]]:
    points = [
        {"name": "original", "kind": "original", **_point(original)},
        *(
            {
                "name": f"{number}. {row['step']}",
                "kind": "step",
                "bytes": row["bytes_after"],
                "metrics": row["metrics_after"] or {},
            }
            for number, row in enumerate(run.steps, 1)
        ),
    ]
    points += [
        {"name": f"rounding, {bits} bits", "kind": "uniform", **_rounded(run, bits)}
        for bits in _BASELINE_BITS
    ]
    return [*points, {"name": run.recipe.name, "kind": "compressed", **_point(compressed)}]


def _point(figures: dict[str, Any]) -> dict[str, Any]:
    return {"bytes": figures["bytes"], "metrics": figures["metrics"]}


def _rounded(run: Run, bits: int) -> dict[str, Any]:
    """Return bytes and quality of plain rounding at some bits: the naive baseline."""
    step: LayerStep = registry.get("round-to-nearest").cls(bits=bits, where=Where(types=SITE_KINDS))
    model = frozen(run.original, run.device)
    for site in find_sites(run.original):
        form = step.fit(site, run.generator(-1, site.name))
        install_(model, site.name, form, layout=site.layout)
    with tempfile.TemporaryDirectory(prefix="laconic-") as folder:
        saved = artifact.save(
            model,
            Path(folder) / "rounded",
            architecture=run.architecture,
            effort=run.recipe.coding,
        )
    return {"bytes": saved.deployed_bytes, "metrics": _quality(model, run)}
