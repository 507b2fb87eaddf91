from __future__ import annotations

import pytest

from laconic.report.svg import Axis, element, padded, text


def test_log_axis_puts_equal_ratios_equally_far_apart() -> None:
    axis = Axis(10, 1000, 0, 200, log=True)
    assert axis(10) == 0
    assert axis(100) == pytest.approx(100)
    assert axis(1000) == pytest.approx(200)


def test_linear_axis_may_run_upwards_and_clamps() -> None:
    axis = Axis(0, 4, 100, 0)
    assert axis(1) == 75
    assert axis(9) == 0


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.91, 0.99, [0.92, 0.94, 0.96, 0.98]), (-3, 3, [-2, 0, 2])],
)
def test_linear_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert Axis(low, high, 0, 1).ticks() == pytest.approx(expected)


def test_log_ticks_lie_inside_and_are_never_too_few() -> None:
    for low, high in ((90e3, 1.2e6), (100e3, 140e3), (1, 1e9), (5.0, 80.0)):
        ticks = Axis(low, high, 0, 1, log=True).ticks(6)
        assert 2 <= len(ticks) <= 8
        assert all(low <= tick <= high for tick in ticks)


def test_padding_leaves_room_even_for_one_value() -> None:
    assert padded([2.0]) == (1.84, 2.16)
    low, high = padded([0.0])
    assert low < 0 < high


def test_text_and_attributes_are_escaped() -> None:
    assert text("a<b", 1, 2, class_="x") == '<text x="1" y="2" class="x">a&lt;b</text>'
    assert element("g", aria_label='"') == '<g aria-label="&quot;"/>'
