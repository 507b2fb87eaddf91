"""SAP as a step of a recipe, as a Python object, and on the command line."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from iterative_support import bits, drift, flat, net, task
from safetensors.torch import save_file
from torch import nn

from laconic import artifact
from laconic.cli.main import main
from laconic.errors import ConfigError, LaconicWarning, RecipeError
from laconic.forms.dense import Dense
from laconic.forms.layers import installed
from laconic.forms.sparse import Sparse
from laconic.modelspec import initial_model
from laconic.pipeline import compress
from laconic.plan import make_plan
from laconic.recipe import Recipe
from laconic.report.pruning import curves_of
from laconic.task import Task
from laconic.training import fit
from laconic.weights.base import Where
from laconic.weights.prune.iterative import (
    Masks,
    Trainer,
    held_out,
    scorer,
)
from laconic.weights.prune.sap import Sap
from laconic.weights.sites import find_sites

QUICK = {"iterations": 3, "epochs": 3, "gamma": 4.0}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = net()
    fit(model, task(), epochs=3, lr=1e-2)
    return model


def once(step: Sap, model: nn.Module, **more):
    return compress(model, Recipe(steps=(step,)), task(), **more)


def test_a_step_is_the_loop_from_the_initial_weights(trained: nn.Module) -> None:
    """Worked out again by hand: the same validation examples, seeds, masks and values."""
    result = once(Sap(**QUICK), trained, initial=net(), seed=5)
    train, validation = held_out(task(), 0.15, seed=5)
    names = tuple(name for name, _ in net().named_parameters())
    found = Sap(**QUICK).run(
        net, Trainer(task=train, epochs=3, parameters=names), scorer(validation), seed=5
    )
    forms = {name: entry.form for name, entry in installed(result.model).items()}
    assert set(forms) == set(found.masks.kept) == {"0.weight", "3.weight"}
    for name, form in forms.items():
        assert isinstance(form, Sparse)
        assert torch.equal(form.mask, found.masks.kept[name])
        assert torch.equal(form.dense(), found.state[name])
    held = dict(result.model.named_parameters()) | dict(result.model.named_buffers())
    for name in ("0.bias", "1.weight", "1.bias", "3.bias", "1.running_mean", "1.running_var"):
        assert torch.equal(held[name], found.state[name]), name
    details = result.report.steps[0].model_extra["details"]
    assert details["density"] == found.chosen.density < 0.9
    assert [row["pqi"] for row in details["history"]] == [row.pqi for row in found.history]
    assert (details["p"], details["q"], details["scope"]) == (0.5, 1.0, "global")
    (curve,) = curves_of(result.report)
    assert curve.best == found.best == len(curve.rows) - 1


def test_the_trained_weights_do_not_matter_where_it_rewinds(trained: nn.Module) -> None:
    other = deepcopy(trained)
    with torch.no_grad():
        other.get_parameter("0.weight").mul_(-3.0)
    one = once(Sap(**QUICK), trained, initial=net())
    two = once(Sap(**QUICK), other, initial=net())
    assert bits(dict(one.model.state_dict())) == bits(dict(two.model.state_dict()))
    rng = once(Sap(**QUICK), trained, initial=net(seed=9))
    assert bits(dict(one.model.state_dict())) != bits(dict(rng.model.state_dict()))


def test_without_rewinding_it_goes_on_from_what_it_is_given(trained: nn.Module) -> None:
    result = once(Sap(rewind=None, **QUICK), trained)
    (row, *_) = result.report.steps[0].model_extra["details"]["history"]
    masks = Masks.of_sites(find_sites(trained))
    _, validation = held_out(task(), 0.15, seed=0)
    assert row["epoch"] is None
    assert row["score"] == scorer(validation)(trained)
    assert row["survivors"] == masks.total


def test_says_what_is_missing_before_any_work(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact.Architecture, "of", None)  # the first thing that work needs
    with pytest.raises(RecipeError, match=r"sap goes back .* --initial FILE.*rewind to none"):
        once(Sap(**QUICK), trained, out=tmp_path / "out")
    bare = Task(kind="classification", test=task().test)
    with pytest.raises(RecipeError, match="needs a task with a train split"):
        compress(trained, Recipe(steps=(Sap(**QUICK),)), bare, initial=net())
    assert not list(tmp_path.iterdir())


def test_refuses_initial_weights_of_another_network(trained: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"initial model has 0\.weight \(12, 8\).*\(16, 8\)"):
        once(Sap(**QUICK), trained, initial=net(wide=12))
    with pytest.raises(ConfigError, match=r"initial model has 3\.weight nowhere"):
        once(Sap(**QUICK), trained, initial=net()[:2])


def test_ends_at_a_density_and_keeps_what_is_skipped(trained: nn.Module) -> None:
    step = Sap(stop=0.5, iterations=20, epochs=2, gamma=6, skip=("3.*",))
    result = once(step, trained, initial=net())
    forms = {name: entry.form for name, entry in installed(result.model).items()}
    kept = forms["0.weight"]
    assert isinstance(kept, Sparse)
    assert int(kept.mask.sum()) == round(0.5 * 128)
    assert make_plan(trained, Recipe(steps=(step,))).sites[0].form.nbytes == kept.nbytes
    assert "3.weight" not in forms or isinstance(forms["3.weight"], Dense)
    assert (result.model[3].weight != trained[3].weight).all()  # trained anew, and whole


def test_follows_a_step_that_pruned_and_keeps_its_zeros(trained: nn.Module) -> None:
    recipe = Recipe.from_yaml(
        "steps: [{magnitude: 0.5}, {sap: {iterations: 2, epochs: 2, gamma: 4}}, {kmeans: 4}]"
    )
    first = compress(trained, Recipe(steps=recipe.steps[:1]), task())
    result = compress(trained, recipe, task(), initial=net())
    rows = result.report.steps[1].model_extra["details"]["history"]
    assert rows[0]["density"] == 0.5
    for name, entry in installed(result.model).items():
        before = installed(first.model)[name].form
        assert isinstance(entry.form, Sparse)
        assert isinstance(before, Sparse)
        assert entry.form.signature == "sparse(codebook)"
        assert not (entry.form.mask & ~before.mask).any()


def test_forms_outside_its_scope_stay_as_they_are(trained: nn.Module) -> None:
    steps = (
        Recipe.from_yaml("steps: [{round-to-nearest: {bits: 4, where: {include: ['3.*']}}}]")
        .steps[0],
        Sap(rewind=None, iterations=1, epochs=1, where=Where(include=("0.*", "1.*", "3.bias"))),
    )  # fmt: skip
    first = compress(trained, Recipe(steps=steps[:1]), task())
    result = compress(trained, Recipe(steps=steps), task())
    one, two = first.model[3].weight, result.model[3].weight
    assert torch.equal(one, two)
    assert installed(result.model)["3.weight"].form.kind == "quantized"
    assert not torch.equal(first.model[3].bias, result.model[3].bias)


class KilledError(BaseException):
    pass


def test_a_recipe_that_is_killed_in_the_step_goes_on_to_the_same_bytes(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from laconic.weights.prune.iterative import running

    whole = once(Sap(**QUICK), trained, initial=net(), out=tmp_path / "whole")
    real, count = running.Running._score, {"left": 9}

    def fatal(self, function, what):
        count["left"] -= 1
        if count["left"] < 0:
            raise KilledError
        return real(self, function, what)

    monkeypatch.setattr(running.Running, "_score", fatal)
    with pytest.raises(KilledError):
        once(Sap(**QUICK), trained, initial=net(), out=tmp_path / "half")
    monkeypatch.setattr(running.Running, "_score", real)
    with pytest.raises(ConfigError, match="belongs to a run with another model"):
        once(Sap(**QUICK), trained, initial=net(seed=4), out=tmp_path / "half", resume=True)
    again = once(Sap(**QUICK), trained, initial=net(), out=tmp_path / "half", resume=True)
    for name in ("model.safetensors", "laconic.json"):
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert whole.report.compressed.bytes == again.report.compressed.bytes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half", "whole"]


def test_settings_from_yaml_go_there_and_back() -> None:
    text = "steps: [{sap: {stop: pqi, rewind: 'epoch:2', skip: ['fc1.*'], p: 1, q: 2}}]"
    recipe = Recipe.from_yaml(text)
    (step,) = recipe.steps
    assert isinstance(step, Sap)
    assert (step.skip, step.late_epoch, step.stop) == (("fc1.*",), 2, "pqi")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    none = Recipe.from_yaml("steps: [{sap: {rewind: none}}]")
    assert none == Recipe.from_yaml("steps: [{sap: {rewind: null}}]")
    assert none == Recipe.from_yaml(none.to_yaml())
    assert not none.steps[0].needs_initial
    assert json.loads(json.dumps(recipe.to_dict()))["steps"][0]["sap"]["skip"] == ["fc1.*"]
    with pytest.raises(RecipeError, match=r"line 1.*rewind='later'"):
        Recipe.from_yaml("steps: [{sap: {rewind: later}}]")
    with pytest.raises(RecipeError, match=r"p=1.*q=1.*0 < p < q"):
        Recipe.from_yaml("steps: [{sap: {p: 1, q: 1}}]")
    with pytest.raises(RecipeError, match="overrides do not apply"):
        Recipe.from_yaml("steps: [{sap: {overrides: [{include: a, gamma: 2}]}}]")


def test_python_takes_a_training_of_ones_own() -> None:
    found = Sap(iterations=2, gamma=3, scope="layer", skip=("3.*",)).run(net, drift, flat)
    assert set(found.masks.kept) == {"0.weight"}
    assert len(found.history) == 3
    with pytest.warns(LaconicWarning, match="stop='pqi' was not reached"):
        Sap(iterations=1, stop="pqi").run(net, drift, flat)


CODE = """
import torch
from torch import nn
from iterative_support import net, task

def build():
    return net()

def loose():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: nn.Module) -> Path:
    (tmp_path / "sap_net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    save_file(net().state_dict(), tmp_path / "first.safetensors")
    (tmp_path / "quick.yaml").write_text("steps: [{sap: {iterations: 2, epochs: 2, gamma: 4}}]")
    yield tmp_path
    sys.modules.pop("sap_net", None)


def command(model: str, *more: str):
    words = ["compress", model, "--weights", "trained.safetensors", "--data", "sap_net:task"]
    return CliRunner().invoke(main, [*words, "--threads", "1", *more])


def test_command_line_takes_the_initial_weights_from_a_seeded_factory(place: Path) -> None:
    done = command("sap_net:build", "--recipe", "quick.yaml", "--out", "out", "--json")
    assert done.exit_code == 0, done.output
    history = json.loads(done.stdout)["steps"][0]["details"]["history"]
    assert history[-1]["density"] < 1
    assert "How it was pruned" in (place / "out" / "report.html").read_text()
    same = command(
        "sap_net:build", "--recipe", "quick.yaml", "--out", "two", "--initial", "first.safetensors"
    )
    assert same.exit_code == 0, same.output
    one, two = (place / name / "model.safetensors" for name in ("out", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_command_line_says_why_there_are_no_initial_weights(place: Path) -> None:
    save_file(
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).state_dict(),
        place / "trained.safetensors",
    )
    done = command("sap_net:loose", "--recipe", "sap", "--out", "out")
    assert done.exit_code == 1
    assert "two calls gave different 0.weight" in done.stderr
    assert "--initial FILE" in done.stderr
    done = command(
        "sap_net:loose", "--recipe", "w8", "--initial", "first.safetensors", "--out", "o"
    )
    assert done.exit_code == 2
    assert "no step of 'w8' rewinds" in done.stderr


def test_a_folder_has_no_initial_weights_and_the_plan_says_so(place: Path) -> None:
    done = command("sap_net:build", "--recipe", "w8", "--out", "small")
    assert done.exit_code == 0, done.output
    assert initial_model("small") is None
    done = command("sap_net:build", "--recipe", "quick.yaml", "--dry-run", "--json")
    assert json.loads(done.stdout)["lacking"] == []


def test_the_built_in_recipe_is_sap_that_stops_by_itself() -> None:
    (step,) = Recipe.load("sap").steps
    assert isinstance(step, Sap)
    assert (step.stop, step.rewind, step.needs_initial) == ("pqi", "init", True)
