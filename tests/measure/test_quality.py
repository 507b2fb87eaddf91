"""Quality figures by hand, and what evaluation leaves as it was."""

from __future__ import annotations

from collections import OrderedDict
from math import exp, log
from typing import Any

import pytest
import torch
from measure_support import Chain, Echo, chances, classification, language, regression
from torch import Tensor, nn

from laconic.errors import BackendError, ConfigError
from laconic.measure import evaluate, wilson
from laconic.task import Task, TensorSplit

LOGITS = torch.eye(3)[[0, 0, 1, 2, 2, 1]]  # predicted classes 0 0 1 2 2 1
LABELS = [0, 1, 1, 2, 0, 0]  # of class 0 one in three is right, of 1 one in two, of 2 all


def test_classification_by_hand() -> None:
    figures = evaluate(Echo(), classification(LOGITS, LABELS, classes=("ant", "bee", "cat")))
    low, high = wilson(3, 6)
    assert figures["top1"] == {"value": 0.5, "low": low, "high": high, "n": 6}
    assert list(figures["per_class"]) == ["ant", "bee", "cat"]
    assert [figures["per_class"][name]["value"] for name in ("ant", "bee", "cat")] == [
        1 / 3,
        0.5,
        1,
    ]
    assert [m["n"] for m in figures["per_class"].values()] == [3, 2, 1]
    assert figures["worst_class"] == {**figures["per_class"]["ant"], "name": "ant"}
    # A right prediction costs ln(e + 2) - 1, a wrong one ln(e + 2).
    assert figures["loss"]["value"] == pytest.approx(log(exp(1) + 2) - 0.5, rel=1e-6)
    assert figures["loss"]["n"] == 6


def test_classes_without_names_go_by_number_and_absent_ones_are_left_out() -> None:
    figures = evaluate(Echo(), classification(torch.eye(4)[[3, 1]], [3, 3], classes=("ant",)))
    assert list(figures["per_class"]) == ["3"]
    assert figures["worst_class"]["name"] == "3"
    assert figures["worst_class"]["value"] == 0.5


@pytest.mark.parametrize("vocabulary", [2, 17, 300])
def test_perplexity_of_a_uniform_model_is_the_vocabulary(vocabulary: int) -> None:
    ids = torch.randint(vocabulary, (7, 9), generator=torch.Generator().manual_seed(0))
    figures = evaluate(Chain(torch.zeros(vocabulary, vocabulary)), language(ids))
    for end in ("value", "low", "high"):
        assert figures["perplexity"][end] == pytest.approx(vocabulary, rel=1e-6)
        assert figures["loss"][end] == pytest.approx(log(vocabulary), rel=1e-6)
    assert figures["perplexity"]["n"] == figures["loss"]["n"] == 7 * 8


def test_perplexity_by_hand() -> None:
    # After 0 comes 1 with 3/4, after 1 comes 0 with 1/8: the steps of 0 1 0 0 have the chances
    # 3/4, 1/8, 1/4 and those of 1 1 0 1 have 7/8, 1/8, 3/4.
    model = Chain(chances([0.25, 0.75], [0.125, 0.875]))
    figures = evaluate(model, language(torch.tensor([[0, 1, 0, 0], [1, 1, 0, 1]])))
    nats = -log(0.75 * 0.125 * 0.25) - log(0.875 * 0.125 * 0.75)
    assert figures["loss"]["value"] == pytest.approx(nats / 6, rel=1e-6)
    assert figures["perplexity"]["value"] == pytest.approx(exp(nats / 6), rel=1e-6)
    assert figures["perplexity"]["low"] < figures["perplexity"]["value"]
    assert figures["perplexity"]["value"] < figures["perplexity"]["high"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_not_scored(side: str) -> None:
    draw = torch.Generator().manual_seed(4)
    model = Chain(torch.randn(11, 11, generator=draw))
    texts = [torch.randint(1, 11, (n,), generator=draw) for n in (5, 5, 5)]
    plain = evaluate(model, language(torch.stack(texts)))
    ids, mask = torch.zeros(3, 8, dtype=torch.int64), torch.zeros(3, 8, dtype=torch.int64)
    place = slice(0, 5) if side == "right" else slice(3, 8)
    ids[:, place], mask[:, place] = torch.stack(texts), 1
    assert evaluate(model, language(ids, attention_mask=mask)) == plain


def test_texts_of_different_lengths_count_by_token() -> None:
    model = Chain(chances([0.5, 0.5], [0.125, 0.875]))
    ids = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]])  # the last two of the first are padding
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    figures = evaluate(model, language(ids, attention_mask=mask))
    nats = -log(0.875) - log(0.125) - log(0.5) - log(0.875)
    assert figures["loss"]["value"] == pytest.approx(nats / 4, rel=1e-6)
    assert figures["loss"]["n"] == 4


def test_labels_replace_the_tokens_and_minus_100_does_not_count() -> None:
    model = Chain(chances([0.25, 0.75], [0.5, 0.5]))
    ids = torch.tensor([[0, 0, 0, 1]])
    labels = torch.tensor([[1, 1, -100, 0]])  # the first is nobody's target
    figures = evaluate(model, language(ids, labels=labels))
    assert figures["loss"]["value"] == pytest.approx((-log(0.75) - log(0.25)) / 2, rel=1e-6)
    assert figures["loss"]["n"] == 2


def test_no_token_to_score_is_refused() -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ConfigError, match="task 'task': no token counts"):
        evaluate(Chain(torch.zeros(2, 2)), language(ids, attention_mask=torch.zeros_like(ids)))


def test_regression_by_hand() -> None:
    x, y = torch.tensor([1.0, 2.0, 4.0, 5.0]), torch.tensor([1.0, 3.0, 4.0, 8.0])
    figures = evaluate(Echo(), regression(x, y))
    # Squared errors 0, 1, 0, 9; around their mean 4 the targets have 9, 1, 0, 16.
    assert figures["mse"]["value"] == figures["loss"]["value"] == 2.5
    assert figures["r2"]["value"] == pytest.approx(1 - 10 / 26)
    assert figures["r2"]["low"] <= figures["r2"]["value"] <= figures["r2"]["high"]
    assert figures["mse"]["n"] == figures["r2"]["n"] == 4


def test_regression_on_several_targets_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    y = torch.tensor([[1.0, 2.0], [5.0, 4.0]])
    figures = evaluate(Echo(), regression(x, y))
    # Squared errors (0, 4), (4, 16); around the means 3 and 3: (4, 1), (4, 1).
    assert figures["mse"]["value"] == 6.0
    assert figures["r2"]["value"] == pytest.approx(1 - 24 / 10)


def test_equal_targets_have_no_r2() -> None:
    figures = evaluate(Echo(), regression(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])))
    assert figures["mse"]["value"] == 0.5
    assert "r2" not in figures


def test_a_task_of_its_own_kind_with_its_own_metrics() -> None:
    task = Task(
        kind="custom",
        test=TensorSplit({"x": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])}),
        loss=lambda out, batch: out.mean(),
        metrics={"gap": lambda out, batch: out[:, 1] - out[:, 0]},
        batch_size=2,
    )
    figures = evaluate(Echo(), task)
    assert set(figures) == {"loss", "gap"}
    assert figures["gap"]["value"] == pytest.approx(2.0)
    assert 1.0 <= figures["gap"]["low"] < 2.0 < figures["gap"]["high"] <= 4.0
    assert figures["gap"]["n"] == 3
    assert figures["loss"]["value"] == pytest.approx(4.0)  # a batch of two and one of one


def test_a_metric_that_gives_no_value_an_example_is_refused() -> None:
    task = classification(LOGITS, LABELS, metrics={"mean": lambda out, batch: out.mean()})
    with pytest.raises(ConfigError, match=r"examples 0 to 5: metric 'mean' gave shape \(\)"):
        evaluate(Echo(), task)


def _tasks() -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    draw = torch.Generator().manual_seed(5)
    x, net = torch.randn(37, 4, generator=draw), nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 3))
    ids = torch.randint(11, (37, 6), generator=draw)
    mask = (torch.arange(6) < torch.randint(2, 7, (37, 1), generator=draw)).long()
    y = torch.randint(3, (37,), generator=draw)
    target = torch.randn(37, 3, generator=draw)
    return {
        "classification": (net, {"kind": "classification", "test": {"x": x, "y": y}}),
        "regression": (net, {"kind": "regression", "test": {"x": x, "y": target}}),
        "language": (
            Chain(torch.randn(11, 11, generator=draw)),
            {"kind": "causal-lm", "test": {"input_ids": ids, "attention_mask": mask}},
        ),
        "given loss": (
            net,
            {
                "kind": "custom",
                "test": {"x": x},
                "loss": lambda out, batch: out.square().mean(),
                "metrics": {"largest": lambda out, batch: out.amax(1)},
            },
        ),
    }


def _flat(figures: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in figures.items():
        name = f"{prefix}/{key}"
        found |= _flat(value, name) if isinstance(value, dict) else {name: value}
    return found


@pytest.mark.parametrize("case", ["classification", "regression", "language", "given loss"])
def test_figures_do_not_depend_on_the_batch_size(case: str) -> None:
    model, options = _tasks()[case]
    options["test"] = TensorSplit(options["test"])
    whole = _flat(evaluate(model, Task(**options, batch_size=64)))
    for size in (1, 5, 37):
        found = _flat(evaluate(model, Task(**options, batch_size=size)))
        if case == "given loss":  # a mean of a batch belongs to all its examples: no interval
            for key in ("/loss/low", "/loss/high"):
                del found[key]
            assert found == pytest.approx({k: whole[k] for k in found}, abs=1e-5)
        else:
            assert found == pytest.approx(whole, abs=1e-5)


def test_limit_takes_the_first_examples() -> None:
    task = classification(LOGITS, LABELS, batch_size=4)
    figures = evaluate(Echo(), task, limit=5)
    assert figures["top1"]["value"] == 3 / 5
    assert figures["top1"]["n"] == 5
    assert evaluate(Echo(), task, limit=99) == evaluate(Echo(), task)
    with pytest.raises(ConfigError, match="limit=0 must be at least 1"):
        evaluate(Echo(), task, limit=0)


def test_splits_by_name() -> None:
    train = TensorSplit({"x": torch.eye(3), "y": torch.tensor([0, 1, 2])})
    task = classification(LOGITS, LABELS, train=train, calibration=train.take(2))
    assert evaluate(Echo(), task, split="train")["top1"]["n"] == 3
    assert evaluate(Echo(), task, split="calibration")["top1"]["n"] == 2
    with pytest.raises(ConfigError, match="has no train examples"):
        evaluate(Echo(), classification(LOGITS, LABELS), split="train")
    with pytest.raises(ConfigError, match="split='valid' must be"):
        evaluate(Echo(), task, split="valid")  # type: ignore[arg-type]


def test_a_split_without_examples_is_refused() -> None:
    with pytest.raises(ConfigError, match="its test split has no examples"):
        evaluate(Echo(), classification(torch.ones(0, 3), []))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (classification(torch.ones(2, 3, 4), [0, 1]), r"a classifier must return"),
        (classification(torch.ones(2, 3), [0, 3]), r"label 3.*3 classes"),
        (classification(torch.ones(2, 3), [-1, 0]), r"label -1.*3 classes"),
        (regression(torch.ones(2, 1), torch.ones(2)), r"\(2, 1\) for targets \(2,\)"),
    ],
)
def test_targets_that_do_not_fit_are_refused(task: Task, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(Echo(), task)


def test_tokens_outside_the_model_s_vocabulary_are_refused() -> None:
    model = Chain(torch.zeros(5, 3))
    with pytest.raises(ConfigError, match=r"token 4.*3"):
        evaluate(model, language(torch.tensor([[0, 4, 1]])))
    ids = torch.tensor([[0, 1, 1]])
    flat = Task(
        kind="causal-lm",
        test=TensorSplit({"input_ids": ids}),
        forward=lambda model, batch: model(batch["input_ids"])[:, -1],
    )
    with pytest.raises(ConfigError, match=r"\(examples, tokens, vocabulary\), got \(1, 3\)"):
        evaluate(model, flat)


def test_progress_is_reported_and_closed() -> None:
    said: list[tuple[object, ...]] = []

    class Ears:
        def start(self, label: str, total: int | None) -> int:
            said.append(("start", label, total))
            return 7

        def advance(self, id: int, n: int = 1, note: str = "") -> None:
            said.append(("advance", id, n))

        def finish(self, id: int) -> None:
            said.append(("finish", id))

    task = classification(LOGITS, LABELS, batch_size=4)
    evaluate(Echo(), task, limit=5, progress=Ears())  # type: ignore[arg-type]
    assert said == [("start", "evaluate", 5), ("advance", 7, 4), ("advance", 7, 1), ("finish", 7)]
    said.clear()
    broken = classification(LOGITS * torch.nan, LABELS)
    with pytest.raises(BackendError):
        evaluate(Echo(), broken, progress=Ears())  # type: ignore[arg-type]
    assert said[-1] == ("finish", 7)


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def _positive(rows: int) -> Tensor:
    return torch.rand(rows, 3, generator=torch.Generator().manual_seed(6)) + 0.5


def test_nan_is_refused_with_its_examples_and_its_module() -> None:
    x = _positive(10)
    x[5, 1] = -1.0
    inner = nn.Sequential(nn.Identity(), Log(), nn.Softmax(-1))
    model = nn.Sequential(nn.Identity(), inner, nn.Identity())
    place = r"'task', test examples 4 to 7: .*NaN or infinity, first in.*'1\.1'"
    with pytest.raises(BackendError, match=place):
        evaluate(model, classification(x, [0] * 10, batch_size=4))


def test_minus_infinity_on_the_way_is_not_blamed() -> None:
    x = _positive(4)
    x[2] = 0.0  # log gives minus infinity, which masks; softmax of nothing else gives NaN
    model = nn.Sequential(OrderedDict(mask=Log(), norm=nn.Softmax(-1)))
    with pytest.raises(BackendError, match="module 'norm'"):
        evaluate(model, classification(x, [0] * 4))


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def test_a_module_that_returns_several_tensors_is_blamed() -> None:
    model = Last()
    with torch.no_grad():
        model.rnn.weight_hh_l0.fill_(torch.nan)
    with pytest.raises(BackendError, match="module 'rnn'"):
        evaluate(model, classification(torch.ones(2, 5, 3), [0, 1]))


def test_a_masked_class_may_have_minus_infinity() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 1.0, -torch.inf]])
    figures = evaluate(Echo(), classification(logits, [1, 0]))
    assert figures["top1"]["value"] == 1.0
    with pytest.raises(BackendError, match="examples 0 to 1: loss is NaN or infinite"):
        evaluate(Echo(), classification(logits, [1, 2]))


def test_a_metric_that_is_nan_is_refused() -> None:
    task = classification(LOGITS, LABELS, metrics={"odd": lambda out, batch: out[:, 0] / 0})
    with pytest.raises(BackendError, match="metric odd is NaN or infinite"):
        evaluate(Echo(), task)


def test_modes_and_gradients_are_restored() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)))
    model.train()
    model[1][1].eval()
    model[0](torch.ones(2, 3)).sum().backward()
    model[1][1].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    grads = [p.grad for p in model.parameters()]
    wants = [p.requires_grad for p in model.parameters()]
    seen: list[tuple[bool, bool]] = []

    def watch(module: nn.Module, batch: Any) -> Tensor:
        seen.append((any(m.training for m in model.modules()), torch.is_grad_enabled()))
        return module(batch["x"])

    def check() -> None:
        assert [module.training for module in model.modules()] == modes
        assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
        assert [p.requires_grad for p in model.parameters()] == wants
        assert torch.is_grad_enabled()

    good = classification(LOGITS, LABELS, forward=watch)
    evaluate(model, good)
    assert seen == [(False, False)]
    check()
    with pytest.raises(BackendError):
        evaluate(model, classification(LOGITS * torch.nan, LABELS))
    check()
    with pytest.raises(ZeroDivisionError):
        evaluate(model, classification(LOGITS, LABELS, forward=lambda m, b: 1 / 0))
    check()
