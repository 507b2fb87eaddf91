"""Families at equal bytes, the table that mixes them, and moving an assignment to a limit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_support import class_task, classifier, filled

from laconic.budget import LevelTable
from laconic.errors import BudgetError, ConfigError
from laconic.report.searched import draw_curves, render_search
from laconic.search.adjust import adjusted
from laconic.search.families import MIXED, curves, families_of, restricted
from laconic.search.goal import parse_goal
from laconic.search.levels import level_set
from laconic.search.problem import Problem
from laconic.search.run import search
from laconic.search.settings import Effort, solver_settings


@pytest.fixture(scope="module")
def problem() -> Problem:
    levels = level_set("mixed", data=False)
    database, units, table = filled(classifier(), class_task(), levels)
    return Problem("mixed", units, table, 0, database=database, levels=levels)


def test_a_family_keeps_its_own_levels(problem: Problem) -> None:
    assert families_of(problem) == ["bits", "corrected", "sparse", "table", "rank"]
    assert problem.levels is not None
    for family in families_of(problem):
        table = restricted(problem, family)
        own = set(problem.levels.family(family))
        for site in range(len(table.sites)):
            names = {table.levels[int(level)] for level in table.available(site)}
            assert names
            assert names <= own or names <= set(problem.levels.family("bits"))
    assert restricted(problem, MIXED) is problem.table


@pytest.mark.filterwarnings("ignore:search 'evolve':laconic.errors.LaconicWarning")
def test_families_are_compared_at_equal_bytes(tmp_path: Path) -> None:
    found = search(
        classifier(), "mixed", class_task(), budget="8.5kB", families=(1.0, 1.4),
        effort=Effort(generations=2, offspring=4, tokens=40), out=tmp_path / "a",
    )  # fmt: skip
    points = found.details["points"]
    assert {p["family"] for p in points} >= {"bits", "table", MIXED}
    for point in points:
        assert point["bytes"] <= point["limit"]
    for limit in {p["limit"] for p in points}:
        here = {p["family"]: p["held_out"] for p in points if p["limit"] == limit}
        assert min(here.values()) > 0
    page = (tmp_path / "a" / "search.html").read_text()
    assert "Families at equal bytes" in page
    assert page.count("<svg") == 5
    details = json.loads((tmp_path / "a" / "search.json").read_text())
    assert details == found.details
    with pytest.raises(ConfigError, match="at equal bytes"):
        search(classifier(), "sparsity", class_task(), budget="50%", families=(1.0,))


def test_curves_rise_in_bytes_and_mixed_comes_first(problem: Problem) -> None:
    from laconic.search.families import Point

    points = [
        Point("bits", 9, 8, 0.2, ()),
        Point(MIXED, 5, 4, 0.3, ()),
        Point("bits", 5, 5, 0.4, ()),
    ]
    assert curves(points) == [(MIXED, [(4.0, 0.3)]), ("bits", [(5.0, 0.4), (8.0, 0.2)])]
    drawn = draw_curves(curves(points), width=600)
    assert drawn.count("<circle") == 3


def test_texts_on_the_page_are_escaped() -> None:
    held = {
        "name": "<b>", "search": {"method": "dp", "history": [], "evaluations": 0, "tokens": 0,
                                  "settings": {}},
        "budget": {"asked": "8x", "words": "1 kB"}, "bytes": 10, "bytes_original": 20,
        "is_uniform": False, "reason": "<script>", "levels": ["<i>"], "unit": "bytes", "cost": 3,
        "units": [{"name": "<u>", "level": "<i>", "cost": 3, "error": None, "has": [True]}],
        "seconds": {}, "held_out": {}, "job": {},
    }  # fmt: skip
    page = render_search(held)
    for text in ("<b>", "<script>al", "<i>", "<u>"):
        assert text not in page.partition("<main")[2].partition("</main")[0]
    assert "&lt;u&gt;" in page


# --- adjusting ----------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn) -> LevelTable:
    sites, levels = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    row = st.lists(st.integers(0, 30), min_size=levels, max_size=levels)
    errors = st.lists(st.integers(0, 20).map(float), min_size=levels, max_size=levels)
    return LevelTable(
        [f"s{i}" for i in range(sites)],
        [f"l{i}" for i in range(levels)],
        draw(st.lists(row, min_size=sites, max_size=sites)),
        draw(st.lists(errors, min_size=sites, max_size=sites)),
    )


@given(tables(), st.integers(0, 120), st.data())
@settings(deadline=None, max_examples=50)
def test_an_adjusted_assignment_keeps_the_limit(
    table: LevelTable, limit: int, data: st.DataObject
) -> None:
    choice = [data.draw(st.integers(0, len(table.levels) - 1)) for _ in table.sites]
    low, _ = table.attainable()
    if limit < low:
        with pytest.raises(BudgetError):
            adjusted(table, choice, limit)
        return
    found = adjusted(table, choice, limit)
    start = table.assignment(choice)
    assert found.cost <= limit
    if start.cost <= limit:
        assert found.error <= start.error
    again = adjusted(table, found.choice, limit)
    assert again.choice == found.choice or again.error <= found.error


def test_hand_worked_adjustment() -> None:
    table = LevelTable(
        ["a", "b"], ["2", "4", "8"], [[2, 4, 8], [2, 4, 8]], [[8.0, 2.0, 0.0], [4.0, 3.0, 0.0]]
    )
    assert adjusted(table, [2, 2], 16).choice == (2, 2)
    # Down: a to 4 costs 2 for 4, b to 4 costs 3 for 4, b to 2 costs 4 for 6, a to 2 8 for 6.
    assert adjusted(table, [2, 2], 12).choice == (1, 2)
    # Up from (2, 2) with 6 to spend: a to 4 mends 6 for 2, then b to 8 does not fit, a does not.
    assert adjusted(table, [0, 0], 8).choice == (1, 1)


# --- goals and settings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [("8x", "bytes", 0), ("1.5MB", "bytes", 0), ("3.0bits", "bytes", 0), ("70%", "share", 0.7),
     ("40ms", "time", 40_000), ("0.1s", "time", 100_000), ("250us", "time", 250)],
)  # fmt: skip
def test_budgets_are_read(text: str, kind: str, value: float) -> None:
    goal = parse_goal(text)
    assert (goal.kind, goal.value) == (kind, pytest.approx(value))


@pytest.mark.parametrize("text", ["0%", "100%", "8y", "0ms", "0.5x", "many"])
def test_wrong_budgets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=text if text != "0.5x" else "0.5"):
        parse_goal(text)


def test_stages_are_races_on_ever_more_data(problem: Problem) -> None:
    from laconic.budget import Sampler

    sampler = Sampler([128] * 100, least=2)
    stages = Effort(offspring=32, tokens=4096).stages(sampler)
    assert stages == [(8, 256), (2, 1024), (1, 4096)]
    assert Effort(offspring=1).stages(sampler)[-1] == (1, 6400)
    with pytest.raises(ConfigError, match="generations=-1"):
        Effort(generations=-1)
    with pytest.raises(ConfigError, match="12801 tokens"):
        Effort(tokens=12_801).stages(sampler)
    with pytest.raises(ConfigError, match="Did you mean 'evolve'"):
        solver_settings("evolv", "bits", problem.table, 9, sampler, Effort())  # type: ignore[arg-type]
    told = solver_settings("evolve", "mixed", problem.table, 6_000, sampler, Effort())
    assert told["reach"] > 1
    assert len(told["start"]) > 1
    from laconic.budget import depth_table

    depth = depth_table({f"a{i}": "attention" for i in range(12)})
    told = solver_settings("evolve", "depth", depth, {"attention": 9}, sampler, Effort())
    assert told["generations"] == int(9 * 3 / 1.5)
    assert np.isfinite(depth.costs).all()
