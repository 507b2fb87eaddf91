"""The plot of density against PQ Index and score."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from report_sample import sample

from laconic.report import parse, render_html
from laconic.report.pruning import Curve, curves_of, draw

SVG = "{http://www.w3.org/2000/svg}"
DENSITIES = (1.0, 0.5, 0.1, 0.01)


def rows() -> list[dict[str, Any]]:
    index, scores, pruned = (0.16, 0.06, 0.03, 0.05), (0.98, 0.97, 0.97, 0.9), (0.97, 0.9, 0.5)
    found = [
        {"density": d, "pqi": i, "score": s, "test": s - 0.01, "phase": "limit"}
        for d, i, s in zip(DENSITIES, index, scores, strict=True)
    ]
    for row, value in zip(found, pruned, strict=False):
        row["score_pruned"] = value
    return found


def test_lines_and_dots_lie_where_the_figures_are() -> None:
    drawn = ElementTree.fromstring(draw([Curve("LT & co", rows(), best=2)]))
    lines = [
        [tuple(map(float, p.split(","))) for p in line.get("points", "").split()]
        for line in drawn.iter(f"{SVG}polyline")
    ]
    score, pruned, index = lines
    assert [len(line) for line in lines] == [4, 3, 4]
    assert [x for x, _ in score] == sorted(x for x, _ in score), "dense at the left"
    tenths = [score[i][0] - score[0][0] for i in (2, 3)]
    assert abs(tenths[1] - 2 * tenths[0]) < 0.3, "equal ratios are equally far apart"
    assert max(y for _, y in score) < min(y for _, y in index), "scores above the index"
    assert index[0][1] < index[1][1] < index[2][1], "the index falls"
    assert index[3][1] < index[2][1], "and rises"
    assert pruned[2][1] > score[2][1], "what is not retrained is worse"
    dots = [dot for dot in drawn.iter(f"{SVG}circle") if len(dot)]
    large = [dot for dot in dots if dot.get("r") == "6"]
    assert len(dots) == 8
    assert len(large) == 2
    title = large[0].find(f"{SVG}title")
    assert title is not None
    assert title.text == "LT & co, iteration 2: 10.0 % kept, pqi 0.03, score 0.97, test 0.96, limit"


def test_legends_break_into_lines_and_nothing_lies_outside() -> None:
    curves = [Curve(f"a rather long name {i}", rows()) for i in range(6)]
    drawn = ElementTree.fromstring(draw(curves, width=340, name="narrow"))
    height = float(drawn.get("height", "0"))
    (legend,) = [group for group in drawn.iter(f"{SVG}g") if group.get("transform")]
    down = float(re.search(r"0 ([\d.]+)\)", legend.get("transform", ""))[1])  # type: ignore[index]
    places = [float(t.get("y", "0")) for t in legend.iter(f"{SVG}text")]
    assert len(set(places)) > 2
    assert down + max(places) < height
    assert draw([]) == draw([Curve("none", [])]) == ""


def test_a_report_shows_how_it_was_pruned() -> None:
    held = sample()
    assert curves_of(parse(held)) == []
    assert "How it was pruned" not in render_html(held)
    held["steps"][0]["details"] = {"history": rows(), "best": 1}
    (curve,) = curves_of(parse(held))
    assert (curve.best, len(curve.rows)) == (1, 4)
    page = render_html(held)
    assert "How it was pruned" in page
    assert page.count('aria-labelledby="pruned-') == 2
