"""The evaluator: switches that leave no trace, exact prefixes, targets, and the fitnesses."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from search_support import (
    BLOCKS,
    class_task,
    classifier,
    decoder,
    drawn,
    filled,
    job,
    language_task,
    part_units,
)
from torch import Tensor, nn

from laconic import measure
from laconic.budget import Assignment, LevelTable, Minibatch, Sampler
from laconic.errors import ConfigError
from laconic.forms.layers import install_
from laconic.search.documents import Documents
from laconic.search.evaluator import EvaluatorJob, ModelEvaluator, build_evaluator
from laconic.search.streams import Streams
from laconic.search.units import first_blocks
from laconic.task import TensorSplit, scored_tokens
from laconic.weights.sites import find_sites

pytest.importorskip("transformers", reason="needs the extra hf")


@pytest.fixture(scope="module")
def language() -> tuple[EvaluatorJob, LevelTable]:
    model, task = decoder(), language_task()
    _, units, table = filled(model, task)
    return job(model, units, task), table


@pytest.fixture(scope="module")
def classes() -> tuple[EvaluatorJob, LevelTable]:
    model, task = classifier(), class_task()
    _, units, table = filled(model, task)
    return job(model, units, task), table


def everything(given: EvaluatorJob) -> Minibatch:
    return given.documents.take(range(len(given.documents)))


def reference_kl(given: EvaluatorJob, model: nn.Module) -> float:
    """Token by token, in float64."""
    total, count = 0.0, 0
    for example in given.documents.examples:
        with torch.no_grad():
            p = given.task.forward(given.model, example).double()
            q = given.task.forward(model, example).double()
        p, q = (F.softmax(t, -1) for t in (p, q))
        kl = (p * (p.log() - q.log())).sum(-1)
        if given.documents.text:
            kl = kl[:, :-1]
        total, count = total + float(kl.sum()), count + kl.numel()
    return total / count


# --- switching ----------------------------------------------------------------------------------


def test_there_and_back_is_bit_identical(language: tuple[EvaluatorJob, LevelTable]) -> None:
    given, table = language
    a, b = (assignment.choice for assignment in drawn(table, 2, changes=9))
    evaluator = ModelEvaluator(given)
    batch = given.documents.examples[0]
    first = evaluator.logits(a, batch)
    held = {name: value.clone() for name, value in evaluator.model.state_dict().items()}
    second = evaluator.logits(b, batch)
    again = evaluator.logits(a, batch)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert all(torch.equal(held[n], v) for n, v in evaluator.model.state_dict().items())
    assert torch.equal(first, ModelEvaluator(given).logits(a, batch))


def test_only_what_differs_is_switched(language: tuple[EvaluatorJob, LevelTable]) -> None:
    given, table = language
    evaluator = ModelEvaluator(given)
    choice = list(drawn(table, 1)[0].choice)
    assert evaluator.apply(choice) == len(choice)
    assert evaluator.apply(choice) == 0
    choice[3] = 1 - min(choice[3], 1)
    assert evaluator.apply(choice) == 1


def test_a_level_is_the_form_it_stands_for(language: tuple[EvaluatorJob, LevelTable]) -> None:
    from copy import deepcopy

    given, table = language
    choice = drawn(table, 1)[0].choice
    installed = deepcopy(given.model)
    units: Any = given.units
    for unit, level in zip(units, choice, strict=True):
        install_(installed, unit.name, unit.database.form(unit.name, level))
    batch = given.documents.examples[1]
    with torch.no_grad():
        expected = given.task.forward(installed, batch)
    torch.testing.assert_close(ModelEvaluator(given).logits(choice, batch), expected)


def test_a_failed_switch_is_not_believed(language: tuple[EvaluatorJob, LevelTable]) -> None:
    given, table = language
    evaluator = ModelEvaluator(given)
    choice = list(drawn(table, 1)[0].choice)
    evaluator.apply(choice)
    with pytest.raises(IndexError):
        evaluator.apply([*choice[:-1], 99])
    assert evaluator.loaded[-1] is None
    assert evaluator.apply(choice) == 1


def test_parts_go_and_come_back(language: tuple[EvaluatorJob, LevelTable]) -> None:
    given, _ = language
    units = part_units(given.model)
    evaluator = ModelEvaluator(replace(given, units=units))
    batch = given.documents.examples[0]
    whole = [1] * len(units)
    dense = evaluator.logits(whole, batch)
    less = evaluator.logits([0, *whole[1:]], batch)
    assert not torch.equal(dense, less)
    assert torch.equal(evaluator.logits(whole, batch), dense)
    with torch.no_grad():
        assert torch.equal(given.task.forward(given.model, batch), dense)
    assert torch.equal(evaluator.logits([0, *whole[1:]], batch), less)


# --- prefixes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fitness", ["kl", "topk_kl", "perplexity"])
def test_prefixes_change_no_bit(fitness: str, language: tuple[EvaluatorJob, LevelTable]) -> None:
    given, table = language
    given = replace(given, fitness=fitness, top_k=7)
    candidates = drawn(table, 12)
    minibatch = Sampler(given.documents.lengths, least=2).draw(101, np.random.default_rng(0))
    cached, plain = ModelEvaluator(given), ModelEvaluator(replace(given, prefix=False))
    found = cached(candidates, minibatch)
    assert found == plain(candidates, minibatch)
    assert found == [plain([one], minibatch)[0] for one in candidates]
    assert found == cached(candidates, minibatch)
    assert found[::-1] == cached(candidates[::-1], minibatch)
    assert cached.blocks_run / 3 < plain.blocks_run / 2


def test_little_memory_changes_nothing(language: tuple[EvaluatorJob, LevelTable]) -> None:
    given, table = language
    candidates = drawn(table, 4)
    found = ModelEvaluator(given)(candidates, everything(given))
    tight = ModelEvaluator(replace(given, limit_bytes=1))(candidates, everything(given))
    assert found == pytest.approx(tight, rel=1e-12)


def test_parts_are_judged_with_prefixes_too(language: tuple[EvaluatorJob, LevelTable]) -> None:
    given, _ = language
    units = part_units(given.model)
    given = replace(given, units=units)
    table = LevelTable([u.name for u in units], ["removed", "kept"], [[0, 1]] * len(units))
    candidates = drawn(table, 10)
    found = ModelEvaluator(given)(candidates, everything(given))
    plain = ModelEvaluator(replace(given, prefix=False))
    assert found == [plain([one], everything(given))[0] for one in candidates]


def test_a_pass_can_begin_at_any_block() -> None:
    task = language_task()
    streams = Streams(decoder(), task)
    batch = {"input_ids": task.train.tensors["input_ids"][:3]}  # type: ignore[union-attr]
    with torch.no_grad(), streams.opened():
        outputs: list[Any] = []
        whole = streams.run(batch, outputs)
        assert len(outputs) == BLOCKS
        for start in range(1, BLOCKS + 1):
            assert torch.equal(streams.run(batch, list(outputs), start), whole)
    assert all("forward" not in vars(m) for m in streams.model.modules())


def test_a_model_without_a_chain_is_run_whole() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):  # each block runs twice
                for block in self.blocks:
                    x = block(x)
            return x

    model = Twice()
    streams = Streams(model, class_task())
    x = torch.ones(2, 4)
    with torch.no_grad(), streams.opened():
        assert torch.equal(streams.run({"x": x}, []), model(x))
        assert len(streams) == 0


def test_first_block_that_a_unit_can_change() -> None:
    model = decoder()
    sites = {site.name: site for site in find_sites(model)}
    task = language_task()
    _, units, _ = filled(model, task)
    places = dict(zip(sites, first_blocks(model, units), strict=True))
    assert places["model.embed_tokens.weight"] == 0  # tied to the head
    assert places["model.layers.2.mlp.up_proj.weight"] == 2
    from laconic import zoo

    untied = zoo.tiny_llama(vocabulary=40, width=32, blocks=2, heads=4, tied=False)
    _, units, _ = filled(untied, task)
    assert (
        dict(zip([u.name for u in units], first_blocks(untied, units), strict=True))[
            "lm_head.weight"
        ]
        == 2
    )


# --- targets and fitness ------------------------------------------------------------------------


def test_dense_targets_are_the_direct_outputs(language: tuple[EvaluatorJob, LevelTable]) -> None:
    given, table = language
    evaluator = ModelEvaluator(given)
    evaluator(drawn(table, 1), everything(given))
    targets = evaluator.targets
    assert not targets.as_outputs  # streams of 32 numbers, outputs of 40
    with torch.no_grad(), evaluator.dense.opened():
        for numbers, batch in given.documents.batches(everything(given)):
            direct = given.task.forward(given.model, batch)
            assert torch.equal(targets.outputs(numbers, batch), direct)
    tokens = sum(given.documents.lengths)
    assert targets.nbytes == tokens * 32 * 4


@pytest.mark.parametrize("fixture", ["language", "classes"])
def test_kl_is_nought_for_dense_and_the_slow_one_else(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    given, table = request.getfixturevalue(fixture)
    candidates = drawn(table, 3, changes=5)
    evaluator = ModelEvaluator(given)
    found = evaluator(candidates, everything(given))
    for assignment, value in zip(candidates, found, strict=True):
        evaluator.apply(assignment.choice)
        assert value == pytest.approx(reference_kl(given, evaluator.model), rel=1e-4, abs=1e-7)
        assert value > 0
    units = part_units(given.model) if given.documents.text else []
    dense = ModelEvaluator(replace(given, units=units))
    whole = Assignment((1,) * len(units), 0, 0.0)
    assert dense([whole], everything(given)) == [0.0]


def test_kl_agrees_with_the_reported_one(language: tuple[EvaluatorJob, LevelTable]) -> None:
    given, table = language
    evaluator = ModelEvaluator(given)
    assignment = drawn(table, 1)[0]
    (value,) = evaluator([assignment], everything(given))
    reported = measure.logit_kl(given.model, evaluator.model, given.task, split="train")["value"]
    assert value == pytest.approx(reported, rel=1e-4)


def test_topk_of_all_classes_is_kl(language: tuple[EvaluatorJob, LevelTable]) -> None:
    given, table = language
    candidates = drawn(table, 3)
    full = ModelEvaluator(given)(candidates, everything(given))
    top = ModelEvaluator(replace(given, fitness="topk_kl"))(candidates, everything(given))
    assert top == pytest.approx(full, rel=1e-4)
    few = ModelEvaluator(replace(given, fitness="topk_kl", top_k=3))(candidates, everything(given))
    evaluator = ModelEvaluator(given)
    for assignment, value in zip(candidates, few, strict=True):
        total, count = 0.0, 0
        for example in given.documents.examples:
            with torch.no_grad():
                p = given.task.forward(given.model, example).double()[:, :-1]
            q = evaluator.logits(assignment.choice, example).double()[:, :-1]
            top_p, index = p.topk(3, -1)
            left, right = top_p.softmax(-1), q.gather(-1, index).softmax(-1)
            total += float((left * (left / right).log()).sum())
            count += p.shape[1]
        assert value == pytest.approx(total / count, rel=1e-3, abs=1e-6)


def test_perplexity_and_loss_are_the_measured_ones(
    language: tuple[EvaluatorJob, LevelTable], classes: tuple[EvaluatorJob, LevelTable]
) -> None:
    for (given, table), names in ((language, ("perplexity", "loss")), (classes, ("loss",))):
        assignment = drawn(table, 1)[0]
        for fitness in names:
            evaluator = ModelEvaluator(replace(given, fitness=fitness))
            (value,) = evaluator([assignment], everything(given))
            reported = measure.evaluate(evaluator.model, given.task, split="train")[fitness]
            assert value == pytest.approx(reported["value"], rel=1e-5)


def test_metrics_of_the_task_have_a_direction(classes: tuple[EvaluatorJob, LevelTable]) -> None:
    given, table = classes
    assignment = drawn(table, 1)[0]
    for fitness, name, sign in (("max:top1", "top1", -1), ("min:rank", "rank", 1)):
        evaluator = ModelEvaluator(replace(given, fitness=fitness))
        (value,) = evaluator([assignment], everything(given))
        reported = measure.evaluate(evaluator.model, given.task, split="train")[name]["value"]
        assert value == pytest.approx(sign * reported, rel=1e-6)


@pytest.mark.parametrize(
    ("fitness", "words"),
    [
        ("k1", "Did you mean 'kl'"),
        ("perplexity", "has no perplexity"),
        ("max:top2", "no metric 'top2'.*Did you mean 'top1'"),
    ],
)
def test_a_wrong_fitness_is_told(
    fitness: str, words: str, classes: tuple[EvaluatorJob, LevelTable]
) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelEvaluator(replace(classes[0], fitness=fitness))


def test_padding_counts_for_nothing() -> None:
    """A text padded at its end is judged as the short text that it is."""
    model, task = decoder(), language_task()
    ids = task.train.tensors["input_ids"][:4]  # type: ignore[union-attr]
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    padded = replace(task, train=TensorSplit({"input_ids": ids, "attention_mask": mask}))
    _, units, table = filled(model, task)
    given = job(model, units, padded)
    assert given.documents.lengths == (14, 9, 14, 14)
    minibatch = everything(given)
    assert all("attention_mask" not in batch for _, batch in given.documents.batches(minibatch))
    (value,) = ModelEvaluator(given)([table.assignment([0] * len(units))], minibatch)
    assert value > 0
    left = mask.flip(1)
    kept = Documents.of(
        task, TensorSplit({"input_ids": ids, "attention_mask": left}),
    )  # fmt: skip
    counted = [int(scored_tokens(batch)[1].sum()) for _, batch in kept.batches(kept.take(range(4)))]
    assert sum(counted) == 13 * 3 + 8


def test_a_job_travels_to_workers(language: tuple[EvaluatorJob, LevelTable]) -> None:
    given, table = language
    candidates = drawn(table, 3)
    there = build_evaluator(pickle.loads(pickle.dumps(given)))
    assert there(candidates, everything(given)) == ModelEvaluator(given)(
        candidates, everything(given)
    )


def test_the_dense_model_is_left_as_it_is(language: tuple[EvaluatorJob, LevelTable]) -> None:
    given, table = language
    held = {name: value.clone() for name, value in given.model.state_dict().items()}
    given.model.train()
    ModelEvaluator(given)(drawn(table, 2), everything(given))
    assert given.model.training
    given.model.eval()
    assert all(torch.equal(held[n], v) for n, v in given.model.state_dict().items())
