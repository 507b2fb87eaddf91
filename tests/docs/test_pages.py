"""What the pages promise runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import laconic
from laconic import registry

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_method_of_contributing_is_a_method(tmp_path: Path) -> None:
    (code,) = blocks("CONTRIBUTING.md", "python")
    known = {entry.name for entry in registry.entries()}
    scope: dict[str, object] = {"__name__": "sign_example"}
    sys.modules["sign_example"] = type(sys)("sign_example")
    try:
        exec(compile(code, "CONTRIBUTING.md", "exec"), sys.modules["sign_example"].__dict__)
        recipe = laconic.Recipe.from_yaml("name: tiny\nsteps:\n  - sign: {gain: 1.0}\n")
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        plan = laconic.make_plan(model, recipe)
        assert plan.sites[0].predicted_bytes == 64 * 32 // 8 + 2 * 4 + 32 * 2
        result = laconic.compress(model, recipe, out=tmp_path / "out")
        weight = model[0].weight.detach()
        expected = weight.sign() * weight.abs().mean(1, keepdim=True).half().float()
        found = laconic.load(tmp_path / "out").get_submodule("0").weight
        torch.testing.assert_close(found.detach(), expected)
        assert result.report.ratio is not None
    finally:
        del sys.modules["sign_example"]
        scope.clear()
        for name in {entry.name for entry in registry.entries()} - known:
            registry._ENTRIES.pop(name)


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    (code,) = blocks("README.md", "python")
    assert "epochs=20" in code
    quick = code.replace("epochs=20", "epochs=1")
    script = f"import torch\ntorch.set_num_threads(1)\n{quick}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "small" / "report.html").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "CONTRIBUTING.md"])
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    here = (ROOT / page).parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (here / link).exists()] == []


def held(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / "benchmarks" / f"{name}.json").read_text())


def kilobytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def table_row(before: dict[str, Any], after: dict[str, Any]) -> str:
    ratio = before["bytes"] / after["bytes"]
    sizes = f"{kilobytes(before['bytes'])} to {kilobytes(after['bytes'])}"
    if "perplexity" in after["metrics"]:
        old, new = (side["metrics"]["perplexity"]["value"] for side in (before, after))
        return f"{sizes} | {ratio:.2f}x | perplexity {old:.2f} | {new:.2f} |"
    old, new = (100 * side["metrics"]["top1"]["value"] for side in (before, after))
    return f"{sizes} | {ratio:.1f}x | top-1 {old:.1f} % | {new:.1f} % |"


def test_the_table_of_the_readme_is_the_committed_figures() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table_row(*held("demo")["rows"]) in text
    rows = [*held("models-resnet")["rows"], *held("models-llama")["rows"]]
    for row in rows:
        if row["recipe"] in ("deep-compression", "w4", "w4-gptq"):
            before = {"bytes": row["bytes_original"], "metrics": row["metrics_original"]}
            assert table_row(before, row) in text, row["recipe"]


def test_committed_benchmarks_have_the_agreed_form() -> None:
    files = sorted((ROOT / "results" / "benchmarks").glob("*.json"))
    assert files
    for file in files:
        held = json.loads(file.read_text())
        assert {"benchmark", "rows", "ratios", "environment"} <= set(held), file.name
        for ratio in held["ratios"]:
            assert {"name", "ours", "peer", "ratio", "goal", "met"} <= set(ratio), file.name
