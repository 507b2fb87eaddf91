"""The database: forms as codes, in memory and in files, filled once and taken up after a kill."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from search_support import class_task, classifier, decoder, filled, language_task
from torch import nn

from laconic import artifact
from laconic.errors import ArtifactError, ConfigError, LaconicError, LayerError
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.layers import install_
from laconic.forms.sparse import Sparse
from laconic.search import build
from laconic.search.build import fill_
from laconic.search.database import FormDatabase
from laconic.search.fitting import Level, fit_site, output_error
from laconic.search.levels import level_set, read_levels
from laconic.task import Task
from laconic.weights.base import Site, Statistics
from laconic.weights.calibrate import gather_
from laconic.weights.prune.magnitude import Magnitude
from laconic.weights.prune.sparsegpt import SparseGpt
from laconic.weights.quantize.gptq import Gptq
from laconic.weights.quantize.round_to_nearest import RoundToNearest
from laconic.weights.sites import find_sites

pytest.importorskip("transformers", reason="needs the extra hf")


@pytest.fixture(scope="module")
def task() -> Task:
    return class_task()


def same(one: Form | None, two: Form | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.signature == two.signature and torch.equal(one.dense(), two.dense())


# --- kept as codes ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*calibration inputs span:laconic.errors.LaconicWarning")
def test_files_hold_the_very_same_forms(task: Task, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 5))
    levels = level_set("mixed", data=True)
    memory, _, table = filled(model, task, levels)
    disk, _, other = filled(model, task, levels, folder=tmp_path / "db")
    again = FormDatabase(levels.names, tmp_path / "db")
    small = FormDatabase(levels.names, tmp_path / "db", cache_bytes=1)
    for database in (again, small, pickle.loads(pickle.dumps(disk)), pickle.loads(
        pickle.dumps(memory)
    )):  # fmt: skip
        for row, site in enumerate(table.sites):
            for level in table.available(row):
                assert same(database.form(site, int(level)), memory.form(site, int(level)))
    assert np.array_equal(table.errors, other.errors)
    assert np.array_equal(table.errors, again.table(table.sites).errors)
    assert np.array_equal(table.costs, again.table(table.sites).costs)
    assert len(small._held) <= 1


def test_codes_take_a_fraction_of_dense_copies(task: Task, tmp_path: Path) -> None:
    model = classifier()
    memory, _, table = filled(model, task)
    disk, _, _ = filled(model, task, folder=tmp_path / "db")
    dense = 4 * sum(s.original.numel() for s in find_sites(model)) * len(table.levels)
    assert memory.nbytes < 0.25 * dense
    assert disk.nbytes < 0.35 * dense  # small weights: the manifests count


def test_costs_are_predicted_bytes_and_errors_shares(task: Task) -> None:
    model = classifier()
    database, _, table = filled(model, task)
    for row, site in enumerate(find_sites(model)):
        for level in range(len(table.levels)):
            form = database.form(site.name, level)
            assert form is not None
            assert table.costs[row, level] == artifact.predict_bytes(form)
            gap = (form.dense().detach() - site.original).double().square().sum()
            share = float(gap / site.original.double().square().sum())
            assert table.errors[row, level] == pytest.approx(share, rel=1e-5)


def test_levels_as_they_are_hold_no_copy(task: Task) -> None:
    levels = level_set("rank", data=False)
    database, _, table = filled(classifier(), task, levels)
    last = len(levels.names) - 1
    assert levels.names[last] == "as it is"
    assert all(database.form(site, last) is None for site in table.sites)
    assert (table.errors[:, last] == 0).all()


def test_what_is_not_there_is_told(task: Task, tmp_path: Path) -> None:
    levels = level_set("mixed", data=False)
    model = nn.Sequential(nn.Linear(7, 16))
    database, _, table = filled(model, task, levels, folder=tmp_path / "db")
    missing = np.argwhere(np.isinf(table.errors))
    assert len(missing)  # rows of seven do not suit every pattern
    row, level = map(int, missing[0])
    with pytest.raises(LayerError, match=f"it has no level {levels.names[level]!r}"):
        database.form(table.sites[row], level)
    with pytest.raises(ConfigError, match="1 levels for the"):
        database.put("x", [None], [None])
    file = tmp_path / "db" / "00000.forms"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"00000\.forms"):
        FormDatabase(levels.names, tmp_path / "db").form(table.sites[0], 0)


# --- fitted once --------------------------------------------------------------------------------


def test_a_broken_build_ends_in_the_same_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Levels at one calibration width: later blocks see what the earlier ones became."""
    model, task = decoder(blocks=3), language_task()
    (tmp_path / "two.yaml").write_text(
        "calibrate: a\nlevels: [{name: a, steps: [gptq: 3]}, {name: b, steps: [gptq: 4]}]"
    )
    levels = read_levels(tmp_path / "two.yaml")
    whole, _, table = filled(model, task, levels)
    real, calls = build.fit_site, [0]

    def breaking(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 11:  # in the middle of the second block
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(build, "fit_site", breaking)
    with pytest.raises(KeyboardInterrupt):
        filled(model, task, levels, folder=tmp_path / "db")
    done = len(FormDatabase(levels.names, tmp_path / "db").sites)
    assert done == 10
    fits = calls[0]
    database, _, other = filled(model, task, levels, folder=tmp_path / "db")
    assert calls[0] - fits < len(table.sites) - 4  # the first block is not fitted again
    assert np.array_equal(table.errors, other.errors)
    for row, site in enumerate(table.sites):
        for level in table.available(row):
            assert same(database.form(site, int(level)), whole.form(site, int(level)))


def test_sparsity_sees_the_dense_model_and_bits_the_calibrated_one() -> None:
    model, task = decoder(blocks=2), language_task()
    sites = find_sites(model)
    name = "model.layers.1.mlp.down_proj.weight"
    site = next(s for s in sites if s.name == name)
    levels = level_set("sparsity", data=True, sites=sites, sparsity=0.5)
    database = FormDatabase(levels.names)
    inside = [s for s in sites if s.kind == "linear"]
    fill_(database, model, inside, levels.of, task)
    (group,) = [
        g for g in gather_(model, [site], task, {name: frozenset({"gram"})}) for _ in [g]
    ]  # fmt: skip
    for held in gather_(model, [site], task, {name: frozenset({"gram"})}):
        level = levels.of(held[0])[8]
        assert level is not None
        (fitted,) = fit_site(held[0], [level], lambda place: torch.Generator())
    assert group
    assert same(database.form(name, 8), fitted.form if fitted else None)

    bits = level_set("bits", data=True)
    dense, calibrated = FormDatabase(bits.names), FormDatabase(bits.names)
    fill_(dense, model, inside, bits.of, task)
    fill_(calibrated, model, inside, bits.of, task, calibration=bits.calibration)
    first = "model.layers.0.self_attn.q_proj.weight"
    assert same(dense.form(first, 1), calibrated.form(first, 1))
    assert not same(dense.form(name, 1), calibrated.form(name, 1))


def test_one_factor_serves_all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    from laconic.weights import second_order

    calls = [0]
    real = second_order._factored

    def counted(*args: Any) -> Any:
        calls[0] += 1
        return real(*args)

    monkeypatch.setattr(second_order, "_factored", counted)
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    site = Site("w", "linear", Dense(weight), weight, statistics=Statistics(200, x.T @ x / 200))
    levels = [Level(f"{b}", (Gptq(bits=b),)) for b in (2, 3, 4, 8)]
    levels += [Level(f"{s}", (SparseGpt(sparsity=s),)) for s in (0.3, 0.5, 0.7)]
    shared = fit_site(site, levels, lambda place: torch.Generator())
    assert calls[0] == 2  # GPTQ visits columns in another order
    for level, fitted in zip(levels, shared, strict=True):
        alone = level.steps[0].fit(site, torch.Generator())
        assert fitted is not None
        assert torch.equal(alone.dense(), fitted.form.dense())
    assert calls[0] == 2 + len(levels)


def test_steps_of_a_level_follow_each_other(task: Task) -> None:
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    site = Site("w", "linear", Dense(weight), weight)
    level = Level("both", (Magnitude(pattern="2:4"), RoundToNearest(bits=4)))
    (fitted,) = fit_site(site, [level], lambda place: torch.Generator())
    assert fitted is not None
    assert fitted.form.signature == "sparse(quantized)"
    assert isinstance(site.form, Dense)
    assert fitted.error == output_error(site, fitted.form)


# --- levels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [True, False])
def test_sparsity_levels_are_equally_many_weights_apart(data: bool) -> None:
    model, task = decoder(blocks=2), language_task()
    sites = [s for s in find_sites(model) if s.kind == "linear"]
    levels = level_set("sparsity", data=data, sites=sites, sparsity=0.6)
    database = FormDatabase(levels.names)
    fill_(database, model, sites, levels.of, task)
    assert levels.names[8] == "+0"
    for site in sites:
        size = site.form.rows * site.form.cols
        zeros = {}
        for number, entry in enumerate(database.entries[site.name]):
            form = database.form(site.name, number) if entry is not None else None
            if form is not None:
                assert isinstance(form, Sparse)
                zeros[int(levels.names[number])] = int((~form.mask).sum())
        assert zeros[0] == round(0.6 * size)
        assert {z - zeros[0] - level * levels.step for level, z in zeros.items()} == {0}
        assert len(zeros) > 8


def test_every_family_is_there_and_dropped_is_nearly_nothing(task: Task, tmp_path: Path) -> None:
    levels = level_set("mixed", data=False)
    assert set(levels.families) == {"bits", "corrected", "sparse", "table", "rank", "dropped"}
    model = classifier()
    database, _, table = filled(model, task, levels)
    column = levels.names.index("dropped")
    form = database.form("2.weight", column)
    assert form is not None
    assert torch.count_nonzero(form.dense()) == 0
    assert table.costs[1, column] < 0.001 * 4 * 96 * 96
    assert table.errors[1, column] == pytest.approx(1.0)
    install_(model, "2.weight", form)
    bias = model.get_parameter("2.bias")
    assert torch.allclose(model[2](torch.randn(3, 96)), bias.expand(3, 96))  # type: ignore[index]
    saved = artifact.save(model, tmp_path / "dropped")
    assert saved.tensors["2.weight"] < 40
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(artifact.load(tmp_path / "dropped")(x), model(x))
    assert levels.family("rank") == [n for n in levels.names if n.startswith("rank")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("levels: 3", "needs 'levels'"),
        ("levels: [{name: a, steps: [gptqq: 3]}]", "Did you mean 'gptq'"),
        ("levels: [{name: a, steps: [gptq: 3, recover: 60s]}]", "works on the whole model"),
        ("levels: [{name: a, stepz: []}]", "unknown field 'stepz'"),
        ("levels: [{name: a}, {name: a}]", "name of its own"),
        ("calibrate: b\nlevels: [{name: a, steps: [gptq: 3]}]", "is no level"),
        ("levelz: []\nlevels: [{name: a}]", "Did you mean 'levels'"),
        ("levels: [", "is not YAML"),
    ],
)
def test_wrong_level_files_are_told(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(LaconicError, match=words):
        read_levels(file)
