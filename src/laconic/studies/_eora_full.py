"""The EoRA study at the paper's scale: one 80 GB GPU, an 8 billion weight model, hours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from laconic import datasets, measure
from laconic.errors import ConfigError
from laconic.extras import require
from laconic.modelspec import load_model
from laconic.studies._eora_harness import Harness
from laconic.studies._eora_methods import BLOCKS, CORRECTIONS, corrections, gptq, sparsegpt
from laconic.studies.base import Conditions, Findings, Section
from laconic.studies.stand import Forms, Stand
from laconic.task import Task, TensorSplit
from laconic.weights.base import LayerStep

MODEL = "meta-llama/Meta-Llama-3-8B"
RANK = 128
LENGTH = 2048
COMPRESSION_WINDOWS = 128  # of WikiText-2
WINDOWS = 64  # for the corrections: some of the task, the rest of C4


@dataclass(frozen=True)
class Mix:
    """Calibration and judgement of one family of tasks.

    Args:
        windows: Windows of each task's training examples; C4 fills up to 64.
        shots: Solved examples in each prompt.
    """

    windows: Mapping[str, int]
    shots: int = 0


MIXES: dict[str, Mix] = {
    "arc": Mix({"arc_easy": 20, "arc_challenge": 10}),
    "mathqa": Mix({"mathqa": 20}),
    "gsm8k": Mix({"gsm8k": 32}, shots=5),
}
COMPRESSORS: dict[str, tuple[LayerStep, ...]] = {
    "GPTQ 4-bit": (gptq(4, where=BLOCKS),),
    "GPTQ 3-bit": (gptq(3, where=BLOCKS),),
    "SparseGPT 2:4": (sparsegpt(where=BLOCKS),),
    "SparseGPT 2:4 + GPTQ 4-bit": (sparsegpt(where=BLOCKS), gptq(4, where=BLOCKS)),
}
TASKS = tuple(task for mix in MIXES.values() for task in mix.windows)
# Points gained over no correction: Liu et al. 2024, abstract (GPTQ), and their report on 2:4.
GAINS = {
    ("GPTQ 3-bit", "arc_challenge"): 10.84,
    ("GPTQ 3-bit", "mathqa"): 6.74,
    ("GPTQ 3-bit", "gsm8k"): 11.45,
    ("SparseGPT 2:4", "arc_challenge"): 4.53,
    ("SparseGPT 2:4", "mathqa"): 3.48,
    ("SparseGPT 2:4", "gsm8k"): 11.83,
}


def order_name(compressor: str, task: str) -> str:
    """Return the name of the bar that asks for the paper's order of methods."""
    return f"order, {compressor}, {task}"


def gain_name(compressor: str, task: str) -> str:
    """Return the name of the bar that asks for the paper's gain."""
    return f"points from the paper's gain, {compressor}, {task}"


def run_full(conditions: Conditions) -> Findings:
    """Run the paper's protocol.

    Raises:
        ConfigError: The model's files are not on this machine; says how to get them.
        MissingExtraError: transformers or lm-eval is not installed.
    """
    folder = _model_folder()
    harness = Harness(conditions.device)
    model, tokenizer = load_model(folder)
    if tokenizer is None:
        raise ConfigError(
            f"study 'eora', scale full: {MODEL} came without its tokenizer. Download it whole."
        )

    encode = partial(_encode, tokenizer)

    corpus = datasets.load(
        "wikitext2", seed=conditions.seed, tokenizer=encode, length=LENGTH,
        calibration=COMPRESSION_WINDOWS,
    )  # fmt: skip
    corpus = replace(corpus, batch_size=1)
    stand = Stand(model, seed=conditions.seed, device=conditions.device)
    judge = _Judge(stand, harness, tokenizer, corpus)
    mixed = {
        family: replace(corpus, calibration=_mixed(mix, harness, encode, conditions.seed + 1))
        for family, mix in MIXES.items()
    }
    found = {name: _one(judge, steps, mixed) for name, steps in COMPRESSORS.items()}
    return Findings(_values(found), {"full": _section(found, judge.figures(stand.dense, TASKS))})


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _model_folder() -> str:
    hub = require("huggingface_hub", "hf", purpose="study 'eora' at full scale")
    require("transformers", "hf", purpose="study 'eora' at full scale")
    try:
        return str(hub.snapshot_download(MODEL, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"study 'eora', scale full: the files of {MODEL} are not in the Hugging Face cache "
            f"({type(error).__name__}). Accept its licence, run `hf download {MODEL}` (16 GB), "
            "then start again on a GPU of 80 GB with --device cuda; or use --scale small."
        ) from error


def _mixed(
    mix: Mix, harness: Harness, encode: Callable[[str], list[int]], seed: int
) -> TensorSplit:
    """Return 64 windows: the task's own, then web text."""
    own = [
        datasets.windows(harness.texts(task), encode, length=LENGTH, limit=count, name=task)
        for task, count in mix.windows.items()
    ]
    left = WINDOWS - sum(len(part) for part in own)
    web = datasets.load(
        "calibration-text", seed=seed, tokenizer=encode, length=LENGTH, calibration=left
    ).calibration_split()
    parts = [*own, web]
    return TensorSplit(
        {
            "input_ids": torch.cat(
                [p.tensors["input_ids"] for p in parts if isinstance(p, TensorSplit)]
            )
        }
    )


@dataclass(frozen=True)
class _Judge:
    stand: Stand
    harness: Harness
    tokenizer: Any
    corpus: Task

    def figures(self, forms: Forms, tasks: Sequence[str]) -> dict[str, float]:
        """Return the share of right answers by task, and WikiText-2's perplexity."""
        model = self.stand.put(forms)
        found: dict[str, float] = {}
        for mix in MIXES.values():
            chosen = [task for task in mix.windows if task in tasks]
            if chosen:
                found |= self.harness.accuracy(model, self.tokenizer, chosen, mix.shots)
        read = measure.evaluate(model, self.corpus, device=self.stand.device)
        return {**found, "wikitext2": read["perplexity"]["value"]}


_Table = dict[str, dict[str, float]]  # correction -> task -> figure


def _one(judge: _Judge, steps: Sequence[LayerStep], mixed: Mapping[str, Task]) -> _Table:
    """Compress once, then correct and judge for each family of tasks."""
    base = judge.stand.apply(steps, judge.corpus)
    found: _Table = {"none": judge.figures(base, TASKS)}
    for family, task in mixed.items():
        steps_of = corrections(RANK, where=BLOCKS)
        corrected = judge.stand.correct({"base": base}, steps_of, task)
        for name in CORRECTIONS:
            figures = judge.figures(corrected["base", name], tuple(MIXES[family].windows))
            read = figures.pop("wikitext2")
            found.setdefault(name, {}).update({**figures, f"wikitext2 ({family})": read})
    return found


def _values(found: Mapping[str, _Table]) -> dict[str, float]:
    values = {}
    for compressor, by in found.items():
        for task in TASKS:
            steps = pairwise(by[name][task] for name in ("none", *CORRECTIONS))
            values[order_name(compressor, task)] = max(less / more for less, more in steps)
    for (compressor, task), gain in GAINS.items():
        by = found[compressor]
        ours = 100 * (by["EoRA"][task] - by["none"][task])
        values[gain_name(compressor, task)] = abs(ours - gain)
    return values


def _section(found: Mapping[str, _Table], dense: Mapping[str, float]) -> Section:
    rows = [
        {"compressed by": compressor, "task": task, **{name: by[name][task] for name in by}}
        for compressor, by in found.items()
        for task in TASKS
    ]
    reads = {
        f"WikiText-2 perplexity, {compressor}, {name}, {key}": value
        for compressor, by in found.items()
        for name, figures in by.items()
        for key, value in figures.items()
        if key.startswith("wikitext2")
    }
    return Section(
        title=f"{MODEL}, rank {RANK}",
        about=(
            f"Share of right answers by lm-eval. Compression on up to {COMPRESSION_WINDOWS} "
            f"windows of {LENGTH} tokens of WikiText-2, corrections on {WINDOWS}: the task's "
            "training examples and C4. WikiText-2 is its validation part by articles, held-out "
            "articles judged; the paper reads the test part."
        ),
        rows=tuple(rows),
        facts={**{f"original, {task}": value for task, value in dense.items()}, **reads},
    )
