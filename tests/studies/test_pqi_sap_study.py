"""The PQI study: its bars, its parts on small data, and what was committed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from laconic import datasets, zoo
from laconic.errors import DataError, LaconicWarning
from laconic.studies import Conditions, pqi_sap
from laconic.studies import _pqi_sap_full as full
from laconic.studies import _pqi_sap_models as models
from laconic.studies import _pqi_sap_runs as runs
from laconic.task import Task, TensorSplit
from laconic.weights.prune.iterative import lottery_ticket

ROOT = Path(__file__).resolve().parents[2]
load = datasets.load


def images(count: int, size: int, channels: int = 3) -> Task:
    source = torch.Generator().manual_seed(0)
    y = torch.randint(10, (count,), generator=source)
    x = torch.randn(count, channels, size, size, generator=source) + y[:, None, None, None] / 5
    half = count // 2
    return Task(
        kind="classification",
        test=TensorSplit({"x": x[:half], "y": y[:half]}),
        train=TensorSplit({"x": x[half:], "y": y[half:]}),
        name="drawn",
    )


def test_bars_are_those_of_the_protocol() -> None:
    limits = [bar.limit for bar in pqi_sap.STUDY.bars["small"]]
    assert limits == [0.35, 1 / 1.4, 5, 1.0, 0.5, 0.15, 1.0, 2.0]
    assert [(bar.limit, bar.strict) for bar in pqi_sap.STUDY.bars["full"]] == [
        (1.0, True), (1.0, True), (1.0, False), (1.0, False)
    ]  # fmt: skip
    plans = full.variants()
    assert len(plans) == 12
    assert {plan.iterations for plan in plans.values()} == {15}
    assert {(plan.p, plan.q) for plan in plans.values()} == {(0.5, 1.0), (1.0, 2.0)}
    assert full.TRAINING == {
        "epochs": 200, "lr": 0.1, "weight_decay": 5e-4, "batch_size": 250, "clip": 1.0
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::laconic.errors.LaconicWarning")
def test_the_small_scale_gives_a_value_for_every_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pqi_sap, "SIZES", (64, 12, 10))
    monkeypatch.setattr(pqi_sap, "SEEDS", 1)
    monkeypatch.setattr(pqi_sap, "TRAINING", {"epochs": 1, "batch_size": 60})
    whole = pqi_sap.variants()
    short = {name: replace(plan, iterations=1) for name, plan in whole.items()}
    monkeypatch.setattr(pqi_sap, "variants", lambda: short)
    monkeypatch.setattr(pqi_sap, "gradual", lambda end, iterations: lottery_ticket(iterations=1))
    clothes = images(60, 28, channels=1)

    def fake(name: str, **options: object) -> Task:
        return clothes if name == "fashion-mnist" else load(name, limit=150, **options)

    monkeypatch.setattr(pqi_sap.datasets, "load", fake)
    found = pqi_sap.run_small(Conditions())
    assert set(found.values) == {bar.name for bar in pqi_sap.STUDY.bars["small"]}
    assert set(found.figures) == {"A", "LT", "SAP", "B", "B SAP"}
    assert [row["method"] for row in found.figures["A"].rows] == [*whole, pqi_sap._CUBIC]
    drawn = pqi_sap.plot(
        {"scale": "small", "figures": {k: s.to_dict() for k, s in found.figures.items()}}
    )
    assert drawn.startswith("<svg")
    assert "SAP gamma 5" in drawn


def test_part_b_is_left_out_with_a_word_where_its_files_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str, **options: object) -> Task:
        raise DataError("no clothes here")

    monkeypatch.setattr(pqi_sap.datasets, "load", missing)
    with pytest.warns(LaconicWarning, match="part B is left out: no clothes here"):
        assert pqi_sap._fashion(Conditions()) == {}


def test_figures_are_read_off_the_history_as_the_bars_say() -> None:
    bench = runs.Bench(
        make=lambda seed: zoo.mlp((64, 16, 10), seed=seed),
        data=lambda seed: load("digits", limit=200),
        training={"epochs": 2, "batch_size": 50},
    )
    plan = lottery_ticket(0.5, iterations=5)
    found = bench.run("some name (1, 2)", plan, seed=3)
    densities = [row.density for row in found.history]
    assert runs.reached(found) is found.history[4]
    assert densities[3] > 0.1 >= densities[4]
    assert runs.reached(found, 0.001) is None
    dense, there = (runs.on_test(found.history[i]) for i in (0, 4))
    assert runs.points_lost(found, found.history[4]) == pytest.approx(100 * (dense - there))
    assert runs.lowest(found, 0.2).pqi == min(row.pqi for row in found.history[:3])
    assert runs.peak(found, 0.03, 0.2) == max(row.pqi for row in found.history[3:])
    row = runs.summary_row("x", plan, [found, found])
    assert (row["prunings to 10 %"], row["prunings in all"]) == (4, 5)
    rows = runs.curve_rows([found, found])
    assert [r["density"] for r in rows] == densities
    assert rows[-1]["score_pruned"] is None
    assert runs.slug("SAP gamma 5, layer (0.5)") == "sap-gamma-5-layer-0-5"


@pytest.mark.filterwarnings("ignore::laconic.errors.LaconicWarning")
def test_the_full_protocol_runs_as_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    monkeypatch.setattr(full, "whole_cifar10", lambda: images(40, 32))
    monkeypatch.setattr(full, "resnet18", lambda seed: models.resnet18(width=2, seed=seed))
    monkeypatch.setattr(full, "SEEDS", 1)
    monkeypatch.setattr(full, "TRAINING", {**full.TRAINING, "epochs": 1, "batch_size": 18})
    plans = {n: replace(p, iterations=1) for n, p in full.variants().items()}
    monkeypatch.setattr(full, "variants", lambda: plans)
    result = pqi_sap.STUDY.run(scale="full")
    assert [bar["name"] for bar in result["bars"]] == [full.DIP, full.FASTER, full.LOSS, full.ORDER]
    assert len(result["figures"]["methods"]["rows"]) == 12
    kept = sorted(path.name for path in (tmp_path / "studies" / "pqi-sap").iterdir())
    assert len(kept) == 12
    assert "sap-1-2-neuron-0" in kept
    monkeypatch.setattr(runs.Trainer, "__call__", None)  # a finished run trains no more
    again = pqi_sap.STUDY.run(scale="full")
    assert again["bars"] == result["bars"]


def test_networks_have_the_sizes_of_the_paper() -> None:
    cifar = models.resnet18()
    assert sum(p.numel() for p in cifar.parameters()) == 11_173_962
    conv = models.conv_net(channels=1)
    assert [m.out_channels for m in conv if hasattr(m, "out_channels")] == [64, 128, 256, 512]
    for model, channels, size in ((models.resnet18(width=4), 3, 32), (conv, 1, 28)):
        assert model(torch.zeros(2, channels, size, size)).shape == (2, 10)
    weight = models.conv_net((64, 128), channels=3).get_parameter("conv2.weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


def test_flips_and_crops_are_drawn_from_the_generator_alone() -> None:
    pixels = torch.arange(64.0).reshape(1, 1, 8, 8)
    split = TensorSplit({"x": pixels.repeat(64, 1, 1, 1), "y": torch.arange(64)})
    flipped = models.flipped(Task(kind="classification", test=split, train=split)).train
    assert flipped is not None
    assert len(flipped) == 64

    def draw(seed: int) -> torch.Tensor:
        source = torch.Generator().manual_seed(seed)
        return torch.cat([b["x"] for b in flipped.batches(10, generator=source)])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    steps = draw(1)[:, 0, 3, 4] - draw(1)[:, 0, 3, 3]
    assert {1.0, -1.0} <= set(steps.tolist()) <= {1.0, -1.0}, "plain and mirrored"
    plain = models.Flipped(split, border=0)
    rows = torch.cat([b["x"] for b in plain.batches(64)])
    same = (rows == pixels).flatten(1).all(1) | (rows == pixels.flip(-1)).flatten(1).all(1)
    assert same.all()
    with pytest.raises(DataError, match="held in memory"):
        models.flipped(Task(kind="classification", test=split, train=None))


def test_reads_all_of_cifar_or_says_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr(models, "_ROWS", 4)
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz.*data_batch_1\.bin"):
        models.whole_cifar10()
    folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rows = np.arange(4 * 3073, dtype=np.int64).reshape(4, 3073) % 256
    rows[:, 0] = [7, 1, 0, 9]
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / f"{name}.bin").write_bytes(rows.astype(np.uint8).tobytes())
    task = models.whole_cifar10()
    assert isinstance(task.train, TensorSplit)
    assert task.train.tensors["y"].tolist() == [7, 1, 0, 9] * 5
    x = task.train.tensors["x"]
    assert x.shape == (20, 3, 32, 32)
    assert float(x[1, 2, 31, 31]) == pytest.approx((rows[1, -1] / 255 - 0.4465) / 0.2616, abs=1e-5)
    (folder / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"test_batch\.bin: 5 bytes, not 12292"):
        models.whole_cifar10()


def test_the_committed_drawing_is_that_of_the_committed_figures() -> None:
    held = json.loads((ROOT / "results" / "studies" / "pqi-sap.small.json").read_text())
    assert (ROOT / "docs" / "pqi-sap.svg").read_text() == pqi_sap.plot(held) + "\n"
