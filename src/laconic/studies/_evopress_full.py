"""The EvoPress study at the paper's scale: models of 7 to 8 billion weights, GPUs, many hours."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from laconic import datasets, measure
from laconic.budget import depth_table, evolve
from laconic.budget.table import Assignment
from laconic.errors import ConfigError, DataError
from laconic.extras import require
from laconic.modelspec import load_model
from laconic.search.evaluator import ModelEvaluator
from laconic.search.units import PartUnit
from laconic.studies._evopress_bench import Bench, Effort, compare, with_average
from laconic.studies.base import Bar, Conditions, Findings, Section
from laconic.task import Task, TensorSplit
from laconic.weights.depth.scores import SCORES, choose_blocks
from laconic.weights.depth.subblocks import sub_blocks_of

MISTRAL, LLAMA = "mistralai/Mistral-7B-v0.3", "meta-llama/Meta-Llama-3-8B"
LENGTH = 8192
CALIBRATION, SEARCH, HELD_OUT = 1024, 64, 64  # windows: 8M, 524 288 and 524 288 tokens
DROP = 8  # of 32
_ROOM = 1.03  # over the paper's ratio

# Sieberling et al. 2024, table of settings.
DEPTH = Effort(128, 32, ((2, 2048), (1, 32768)), (64, 2048))  # k (n - k) / 1.5 generations
SPARSITY = Effort(400, 64, ((8, 2048), (2, 16384), (1, 65536)), (64, 2048))
BITS = Effort(150, 128, ((16, 2048), (4, 16384), (1, 131072)), (64, 2048))

# WikiText-2 perplexities of the paper: EvoPress, then its rivals.
PAPER: dict[str, dict[str, float]] = {
    f"25 % of the depth of {MISTRAL}": {
        "EvoPress": 8.66, "shortgpt": 43.26, "sliding-window": 33.75, "weight-subcloning": 43.26,
        "shortened-llama": 14.94,
    },
    f"70 % sparsity of {MISTRAL}": {"EvoPress": 14.42, "uniform": 23.08, "owl": 17.22},
    f"3 bits of {LLAMA}": {"EvoPress": 7.49, "uniform": 12.19},
}  # fmt: skip
_DEPTH, _SPARSITY, _BITS = PAPER


def bar_name(problem: str, rival: str) -> str:
    """Return the name of the bar that holds EvoPress against a rival."""
    return f"{problem}: perplexity over {rival}"


BARS = tuple(
    Bar(bar_name(problem, rival), round(_ROOM * figures["EvoPress"] / figure, 3))
    for problem, figures in PAPER.items()
    for rival, figure in figures.items()
    if rival != "EvoPress"
)


def run_full(conditions: Conditions) -> Findings:
    """Run the paper's protocol for depth, sparsity and bits.

    Raises:
        ConfigError: A model's files are not on this machine; says how to get them.
        DataError: The text is not there; says where to put it.
        MissingExtraError: transformers is not installed.
    """
    text = fineweb_file()
    found: dict[str, dict[str, float]] = {}
    bench = _Bench.of(MISTRAL, text, conditions)
    found[_DEPTH] = _depth(bench)
    found[_SPARSITY] = _sparsity(bench)
    del bench
    found[_BITS] = _bits(_Bench.of(LLAMA, text, conditions))
    values = {
        bar_name(problem, rival): figures["EvoPress"] / figure
        for problem, figures in found.items()
        for rival, figure in figures.items()
        if rival not in ("EvoPress", "original")
    }
    return Findings(values, {"full": section(found)})


def fineweb_file() -> Path:
    """Return the file of web text that calibration and search read.

    Raises:
        DataError: It is not there; says where to put it.
    """
    path = Path(os.environ.get("LACONIC_DATA", "."), "fineweb_edu", "sample.jsonl")
    if not path.is_file():
        raise DataError(
            "study 'evopress', scale full: fineweb_edu/sample.jsonl is not in the data folder. Put "
            'documents of Fineweb-Edu there, a line {"text": ...} each, 10 million tokens or more, '
            "and name the folder in LACONIC_DATA; or use --scale small."
        )
    return path


def documents(path: Path) -> Iterator[str]:
    """Yield the documents of a file of lines ``{"text": ...}``."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield str(json.loads(line)["text"])


@dataclass
class _Bench:
    """A bench with what reads WikiText-2."""

    bench: Bench
    corpus: Task

    @classmethod
    def of(cls, name: str, text: Path, conditions: Conditions) -> _Bench:
        """Load a model by its hub name, and cut WikiText-2 into its three parts."""
        model, tokenizer = _model(name)

        def encode(document: str) -> list[int]:
            return list(tokenizer.encode(document, add_special_tokens=False))

        windows = datasets.windows(
            documents(text), encode, length=LENGTH, limit=CALIBRATION + SEARCH + HELD_OUT
        )
        ids, ends = windows.tensors["input_ids"], (CALIBRATION, CALIBRATION + SEARCH)
        calibration, search, held_out = (
            TensorSplit({"input_ids": part})
            for part in (ids[: ends[0]], ids[ends[0] : ends[1]], ids[ends[1] :])
        )
        corpus = datasets.load(
            "wikitext2", seed=conditions.seed, tokenizer=encode, length=LENGTH, calibration=1
        )
        corpus = replace(corpus, batch_size=1)
        task = replace(corpus, train=None, test=held_out, calibration=calibration)
        return cls(Bench.of(model, task, search, held_out, conditions), corpus)

    def perplexity(self, judge: ModelEvaluator, assignment: Assignment) -> float:
        """Return WikiText-2's perplexity of an assignment."""
        judge.apply(assignment.choice)
        return self.read(judge.model)

    def read(self, model: nn.Module) -> float:
        """Return WikiText-2's perplexity of a model."""
        device = self.bench.conditions.device
        found = measure.evaluate(model, self.corpus, device=device)
        return float(found["perplexity"]["value"])


def _model(name: str) -> tuple[nn.Module, Any]:
    hub = require("huggingface_hub", "hf", purpose="study 'evopress' at full scale")
    require("transformers", "hf", purpose="study 'evopress' at full scale")
    try:
        folder = str(hub.snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"study 'evopress', scale full: the files of {name} are not in the Hugging Face cache "
            f"({type(error).__name__}). Accept its licence, run `hf download {name}` (16 GB), then "
            "start again on a GPU of 80 GB with --device cuda; or use --scale small."
        ) from error
    return load_model(folder)


def _depth(at: _Bench) -> dict[str, float]:
    bench = at.bench
    parts = sub_blocks_of(bench.model)
    table = depth_table({part.name: part.kind for part in parts})
    kept = {kind: len(table.members(kind)) - DROP for kind in set(table.groups or ())}
    judge = bench.judge([PartUnit(part) for part in parts])
    found = evolve(
        table, judge, bench.sampler, budget=kept, generations=DEPTH.generations,
        offspring=DEPTH.offspring, stages=DEPTH.stages, initial=DEPTH.initial,
        seed=bench.conditions.seed, progress=bench.conditions.progress,
    )  # fmt: skip
    figures = {"original": at.read(judge.original)}
    figures["EvoPress"] = at.perplexity(judge, found.assignment)
    for score in SCORES:
        gone = set(choose_blocks(bench.model, bench.task, count=DROP, score=score))
        choice = [int(part.block not in gone) for part in parts]
        figures[score] = at.perplexity(judge, table.assignment(choice))
    return figures


def _sparsity(at: _Bench) -> dict[str, float]:
    problem = at.bench.sparsity(0.7)
    found = compare(at.bench, problem, SPARSITY, solvers=("uniform", "owl", "evolve")).found
    judge = at.bench.judge(problem.units)
    figures = {name: at.perplexity(judge, result.assignment) for name, result in found.items()}
    return {"EvoPress": figures.pop("evolve"), **figures}


def _bits(at: _Bench) -> dict[str, float]:
    problem = with_average(at.bench.bits((2, 3, 4, 5, 6), group=128, calibrated_at=3), 3.0)
    found = compare(at.bench, problem, BITS, solvers=("uniform", "evolve")).found
    judge = at.bench.judge(problem.units)
    figures = {name: at.perplexity(judge, result.assignment) for name, result in found.items()}
    return {
        "original": at.read(judge.original), "EvoPress": figures["evolve"],
        "uniform": figures["uniform"],
    }  # fmt: skip


def section(found: Mapping[str, Mapping[str, float]]) -> Section:
    """Return our perplexities beside the paper's."""
    rows = [
        {"problem": problem, "chosen by": name, "ours": value, "paper": PAPER[problem].get(name)}
        for problem, figures in found.items()
        for name, value in figures.items()
    ]
    return Section(
        title="The paper's models",
        about=(
            "Perplexity on WikiText-2, its validation part by articles; the paper reads the test "
            "part. Calibration on 8M tokens of Fineweb-Edu, searches on 524 288 tokens of other "
            "documents of it. Bars are the paper's ratios and 3 %."
        ),
        rows=tuple(rows),
    )
