"""Activations as a setting of steps: what the form holds, what is measured, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_task
from torch import Tensor

from laconic import artifact
from laconic.errors import ConfigError, RecipeError
from laconic.forms import Quantized, Sparse, installed
from laconic.pipeline import compress
from laconic.plan import make_plan
from laconic.recipe import Recipe
from laconic.weights.base import Where
from laconic.weights.quantize.gptq import Gptq
from laconic.weights.quantize.round_to_nearest import RoundToNearest

STEPS = [RoundToNearest, Gptq]


@pytest.mark.parametrize("cls", STEPS)
@pytest.mark.parametrize("granularity", ["token", "tensor", "static"])
def test_fit_gives_the_form_its_rounding(cls: Any, granularity: str, make_site, generator) -> None:
    weight, x = torch.randn(6, 16), torch.randn(50, 16)
    step = cls(bits=8, group_size="channel", activations={"granularity": granularity, "clip": 0.9})
    site = make_site(weight, x=x)
    form = step.fit(site, generator)
    assert isinstance(form, Quantized)
    assert form.activations == step.rounding
    if granularity == "static":
        assert "absmax" in step.needs
        assert form.input_scale is not None
        assert torch.allclose(form.input_scale, 0.9 * x.abs().max() / 127.5)
    else:
        assert "absmax" not in step.needs
    sketch = step.sketch(site.form, site="layer.weight")
    assert sketch.settings() == form.settings()
    assert sketch.nbytes == form.nbytes
    gap = (form.matmul(x) - x @ weight.T).norm() / (x @ weight.T).norm()
    assert 0 < gap < 0.1


def test_fewer_bits_are_worse(make_site, generator) -> None:
    weight, x = torch.randn(6, 16), torch.randn(50, 16)
    gaps = []
    for bits in (8, 6, 4, 2):
        form = RoundToNearest(bits=8, activations={"bits": bits}).fit(make_site(weight), generator)
        gaps.append(float((form.matmul(x) - x @ weight.T).detach().norm()))
    assert gaps == sorted(gaps), gaps
    assert gaps[-1] > 10 * gaps[0], gaps


def test_static_scale_of_kept_columns(make_site, generator) -> None:
    from laconic.forms import Dense

    x = torch.ones(5, 4)
    x[:, 1] = 100.0
    kept = torch.tensor([True, False, True, True])
    form = Sparse(
        kept, Dense(torch.randn(3, 3)), shape=(3, 4), dtype=torch.float32, pattern="column"
    )
    step = RoundToNearest(bits=8, activations={"granularity": "static"})
    fitted = step.fit(make_site(form.dense(), x=x, form=form), generator)
    assert isinstance(fitted, Sparse)
    assert isinstance(fitted.values, Quantized)
    assert fitted.values.input_scale is not None
    assert torch.allclose(fitted.values.input_scale, torch.tensor([1 / 127.5]))


W8A8 = """
steps:
  - round-to-nearest: {bits: 8, group_size: channel, activations: {bits: 8, granularity: GRAIN}}
"""


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "vit"])
@pytest.mark.parametrize("grain", ["token", "static"])
def test_whole_run_on_each_kind_of_layer(name: str, grain: str, tmp_path: Path) -> None:
    model, task = tiny_model(name), tiny_task(name)
    recipe = Recipe.from_yaml(W8A8.replace("GRAIN", grain))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    result = compress(model, recipe, task, out=tmp_path / "a")
    batch = next(iter(task.test.batches(4)))

    def run(which: torch.nn.Module) -> Tensor:
        with torch.no_grad():
            return task.forward(which, batch)

    loaded = artifact.load(tmp_path / "a", kernels="exact")
    again = artifact.load(tmp_path / "a", kernels="exact")
    assert torch.equal(run(loaded), run(again))
    assert torch.allclose(run(result.model), run(loaded), atol=1e-3)
    exact = run(model)
    forms = {path: held.form for path, held in installed(loaded).items()}
    assert all(form.rounds_inputs for form in forms.values())
    plain = Recipe.from_yaml("steps: [round-to-nearest: {bits: 8, group_size: channel}]")
    weights_only = compress(model, plain, task).model
    gap = (run(loaded) - exact).norm() / exact.norm()
    assert (run(weights_only) - exact).norm() / exact.norm() < gap < 0.2
    kernels = set(result.report.kernels.values())
    assert not any("dense" in word for word in kernels)
    if name == "mixtral":
        assert "simulated activations" in kernels


def test_experts_round_what_reaches_them() -> None:
    """Coarse inputs of the experts alone are seen in the output."""
    model, task = tiny_model("mixtral"), tiny_task("mixtral")
    batch = next(iter(task.test.batches(4)))
    gaps = []
    for bits in (8, 3):
        experts = Where(types=("experts",))
        step = RoundToNearest(bits=8, activations={"bits": bits}, where=experts)
        result = compress(model, Recipe(steps=(step,)), task)
        with torch.no_grad():
            gap = task.forward(result.model, batch) - task.forward(model, batch)
        gaps.append(float(gap.norm()))
    assert gaps[1] > 5 * gaps[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "round-to-nearest: activations: bits=1"),
        ({"granular": "token"}, "no setting 'granular'.*Did you mean 'granularity'"),
    ],
)
def test_wrong_settings_are_told_at_their_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RoundToNearest(activations=settings)
    text = f"steps:\n  - round-to-nearest:\n      bits: 8\n      activations: {settings}"
    with pytest.raises(RecipeError, match=f"line 4: .*{message}"):
        Recipe.from_yaml(text.replace("'", '"'))


def test_embeddings_have_no_inputs() -> None:
    with pytest.raises(ConfigError, match="embedding"):
        RoundToNearest(activations={}, where=Where(types=("linear", "embedding")))


@pytest.mark.parametrize(
    ("first", "grain", "message"),
    [("svd: {keep: 0.5}", "static", "static scale"), ("svd: {keep: 0.5}", "token", None)],
)
def test_what_may_come_before(first: str, grain: str, message: str | None) -> None:
    step = f"round-to-nearest: {{activations: {{granularity: {grain}}}}}"
    text = f"steps: [{{{first}}}, {{{step}}}]"
    if message is None:
        plan = make_plan(tiny_model("llama"), Recipe.from_yaml(text))
        assert any(site.form.rounds_inputs for site in plan.sites)
        return
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(text)
