"""Names, descriptions and options of data sets."""

from __future__ import annotations

import inspect
import re

import pytest

from laconic import datasets
from laconic.errors import ConfigError

KNOWN = [
    "calibration-text", "cifar10", "digits", "fashion-mnist", "gutenberg", "imagenet-samples",
    "mnist", "ptb", "stdlib-text", "tinystories", "wikitext2",
]  # fmt: skip


def test_names_are_sorted_and_hold_every_set() -> None:
    found = datasets.names()
    assert found == sorted(found)
    assert set(KNOWN) <= set(found)


@pytest.mark.parametrize("name", datasets.names())
def test_every_set_describes_itself(name: str) -> None:
    about = datasets.describe(name)
    assert about.name == name
    assert about.summary
    assert about.licence
    assert about.source
    assert about.kind in ("classification", "causal-lm", "regression", "custom")
    for file in about.files:
        for sum_ in (file.sha256, file.content or file.sha256):
            assert re.fullmatch("[0-9a-f]{64}", sum_)
        assert not file.path.startswith(("/", "."))
        assert file.url or file.recipe, "nothing says how to get it"
    options = inspect.signature(about.loader).parameters
    assert all(option.kind is option.KEYWORD_ONLY for option in options.values())
    documented = inspect.getdoc(about.loader) or ""
    assert all(re.search(rf"(?m)^    {option}: \S", documented) for option in options)


def test_no_two_sets_give_one_file_two_sums() -> None:
    sums: dict[str, str] = {}
    for name in datasets.names():
        for file in datasets.describe(name).files:
            assert sums.setdefault(file.path, file.sha256) == file.sha256


@pytest.mark.parametrize(
    ("wrong", "right"), [("digit", "digits"), ("wikitext-2", "wikitext2"), ("MNIST", None)]
)
def test_a_wrong_name_is_refused_with_the_nearest(wrong: str, right: str | None) -> None:
    hint = rf" Did you mean '{right}'\?" if right else ""
    for ask in (datasets.describe, datasets.load):
        with pytest.raises(ConfigError, match=rf"no data set '{wrong}'\.{hint} There are: .*ptb"):
            ask(wrong)


def test_a_wrong_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'digits': no option 'limits'\. Did you mean 'limit'\?"):
        datasets.load("digits", limits=3)
    with pytest.raises(ConfigError, match="There are: limit, calibration"):
        datasets.load("digits", zzz=3)


def test_a_task_bears_the_name_of_its_set() -> None:
    assert datasets.load("digits").name == "digits"
    task = datasets.load("stdlib-text", limit=2, test_limit=2)
    assert task.name == "stdlib-text"
    assert task.kind == datasets.describe("stdlib-text").kind
