"""What docs/gradients.md says is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from gradient_support import gradients, mean, small_model

import laconic.gradients
from laconic import registry
from laconic.gradients.fsdp import compress_replicas

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "gradients.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_name_is_there_and_every_method_is_told() -> None:
    for name in re.findall(r"laconic\.gradients\.([A-Za-z]+)", PAGE):
        assert name == "fsdp" or hasattr(laconic.gradients, name), name
    assert compress_replicas.__name__ in PAGE
    told = re.findall(r"^\| `([A-Za-z]+)", PAGE, re.MULTILINE)
    methods = {entry.cls.__name__ for entry in registry.entries("gradients")}
    assert methods <= set(told)
    assert set(laconic.gradients.__all__) == set(laconic.gradients._HOMES)
    for name in laconic.gradients.__all__:
        assert getattr(laconic.gradients, name).__name__ == name
    assert len(methods) == len(registry.entries("gradients")) >= 7


def test_virtual_ranks_run_as_shown() -> None:
    model = small_model()
    scope = {"laconic": laconic, "model": model, "gradients": gradients(model, 0, 4)}
    exec(compile(BLOCKS[-1], "docs/gradients.md", "exec"), scope)
    means, wanted = scope["means"], mean(scope["gradients"])
    assert len(means) == 4
    for name in scope["states"][0].dense_names:
        torch.testing.assert_close(means[3][name], wanted[name])


def test_every_block_is_python() -> None:
    for block in BLOCKS:
        compile(block, "docs/gradients.md", "exec")


def test_the_wing_loads_nothing_before_it_is_used() -> None:
    code = (
        "import sys, laconic.gradients; print('torch' in sys.modules, len(dir(laconic.gradients)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", str(len(laconic.gradients.__all__))], done.stderr
