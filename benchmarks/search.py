"""The search: evaluations a second, memory of the database, and families at equal bytes.

Run ``LACONIC_DATA=folder python benchmarks/search.py [speed] [mixed]``.

``speed`` judges the offspring of one parent, as an evolutionary search does, on 2 048 tokens and
one thread, and counts seconds of the processor: with and without what blocks before the first
changed one gave, and with every level fitted anew instead of taken from the database. The
decoders are stories260K and a random Llama of 16 blocks and 12.7 M parameters. It writes
results/benchmarks/search.json.

``mixed`` searches every family of levels and all of them mixed with the same effort at three
budgets each, on stories260K and on a published CIFAR-10 ResNet-20, and measures the KL divergence
from the original on the test split, which no search has seen. It writes
results/benchmarks/mixed.json, and the curves as mixed-NAME.html.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import laconic
from laconic import datasets, measure, zoo
from laconic.budget import Assignment, LevelTable, Sampler, bits_table, depth_table
from laconic.budget.mutate import Moves
from laconic.progress import progress_on
from laconic.report.searched import render_search
from laconic.search.build import fill_
from laconic.search.database import FormDatabase
from laconic.search.documents import Documents
from laconic.search.evaluator import EvaluatorJob, ModelEvaluator
from laconic.search.families import MIXED
from laconic.search.fitting import fit_site
from laconic.search.levels import LevelSet, level_set
from laconic.search.settings import Effort
from laconic.search.units import PartUnit, SiteUnit, Unit
from laconic.task import Task, TensorSplit
from laconic.weights.depth.subblocks import sub_blocks_of
from laconic.weights.sites import find_sites

OUT = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
TOKENS, OFFSPRING = 2048, 32


def ratio(
    name: str, ours: float, peer: float, goal: float, *, least: bool = True
) -> dict[str, Any]:
    """Return a row of ``ratios``: ours over the peer's, and whether it meets the goal."""
    value = ours / peer
    word = ">=" if least else "<="
    met = value >= goal if least else value <= goal
    return {
        "name": name, "ours": ours, "peer": peer, "ratio": value, "goal": f"{word} {goal:g}",
        "met": bool(met),
    }  # fmt: skip


# --- speed --------------------------------------------------------------------------------------


def stories() -> tuple[nn.Module, Task]:
    """Return stories260K and stories to judge it on."""
    model, tokenizer = zoo.pretrained("stories260k")
    return model, datasets.load("tinystories", tokenizer=tokenizer.encode, length=256)


def deep() -> tuple[nn.Module, Task]:
    """Return a random decoder of 16 blocks and drawn text."""
    model = zoo.tiny_llama(vocabulary=512, width=256, blocks=16, heads=8, hidden=688)
    ids = torch.randint(3, 512, (32, 256), generator=torch.Generator().manual_seed(0))
    split = TensorSplit({"input_ids": ids})
    return model, Task(kind="causal-lm", test=split, train=split, batch_size=8, name="drawn text")


def offspring(table: LevelTable, budget: Any) -> list[Assignment]:
    """Return mutations of a parent at the same cost, as evolution draws them."""
    moves, rng = Moves(table, budget), np.random.default_rng(0)
    parent = moves.lowered_state(rng)
    children, _ = moves.offspring(parent, OFFSPRING, rng)
    return [table.assignment(choice) for choice in children]


def rate(evaluator: ModelEvaluator, candidates: list[Assignment], documents: Documents) -> float:
    """Return assignments judged in a second of the processor."""
    sampler = Sampler(documents.lengths, least=documents.least)
    minibatch = sampler.draw(TOKENS, np.random.default_rng(1))
    evaluator(candidates[:1], minibatch)  # dense targets
    begun = time.process_time()
    evaluator(candidates, minibatch)
    return len(candidates) / (time.process_time() - begun)


def fitted_anew(
    job: EvaluatorJob, levels: LevelSet, candidates: list[Assignment]
) -> Callable[[], float]:
    """Return what judges candidates whose changed levels are fitted when they are met."""
    documents = job.documents
    sampler = Sampler(documents.lengths, least=documents.least)
    minibatch = sampler.draw(TOKENS, np.random.default_rng(1))

    def run() -> float:
        evaluator = ModelEvaluator(replace(job, prefix=False))
        evaluator(candidates[:1], minibatch)
        last = candidates[0].choice
        begun = time.process_time()
        for candidate in candidates:
            for unit, level in zip(job.units, candidate.choice, strict=True):
                place = [u.name for u in job.units].index(unit.name)
                if last[place] != level and isinstance(unit, SiteUnit):
                    wanted = levels.of(unit.site)[level]
                    fit_site(unit.site, [wanted], lambda place: torch.Generator())
            evaluator([candidate], minibatch)
            last = candidate.choice
        return len(candidates) / (time.process_time() - begun)

    return run


def dense_bytes(database: FormDatabase, table: LevelTable, sites: Sequence[Any]) -> int:
    """Return the bytes of dense copies of every level, as they would lie in memory."""
    return sum(
        site.original.numel() * site.original.element_size() * len(table.available(row))
        for row, site in enumerate(sites)
    )


def speed_of(name: str, model: nn.Module, task: Task) -> tuple[list[Any], list[Any]]:
    """Return the rows and ratios of one decoder."""
    documents = Documents.of(task, task.train or task.test, limit=16)
    sites = [site for site in find_sites(model) if site.kind == "linear"]
    levels = level_set("bits", data=False)
    with tempfile.TemporaryDirectory() as folder:
        memory, disk = FormDatabase(levels.names), FormDatabase(levels.names, Path(folder))
        begun = time.process_time()
        fill_(memory, model, sites, levels.of, task)
        filled = time.process_time() - begun
        fill_(disk, model, sites, levels.of, task)
        on_disk = disk.nbytes
    table = memory.table([site.name for site in sites])
    dense = dense_bytes(memory, table, sites)
    sizes = {site.name: site.original.numel() for site in sites}
    bits = bits_table(sizes, (2, 3, 4, 5, 6, 8), groups="size")
    parts = sub_blocks_of(model)
    kinds = {part.name: part.kind for part in parts}
    depth = depth_table(kinds)
    keep = {kind: list(kinds.values()).count(kind) * 3 // 4 for kind in set(kinds.values())}
    units: dict[str, tuple[list[Unit], list[Assignment]]] = {
        "bits": ([SiteUnit(s, memory) for s in sites],
                 offspring(bits, int(3.5 * sum(sizes.values())))),
        "depth": ([PartUnit(part) for part in parts], offspring(depth, keep)),
    }  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"name": f"{name}: database", "levels": len(levels.names), "sites": len(sites),
         "fit_cpu_s": filled, "memory_bytes": memory.nbytes, "disk_bytes": on_disk,
         "dense_bytes": dense},
    ]  # fmt: skip
    ratios = [ratio(f"{name}: dense copies over codes in memory", dense, memory.nbytes, 4)]
    for kind, (held, candidates) in units.items():
        job = EvaluatorJob(model, held, task, documents)
        with_prefix = rate(ModelEvaluator(job), candidates, documents)
        without = rate(ModelEvaluator(replace(job, prefix=False)), candidates, documents)
        row = {"name": f"{name}: {kind}", "evaluations_s": with_prefix, "without_prefix_s": without}
        ratios.append(ratio(f"{name}: {kind}, prefixes over whole passes", with_prefix, without, 1))
        if kind == "bits":
            row["without_database_s"] = fitted_anew(job, levels, candidates)()
            ratios.append(
                ratio(f"{name}: {kind}, database over levels fitted anew", without,
                      row["without_database_s"], 1)
            )  # fmt: skip
        rows.append(row)
    return rows, ratios


def speed() -> dict[str, Any]:
    """Measure the evaluator and the database."""
    torch.set_num_threads(1)
    rows: list[Any] = []
    ratios: list[Any] = []
    for name, make in (("stories260K", stories), ("16 blocks", deep)):
        model, task = make()
        found = speed_of(name, model, task)
        rows += found[0]
        ratios += found[1]
    return {"rows": rows, "ratios": ratios}


# --- mixed --------------------------------------------------------------------------------------

PLANS: dict[str, dict[str, Any]] = {
    "stories260K": {"budget": "9x", "effort": Effort(generations=24, offspring=16, tokens=6144)},
    "ResNet-20": {"budget": "10x", "effort": Effort(generations=10, offspring=12, tokens=512)},
}
RATIOS = (0.85, 1.0, 1.2)


def resnet() -> tuple[nn.Module, Task]:
    """Return a CIFAR-10 ResNet-20 with 1 536 training images to search on."""
    task = datasets.load("cifar10", jpeg=True, test="jpeg", normalise=True)
    take = getattr(task.train, "take")  # noqa: B009 - a split need not have it
    return zoo.pretrained("resnet20"), replace(task, train=take(1536))


def counted(outcome: Any, choice: Sequence[int]) -> dict[str, int]:
    """Return how many weights take each level."""
    names = [outcome.details["levels"][level] for level in choice]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def mixed() -> dict[str, Any]:
    """Compare families on two real models, and write their curves."""
    rows: list[Any] = []
    ratios: list[Any] = []
    for name, make in (("stories260K", stories), ("ResNet-20", resnet)):
        model, task = make()
        begun = time.monotonic()
        outcome = laconic.search(
            model, "mixed", task, budget=PLANS[name]["budget"], effort=PLANS[name]["effort"],
            families=RATIOS, progress=progress_on(),
        )  # fmt: skip
        points = outcome.details["points"]
        for point in points:
            told = {key: value for key, value in point.items() if key != "choice"}
            rows.append({"model": name, **told, "levels": counted(outcome, point["choice"])})
        seconds = time.monotonic() - begun
        rows.append({"model": name, "seconds": seconds, "search": outcome.details["seconds"]})
        for limit in dict.fromkeys(point["limit"] for point in points):
            here = {p["family"]: p for p in points if p["limit"] == limit}
            singles = {f: p["test_kl"]["value"] for f, p in here.items() if f != MIXED}
            best = min(singles, key=lambda family: singles[family])
            ours = here[MIXED]["test_kl"]["value"]
            ratios.append(
                ratio(f"{name}, {limit} B: test KL, mixed over {best!r}", ours, singles[best], 1,
                      least=False)
            )  # fmt: skip
        curves = [
            (family, sorted((p["bytes"], p["test_kl"]["value"]) for p in points
                            if p["family"] == family))
            for family in dict.fromkeys([MIXED, *(p["family"] for p in points)])
        ]  # fmt: skip
        page = render_search(outcome.details, curves)
        (OUT / f"mixed-{name.lower()}.html").write_text(page)
    return {"rows": rows, "ratios": ratios}


def main() -> None:
    """Run what is asked for, print and write the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", choices=[[], "speed", "mixed"], default=[])
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    warnings.simplefilter("ignore", laconic.errors.LaconicWarning)
    for name in chosen.names or ["speed", "mixed"]:
        torch.set_num_threads(chosen.threads)
        found = {"speed": speed, "mixed": mixed}[name]()
        for row in found["rows"]:
            print(row)
        for held in found["ratios"]:
            print(f"{held['name']}: {held['ratio']:.3f} (goal {held['goal']}, {held['met']})")
        file = OUT / {"speed": "search.json", "mixed": "mixed.json"}[name]
        told = {"benchmark": file.stem, **found, "environment": measure.environment()}
        file.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
