"""The EvoPress study on a toy: every part runs, and its figures are what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from laconic import zoo
from laconic.budget import depth_table
from laconic.errors import ConfigError, DataError
from laconic.studies import _evopress_full as full
from laconic.studies import evopress
from laconic.studies._evopress_bench import (
    Bench,
    Effort,
    Problem,
    compare,
    rank_correlation,
    with_average,
)
from laconic.studies._evopress_depth import every_state, study_depth
from laconic.studies.base import Conditions
from laconic.task import Task, TensorSplit

EFFORT = Effort(3, 4, ((2, 48), (1, 96)), (4, 48))
pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.LaconicWarning")


def text(count: int, seed: int) -> TensorSplit:
    source = torch.Generator().manual_seed(seed)
    return TensorSplit({"input_ids": torch.randint(1, 200, (count, 24), generator=source)})


@pytest.fixture(scope="module")
def bench() -> Bench:
    model = zoo.byte_llama(width=32, blocks=2, heads=2, seed=0).eval()
    with torch.no_grad():  # an untrained model says next to nothing: larger weights tell apart
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
    task = Task(kind="causal-lm", test=text(6, 2), calibration=text(16, 0), batch_size=8)
    return Bench.of(model, task, text(12, 1), text(6, 2), Conditions())


@pytest.fixture(scope="module")
def sparse(bench: Bench) -> Problem:
    return bench.sparsity(0.6)


@pytest.fixture(scope="module")
def few_bits(bench: Bench) -> Problem:
    return bench.bits((2, 3, 4), group=16, calibrated_at=3)


def test_texts_are_apart_and_first_takes_whole_documents(bench: Bench) -> None:
    assert bench.searched == 12
    assert set(bench.test.documents) == set(range(12, 18))
    sampler, everything = bench.first(96)
    assert everything.documents == (0, 1, 2, 3)
    assert sampler.tokens == everything.tokens == 96


def test_every_state_is_there_once() -> None:
    table = depth_table({f"{i}.{kind}": kind for i, kind in product(range(4), "am")})
    states = every_state(table, 2)
    assert len({s.choice for s in states}) == 36
    for state in states:
        kept = np.array(state.choice)
        assert (kept[0::2].sum(), kept[1::2].sum()) == (2, 2)


def test_depth_is_judged_against_brute_force(bench: Bench) -> None:
    found = study_depth(bench, drop=1, tokens=96, effort=EFFORT, seeds=2)
    rows = {row["chosen by"]: row for row in found.section.rows}
    assert rows["brute force"]["rank"] == 1
    assert all(row["over the optimum"] >= 1 for row in rows.values())
    assert found.ratios == sorted(
        rows[f"EvoPress, seed {seed}"]["over the optimum"] for seed in range(2)
    )
    assert found.missed == sum(ratio > 1 for ratio in found.ratios)
    assert found.best_score <= 1
    assert found.section.facts["assignments"] == 4
    most = found.section.facts["assignments judged by a search, most"]
    assert found.share >= most / 4


def test_solvers_keep_one_budget_and_random_judges_as_much(bench: Bench, sparse: Problem) -> None:
    compared = compare(bench, sparse, EFFORT)
    assert {found.cost for found in compared.found.values()} == {sparse.budget}
    evolved, drawn = compared.found["evolve"], compared.found["random"]
    rounds = [sum(s.candidates for g in f.history[1:] for s in g.stages) for f in (evolved, drawn)]
    assert rounds[0] == rounds[1]
    assert compared.ratio("uniform") == compared.test["evolve"] / compared.test["uniform"]
    rows = compared.rows("sparsity", bench)
    assert [row["solver"] for row in rows] == ["uniform", "random", "dp", "owl", "evolve"]
    assert len({tuple(row) for row in rows}) == 1


def test_bits_on_average_and_their_correlation(bench: Bench, few_bits: Problem) -> None:
    uneven = with_average(few_bits, 2.5)
    weights = sum(site.form.rows * site.form.cols for site in bench.sites())
    assert uneven.budget == int(2.5 * weights)
    compared = compare(bench, uneven, EFFORT, solvers=("dp", "evolve"))
    assert all(found.cost <= uneven.budget for found in compared.found.values())
    found = rank_correlation(bench, uneven, bench.judge(uneven.units), 20, 96)
    assert -1 <= found <= 1
    assert (np.diff(few_bits.table.errors, axis=1) < 0).all()  # more bits, less error


def test_small_scale_gives_a_value_for_each_bar(
    bench: Bench, sparse: Problem, few_bits: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "bits", lambda self, bits, **settings: few_bits)
    monkeypatch.setattr(Bench, "sparsity", lambda self, share: sparse)
    monkeypatch.setattr(evopress, "bench_of", lambda conditions: bench)
    small = replace(EFFORT, generations=1)
    for name, value in {
        "DROP": 1, "SEEDS": 2, "DEPTH_TOKENS": 48, "GROUP": 16, "STATES": 8,
        "DEPTH": small, "SHARES": small, "FINE": small,
    }.items():  # fmt: skip
        monkeypatch.setattr(evopress, name, value)
    result = evopress.STUDY.run(scale="small")
    assert len(result["bars"]) == len(evopress.STUDY.bars["small"])
    assert set(result["figures"]) == {"A", "B", "C", "D"}
    assert json.loads(json.dumps(result)) == result


def test_model_and_texts_of_the_small_scale(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    for name, value in {"TRAIN": 40, "SEARCH": 8, "TEST": 8, "CALIBRATION": 4}.items():
        monkeypatch.setattr(evopress, name, value)
    monkeypatch.setattr(evopress, "MODEL", replace(evopress.MODEL, width=16, heads=2, steps=2))
    bench = evopress.bench_of(Conditions())
    assert bench.sampler.tokens == 8 * evopress.LENGTH
    assert len(bench.task.calibration or ()) == 4
    searched = [bench.documents.examples[i]["input_ids"] for i in range(8)]
    tested = [bench.documents.examples[i]["input_ids"] for i in bench.test.documents]
    assert not any(torch.equal(a, b) for a in searched for b in tested)


def test_full_scale_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"fineweb_edu/sample\.jsonl"):
        evopress.STUDY.run(scale="full")
    monkeypatch.setattr(full, "fineweb_file", lambda: tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"Mistral-7B-v0\.3 are not in the Hugging Face cache"):
        evopress.STUDY.run(scale="full")


def test_full_bars_are_the_paper_s_ratios() -> None:
    bars = {bar.name: bar.limit for bar in full.BARS}
    assert len(bars) == 7
    assert bars[full.bar_name("3 bits of meta-llama/Meta-Llama-3-8B", "uniform")] == 0.633


def test_full_protocol_on_a_toy(
    bench: Bench,
    sparse: Problem,
    few_bits: Problem,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: object,
) -> None:
    class Toy:
        def encode(self, document: str, add_special_tokens: bool) -> list[int]:
            return list(document.encode())

    lines = [json.dumps({"text": f"story {i} of many words " * 4}) for i in range(40)]
    (tmp_path / "fineweb_edu").mkdir()  # type: ignore[operator]
    (tmp_path / "fineweb_edu" / "sample.jsonl").write_text("\n".join(lines))  # type: ignore[operator]
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    monkeypatch.setattr(full, "_model", lambda name: (bench.model, Toy()))
    monkeypatch.setattr(full._Bench, "read", lambda self, model: 5.0)
    for name, value in {
        "LENGTH": 24,
        "CALIBRATION": 8,
        "SEARCH": 8,
        "HELD_OUT": 4,
        "DROP": 1,
    }.items():
        monkeypatch.setattr(full, name, value)
    for name in ("DEPTH", "SPARSITY", "BITS"):
        monkeypatch.setattr(full, name, replace(EFFORT, generations=1))
    monkeypatch.setattr(full.datasets, "load", lambda *a, **k: bench.task)
    monkeypatch.setattr(full.Bench, "bits", lambda self, bits, **settings: few_bits)
    monkeypatch.setattr(full.Bench, "sparsity", lambda self, share: sparse)
    found = full.run_full(Conditions())
    assert set(found.values) == {bar.name for bar in full.BARS}
    assert set(found.values.values()) == {1.0}
