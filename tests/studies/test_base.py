import json
import warnings

import pytest

from laconic.errors import ConfigError, LaconicWarning
from laconic.studies import Bar, Conditions, Findings, Section, Study

BARS = (Bar("error", 0.5),)


def study_of(values, *, bars=BARS, warn=()):
    def protocol(conditions: Conditions) -> Findings:
        for message, category in warn:
            warnings.warn(message, category, stacklevel=1)
        rows = ({"seed": conditions.seed, "device": conditions.device},)
        return Findings(values, {"A": Section("A. Title", "What.", rows, {"fact": 1.5})})

    return Study(
        name="toy",
        claim="A claim.",
        source="Someone 2020",
        bars={"small": bars, "full": bars},
        protocols={"small": protocol, "full": protocol},
    )


@pytest.mark.parametrize(
    ("value", "strict", "passed"),
    [(0.49, False, True), (0.5, False, True), (0.5, True, False), (0.51, False, False)],
)
def test_a_bar_is_met_at_its_limit_unless_strict(value, strict, passed):
    judged = Bar("error", 0.5, strict=strict).judge(value)
    assert judged["passed"] is passed
    assert (judged["name"], judged["limit"], judged["value"]) == ("error", 0.5, value)
    assert ("strict" in judged) is strict


def test_a_value_that_is_no_number_never_passes():
    assert not Bar("error", float("inf"), strict=True).judge(float("nan"))["passed"]


def test_result_is_plain_and_complete():
    result = study_of({"error": 0.2}).run(scale="small", seed=7)
    assert set(result) == {
        "study", "claim", "source", "scale", "seed", "device", "passed", "bars", "figures",
        "warnings", "seconds", "environment",
    }  # fmt: skip
    assert json.loads(json.dumps(result)) == result
    assert result["passed"] is True
    assert result["figures"]["A"] == {
        "title": "A. Title", "about": "What.", "rows": [{"seed": 7, "device": "cpu"}],
        "facts": {"fact": 1.5},
    }  # fmt: skip


def test_one_missed_bar_fails_the_study():
    bars = (Bar("error", 0.5), Bar("size", 1.0))
    result = study_of({"error": 0.2, "size": 1.1}, bars=bars).run()
    assert result["passed"] is False
    assert [bar["passed"] for bar in result["bars"]] == [True, False]


@pytest.mark.parametrize("values", [{}, {"error": 0.2, "other": 0.1}])
def test_every_bar_is_judged_and_no_other(values):
    named = "other" if values else "error"
    with pytest.raises(ConfigError, match=f"{named!r} is a bar without a value or"):
        study_of(values).run()


def test_an_unknown_scale_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"scale='huge'.*small.*full"):
        study_of({"error": 0.2}).run(scale="huge")


def test_two_bars_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two bars named error"):
        study_of({"error": 0.2}, bars=(Bar("error", 0.5), Bar("error", 0.4)))


def test_warnings_of_one_kind_are_told_once_and_counted():
    heard = [
        ("layers.0.fc1.weight: 3 of 8 directions.", LaconicWarning),
        ("layers.1.fc2.weight: 5 of 8 directions.", LaconicWarning),
        ("Files are missing: none of 2.", LaconicWarning),
    ]
    result = study_of({"error": 0.2}, warn=heard).run()
    assert result["warnings"] == [
        {"text": "layers.0.fc1.weight: 3 of 8 directions.", "count": 2},
        {"text": "Files are missing: none of 2.", "count": 1},
    ]


def test_warnings_of_other_libraries_are_handed_on():
    with pytest.warns(RuntimeWarning, match="overflow"):
        result = study_of({"error": 0.2}, warn=[("overflow", RuntimeWarning)]).run()
    assert result["warnings"] == []
