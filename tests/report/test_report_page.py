from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from laconic.errors import ConfigError
from laconic.report import compare_html, render_html

_VOID = {"meta", "input", "br", "link", "hr", "img"}


class _Checker(HTMLParser):
    """Follows open tags, ids and what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.captions = self.tables = 0
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []  # type: ignore[list-item]
        if tag in ("img", "link", "iframe") or "src" in found:
            self.fetched.append(tag)
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(page: str) -> _Checker:
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    return checker


def test_page_is_well_formed_self_contained_and_captioned(sample: dict[str, Any]) -> None:
    page = render_html(sample)
    found = check(page)
    assert found.fetched == []
    assert not re.search(r"https?://|@import|url\(", page)
    assert found.tables == found.captions >= 6
    for label in re.findall(r'aria-labelledby="([^"]+)"', page):
        assert label in found.ids


def test_page_shows_the_figures_and_calls_a_slow_down_one(sample: dict[str, Any]) -> None:
    page = render_html(sample)
    for shown in (
        "1.05 MB", "131.04 kB", "8.01x", "97.11 %", "95.41 to 98.41 %", "Worst class (three)",
        "Slower: a call takes 1.41x the time of the original.", "The 95 % intervals overlap.",
        "2 min 10 s", "sparse(quantized)", "not a layer&#39;s weight",
        "laconic compress zoo:digits_vit",
    ):  # fmt: skip
        assert shown in page, shown


def test_faster_and_equal_are_told_apart(sample: dict[str, Any]) -> None:
    sample["compressed"]["latency_ms"]["median"] = 0.96
    assert "Faster: 2.00x the speed of the original." in render_html(sample)
    sample["compressed"]["latency_ms"]["median"] = 1.95
    assert "No difference beyond the spread of the repeats." in render_html(sample)


def test_growth_is_called_larger(sample: dict[str, Any]) -> None:
    sample["compressed"]["bytes"] = 2 * sample["original"]["bytes"]
    sample["ratio"] = 0.5
    assert "Larger than the original by 100.0 %." in render_html(sample)


def test_what_was_not_measured_says_so_and_is_never_zero() -> None:
    page = render_html({"original": {}, "compressed": {"bytes": 1000}, "steps": [{"step": "svd"}]})
    text = " ".join(check(page).text)
    assert text.count("not measured") >= 8
    main = text[text.index("Compression report") : text.index("Bytes are what")]
    assert not re.search(r"(?<![\d.])0(\.0+)? ?(%|B|ms|x|s)\b", main)


def test_a_site_without_an_error_is_not_shown_as_zero(sample: dict[str, Any]) -> None:
    sample["sites"] = [sample["sites"][-1]]
    rows = re.findall(r"<tr>.*?</tr>", render_html(sample), flags=re.DOTALL)
    site = [row for row in rows if "blocks.6.head.weight" in row]
    assert len(site) == 2
    assert all("not measured" in row and "0 %" not in row for row in site)


def test_names_cannot_inject_markup(sample: dict[str, Any]) -> None:
    attack = "</script><script>alert(1)</script>\"'"
    sample["name"] = attack
    sample["sites"][0]["name"] = attack
    sample["steps"][0]["step"] = attack
    sample["trade_off"][1]["name"] = attack
    sample["environment"] = {"cpu": attack}
    sample["recipe"] = {"name": attack}
    page = render_html(sample)
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    check(page)


def test_plot_has_a_tooltip_and_a_dot_for_every_point(sample: dict[str, Any]) -> None:
    page = render_html(sample)
    plot = page[page.index("<svg") : page.index("</svg>")]
    assert plot.count('class="dot"') == len(sample["trade_off"])
    assert "3 bits: 118.00 kB, Accuracy (top-1) 92.44 % (95 %: 90.74 to 93.74 %)" in plot


def test_plot_is_built_from_the_steps_where_no_points_are_given(sample: dict[str, Any]) -> None:
    sample["trade_off"] = []
    page = render_html(sample)
    plot = page[page.index("<svg") : page.index("</svg>")]
    assert plot.count('class="dot"') == 5  # original, three measured steps, compressed


def test_comparison_says_whether_bytes_are_equal(sample: dict[str, Any]) -> None:
    other = {**sample, "recipe": {"name": "w4"}}
    page = compare_html({"one": sample, "two": other})
    assert "At equal bytes: the sizes lie within 0.0 % of each other." in page
    smaller = sample | {"compressed": sample["compressed"] | {"bytes": 65_522}, "ratio": None}
    page = compare_html({"one": sample, "half": smaller})
    assert "Not at equal bytes: the largest is 100.0 % above the smallest." in page
    assert page.index(">half") < page.index(">one")
    check(page)


def test_comparison_at_equal_bytes_puts_the_best_first(sample: dict[str, Any]) -> None:
    better = {"top1": {"value": 0.99, "low": 0.98, "high": 1.0, "n": 450}}
    best = sample | {"compressed": sample["compressed"] | {"metrics": better}}
    page = compare_html({"first": sample, "best": best})
    assert page.index(">best") < page.index(">first")


def test_comparison_needs_two(sample: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at least two"):
        compare_html({"one": sample})
