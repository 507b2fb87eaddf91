"""compress() from end to end: budgets, plans, scopes, what is written and what is left alone."""

from __future__ import annotations

import gc
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic import artifact, dial
from laconic.errors import BudgetError, ConfigError, LaconicWarning, LayerError, RecipeError
from laconic.forms.dense import Dense
from laconic.forms.layers import installed
from laconic.forms.quantized import Quantized
from laconic.pipeline import compress
from laconic.plan import make_plan
from laconic.recipe import Recipe
from laconic.result import Result
from laconic.survey import output_error
from laconic.task import Task, TensorSplit
from laconic.weights.base import Site, Statistics

DEPLOYED = ("model.safetensors", "laconic.json", "config.json")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def task() -> Task:
    x = draw(448, 16)
    y = x[:, :4].argmax(1)
    return Task(
        kind="classification",
        test=TensorSplit({"x": x[:64], "y": y[:64]}),
        train=TensorSplit({"x": x[64:], "y": y[64:]}),
        name="argmax",
    )


def mlp(width: int = 128) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4),
        )  # fmt: skip


class Tagger(nn.Module):
    """A table, two dense layers: sites of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.table(input_ids).mean(1))))


def recipe(*steps: str, **top: str) -> Recipe:
    head = "".join(f"{key}: {value}\n" for key, value in top.items())
    return Recipe.from_yaml(head + "steps:\n" + "".join(f"  - {step}\n" for step in steps))


def stat_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in DEPLOYED if (folder / name).exists())


def bits_of(model: nn.Module) -> dict[str, bytes]:
    return {
        name: t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, t in model.state_dict().items()
    }


# --- budgets ------------------------------------------------------------------------------------

ROUND = "round-to-nearest: {bits: 4}"
BUDGETS = [
    ("quantize", (ROUND,), "16kB"),
    ("quantize", (ROUND,), "7.5x"),
    ("quantize", (ROUND,), "5bits"),
    ("share", ("kmeans: {where: {exclude: ['4.*']}}",), "80kB"),
    ("prune", ("magnitude",), "60kB"),
    ("sparse, then coded", ("magnitude: {sparsity: 0.9}", "kmeans"), "7kB"),
    ("second order", ("gptq",), "5.5bits"),
    ("factor", ("svd: {keep: 0.5}",), "90kB"),
    ("correct", ("round-to-nearest: 2", "eora: {rank: 16, metric: identity}"), "20kB"),
    ("train after", ("gptq", "recover: 5 steps"), "16kB"),
    ("correct after", (ROUND, "eora: {rank: 4, metric: identity}"), "26kB"),
    ("prune second", ("round-to-nearest: {bits: 8, where: {include: ['0.*']}}", "magnitude: "
     "{sparsity: 0.5, where: {exclude: ['0.*']}}", "recover: 3 steps"), "60kB"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "asked"), [row[1:] for row in BUDGETS], ids=[f"{r[0]} {r[2]}" for r in BUDGETS]
)
@pytest.mark.filterwarnings("ignore:.*calibration inputs span:laconic.errors.LaconicWarning")
def test_budget_is_met(steps: tuple[str, ...], asked: str, task: Task, tmp_path: Path) -> None:
    result = compress(mlp(), recipe(*steps), task, budget=asked, out=tmp_path / "small")
    original = result.report.original.bytes
    assert original is not None
    weights = sum(row.weights for row in result.report.sites)
    number = float(re.match(r"[\d.]+", asked)[0])  # type: ignore[index]
    limit = {"B": number * 1000, "x": original / number, "s": number * weights / 8}[asked[-1]]
    size = stat_bytes(tmp_path / "small")
    assert result.report.budget == {"asked": asked, "bytes": int(limit)}
    assert size == result.report.compressed.bytes <= limit
    reasons = [text for text in result.report.warnings if text.startswith("budget:")]
    assert size >= 0.99 * limit or reasons, f"{size} of {limit} without a reason"
    assert not (size >= 0.99 * limit and reasons)


def test_smallest_size_is_told_and_can_be_had(task: Task, tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as caught:
        compress(mlp(), recipe(ROUND), task, budget="3kB", out=tmp_path / "small")
    told = str(caught.value)
    assert "3.00 kB (3000 B)" in told
    least = int(re.search(r"can be reached here, [\d.]+ kB \((\d+) B\)", told)[1])  # type: ignore[index]
    assert not list(tmp_path.iterdir()), "nothing to go on from is left behind"
    exact = compress(mlp(), recipe(ROUND), task, budget=f"{least}B", out=tmp_path / "small")
    assert stat_bytes(tmp_path / "small") == least
    assert set(bits_in(exact).values()) == {2}
    with pytest.raises(BudgetError, match=rf"\({least} B\)"):
        compress(mlp(), recipe(ROUND), task, budget=f"{least - 1}B")


def bits_in(result: Result) -> dict[str, int]:
    """Bits of every quantized site."""
    held = {name: entry.form for name, entry in installed(result.model).items()}
    return {name: form.bits for name, form in held.items() if isinstance(form, Quantized)}


def site_rows(result: Result) -> list[dict[str, Any]]:
    return result.to_dict()["sites"]


SAVES = "magnitude: {pattern: '1:4', where: {include: ['4.*']}}"
GROWS = "recover: {steps: 25, lr: 0.3, train: forms}"


def test_what_later_steps_save_is_left_to_the_dial(task: Task) -> None:
    """With half of the budget still taken by a dense layer, no level would fit."""
    steps = ("round-to-nearest: {where: {exclude: ['4.*']}}", SAVES)
    result = compress(mlp(), recipe(*steps), task, budget="33kB")
    size, after_dial = result.report.compressed.bytes, result.report.steps[0].bytes_after
    assert size is not None
    assert after_dial is not None
    assert 0.99 * 33000 <= size <= 33000 < after_dial


@pytest.mark.parametrize("guess", [10**6, 5000, -(10**6)])
def test_a_wrong_guess_of_what_later_steps_do_is_made_good(
    guess: int, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "predicted_change", lambda run, indices: guess)
    steps = ("round-to-nearest: {where: {exclude: ['4.*']}}", SAVES)
    size = compress(mlp(), recipe(*steps), task, budget="33kB").report.compressed.bytes
    assert size is not None
    assert 0.99 * 33000 <= size <= 33000


def test_what_later_steps_add_is_taken_from_the_dial(task: Task) -> None:
    """Training away from small numbers makes the kept values cost more than they did."""
    steps = recipe("magnitude", GROWS)
    result = compress(even_mlp(), steps, task, budget="12kB")
    size, after_dial = result.report.compressed.bytes, result.report.steps[0].bytes_after
    assert size is not None
    assert after_dial is not None
    assert after_dial < 0.97 * size <= 0.97 * 12000
    assert size >= 0.99 * 12000 or "closest of" in result.report.warnings[0]
    with pytest.raises(BudgetError) as caught:
        compress(even_mlp(), steps, task, budget="4kB")
    least, added = re.search(  # type: ignore[union-attr]
        r"the smallest artefact .* is [\d.]+ kB \((\d+) B\), .* "
        r"steps after magnitude added (\d+) B",
        str(caught.value),
    ).groups()
    assert int(least) > 4000
    assert int(added) > 0


def even_mlp() -> nn.Sequential:
    """Weights of few distinct values, which code to next to nothing until they are trained."""
    model = mlp(48)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p * 16).round() / 16)
    return model


@pytest.mark.parametrize("steps", [("magnitude: {pattern: '2:4'}",), ("magnitude: {sparsity: 0.5, "
    "pattern: '1:4'}", "recover: 2 steps")])  # fmt: skip
def test_recipe_without_a_dial(steps: tuple[str, ...], task: Task) -> None:
    free = compress(mlp(), recipe(*steps), task).report
    size = free.compressed.bytes
    assert size is not None
    with pytest.raises(BudgetError, match=rf"\({size} B\).*no step with a dial"):
        compress(mlp(), recipe(*steps), task, budget=f"{size - 1}B")
    tight = compress(mlp(), recipe(*steps), task, budget=f"{size + 9}B").report
    assert tight.compressed.bytes is not None
    assert tight.compressed.bytes <= size + 9
    assert tight.warnings == ()
    loose = compress(mlp(), recipe(*steps), task, budget="1MB").report
    assert "no step with a dial" in loose.warnings[0]


def test_all_sites_at_their_best_is_a_reason(task: Task) -> None:
    for steps in ((ROUND,), (ROUND, "recover: 2 steps")):
        result = compress(mlp(32), recipe(*steps), task, budget="1MB")
        assert len(result.report.warnings) == 1
        assert "every site is at its best level" in result.report.warnings[0]
        assert list(bits_in(result).values()) == [8] * 4


def ids_task() -> Task:
    ids = torch.randint(0, 64, (96, 6), generator=torch.Generator().manual_seed(2))
    y = ids[:, 0] % 4
    split = TensorSplit({"input_ids": ids, "y": y})
    return Task(kind="classification", test=split, train=split, name="tags")


def tagger() -> Tagger:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Tagger()


def test_dials_over_disjoint_sites_share_a_budget(tmp_path: Path) -> None:
    two = recipe(
        "round-to-nearest: {bits: 4, where: {types: [linear]}}",
        "kmeans: {bits: 4, where: {types: [embedding]}}",
    )
    rows = {}
    for name, budget in (("small", "4.8kB"), ("large", "8kB")):
        result = compress(tagger(), two, ids_task(), budget=budget, out=tmp_path / name)
        assert [step.step for step in result.report.steps] == ["round-to-nearest + kmeans"]
        levels = result.to_dict()["steps"][0]["details"]["levels"]
        assert levels.keys() == {"table.weight", "up.weight", "down.weight"}
        rows[name] = {row["name"]: row["bytes_stored"] for row in site_rows(result)}
        forms = {row["name"]: row["form"] for row in site_rows(result)}
        assert forms["table.weight"].startswith("codebook")
        assert forms["up.weight"].startswith("quantized")
    assert rows["small"]["table.weight"] < rows["large"]["table.weight"]
    assert rows["small"]["up.weight"] < rows["large"]["up.weight"]


def test_a_dial_whose_sites_the_model_lacks_is_passed_over(task: Task) -> None:
    result = compress(mlp(), "w4-gptq", task, budget="17kB")
    assert result.report.compressed.bytes is not None
    assert 0.99 * 17000 <= result.report.compressed.bytes <= 17000
    # with no site at all for any dial, the recipe has none
    lacking = recipe("magnitude: {pattern: '2:4'}", "kmeans: {where: {types: [embedding]}}")
    with pytest.raises(BudgetError, match="no step with a dial"):
        compress(mlp(), lacking, task, budget="17kB")


def test_warnings_are_given_once_and_reported(task: Task) -> None:
    """Every level of a layer that no input reaches warns; only the level that is taken may."""
    model = mlp(32)
    with torch.no_grad():
        model[0].bias.fill_(-100)  # so that layer 2 sees zeros only
    with pytest.warns(LaconicWarning, match=r"2\.weight: 1 of 1 parts met no calibration") as said:
        report = compress(model, recipe("gptq", "kmeans: {where: {types: [embedding]}}"), task,
                          budget="4kB").report  # fmt: skip
    assert len(said) == 1
    assert [text for text in report.warnings if "no calibration input" in text] == [
        str(said[0].message)
    ]


def test_error_of_a_level_by_hand() -> None:
    weight, other = torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [0, 1]])
    site = Site("a.weight", "linear", Dense(weight), weight)
    assert output_error(site, Dense(other)) == pytest.approx(1 / 5)  # 1 of 4 + 1
    site.statistics = Statistics(gram=torch.diag(torch.tensor([1.0, 9.0])))
    assert output_error(site, Dense(other)) == pytest.approx(1 / 13)  # 1 of 4 + 9
    grouped = torch.tensor([[1.0], [2.0]])
    site = Site("a.weight", "conv", Dense(grouped), grouped, groups=2)
    site.statistics = Statistics(gram=torch.tensor([[[4.0]], [[1.0]]]))
    half = Dense(torch.tensor([[0.0], [2.0]]))
    assert output_error(site, half) == pytest.approx(4 / 8)
    nothing = torch.zeros(2, 2)
    site = Site("a.weight", "linear", Dense(nothing), nothing)
    assert output_error(site, Dense(nothing)) == 0
    assert output_error(site, Dense(other)) == pytest.approx(2)


def test_the_scale_of_a_weight_does_not_matter() -> None:
    """A table of large numbers does not take the whole budget from layers of small ones."""
    plain = recipe("round-to-nearest: {where: {types: [linear, embedding]}}")
    chosen = []
    for scale in (1.0, 1000.0):
        model = tagger()
        with torch.no_grad():
            model.table.weight.mul_(scale)
        chosen.append(bits_in(compress(model, plain, ids_task(), budget="6kB")))
    assert chosen[0] == chosen[1]
    assert set(chosen[0].values()) != {8}


# --- what training may touch --------------------------------------------------------------------


def test_training_never_reaches_the_original(task: Task) -> None:
    """A layer that a step leaves as it was is the compressed model's own copy."""
    alone = compress(mlp(), recipe(ROUND), task).report.original.metrics
    steps = ("svd: {rank: 60, where: {include: ['0.*', '2.*']}}", "recover: {steps: 20, lr: 0.05}")
    with pytest.warns(LaconicWarning, match="saves nothing"):
        trained = compress(mlp(), recipe(*steps), task)
    assert trained.report.original.metrics == alone
    rows = {row["name"]: row for row in site_rows(trained)}
    assert rows["0.weight"]["form"] == "dense"
    assert rows["0.weight"]["error"] > 0.01, "recover trains all, this layer too"


def test_a_later_step_starts_from_what_training_made(task: Task) -> None:
    first = ("kmeans: {bits: 3, where: {include: ['0.*']}}", "recover: {steps: 30, lr: 0.05}")
    trained = compress(mlp(), recipe(*first), task)
    rounded = "round-to-nearest: {bits: 8, where: {exclude: ['0.*']}}"
    both = compress(mlp(), recipe(*first, rounded), task)
    for name in ("2.weight", "4.weight", "6.weight"):
        before = trained.model.get_parameter(name)
        after = installed(both.model)[name].form.dense()
        original = mlp().get_parameter(name)
        assert (after - before).norm() < 0.02 * before.norm()
        assert (before - original).norm() > 0.05 * original.norm()


@pytest.mark.parametrize("budget", [None, "15kB"])
def test_the_given_model_is_left_alone(budget: str | None, task: Task) -> None:
    model = mlp().train()
    model[2].eval()
    model[4].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    bits, modes = bits_of(model), [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    threads = torch.get_num_threads()
    kinds = [type(m) for m in model.modules()]
    steps = ("kmeans: 4", "recover: 3 steps")
    compress(model, recipe(*steps), task, budget=budget, threads=1, baselines=budget is None)
    assert bits_of(model) == bits
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads


# --- data ---------------------------------------------------------------------------------------

FREE = ["w4", "w8", "2:4", "2:4-w4", "low-rank"]


@pytest.mark.parametrize("name", [*FREE[:2], *FREE[3:]])
def test_recipes_without_data_need_no_task(name: str, tmp_path: Path) -> None:
    plan = Recipe.load(name)
    if name == "low-rank":
        plan = recipe("svd: {keep: 0.5, where: {types: [linear], exclude: ['6.*']}}")
    result = compress(mlp(), plan, out=tmp_path / "small")
    report = result.report
    assert (report.original.metrics, report.compressed.metrics, report.task) == ({}, {}, {})
    assert report.compressed.bytes == stat_bytes(tmp_path / "small")
    assert all(row.error is not None and row.error > 0 for row in report.sites if
               row.form != "dense")  # fmt: skip
    x = draw(5, 16)
    with_task = artifact.load(tmp_path / "small")
    assert torch.equal(with_task(x), result.model(x))


NEEDY = [
    "gptq",
    "sparsegpt",
    "kmeans: {weighting: gram}",
    "kmeans: {overrides: [{include: ['2.*'], weighting: gram}]}",
]


@pytest.mark.parametrize("step", NEEDY)
@pytest.mark.parametrize("place", ["no task", "no training data", "empty"])
def test_missing_data_is_refused_before_any_work(
    step: str, place: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = replace(task, train=None)
    empty = replace(task, train=TensorSplit({"x": draw(0, 16), "y": torch.zeros(0)}))
    given = {"no task": None, "no training data": bare, "empty": empty}[place]
    monkeypatch.setattr(artifact, "save", None)  # any work would end here
    steps = ("magnitude: {sparsity: 0.5, where: {include: ['6.*']}}", step)
    with pytest.raises(RecipeError, match=r"needs calibration data.*Task with train"):
        compress(mlp(), recipe(*steps), given, out=tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_recovery_without_what_it_needs_is_refused_before_any_work(
    task: Task, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="recover needs a task"):
        compress(mlp(), recipe("kmeans", "recover: 2 steps"), out=tmp_path / "small")
    blind = recipe("kmeans", "recover: {steps: 2, distill: false}")
    with pytest.raises(RecipeError, match=r"distill=False.*no train split"):
        compress(mlp(), blind, replace(task, train=None), out=tmp_path / "small")
    assert not list(tmp_path.iterdir())
    drawn = compress(mlp(), recipe("kmeans", "recover: 2 steps"), replace(task, train=None))
    assert drawn.to_dict()["steps"][1]["details"]["data"] == "drawn"


# --- scopes and the plan ------------------------------------------------------------------------


def test_scopes_and_overrides_decide_the_forms(task: Task) -> None:
    scoped = recipe(
        "round-to-nearest: {bits: 3, where: {include: ['2.*', '4.*', '6.*'], exclude: ['6.*']}, "
        "overrides: [{include: ['4.*'], bits: 8, group_size: channel}, {include: ['*'], bits: 5}]}"
    )
    result = compress(mlp(), scoped, task)
    rows = {r["name"]: r for r in site_rows(result)}
    # the first override that matches counts
    assert bits_in(result) == {"2.weight": 5, "4.weight": 8}
    assert rows["0.weight"]["form"] == rows["6.weight"]["form"] == "dense"
    assert rows["0.weight"]["error"] == 0
    assert rows["4.weight"]["error"] < 0.01 < rows["2.weight"]["error"] < 0.1


def test_levels_keep_an_override(task: Task) -> None:
    kept = recipe("round-to-nearest: {bits: 4, overrides: [{include: ['6.*'], bits: 8}]}")
    result = compress(mlp(), kept, task, budget="14kB")
    levels = result.to_dict()["steps"][0]["details"]["levels"]
    bits = bits_in(result)
    assert bits.pop("6.weight") == 8
    assert levels.pop("6.weight") == "as given"
    assert levels == {name: f"bits={count}" for name, count in bits.items()}
    assert min(bits.values()) < 8


def test_tied_weights_are_one_site(task: Task) -> None:
    model = mlp()
    model[4].weight = model[2].weight
    report = compress(model, recipe(ROUND), task).report
    rows = {row.name: row.aliases for row in report.sites}
    assert rows == {"0.weight": (), "2.weight": ("4.weight",), "6.weight": ()}


def test_training_takes_its_scope_from_parameters_not_sites(task: Task) -> None:
    """Norms and biases are no sites, and can be all that is trained."""
    biases = "recover: {steps: 5, lr: 0.1, where: {include: ['*.bias']}}"
    rounded = compress(mlp(), recipe(ROUND), task).model
    trained = compress(mlp(), recipe(ROUND, biases), task).model
    same = {name: raw == bits_of(trained)[name] for name, raw in bits_of(rounded).items()}
    assert {name for name, held in same.items() if not held} == {
        f"{layer}.bias" for layer in (0, 2, 4, 6)
    }
    wrong = "recover: {steps: 5, where: {include: ['2.bais']}}"
    with pytest.raises(RecipeError, match=r"step 2 .*none of the 8 parameters.*'2\.bias'"):
        make_plan(mlp(), recipe(ROUND, wrong))


def test_an_override_that_matches_nothing_is_told(task: Task) -> None:
    idle = recipe("kmeans: {overrides: [{include: ['2.wieght'], bits: 8}]}")
    with pytest.warns(LaconicWarning, match=r"step 1 \(kmeans\): the override.*'2\.weight'"):
        make_plan(mlp(), idle)
    beyond = "kmeans: {where: {include: ['0.*']}, overrides: [{include: ['2.*'], bits: 8}]}"
    with pytest.warns(LaconicWarning, match="none of the 1 sites"):
        make_plan(mlp(), recipe(beyond))


@pytest.mark.parametrize(
    ("include", "near"), [("blocks.*", ""), ("2.wieght", "'2.weight'"), ("9.weight", "weight")]
)
def test_a_pattern_that_matches_nothing_is_refused(include: str, near: str, task: Task) -> None:
    with pytest.raises(RecipeError, match=r"selects no site") as caught:
        compress(mlp(), recipe(f"kmeans: {{where: {{include: ['{include}']}}}}"), task)
    assert include in str(caught.value)
    assert near in str(caught.value)


def test_types_that_the_model_lacks_are_passed_over(task: Task) -> None:
    mixed = recipe("gptq", "kmeans: {where: {types: [embedding, experts]}}")
    result = compress(mlp(), mixed, task)
    assert [(s.step, s.bytes_after) for s in result.report.steps] == [
        ("gptq", result.report.compressed.bytes), ("kmeans", result.report.compressed.bytes)
    ]  # fmt: skip
    nothing = recipe("kmeans: {where: {types: [embedding]}}")
    with pytest.raises(RecipeError, match="no step selects any weight"):
        make_plan(mlp(), nothing)
    with pytest.raises(RecipeError, match="no step selects any weight"):
        compress(mlp(), nothing, task)


PLANS = [
    (ROUND,),
    ("round-to-nearest: {bits: 3, group_size: 8, symmetric: false}",),
    ("kmeans: 3",),
    ("gptq: {bits: 5, group_size: 16}",),
    ("magnitude: {sparsity: 0.7}",),
    ("magnitude: {sparsity: 0.7, scope: row}",),
    ("magnitude: {pattern: '2:4'}", ROUND),
    ("sparsegpt: {sparsity: 0.6}", "kmeans: 5"),
    ("svd: {rank: 3}", "round-to-nearest: {bits: 8, group_size: 1}"),
    ("round-to-nearest: 2", "eora: {rank: 2, metric: identity, factor_dtype: float16}"),
    ("kmeans: {bits: 2, where: {include: ['2.*']}, overrides: [{include: ['2.*'], bits: 6}]}",),
    ("magnitude: {sparsity: 0.5, where: {include: ['4.*']}}", "recover: 1 steps"),
]


@pytest.mark.parametrize("steps", PLANS, ids=[" then ".join(p) for p in PLANS])
def test_planned_bytes_are_those_of_the_forms(steps: tuple[str, ...], task: Task) -> None:
    plan = make_plan(mlp(), recipe(*steps))
    result = compress(mlp(), recipe(*steps), task)
    forms = {name: held.form for name, held in installed(result.model).items()}
    for site in plan.sites:
        if site.name not in forms:
            assert set(site.steps) <= {"recover"}
            assert site.predicted_bytes == site.original_bytes
            continue
        assert forms[site.name].nbytes == site.predicted_bytes, site.name
        assert forms[site.name].signature == site.form.signature
    held = sum(t.numel() * t.element_size() for t in result.model.buffers())
    held += sum(t.numel() * t.element_size() for t in result.model.parameters())
    assert plan.predicted_bytes == held
    assert plan.original_bytes == sum(p.numel() * 4 for p in mlp().parameters())


# --- what is written ----------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_report_is_written_and_agrees(task: Task, tmp_path: Path) -> None:
    steps = ("magnitude: {sparsity: 0.5}", ROUND, "recover: 3 steps")
    result = compress(mlp(), recipe(*steps, name="three"), task, out=tmp_path / "a", baselines=True)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["compressed"]["bytes"] == stat_bytes(tmp_path / "a")
    assert report["ratio"] == pytest.approx(
        report["original"]["bytes"] / stat_bytes(tmp_path / "a")
    )
    assert [step["step"] for step in report["steps"]] == [
        "magnitude",
        "round-to-nearest",
        "recover",
    ]
    assert report["steps"][-1]["bytes_after"] == report["compressed"]["bytes"]
    assert report["recipe"]["name"] == "three"
    assert Recipe.from_yaml(json.dumps(report["recipe"])) == recipe(*steps, name="three")
    assert report["task"] == {"data": "argmax", "examples": 64}
    assert report["primary_metric"] == "top1"
    for side in ("original", "compressed"):
        top1 = report[side]["metrics"]["top1"]
        assert top1["low"] <= top1["value"] <= top1["high"]
        assert top1["n"] == 64
    logits = result.model(task.test.tensors["x"])  # type: ignore[attr-defined]
    right = (logits.argmax(1) == task.test.tensors["y"]).float().mean()  # type: ignore[attr-defined]
    assert report["compressed"]["metrics"]["top1"]["value"] == pytest.approx(float(right))
    assert report["compressed"]["metrics"]["logit_kl"]["value"] >= 0
    assert len(report["sites"]) == 4
    stored = sum(row["bytes_stored"] for row in report["sites"])
    assert stored < report["compressed"]["files"]["model.safetensors"]
    kinds = [point["kind"] for point in report["trade_off"]]
    assert kinds == ["original", *["step"] * 3, *["uniform"] * 4, "compressed"]
    page = Page()
    page.feed((tmp_path / "a" / "report.html").read_text())
    text = " ".join(page.words)
    assert "svg" in page.tags
    assert all(row["name"] in text for row in report["sites"])
    assert str(tmp_path) not in json.dumps(report)
    assert json.loads(result.to_json()) == report
    assert all(row["passed"] if isinstance(row, dict) else row.passed
               for row in artifact.verify(tmp_path / "a"))  # fmt: skip


def test_the_model_returned_is_the_one_on_disk(task: Task, tmp_path: Path) -> None:
    result = compress(mlp(), recipe("kmeans", "recover: 2 steps"), task, out=tmp_path / "a")
    x = draw(9, 16, seed=4)
    loaded = artifact.load(tmp_path / "a")
    assert torch.equal(loaded(x), result.model(x))
    assert bits_of(loaded) == bits_of(result.model)
    assert not result.model.training


def test_out_is_never_overwritten_without_force(task: Task, tmp_path: Path) -> None:
    out = tmp_path / "a"
    compress(mlp(), recipe(ROUND), task, out=out)
    held = (out / "laconic.json").read_bytes()
    with pytest.raises(ConfigError, match="--force"):
        compress(mlp(), recipe("kmeans"), task, out=out)
    assert (out / "laconic.json").read_bytes() == held
    compress(mlp(), recipe("kmeans"), task, out=out, force=True)
    assert "kmeans" in (out / "laconic.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_without_out_the_artefact_lives_as_long_as_the_result(task: Task) -> None:
    result = compress(mlp(32), recipe(ROUND), task)
    folder = result.folder
    assert stat_bytes(folder) == result.report.compressed.bytes
    copy = result.save(folder.parent / "copy")
    assert stat_bytes(copy) == stat_bytes(folder)
    with pytest.raises(ConfigError, match="is the artefact itself"):
        result.save(folder, force=True)
    del result
    gc.collect()
    assert not folder.parent.exists()


def test_a_failure_leaves_no_trace(task: Task, tmp_path: Path) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[3, 5] = float("nan")
    threads = torch.get_num_threads()
    with pytest.raises(LayerError, match=r"2\.weight: 1 of 16384"):
        compress(model, recipe(ROUND), task, out=tmp_path / "a", threads=2)
    assert not list(tmp_path.iterdir())
    assert torch.get_num_threads() == threads
    with pytest.raises(ConfigError, match="threads=0"):
        compress(mlp(), recipe(ROUND), task, threads=0)
    for wrong in ("0.5x", "3 apples", "-1kB"):
        with pytest.raises(ConfigError):
            compress(mlp(), recipe(ROUND), task, budget=wrong, out=tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_same_seed_same_bytes_other_seed_other_bytes(task: Task, tmp_path: Path) -> None:
    steps = recipe("kmeans: 3", "recover: 4 steps")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name) + seed)  # what the global state is must not matter
        torch.rand(seed + 3)
        compress(mlp(), steps, task, out=tmp_path / name, seed=seed)
    files = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b", "c")}
    assert files["a"] == files["b"] != files["c"]
    manifests = [(tmp_path / name / "laconic.json").read_bytes() for name in ("a", "b")]
    assert manifests[0] == manifests[1]


def test_latency_memory_and_kernels_are_in_the_report(task: Task, tmp_path: Path) -> None:
    result = compress(mlp(), recipe(ROUND), task, out=tmp_path / "timed", latency=True)
    report = result.to_dict()
    for side in ("original", "compressed"):
        assert set(report[side]["latency_ms"]) == {"1", "32"}
        assert report[side]["memory_bytes"] > 10_000_000
    assert report["kernels"].keys() == {row["name"] for row in site_rows(result)}
    assert report["commands"] == ["laconic verify timed", "laconic inspect timed"]
