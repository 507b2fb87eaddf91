"""The tiny models run, are drawn from their seed, and have the parts that they are there for."""

from __future__ import annotations

import pytest
import torch
from tiny_models import BLOCKS, NAMES, tiny_batch, tiny_model, tiny_task

from laconic.task import model_outputs
from laconic.weights.sites import blocks_of, find_sites


@pytest.mark.parametrize("name", NAMES)
def test_each_runs_and_has_its_blocks(name: str) -> None:
    model = tiny_model(name)
    with torch.no_grad():
        out = model_outputs(model, tiny_batch(name))
        again = model_outputs(tiny_model(name), tiny_batch(name))
    assert torch.isfinite(out).all()
    assert torch.equal(out, again)
    assert len(blocks_of(model)) == BLOCKS
    assert len(tiny_task(name).test) == 6


def test_what_tells_them_apart_is_there() -> None:
    kinds = {name: {site.kind for site in find_sites(tiny_model(name))} for name in NAMES}
    assert {name for name in NAMES if "experts" in kinds[name]} == {"mixtral", "qwen-moe"}
    assert "conv" in kinds["vit"]
    layouts = {site.layout for site in find_sites(tiny_model("gpt2"))}
    assert "transposed" in layouts
