"""Every registered method through the same checks, on every network, in float32 and bfloat16.

A method that joins the registry is tested here without a line of its own. What a method may do
that others may not is declared in the tables below, each entry with its reason.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import FrozenInstanceError, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_zoo import NETWORKS, bits_of, raw_bytes, state_of, tensors_of
from torch import Tensor, nn

from laconic import artifact, registry
from laconic.errors import BudgetError, ConfigError, LayerError, RecipeError
from laconic.forms.layers import densify_, installed
from laconic.pipeline import compress
from laconic.plan import make_plan
from laconic.recipe import Recipe
from laconic.settings import bounds_of
from laconic.weights.base import LayerStep, ModelStep, Step, Where

METHODS = [entry.name for entry in registry.entries()]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEPLOYED = ("model.safetensors", "laconic.json", "config.json")

# Methods that have nothing to do on a dense model: the step before them, and why.
AFTER = {
    "eora": ("round-to-nearest: 3", "nothing to compensate"),
    "recover": ("round-to-nearest: 4", "nothing to recover"),
}
# Settings that the small networks need; all others run with their defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "eora": {"rank": 3},  # 32 is above the smaller side of every layer here
    "recover": {"steps": 3},  # a time box is not the same number of steps on every machine
    "sap": {"rewind": None, "iterations": 1, "epochs": 1},  # no initial weights are at hand
}
# Methods whose sizes only the work itself tells, so that a plan holds their upper bound.
UNFORESEEN = {"sap"}  # how many weights go is read off what was trained
# Methods that work on whole blocks of decoders and leave no form behind: they have tests of their
# own, and are refused elsewhere for this reason. Settings with which they work on the decoder.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "drop-blocks": ("needs a decoder of transformers", {"share": 0.5}),
    "smoothquant": ("found nothing to smooth", {}),  # it needs norms; its weights stay dense
}
# Warnings that a method declares: they tell of the network or the data, not of a fault.
WARNINGS = {
    "eora": r"calibration inputs span \d+ of \d+ directions",  # fewer examples than directions
}
# Largest difference of a running layer from its dense tensor, as a share of the output's norm.
AGREE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2}


def step_of(method: str, **more: Any) -> Step:
    step: Step = registry.get(method).cls(**SETTINGS.get(method, {}), **more)
    return step


def before(method: str) -> str:
    """The step that a method needs before it, in a YAML list."""
    return f"{{{AFTER[method][0]}}}, " if method in AFTER else ""


def recipe_of(method: str, **more: Any) -> Recipe:
    first = Recipe.from_yaml(f"steps: [{before(method)}]").steps if method in AFTER else ()
    return Recipe(steps=(*first, step_of(method, **more)))


def stat_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in DEPLOYED if (folder / name).exists())


@contextmanager
def only_declared_warnings(method: str) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    declared = WARNINGS.get(method, r"(?!)")
    strange = [str(w.message) for w in said if not re.search(declared, str(w.message))]
    assert not strange


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_builds_with_defaults_and_stays_as_it_was_built(method: str) -> None:
    cls = registry.get(method).cls
    step = cls()
    assert step == cls()
    field = fields(step)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(step, field, None)
    first = recipe_of(method).steps[:-1]
    again = Recipe.from_yaml(Recipe(steps=(*first, step)).to_yaml())
    assert again.steps == (*first, step)
    assert again == Recipe.from_yaml(f"steps: [{before(method)}{method}]")


@pytest.mark.parametrize("method", METHODS)
def test_tells_what_it_is(method: str) -> None:
    entry = registry.get(method)
    assert issubclass(entry.cls, LayerStep | ModelStep)
    assert entry.summary.endswith(".")
    assert "Source:" in entry.cls.__doc__
    assert re.search(r"\d{4}|folklore", entry.source)
    for name, bounds in bounds_of(entry.cls).items():
        assert bounds.help
        assert re.search(rf"^ {{8}}{name}: ", entry.cls.__doc__, re.MULTILINE), f"{name} in Args"
    declared = {f.name for f in fields(entry.cls)} - {"where", "overrides"}
    assert declared == set(bounds_of(entry.cls)), "every setting declares its bounds"


def bounded() -> list[tuple[str, str, float, bool]]:
    found = []
    for method in METHODS:
        for name, bounds in bounds_of(registry.get(method).cls).items():
            if bounds.low is not None:
                found.append((method, name, bounds.low, False))
            if bounds.high is not None:
                found.append((method, name, bounds.high, True))
    return found


@pytest.mark.parametrize(("method", "field", "end", "upper"), bounded())
def test_rejects_what_is_beyond_a_bound(method: str, field: str, end: float, upper: bool) -> None:
    cls = registry.get(method).cls
    whole = isinstance(end, int)
    beyond = end + (1 if whole else max(abs(end), 1) * 1e-6) * (1 if upper else -1)
    with pytest.raises(ConfigError, match=rf"^{method}: {field}=.*(at least|at most|between)"):
        cls(**{field: beyond})
    cls(**{field: end})  # the end itself is allowed


@pytest.mark.parametrize("method", METHODS)
def test_rejects_wrong_types_and_unknown_names(method: str) -> None:
    cls = registry.get(method).cls
    for field, bounds in bounds_of(cls).items():
        with pytest.raises(ConfigError, match=rf"^{method}: {field}=.*must be"):
            cls(**{field: object()})
        if bounds.low is not None:
            with pytest.raises(ConfigError, match=rf"^{method}: {field}="):
                cls(**{field: float("nan")})
            with pytest.raises(ConfigError, match=rf"^{method}: {field}="):
                cls(**{field: True})
    with pytest.raises(RecipeError, match=rf"line 2.*{method} has no field 'strnegth'"):
        Recipe.from_yaml(f"steps:\n  - {method}: {{strnegth: 3}}")


@pytest.mark.parametrize("method", METHODS)
def test_bare_value_sets_the_shorthand(method: str) -> None:
    cls = registry.get(method).cls
    if cls.shorthand is None:
        with pytest.raises(RecipeError, match="takes a mapping"):
            Recipe.from_yaml(f"steps: [{before(method)}{{{method}: 3}}]")
        return
    value = {"time": "2 steps", "sparsity": 0.25, "share": 0.25, "alpha": 0.25}.get(
        cls.shorthand, 3
    )
    steps = Recipe.from_yaml(f"steps: [{before(method)}{{{method}: {value}}}]").steps
    assert steps[-1] == cls(**{cls.shorthand: value})


# --- one run on every network -------------------------------------------------------------------

RUNS = [
    pytest.param(method, network, dtype, id=f"{method}-{network}-{dtype}")
    for method in METHODS
    if method not in DECODERS
    for network in NETWORKS
    for dtype in DTYPES
]


@pytest.mark.parametrize(("method", "network", "dtype"), RUNS)
def test_run(method: str, network: str, dtype: str, tmp_path: Path) -> None:
    kind = DTYPES[dtype]
    model, task = NETWORKS[network].model(kind), NETWORKS[network].task(kind)
    held = state_of(model)
    with only_declared_warnings(method):
        plan = make_plan(model, recipe_of(method))
        result = compress(model, recipe_of(method), task, out=tmp_path / "a")
    after = state_of(model)
    assert [key for key in held if held[key] != after[key]] == [], "the given model moved"

    forms = {name: held.form for name, held in installed(result.model).items()}
    assert forms, "something was compressed"
    assert all(form.dtype == kind for form in forms.values())
    for site in plan.sites:
        if site.name in forms:
            assert forms[site.name].signature == site.form.signature
            size, foreseen = forms[site.name].nbytes, site.predicted_bytes
            assert size <= foreseen if method in UNFORESEEN else size == foreseen

    size = stat_bytes(tmp_path / "a")
    assert size == result.report.compressed.bytes == result.report.steps[-1].bytes_after
    for row in result.report.sites:  # nearer than nothing at all, in weights or in outputs
        assert row.error is not None
        assert row.output_error is not None or row.name not in forms
        assert min(row.error, row.output_error or 0) < 1, row

    loaded = artifact.load(tmp_path / "a", model=deepcopy(model))
    assert bits_of(loaded) == bits_of(result.model)
    batch = next(iter(task.test.batches(32)))
    with torch.no_grad():
        outputs = task.forward(result.model, batch)
        assert torch.equal(task.forward(loaded, batch), outputs)
    assert outputs.dtype == kind
    check_layers(result.model, batch, task.forward, AGREE[kind])

    again = compress_quietly(method, model, task, tmp_path / "b")
    assert again == [(tmp_path / "a" / name).read_bytes() for name in DEPLOYED[:2]]


def compress_quietly(method: str, model: nn.Module, task: Any, out: Path) -> list[bytes]:
    """Run once more, after the global random state has moved; return the bytes."""
    torch.rand(7)
    with only_declared_warnings(method):
        compress(model, recipe_of(method), task, out=out)
    return [(out / name).read_bytes() for name in DEPLOYED[:2]]


def check_layers(model: nn.Module, batch: Any, forward: Any, limit: float) -> None:
    """Compare every layer with a form to the plain layer of its dense tensor."""
    plain = densify_(deepcopy(model)) or deepcopy(model)
    dense = dict(plain.named_modules())
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for name in {path.rpartition(".")[0] for path in installed(model)}:

        def keep(_m: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
            seen[name] = (args[0], out)

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        forward(model, batch)
        for name, (given, out) in seen.items():
            expected = dense[name](given)
            assert out.shape == expected.shape
            assert out.dtype == expected.dtype
            gap = (out.float() - expected.float()).norm() / expected.float().norm()
            assert gap <= limit, f"{name}: {gap}"
    for handle in handles:
        handle.remove()
    assert len(seen) == len(handles)


# --- scope, budget, refusals --------------------------------------------------------------------


@cache
def small() -> tuple[nn.Module, Any]:
    return NETWORKS["mlp"].model(torch.float32), NETWORKS["mlp"].task(torch.float32)


@pytest.mark.parametrize("method", sorted(DECODERS))
def test_methods_for_decoders_say_so(method: str, tmp_path: Path) -> None:
    model, task = small()
    reason, settings = DECODERS[method]
    with pytest.raises(RecipeError, match=reason):
        compress(model, recipe_of(method), task, out=tmp_path / "a")
    assert not list(tmp_path.iterdir())
    compress(NETWORKS["llama"].model(torch.float32), recipe_of(method, **settings),
             NETWORKS["llama"].task(torch.float32), out=tmp_path / "a")  # fmt: skip
    assert stat_bytes(tmp_path / "a")


@pytest.mark.parametrize("method", [m for m in METHODS if m not in DECODERS])
def test_only_the_scope_is_touched(method: str) -> None:
    model, task = small()
    scope = Where(include=("fc2.*",))
    with only_declared_warnings(method):
        result = compress(model, recipe_of(method, where=scope), task)
    base: nn.Module = model
    if method in AFTER:
        base = compress(model, Recipe(steps=recipe_of(method).steps[:1]), task).model
    old, new = tensors_of(base), tensors_of(result.model)
    outside = {name for name in old if not name.startswith("fc2.")}
    assert outside <= new.keys()
    assert all(raw_bytes(old[name]) == raw_bytes(new[name]) for name in outside)
    inside = {name: raw_bytes(t) for name, t in new.items() if name.startswith("fc2.")}
    assert inside != {n: raw_bytes(t) for n, t in old.items() if n.startswith("fc2.")}


@pytest.mark.parametrize("method", METHODS)
def test_meets_a_budget_where_it_has_levels(method: str, tmp_path: Path) -> None:
    step = registry.get(method).cls()
    if isinstance(step, ModelStep) or not step.levels():
        assert method in {"recover", "sap", *DECODERS}, "a method without levels is declared here"
        return
    model, task = small()
    recipe = recipe_of(method)
    with only_declared_warnings(method):
        most = compress(model, recipe, task, budget="1MB").report
        with pytest.raises(BudgetError) as caught:
            compress(model, recipe, task, budget="1kB")
    least = int(re.search(r"reached here, .*?\((\d+) B\)", str(caught.value))[1])  # type: ignore[index]
    assert "at its best level" in most.warnings[0]
    assert most.compressed.bytes is not None
    middle = (least + most.compressed.bytes) // 2
    with only_declared_warnings(method):
        met = compress(model, recipe, task, budget=f"{middle}B", out=tmp_path / "a").report
    size = stat_bytes(tmp_path / "a")
    assert least <= size <= middle < most.compressed.bytes
    told = [text for text in met.warnings if text.startswith("budget:")]
    assert (size >= 0.99 * middle) != bool(told)


@pytest.mark.parametrize("method", METHODS)
def test_levels_go_from_small_to_large(method: str) -> None:
    step = step_of(method)
    if isinstance(step, ModelStep):
        return
    model, _ = small()
    costs = []
    for level in step.levels():
        (*first, _) = recipe_of(method).steps
        costs.append(make_plan(model, Recipe(steps=(*first, level))).predicted_bytes)
    assert costs == sorted(costs)
    assert len(costs) != 1


@pytest.mark.parametrize("method", sorted(AFTER))
def test_methods_that_cannot_stand_alone_say_why(method: str, tmp_path: Path) -> None:
    model, task = small()
    with pytest.raises(RecipeError, match=AFTER[method][1]):
        compress(model, Recipe(steps=(step_of(method),)), task, out=tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", [m for m in METHODS if m not in {*AFTER, *DECODERS}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(method: str, value: float) -> None:
    model, task = NETWORKS["mlp"].model(torch.float32), small()[1]
    with torch.no_grad():
        model.get_parameter("fc2.weight")[2, 3] = value
    with pytest.raises(LayerError, match=r"fc2\.weight.*(NaN|infinite)"):
        compress(model, recipe_of(method, where=Where(include=("fc2.*",))), task)


@pytest.mark.parametrize("method", METHODS)
def test_another_method_name_is_told_from_it(method: str) -> None:
    with pytest.raises(RecipeError, match=rf"line 1.*Did you mean '{re.escape(method)}'"):
        Recipe.from_yaml(f"steps: [{method}x]")
