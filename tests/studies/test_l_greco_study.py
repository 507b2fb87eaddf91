"""The L-GreCo study: its bars, the pieces of its three parts, and its full protocol."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from laconic import datasets, zoo
from laconic.budget import LevelTable, cheapest
from laconic.errors import ConfigError, DataError, LaconicWarning
from laconic.gradients import LoopbackGroup, PowerSGD
from laconic.studies import Conditions, Section, l_greco
from laconic.studies import _l_greco_full as full
from laconic.studies import _l_greco_models as models
from laconic.studies import _l_greco_probes as probes
from laconic.studies import _l_greco_rank as rank
from laconic.studies import _l_greco_ranks as ranks
from laconic.studies import _l_greco_rivals as rivals
from laconic.studies import _l_greco_solver as solver
from laconic.studies import _l_greco_train as train

INF = float("inf")
# Least bytes within an error of 6 are (1, 1): 4 + 4 bytes, error 3 + 3.
TABLE = LevelTable(
    ["a", "b"], ["0", "1", "2"], [[1, 4, 9], [2, 4, 0]], [[8.0, 3.0, 0.0], [6.0, 3.0, INF]]
)


def tiny(**changes: Any) -> probes.Bench:
    task = datasets.load("digits", limit=128)
    given: dict[str, Any] = {
        "title": "B", "about": "digits", "make": lambda: zoo.mlp((64, 32, 10)), "task": task,
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "batch": 32, "moments": (2, 12),
        "rank": 4, "density": 0.1,
    }  # fmt: skip
    return probes.Bench(**given | changes)


def test_bars_are_those_of_the_protocol() -> None:
    bars = {bar.name: (bar.limit, bar.strict) for bar in l_greco.STUDY.bars["small"]}
    assert len(bars) == 30
    ways = product(("Transformer", "residual net"), ("PowerSGD", "TopK", "QSGD"))
    for net, family in ways:
        assert bars[f"(b) {net}, {family}: bytes over uniform"] == (1 / 1.2, False)
        for rival in ("greedy", "size-proportional"):
            assert bars[f"(b) {net}, {family}: bytes over {rival}, worst moment"] == (1.0, False)
    assert bars["(b) Transformer: error over uniform, by table, worst case"] == (1.0, False)
    assert bars["(c) loss of L-GreCo over uniform"] == (1.01, False)
    assert bars["(c) bytes of L-GreCo over uniform"] == (1 / 1.2, False)
    assert bars["(c) loss of L-GreCo over random errors"] == (1.0, True)
    assert bars["(a) seconds for 300 sites, 16 levels"] == (1.0, True)
    assert all(bars[n] == (0, False) for n in bars if n.startswith("(a) instances"))


def test_brute_force_by_hand() -> None:
    assert solver.brute_force(TABLE, 6.0) == 8
    assert solver.brute_force(TABLE, 5.9) == 13
    assert solver.brute_force(TABLE, 14.0) == 3
    assert solver.brute_force(TABLE, 2.9) == INF
    # In units of 3.1, errors of 3 and 3 become 1 and 1, and those of 6 and 8 become 2 and 3.
    assert solver.brute_force(TABLE, 6.2, units=2) == 8
    assert solver.brute_force(TABLE, 6.2, units=1) == 11, "0 and 3 are the only pair of one unit"


def test_part_a_counts_what_a_faulty_solver_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "INSTANCES", 12)
    monkeypatch.setattr(solver, "LARGE", (20, 4))
    good = solver.study_solver(Conditions())
    assert (good.over, good.dearer, good.far, good.falling) == (0, 0, 0, 0)
    assert good.section.rows[1]["count"] == 12

    def lax(table: LevelTable, limit: float, **options: Any) -> Any:
        return cheapest(table, INF)

    def timid(table: LevelTable, limit: float, **options: Any) -> Any:
        return cheapest(table, float(table.errors.min(axis=1).sum()))

    monkeypatch.setattr(solver, "cheapest", lax)
    assert solver.study_solver(Conditions()).over > 3
    monkeypatch.setattr(solver, "cheapest", timid)
    bad = solver.study_solver(Conditions())
    assert min(bad.dearer, bad.far) > 3


def test_rivals_by_hand() -> None:
    bought = rivals.greedy(TABLE, 6.0)  # a: 5/3 an error's byte, then b: 3/2
    assert bought is not None
    assert (bought.choice, bought.cost) == ((1, 1), 8)
    assert rivals.greedy(TABLE, 2.0) is None
    # Shares are 1, 4, 9 of 10 and 2, 4 of 4: at 9/10 a has its last level, b its first.
    for limit, choice in ((6.0, (2, 0)), (5.9, (2, 1))):
        even = rivals.proportional(TABLE, [10, 4], limit)
        assert even is not None
        assert even.choice == choice
    assert rivals.proportional(TABLE, [10, 4], 2.0) is None
    priced = rivals.lagrangian(TABLE, 6.0)
    assert priced is not None
    assert priced.choice == (1, 1)
    source = np.random.default_rng(0)
    drawn = [rivals.at_random(TABLE, 8, source) for _ in range(20)]
    assert {found.choice for found in drawn} == {(1, 1)}, "nothing else fills 8 bytes"
    assert rivals.at_random(TABLE, 3, source).choice == (0, 0)


def test_probes_of_a_small_net() -> None:
    found = probes.study_probes(tiny())
    assert [(row["family"], row["step"]) for row in found.rows] == [
        (family, step) for step in (2, 12) for family in probes.FAMILIES
    ]
    for row in found.rows:
        assert row["bytes"] <= row["uniform"]
        assert row["error by table"] <= 1
        assert row["error as run"] == pytest.approx(row["error by table"], rel=0.03)
    rows = [row for row in found.rows if row["family"] == "TopK"]
    expected = sum(r["bytes"] for r in rows) / sum(r["uniform"] for r in rows)
    assert found.ratio("TopK", "uniform") == expected
    assert found.ratio("TopK", "greedy") == max(r["bytes"] / r["greedy"] for r in rows)
    assert found.section.facts["bytes of dense tensors beside those of TopK"] == 4 * (32 + 10)


def test_a_probe_is_the_mean_of_ten_gradients_with_error_memory() -> None:
    bench = tiny(moments=(12,), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    model = bench.make().train()
    makers = {"TopK": probes.states(bench, model)["TopK"]}
    [(step, _, _, probe)] = list(probes._walk(bench, model, makers))
    state, sums = makers["TopK"](True), dict[str, Tensor]()
    batches = probes.endless(bench.task, 32, probes.generator_for(0, "batches"))
    for at in range(1, 13):
        batch = next(batches)
        loss = bench.task.compute_loss(bench.task.forward(model, batch), batch)
        pairs = zip(state.named, torch.autograd.grad(loss, list(model.parameters())), strict=True)
        grads = dict(pairs)
        for name, grad in grads.items() if at > 2 else ():
            sums[name] = sums.get(name, 0) + state.corrected(name, grad) / 10
        probes._lone(state, grads)
    assert step == 12
    for name in state.named:
        assert torch.allclose(probe[name], sums[name], atol=1e-6)
    assert any(float(m["residual"].norm()) > 0 for m in state.remembered().values())


def test_random_errors_set_what_the_solver_finds_once() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    made = []
    for seed in (0, 0, 1):
        state = PowerSGD(model, rank=8, transport=LoopbackGroup(1).transport(0))
        made.append((state, train.RandomErrors(state, first=1, gamma=0.5, beta=2.0, seed=seed)))
    assert made[0][1].values == made[1][1].values
    assert len({tuple(chooser.values.values()) for _, chooser in made}) == 2
    state, chooser = made[0]
    zeros = {name: torch.zeros_like(p) for name, p in state.named.items()}
    probes._lone(state, zeros)
    assert state.own_parameters() == {}
    probes._lone(state, zeros)
    assert state.own_parameters() == chooser.values


def small_job(**changes: Any) -> dict[str, Any]:
    return l_greco.job(Conditions()) | {
        "task": {"name": "digits", "options": {"limit": 64}}, "batch": 16, "steps": 4,
        "model": {"name": "conv-bn-residual"}, "period": 2, "probe_steps": 1, "seeds": [0],
        "optimizer": {"kind": "sgd", "lr": 0.1, "fall": {"factor": 0.2, "at": [0.5]}},
    } | changes  # fmt: skip


def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run jobs as the only rank, in this process."""
    told = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)

    def here(spec: dict[str, Any], *, ranks: int, timeout_s: float) -> Any:
        (tmp_path / "spec").write_text(json.dumps(spec))
        rank.main(str(tmp_path / "spec"), str(tmp_path / "out"))
        assert not dist.is_initialized()
        found = json.loads((tmp_path / "out").read_text())
        for runs in found.values():
            for run in runs:
                run["bytes"] = run["bytes"] or 1.0  # a lone rank hands nothing over
        return found

    monkeypatch.setattr(ranks, "start", here)


def test_a_rank_trains_with_every_variant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone(monkeypatch, tmp_path)
    runs = ranks.start(small_job(), ranks=1, timeout_s=60.0)
    assert list(runs) == ["dense", "fp16", l_greco._UNIFORM, l_greco._OURS, l_greco._RANDOM]
    periods = runs[l_greco._OURS][0]["periods"]
    assert [(period["step"], period["planned"]) for period in periods] == [(2, True)]
    assert periods[0]["bytes"] <= periods[0]["uniform_bytes"]
    made = ranks.table("C", "about", runs)
    assert isinstance(made, Section)
    assert [row["exchange"] for row in made.rows] == list(runs)
    assert made.rows[0]["top1"] == pytest.approx(runs["dense"][0]["top1"], abs=1e-4)
    assert set(made.facts) == {
        f"{l_greco._OURS}: milliseconds a choice",
        f"{l_greco._OURS}: share of the time spent choosing",
    }


def test_schedules() -> None:
    model = nn.Linear(2, 2)
    falls = {"factor": 0.2, "at": [0.3, 0.6, 0.8]}
    for fall, expected in ((falls, [1, 0.2, 0.04, 0.008]), ("cosine", [1, 0.5, 0.0955, 0.0])):
        told = {"optimizer": {"kind": "sgd", "lr": 1.0, "fall": fall}, "steps": 10}
        optimizer, schedule = train._optimizer(told, model)
        seen = []
        for step in range(11):
            if step in (0, 5, 8, 10) if fall == "cosine" else step in (2, 3, 6, 8):
                seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert seen == pytest.approx(expected, abs=1e-4)


def test_the_small_scale_gives_a_value_for_every_bar(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone(monkeypatch, tmp_path)
    monkeypatch.setattr(solver, "INSTANCES", 3)
    monkeypatch.setattr(solver, "LARGE", (10, 4))
    monkeypatch.setattr(l_greco, "benches", lambda conditions: (tiny(moments=(2,)),) * 2)
    job = small_job(steps=3)
    monkeypatch.setattr(l_greco, "job", lambda conditions: job)
    result = l_greco.STUDY.run()
    assert len(result["bars"]) == 30
    assert list(result["figures"]) == ["A", "Transformer", "residual net", "C"]


def test_the_full_protocol_runs_as_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [v["label"] for v in full.variants()][2:4] == ["PowerSGD, uniform", "PowerSGD, L-GreCo"]
    assert full.OPTIMIZER == {
        "kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
        "fall": {"factor": 0.2, "at": [0.3, 0.6, 0.8]},
    }  # fmt: skip
    assert (full.RANKS, full.BATCH, full.EPOCHS, full.START) == (8, 128, 200, 1000)
    alone(monkeypatch, tmp_path)
    monkeypatch.setattr(full, "MODEL", {"name": "conv-bn-residual"})
    monkeypatch.setattr(full, "DATA", {"name": "digits", "options": {"limit": 128}})
    monkeypatch.setattr(full, "IMAGES", 1280)
    monkeypatch.setattr(full, "EPOCHS", 1)
    monkeypatch.setattr(full, "SEEDS", 1)
    monkeypatch.setattr(full, "START", 0)
    result = l_greco.STUDY.run(scale="full")
    assert [bar["name"] for bar in result["bars"]] == [bar.name for bar in full.BARS]
    assert len(result["figures"]["C"]["rows"]) == 9


def test_without_cifar_the_figures_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    load = datasets.load

    def missing(name: str, **options: Any) -> Any:
        if name == "cifar10":
            raise DataError("no images here")
        return load(name, **options | {"limit": 64})

    monkeypatch.setattr(datasets, "load", missing)
    with pytest.warns(LaconicWarning, match=r"digits in the place of ResNet-20: no images here"):
        transformer, residual = l_greco.benches(Conditions())
    assert "FALLBACK" in residual.about
    assert "FALLBACK" not in transformer.about
    assert residual.task.name == "digits"
    assert residual.make()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_reads_all_of_cifar100_or_says_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"cifar-100-binary\.tar\.gz.*train\.bin"):
        full.run_full(Conditions())
    rows = np.arange(4 * 3074, dtype=np.int64).reshape(4, 3074) % 256
    rows[:, 1] = [70, 1, 0, 99]
    file = tmp_path / "part.bin"
    file.write_bytes(rows.astype(np.uint8).tobytes())
    split = models._read(file, 4)
    assert split.tensors["y"].tolist() == [70, 1, 0, 99], "the fine label is the second byte"
    x = split.tensors["x"]
    assert x.shape == (4, 3, 32, 32)
    assert float(x[1, 2, 31, 31]) == pytest.approx((rows[1, -1] / 255 - 0.4409) / 0.2762, abs=1e-5)
    with pytest.raises(DataError, match=r"part\.bin: 12296 bytes, not 15370"):
        models._read(file, 5)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data 'mars'.*stdlib-text"):
        models.build_task({"name": "mars"})
    with pytest.raises(ConfigError, match=r"network 'mars'.*byte-llama, resnet18"):
        models.build_model({"name": "mars"}, 0)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    task = datasets.load("digits", limit=20)
    with pytest.raises(DataError, match="20 training examples are fewer than a batch of 32"):
        next(probes.endless(task, 32, torch.Generator()))
    whole = probes.endless(task, 8, torch.Generator().manual_seed(0))
    assert [len(next(whole)["y"]) for _ in range(5)] == [8] * 5, "short batches are left out"
