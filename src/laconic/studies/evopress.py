"""EvoPress: an evolutionary search on the whole model's output beats sums of layer errors.

Small scale, on a byte-level Llama trained here: (A) which parts to drop, where all 3136 answers
are judged too; (B) how sparse each layer; (C) how many bits for each layer, at a budget that no
single bit-width meets and at one that does; (D) how well layer errors foretell the divergence.
Full scale: the paper's models and settings. Bars are the paper's direction with its margins on a
model of this size, set before the run.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from laconic import datasets
from laconic.errors import DataError
from laconic.studies import _evopress_full as full
from laconic.studies._evopress_bench import (
    Bench,
    Compared,
    Effort,
    Problem,
    compare,
    rank_correlation,
    with_average,
)
from laconic.studies._evopress_depth import DepthFindings, study_depth
from laconic.studies.base import Bar, Conditions, Findings, Section, Study
from laconic.studies.byte_llama import Recipe, trained
from laconic.task import TensorSplit

MODEL = Recipe("evopress", width=64, blocks=8, heads=4, steps=1200)
LENGTH = 96  # tokens in a window
TRAIN, SEARCH, TEST, CALIBRATION = 12288, 1024, 256, 64  # windows
DROP, SEEDS, DEPTH_TOKENS = 3, 5, 4096
SPARSITY = 0.7
BITS, GROUP, CALIBRATED_AT = (2, 3, 4), 32, 3
UNEVEN, EVEN = 2.5, 3.0  # average bits: between two widths, and at one
STATES = 200

DEPTH = Effort(
    generations=20, offspring=32, stages=((2, 1024), (1, DEPTH_TOKENS)), initial=(32, 1024)
)
SHARES = Effort(generations=40, offspring=16, stages=((4, 1024), (1, 8192)), initial=(16, 1024))
FINE = Effort(generations=30, offspring=16, stages=((4, 2048), (1, 16384)), initial=(16, 1024))

_NEAR = "A. KL over the optimum's, second worst of 5 seeds"
_MISSED = "A. seeds of 5 that miss the optimum"
_SHARE = "A. share of brute force that a search takes, most"
_SCORES = "A. optimum over the best one-shot score"
_SPARSE = {
    "uniform": "B. sparsity: KL over uniform",
    "owl": "B. sparsity: KL over OWL",
    "dp": "B. sparsity: KL over summed layer errors",
    "random": "B. sparsity: KL over random search",
}
_UNEVEN = {
    "random": "C. 2.5 bits: KL over random search",
    "dp": "C. 2.5 bits: KL over summed layer errors",
}
_EVEN = "C. 3 bits: KL over uniform"
_SMALL = (
    Bar(_NEAR, 1.02),
    Bar(_MISSED, 0),
    Bar(_SHARE, 0.30),
    Bar(_SCORES, 1.0),
    Bar(_SPARSE["uniform"], 0.90),
    Bar(_SPARSE["owl"], 0.95),
    Bar(_SPARSE["dp"], 1.0, strict=True),
    Bar(_SPARSE["random"], 1.0, strict=True),
    Bar(_UNEVEN["random"], 0.90),
    Bar(_UNEVEN["dp"], 1.0),
    Bar(_EVEN, 1.0),
)


def bench_of(conditions: Conditions) -> Bench:
    """Return the model trained here, with text of other files to search and to judge on."""
    task = datasets.load(
        "stdlib-text", seed=conditions.seed, length=LENGTH, limit=TRAIN + SEARCH, test_limit=TEST,
        calibration=CALIBRATION,
    )  # fmt: skip
    if not isinstance(task.train, TensorSplit):
        raise DataError("study 'evopress': the standard library's text is not held in memory.")
    windows = task.train.tensors["input_ids"]
    # Windows are in the order of files: what comes after the training windows is of other files.
    train = TensorSplit({"input_ids": windows[:TRAIN]})
    search = TensorSplit({"input_ids": windows[TRAIN:]})
    source = torch.Generator().manual_seed(conditions.seed)
    drawn = torch.randperm(len(train), generator=source)[:CALIBRATION]
    calibration = TensorSplit({"input_ids": train.tensors["input_ids"][drawn]})
    task = replace(task, train=None, calibration=calibration, batch_size=32)
    model = trained(MODEL, train, conditions)
    return Bench.of(model, task, search, task.test, conditions)


def run_small(conditions: Conditions) -> Findings:
    """Run the four parts on the model trained here."""
    bench = bench_of(conditions)
    depth = study_depth(bench, drop=DROP, tokens=DEPTH_TOKENS, effort=DEPTH, seeds=SEEDS)
    sparse = bench.sparsity(SPARSITY)
    shares = compare(bench, sparse, SHARES)
    bits = bench.bits(BITS, group=GROUP, calibrated_at=CALIBRATED_AT)
    uneven, even = with_average(bits, UNEVEN), with_average(bits, EVEN)
    between = compare(bench, uneven, SHARES, solvers=("random", "dp", "evolve"))
    at_one = compare(bench, even, FINE, solvers=("uniform", "dp", "evolve"))
    values = {
        **_depth_values(depth),
        **{name: shares.ratio(rival) for rival, name in _SPARSE.items()},
        **{name: between.ratio(rival) for rival, name in _UNEVEN.items()},
        _EVEN: at_one.ratio("uniform"),
    }
    sections = {
        "A": depth.section,
        "B": _section("B. Sparsity for each layer", f"{SPARSITY:.0%} zeros", shares, bench),
        "C": _bits_section(between, at_one, bench),
        "D": _correlations(bench, {f"{SPARSITY:.0%} zeros": sparse, f"{UNEVEN} bits": uneven}),
    }
    return Findings(values, sections)


def _depth_values(depth: DepthFindings) -> dict[str, float]:
    return {
        _NEAR: depth.ratios[-2],
        _MISSED: depth.missed,
        _SHARE: depth.share,
        _SCORES: depth.best_score,
    }


def _about(bench: Bench) -> str:
    return (
        f"Byte-level Llama trained here ({MODEL.blocks} blocks, width {MODEL.width}); linear "
        f"layers of the blocks. Mean KL(original, compressed) in nats a byte, on "
        f"{bench.test.tokens} bytes of files that neither training nor any search saw, "
        f"and on all the search text ({bench.sampler.tokens} bytes). "
    )


def _section(title: str, problem: str, compared: Compared, bench: Bench) -> Section:
    about = (
        "SparseGPT, all levels of a layer from the same Gram matrix; levels are equally many "
        "weights apart, so that every switch keeps the count. Random search judges as many "
        "assignments on as much text as EvoPress; OWL is the best of 20 settings on search text."
    )
    return Section(title, _about(bench) + about, tuple(compared.rows(problem, bench)))


def _bits_section(between: Compared, at_one: Compared, bench: Bench) -> Section:
    about = (
        f"GPTQ at {', '.join(map(str, BITS))} bits, asymmetric, groups of {GROUP}; switches "
        "between layers of one size. Bits are those of codes; scales add the same to every answer."
    )
    rows = [
        *between.rows(f"{UNEVEN} bits on average", bench),
        *at_one.rows(f"{EVEN:g} bits on average", bench),
    ]
    return Section("C. Bits for each layer", _about(bench) + about, tuple(rows))


def _correlations(bench: Bench, problems: dict[str, Problem]) -> Section:
    rows = []
    for name, problem in problems.items():
        judge = bench.judge(problem.units)
        found = rank_correlation(bench, problem, judge, STATES, SHARES.stages[-1][1])
        rows.append({"problem": name, "rank correlation": found})
    about = (
        f"Spearman's correlation between the sum of relative layer errors and the KL, over "
        f"{STATES} random assignments of equal cost."
    )
    return Section("D. Do layer errors foretell the divergence?", about, tuple(rows))


STUDY = Study(
    name="evopress",
    claim=(
        "Errors of layers do not add up, so an evolutionary search on the divergence of the whole "
        "model finds better sparsities, bit-widths and parts to drop at an equal budget than "
        "uniform levels, scores and sums of layer errors."
    ),
    source="Sieberling et al. 2024, EvoPress, arXiv 2410.14649",
    bars={"small": _SMALL, "full": full.BARS},
    protocols={"small": run_small, "full": full.run_full},
)
CLAIM, SOURCE, run = STUDY.claim, STUDY.source, STUDY.run
