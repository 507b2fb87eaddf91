"""The DGC study: its bars, how its figures are formed, and one rank of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from laconic import gradients
from laconic.errors import CommunicationError
from laconic.gradients.launch import _free_port
from laconic.studies import Conditions, _dgc_digits, _dgc_rank, _dgc_ranks, dgc
from laconic.studies import _dgc_full as full
from laconic.studies._dgc_text import Plan, TextLSTM, Trainer, Words, columns, loss_of, pieces
from laconic.task import TensorSplit


def figures(method: str, seed: int, loss: float, sent: float = 100.0) -> dict[str, Any]:
    return {
        "method": method, "seed": seed, "loss": loss, "train_loss": loss, "ms": 1.0, "sent": sent,
        "received": 2 * sent, "step_bytes": 30, "dense_bytes": 1010, "vectors": 10, "digest": "d",
    }  # fmt: skip


def fake_train(plan: Plan, work: Sequence[tuple[str, int]], **options: Any) -> _dgc_ranks.Runs:
    losses = {"dense": 2.0, "DGC": 2.02, "dropping": 2.2}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for method, seed in work:
        sent = 100.0 if method == "dense" else 0.4
        run = figures(method, seed, losses.get(method, 2.1) + seed, sent)
        found.setdefault(method, []).append(run)
    return _dgc_ranks.Runs(found, True)


def test_bars_are_those_of_the_protocol() -> None:
    bars = {s: [(b.limit, b.strict) for b in dgc.STUDY.bars[s]] for s in ("small", "full")}
    assert bars["small"] == [
        (1.02, False), (0.005, False), (1.0, True), (0.5, False), (1.02, False)
    ]  # fmt: skip
    assert bars["full"] == [(1.01, False), (80.0, False), (0.43, False), (1.0, True)]
    assert (dgc.PLAN.momentum, dgc.PLAN.clip, dgc.PLAN.density) == (0.9, 0.25, 0.001)
    assert (dgc.PLAN.windows or 0) * 128 >= 1_000_000
    assert 4 * full.PLAN.warmup == pytest.approx(full._STEPS, abs=4)  # one epoch
    assert 883_109 // (full.RANKS * full.PLAN.batch * full.PLAN.length) == full._STEPS


def test_small_scale_takes_each_value_from_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dgc, "train", fake_train)
    monkeypatch.setattr(_dgc_digits, "SIZES", (64, 64, 10))
    monkeypatch.setattr(_dgc_digits, "EPOCHS", 1)
    found = dgc.run_small(Conditions())
    assert set(found.values) == {bar.name for bar in dgc.STUDY.bars["small"]}
    assert found.values[dgc._LOSS] == pytest.approx(2.52 / 2.5)  # seeds 0 and 1
    assert found.values[dgc._SENT] == pytest.approx(0.004)
    assert found.values[dgc._AHEAD] == pytest.approx(2.52 / 2.7)
    rows = {row["method"]: row for row in found.figures["A"].rows}
    assert list(rows) == ["dense", "DGC", "dropping", *_dgc_ranks.ABLATIONS]
    assert rows["DGC, no masking"]["over dense"] == pytest.approx(2.1 / 2.0)  # seed 0 alone
    assert rows["DGC"]["times fewer"] == pytest.approx(250)
    facts = found.figures["A"].facts
    assert facts["times fewer, matrices alone"] == pytest.approx(1000 / 20)
    tops = {row["method"]: row["top-1"] for row in found.figures["B"].rows}
    assert found.values[dgc._DIGITS] == pytest.approx(100 * (tops["dense"] - tops["DGC"]))


def test_full_scale_judges_perplexities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full, "train", fake_train)
    found = full.run_full(Conditions())
    assert set(found.values) == {bar.name for bar in full.BARS}
    assert found.values[full.PERPLEXITY] == pytest.approx(math.exp(0.02))
    assert found.values[full.SOUND] == pytest.approx(math.exp(2.0))
    assert found.figures["PTB"].rows[0]["perplexity"] == pytest.approx(math.exp(2.0))


def test_bytes_are_those_of_the_paper() -> None:
    mebibytes, section = _dgc_ranks.paper_bytes()
    # 4 matrices of LSTM and the embedding, each with a spare gap for every 65535 entries
    sizes = [6000 * 1500] * 4 + [10_000 * 1500]
    kept = [size // 1000 for size in sizes]
    vectors = 4 * (4 * 6000 + 10_000)
    least = 6 * sum(kept) + vectors
    spare = 6 * sum(math.ceil(size / 65535) for size in sizes)
    assert least <= mebibytes * 2**20 <= least + spare
    assert section.rows[0]["dense MiB"] == pytest.approx(194.68, abs=0.01)


def test_a_diverged_training_counts_as_infinite_and_is_told() -> None:
    runs = _dgc_ranks.Runs(
        {"dense": [figures("dense", 0, 2.0)], "DGC": [figures("DGC", 0, math.nan)]}, True
    )
    assert runs.over("DGC", "dense", "loss") == math.inf
    row = _dgc_ranks.rows_of(runs)[1]
    assert (row["test loss"], row["over dense"]) == ("diverged", "diverged")


def test_ranks_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    one = figures("dense", 0, 2.0)
    answers = [{"runs": [one]}, {"runs": [one | {"digest": "other"}]}]
    monkeypatch.setattr(_dgc_ranks, "run_ranks", lambda *a, **k: answers)
    assert not _dgc_ranks.train(dgc.PLAN, [("dense", 0)], ranks=2).same
    answers[1] = {"runs": [one]}
    assert _dgc_ranks.train(dgc.PLAN, [("dense", 0)], ranks=2).same
    answers[1] = {"runs": []}
    with pytest.raises(CommunicationError, match=r"1 trainings .* ranks finished \[1, 0\]"):
        _dgc_ranks.train(dgc.PLAN, [("dense", 0)], ranks=2)


def test_texts_are_read_from_the_top_to_the_bottom() -> None:
    text = columns(TensorSplit({"input_ids": torch.arange(24).view(4, 6)}), 2)
    assert text.T.tolist() == [list(range(12)), list(range(12, 24))]
    cut = list(pieces(text, 5))
    assert [len(inputs) for inputs, _ in cut] == [5, 5, 1]
    assert torch.equal(torch.cat([inputs for inputs, _ in cut]), text[:-1])
    assert torch.equal(torch.cat([targets for _, targets in cut]), text[1:])
    words = Words()
    assert words("a b\na") == [0, 1, 2, 0]
    assert words("b c") == [1, 3]


def test_the_loss_does_not_depend_on_where_the_text_is_cut() -> None:
    torch.manual_seed(0)
    model = TextLSTM(7, 5, layers=2, dropout=0.5)
    text = torch.randint(7, (23, 3))
    assert loss_of(model, text, 4) == pytest.approx(loss_of(model, text, 22), rel=1e-5)


def test_the_second_bias_is_held_at_zero_where_asked() -> None:
    model = TextLSTM(256, 128, both_biases=False)
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == 163_840 + 512
    assert not model.lstm.bias_hh_l0.any()
    assert sum(p.numel() for p in TextLSTM(50, 8).parameters()) == 8 * 50 + 2 * 256 + 2 * 32 + 50


@pytest.fixture
def rank_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))


def test_a_rank_runs_what_it_is_told(rank_alone: None, tmp_path: Path) -> None:
    plan = {
        "data": "stdlib-text", "model": {"width": 8, "both_biases": False}, "batch": 2,
        "length": 8, "lr": 1.0, "warmup": 1, "steps": 6, "windows": 20,
    }  # fmt: skip
    work = [["dense", 3], ["DGC", 3], ["DGC, no warm-up", 3]]
    (tmp_path / "spec").write_text(json.dumps({"plan": plan, "runs": work}))
    _dgc_rank.main(str(tmp_path / "spec"), str(tmp_path / "out"))
    runs = json.loads((tmp_path / "out").read_text())["runs"]
    assert [[run["method"], run["seed"]] for run in runs] == work
    assert {run["steps"] for run in runs} == {6}
    assert all(0 < run["loss"] < 6 for run in runs)
    assert len({run["digest"] for run in runs}) == 3
    assert not dist.is_initialized()


def test_methods_are_set_as_the_tables_say(rank_alone: None) -> None:
    split = TensorSplit({"input_ids": torch.randint(9, (40, 16))})
    plan = Plan(
        data="", model={"width": 50}, batch=2, length=8, lr=1.0, warmup=1, epochs=2, steps=3
    )
    dist.init_process_group("gloo")
    try:
        trainers = {name: Trainer(plan, (split, split, 9), name, seed=0) for name in full.RUNS}
        figures = trainers["DGC"].run()
    finally:
        dist.destroy_process_group()
    assert isinstance(trainers["dropping"].state, gradients.TopK)
    assert trainers["dropping"].optimizer.param_groups[0]["momentum"] == 0.9
    assert [trainers[name].clips for name in full.RUNS] == [True, False, True, *[False] * 3]
    states = {name: t.state for name, t in trainers.items() if name.startswith("DGC")}
    told = {n: (s.masking, s.clip_norm, s.warmup.epochs) for n, s in states.items()}
    assert told == {
        "DGC": (True, 0.25, 4),
        "DGC, no masking": (False, 0.25, 4),
        "DGC, no clipping": (True, None, 4),
        "DGC, no warm-up": (True, 0.25, 0),
    }
    assert {(s.clip_scope, s.nesterov, s.density) for s in states.values()} == {
        ("model", True, 0.001)
    }
    assert figures["steps"] == 6
    assert len(trainers["DGC"].valid) == 320 // 20


def test_the_committed_result_is_of_these_bars() -> None:
    path = Path(__file__).resolve().parents[2] / "results/studies/dgc.small.json"
    saved = json.loads(path.read_text())
    assert [(bar["name"], bar["limit"]) for bar in saved["bars"]] == [
        (bar.name, bar.limit) for bar in dgc.STUDY.bars["small"]
    ]
    facts = saved["figures"]["A"]["facts"]
    assert facts["weights bit-equal on all ranks after every training"] == "yes"
