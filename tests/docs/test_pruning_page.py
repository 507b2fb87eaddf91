"""What the page on pruning promises runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from laconic.recipe import Recipe
from laconic.weights.prune.sap import Sap

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8")


def test_the_python_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    quick = code.replace("epochs=25", "epochs=4").replace("iterations=25", "iterations=3")
    assert quick != code
    quick = quick.replace('stop="pqi", ', "")
    exec(compile(quick, "pruning.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("1.000 ")
    assert float(lines[-1].split()[0]) < 0.5


def test_figures_of_the_page_are_those_of_the_study() -> None:
    held = json.loads((ROOT / "results" / "studies" / "pqi-sap.small.json").read_text())
    figures = held["figures"]
    rows = {row["method"]: row for row in figures["A"]["rows"]}
    curve = figures["LT"]["rows"]
    low = min((row for row in curve if row["density"] >= 0.01), key=lambda row: row["pqi"])
    high = max((row for row in curve if row["density"] < 0.01), key=lambda row: row["pqi"])
    sap, lt, cubic = (rows[n] for n in ("SAP gamma 5", "LT 20 %", "cubic to SAP's density"))
    told = [
        f"{low['pqi']:.3f} at {100 * low['density']:.0f} %",
        f"{high['pqi']:.3f} at {100 * high['density']:.1f} %",
        f"in {sap['prunings to 10 %']:.1f} prunings",
        f"takes {lt['prunings to 10 %']:.0f}",
        f"{100 * sap['top-1 there']:.1f} % against {100 * lt['top-1 there']:.1f} % of top-1",
        f"{100 * sap['top-1 at the end']:.1f} % and {100 * cubic['top-1 at the end']:.1f} %",
        f"{100 * rows['LT 20 %, no rewinding']['top-1 there']:.1f} % against",
    ]
    text = " ".join(PAGE.split())
    assert [words for words in told if words not in text] == []


def test_links_lead_somewhere_and_settings_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGE)
    assert {"studies.md", "pqi-sap.svg"} <= set(links)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    for text in ("stop: 0.1", "rewind: none"):
        assert f"`{text}`" in PAGE
    (step,) = Recipe.from_yaml("steps: [{sap: {stop: 0.1, rewind: none}}]").steps
    assert isinstance(step, Sap)
    assert (step.stop, step.rewind) == (0.1, None)
