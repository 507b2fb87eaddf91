"""Recipes: YAML and Python mean the same, and every mistake is told with its place."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import registry
from laconic.errors import ConfigError, RecipeError
from laconic.recipe import Recipe, builtin_texts
from laconic.weights.base import Override, Step, Where
from laconic.weights.factor.eora import Eora
from laconic.weights.factor.svd import Svd
from laconic.weights.prune.magnitude import Magnitude
from laconic.weights.quantize.kmeans import KMeans
from laconic.weights.quantize.round_to_nearest import RoundToNearest
from laconic.weights.recover.finetune import Recover

SAME = {
    "a name alone": ("steps: [kmeans]", [KMeans()]),
    "a name and nothing": ("steps:\n  - kmeans:", [KMeans()]),
    "a bare value": ("steps: [{kmeans: 3}]", [KMeans(bits=3)]),
    "a bare time": (
        "steps: [kmeans, {recover: 60s}, {recover: 3 epochs}]",
        [KMeans(), Recover(time="60s"), Recover(time="3 epochs")],
    ),
    "settings": (
        "steps: [{round-to-nearest: {bits: 3, group_size: 16, symmetric: false, range: mse}}]",
        [RoundToNearest(bits=3, group_size=16, symmetric=False, range="mse")],
    ),
    "words and numbers in one field": (
        "steps: [{round-to-nearest: {group_size: channel}}]",
        [RoundToNearest(group_size="channel")],
    ),
    "none is what it says": ("steps: [{svd: {rank: null, keep: 0.25}}]", [Svd(keep=0.25)]),
    "a whole number where a number is asked for": (
        "steps: [{magnitude: {sparsity: 0}}]", [Magnitude(sparsity=0)]
    ),
    "a pattern without quotes": (
        "steps: [{magnitude: {pattern: 2:4}}]", [Magnitude(pattern="2:4")]
    ),
    "a small number without a dot": (
        "steps: [kmeans, {recover: {steps: 2, lr: 1e-4}}]", [KMeans(), Recover(steps=2, lr=1e-4)]
    ),
    "a scope of one word": (
        "steps: [{kmeans: {where: {include: fc1.*, types: linear}}}]",
        [KMeans(where=Where(include=("fc1.*",), types=("linear",)))],
    ),
    "a scope of lists": (
        "steps: [{kmeans: {where: {include: [a.*, b.*], exclude: [a.b], types: [conv, "
        "embedding]}}}]",
        [KMeans(where=Where(("a.*", "b.*"), ("a.b",), ("conv", "embedding")))],
    ),
    "overrides": (
        "steps: [{kmeans: {bits: 2, overrides: [{include: a.*, bits: 8}, {include: [b], bits: 5, "
        "weighting: gram}]}}]",
        [
            KMeans(
                bits=2,
                overrides=(
                    Override(("a.*",), {"bits": 8}),
                    Override(("b",), {"bits": 5, "weighting": "gram"}),
                ),
            )
        ],
    ),
    "several": (
        "steps:\n  - round-to-nearest: {bits: 2}\n  - eora: {rank: 4, metric: identity}\n"
        "  - recover: {steps: 5, distill: false}\n",
        [RoundToNearest(bits=2), Eora(rank=4, metric="identity"), Recover(steps=5, distill=False)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_yaml_and_python_mean_the_same(case: str) -> None:
    text, steps = SAME[case]
    assert Recipe.from_yaml(text) == Recipe(steps=tuple(steps))
    assert Recipe.from_yaml(Recipe(steps=tuple(steps)).to_yaml()) == Recipe(steps=tuple(steps))


def test_top_fields() -> None:
    text = "name: mine\ndescription: 'What: it does.'\ncoding: smallest\nsteps: [kmeans]\n"
    mine = Recipe(steps=(KMeans(),), name="mine", description="What: it does.", coding="smallest")
    assert Recipe.from_yaml(text) == mine
    assert Recipe.from_yaml(mine.to_yaml()) == mine
    assert mine.to_dict() == {
        "name": "mine", "description": "What: it does.", "coding": "smallest",
        "steps": [{"kmeans": {}}],
    }  # fmt: skip
    with pytest.raises(FrozenInstanceError):
        mine.name = "yours"  # type: ignore[misc]


def test_only_what_differs_from_the_defaults_is_written() -> None:
    recipe = Recipe(steps=(KMeans(bits=4, where=Where(exclude=("head.*",))), Recover(time="60s")))
    assert recipe.to_dict()["steps"] == [
        {"kmeans": {"where": {"exclude": ["head.*"]}}}, {"recover": {"time": "60s"}}
    ]  # fmt: skip


# --- built-in recipes ---------------------------------------------------------------------------

FOLDER = Path(registry.__file__).parent / "recipes"


def test_every_file_is_a_built_in_recipe_and_says_what_it_does() -> None:
    names = {yaml.safe_load(file.read_text())["name"] for file in FOLDER.glob("*.yaml")}
    assert names == set(builtin_texts())
    assert len(names) == len(list(FOLDER.glob("*.yaml"))), "two files of one name"
    for name in names:
        recipe = Recipe.load(name)
        assert recipe.name == name
        assert recipe.description.endswith(".")


@pytest.mark.parametrize("name", sorted(builtin_texts()))
def test_built_in_recipes_go_there_and_back(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(name)
    written = recipe.to_yaml()
    assert Recipe.from_yaml(written) == recipe
    assert Recipe.from_yaml(written).to_yaml() == written
    # a reader of the older YAML 1.1 sees the same values
    assert yaml.safe_load(written) == recipe.to_dict()
    assert yaml.safe_load(builtin_texts()[name])["steps"] is not None
    file = tmp_path / "own.yaml"
    file.write_text(written)
    assert Recipe.load(file) == Recipe.load(str(file)) == recipe


def test_load_finds_a_file_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w4").mkdir()  # an artefact may well be called so
    assert Recipe.load("w4").name == "w4"
    (tmp_path / "own").write_text("name: own\nsteps: [kmeans]")
    assert Recipe.load("own").name == "own"


# --- values of any kind go there and back -------------------------------------------------------

texts = st.text(max_size=12)
steps = st.lists(
    st.one_of(
        st.builds(
            RoundToNearest,
            bits=st.integers(2, 8),
            group_size=st.one_of(st.integers(1, 512), st.sampled_from(["auto", "channel"])),
            symmetric=st.booleans(),
        ),
        st.builds(
            Magnitude,
            sparsity=st.floats(0, 0.999, allow_subnormal=False),
            where=st.builds(
                Where,
                include=st.lists(texts, min_size=1, max_size=3).map(tuple),
                exclude=st.lists(texts, max_size=2).map(tuple),
                types=st.one_of(st.none(), st.just(("conv", "linear"))),
            ),
        ),
        st.builds(
            KMeans,
            overrides=st.lists(
                st.builds(
                    Override,
                    include=st.lists(texts, min_size=1, max_size=2).map(tuple),
                    settings=st.fixed_dictionaries({"bits": st.integers(1, 8)}),
                ),
                max_size=2,
            ).map(tuple),
        ),
    ),
    min_size=1,
    max_size=1,
)


@settings(deadline=None, max_examples=50)
@given(steps=steps, name=texts, description=texts)
def test_any_recipe_goes_there_and_back(steps: list[Step], name: str, description: str) -> None:
    recipe = Recipe(steps=tuple(steps), name=name, description=description)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    "text", ["2:4", "1e-3", "yes", "no", "null", "~", "010", "1_000", "0x1f", "", "on",
             "2024-01-01", "1:30:00", "=", "<<", "- a", "a: b", "#", "'", "é", "\n", "\x85", "🙂"]
)  # fmt: skip
def test_a_text_stays_a_text(text: str) -> None:
    recipe = Recipe(steps=(KMeans(where=Where(include=(text,))),), name=text)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


# --- mistakes -----------------------------------------------------------------------------------

MISTAKES = {
    # case: (text, what the message must hold in this order)
    "not YAML": ("steps: [kmeans", ["own is not YAML", "line 1"]),
    "two documents": ("steps: [kmeans]\n---\nsteps: [kmeans]", ["own is not YAML", "line 2"]),
    "empty": ("", ["own, line 1", "mapping with the key 'steps'"]),
    "a list": ("- kmeans", ["own, line 1", "mapping with the key 'steps'"]),
    "no steps": ("name: x", ["own, line 1", "needs 'steps'", "list of methods"]),
    "steps that are no list": ("name: x\nsteps: kmeans", ["line 1", "'steps', a list"]),
    "empty steps": ("name: x\nsteps: []", ["line 2", "steps=[]", "at least one"]),
    "unknown top field": (
        "name: x\nstep: [kmeans]", ["line 2", "'step'", "Did you mean 'steps'", "name, description"]
    ),
    "a field twice": ("name: x\nname: y\nsteps: [kmeans]", ["line 2", "'name'", "twice"]),
    "a name that is no text": ("name: [1]\nsteps: [kmeans]", ["line 1", "name=[1]", "a text"]),
    "unknown coding": (
        "steps: [kmeans]\ncoding: smalest", ["line 2", "coding='smalest'", "'fast' or 'smallest'",
                                             "Did you mean 'smallest'"]
    ),
    "unknown method": (
        "steps:\n  - kmeens: 3",
        ["line 2", "'kmeens'", "Did you mean 'kmeans'", "There are", "eora"]
    ),
    "unknown method alone": ("steps:\n  - kmeens", ["line 2", "'kmeens'", "Did you mean 'kmeans'"]),
    "a step that is a list": ("steps:\n  - [kmeans]", ["line 2", "one method name"]),
    "a step with two names": (
        "steps:\n  - kmeans: 3\n    gptq: 4", ["line 2", "one method name", "- round-to-nearest"]
    ),
    "unknown setting": (
        "steps:\n  - kmeans:\n      bit: 3", ["line 3", "kmeans has no field 'bit'",
                                             "Did you mean 'bits'", "Allowed: bits, weighting"]
    ),
    "a setting twice": ("steps:\n  - kmeans: {bits: 3, bits: 4}", ["line 2", "'bits'", "twice"]),
    "above a bound": (
        "steps:\n  - kmeans:\n      weighting: none\n      bits: 9",
        ["line 4", "kmeans: bits=9", "between 1 and 8"],
    ),
    "below a bound": ("steps:\n  - svd:\n      rank: 0", ["line 3", "svd: rank=0", "at least 1"]),
    "wrong type": (
        "steps:\n  - kmeans:\n      bits: three", ["line 3", "bits='three'", "a whole number"]
    ),
    "a number with a fraction": ("steps:\n  - kmeans: 2.5", ["line 2", "bits=2.5", "whole number"]),
    "true is no number": ("steps:\n  - kmeans: true", ["line 2", "bits=True", "whole number"]),
    "yes is no truth value": (
        "steps:\n  - round-to-nearest: {symmetric: yes}", ["symmetric='yes'", "true or false"]
    ),
    "a wrong word": (
        "steps:\n  - kmeans: {weighting: gramm}", ["line 2", "weighting='gramm'", "'none', 'gram'",
                                                  "Did you mean 'gram'"]
    ),
    "not a number": (
        "steps:\n  - magnitude: {sparsity: .nan}", ["line 2", "sparsity=nan", "between 0.0 and"]
    ),
    "a bare list": ("steps:\n  - kmeans: [3]", ["line 2", "bits=[3]", "whole number"]),
    "a bad pattern": ("steps:\n  - magnitude: {pattern: 4:2}", ["line 2", "'4:2'", "0 < N < M"]),
    "settings that exclude each other": (
        "steps:\n  - svd: {rank: 3, keep: 0.5}", ["line 2", "rank and keep", "give one"]
    ),
    "a bad time": (
        "steps:\n  - kmeans\n  - recover: 60 parsecs", ["line 3", "time='60 parsecs'", "500 steps"]
    ),
    "where that is no mapping": ("steps:\n  - kmeans: {where: fc1}", ["line 2", "where must be"]),
    "unknown field of where": (
        "steps:\n  - kmeans:\n      where:\n        excluded: [a]",
        ["line 4", "where has no field 'excluded'", "Did you mean 'exclude'", "include, exclude"],
    ),
    "a number as a pattern": (
        "steps:\n  - kmeans: {where: {include: [3]}}", ["line 2", "where.include=[3]", "pattern"]
    ),
    "unknown type": (
        "steps:\n  - kmeans:\n      where:\n        types: [liner]",
        ["line 4", "where.types=['liner']", "'linear', 'conv', 'embedding', 'experts'",
         "Did you mean 'linear'"],
    ),
    "a type that the method lacks": (
        "steps:\n  - gptq: {where: {types: [embedding]}}", ["where.types=['embedding']", "'linear'"]
    ),
    "overrides that are no list": (
        "steps:\n  - kmeans:\n      overrides: {bits: 3}", ["line 3", "overrides must be a list"]
    ),
    "an override without a pattern": (
        "steps:\n  - kmeans:\n      overrides:\n        - {bits: 3}", ["line 4", "needs 'include'"]
    ),
    "an override without a setting": (
        "steps:\n  - kmeans:\n      overrides:\n        - {include: a}", ["line 4", "one setting"]
    ),
    "an override beyond a bound": (
        "steps:\n  - kmeans:\n      overrides:\n        - include: a\n          bits: 99",
        ["line 5", "override", "bits=99", "between 1 and 8"],
    ),
    "an override that only fails with the step's own settings": (
        "steps:\n  - magnitude:\n      scope: global\n      overrides:\n"
        "        - {include: a, pattern: 2:4}",
        ["override", "scope='global'", "pattern='2:4'"],
    ),
    "unknown field of an override": (
        "steps:\n  - kmeans:\n      overrides:\n        - {include: a, bitts: 3}",
        ["line 4", "'bitts'", "Did you mean 'bits'"],
    ),
    "overrides of training": (
        "steps:\n  - kmeans\n  - recover: {overrides: [{include: a, lr: 0.1}]}",
        ["line 3", "overrides do not apply"],
    ),
    "steps that do not compose": (
        "steps:\n  - kmeans\n  - magnitude",
        ["line 3", "step 2", "magnitude cannot follow codebook"]
    ),
    "nothing to recover": ("steps:\n  - recover: 3s", ["line 2", "step 1", "nothing to recover"]),
    "an object of Python": (
        "steps:\n  - kmeans: {bits: !!python/object/apply:os.getcwd []}",
        ["line 2", "cannot be read"]
    ),
    "a reference to itself": ("steps: &a [*a]", ["line 1", "one method name"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_with_their_place(case: str) -> None:
    text, words = MISTAKES[case]
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text, source="own")
    told = str(caught.value)
    assert told.startswith("own")
    at = 0
    for word in words:
        assert word in told[at:], f"{word!r} is not in {told[at:]!r}"
        at = told.index(word, at) + len(word)


def test_the_file_of_a_mistake_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("steps: [kmeens]")
    with pytest.raises(RecipeError, match=r"^mine\.yaml, line 1: no method 'kmeens'"):
        Recipe.load(file)
    file.write_bytes(b"steps: [\xff]")
    with pytest.raises(RecipeError, match=r"mine\.yaml is not UTF-8"):
        Recipe.load(file)
    with pytest.raises(RecipeError, match=r"none\.yaml does not exist"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=r"no recipe 'w44'\. Did you mean 'w4'.*Built in: .*w8"):
        Recipe.load("w44")


def test_mistakes_in_python_are_told() -> None:
    with pytest.raises(RecipeError, match="no steps"):
        Recipe(steps=())
    with pytest.raises(RecipeError, match=r"\['str'\] are not steps"):
        Recipe(steps=("kmeans",))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"coding='quick' must be 'fast' or 'smallest'"):
        Recipe(steps=(KMeans(),), coding="quick")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="name=3 must be a text"):
        Recipe(steps=(KMeans(),), name=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"kmeans: bits=9 must be between 1 and 8"):
        KMeans(overrides=(Override(("a",), {"bits": 9}),))
    with pytest.raises(ConfigError, match=r"no setting 'bit'\. Did you mean 'bits'"):
        KMeans(overrides=(Override(("a",), {"bit": 3}),))
    with pytest.raises(RecipeError, match=r"step 2: kmeans cannot follow codebook"):
        Recipe(steps=(KMeans(), KMeans())).check()


def test_scopes_are_left_to_the_plan() -> None:
    """Steps with a scope may work on different weights: reading alone does not refuse them."""
    scoped = Where(include=("a.*",))
    Recipe(steps=(KMeans(where=scoped), KMeans(where=Where(include=("b.*",))))).check()
    Recipe(steps=(KMeans(where=scoped), Recover(steps=1))).check()
