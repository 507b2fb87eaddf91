"""Masked training by the library, runs that are killed, masks, files and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from iterative_support import bits, masks_of, net, run, task, trainer
from safetensors.torch import load_file
from torch import Tensor, nn

from laconic.errors import ConfigError, LayerError
from laconic.forms.layers import installed
from laconic.weights.prune.iterative import (
    IterativePruning,
    Masks,
    SparsityInformed,
    at_random,
    held_out,
    lottery_ticket,
    one_shot,
    scorer,
)
from laconic.weights.sites import find_sites


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_trains_masked_with_the_library_and_prunes_what_is_of_no_use() -> None:
    train, validation = held_out(task(), 0.25, seed=1)
    plan = lottery_ticket(iterations=8)
    found = plan.run(
        net, trainer(task=train, epochs=8), scorer(validation), masks=masks_of(net()),
        judge=scorer(task()), seed=2,
    )  # fmt: skip
    assert found.history[-1].density < 0.2
    assert found.history[-1].test is not None
    assert found.history[-1].test > 0.8
    lot = at_random(iterations=8).run(
        net, trainer(task=train, epochs=8), scorer(validation), masks=masks_of(net()), seed=2
    )
    assert lot.history[-1].score < found.history[-1].score
    again = plan.run(
        net, trainer(task=train, epochs=8), scorer(validation), masks=masks_of(net()), seed=2
    )
    assert bits(dict(again.masks.kept)) == bits(dict(found.masks.kept))
    assert bits(dict(again.state)) == bits(dict(found.state))


def test_validation_examples_come_from_training_and_are_not_trained_on() -> None:
    whole = task()
    train, validation = held_out(whole, 0.25, seed=1)
    rows = {tuple(x) for x in whole.train.tensors["x"].tolist()}
    one = {tuple(x) for x in train.train.tensors["x"].tolist()}
    two = {tuple(x) for x in validation.test.tensors["x"].tolist()}
    assert one | two == rows
    assert not one & two
    assert (len(one), len(two)) == (90, 30)
    assert train.test is whole.test
    for wrong in (0.0, 0.001, 1.0):
        with pytest.raises(ConfigError, match=rf"share of {wrong}"):
            held_out(whole, wrong)


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("rewind", ["init", "epoch:1", None])
@pytest.mark.parametrize("kill", [1, 2, 4, 5, 7])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(
    rewind: str | None, kill: int, tmp_path: Path
) -> None:
    plan = one_shot(0.5, iterations=3, rewind=rewind, keep_buffers=rewind == "init")
    count = {"left": kill}
    train, validation = held_out(task(), 0.25, seed=1)
    score = scorer(validation)

    def fatal(model: nn.Module) -> float:
        count["left"] -= 1
        if count["left"] < 0:
            raise KilledError
        return score(model)

    def go(evaluate, folder: Path | None):
        return plan.run(
            net, trainer(task=train), evaluate, masks=masks_of(net()), seed=3, folder=folder
        )

    whole = go(score, None)
    with pytest.raises(KilledError):
        go(fatal, tmp_path / "run")
    found = go(score, tmp_path / "run")
    assert bits(dict(found.masks.kept)) == bits(dict(whole.masks.kept))
    assert bits(dict(found.state)) == bits(dict(whole.state))
    for one, two in zip(found.history, whole.history, strict=True):
        assert {**one.__dict__, "seconds": 0} == {**two.__dict__, "seconds": 0}
    finished = go(fatal, tmp_path / "run")  # nothing is left to do, and nothing is done
    assert finished.history == found.history
    with pytest.raises(ConfigError, match="other settings"):
        run(lottery_ticket(0.4, iterations=3), folder=tmp_path / "run")
    (tmp_path / "run" / "state.pt").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        go(score, tmp_path / "run")


def test_masks_go_into_sparse_forms_and_come_back() -> None:
    model = net()
    found = run(lottery_ticket(0.4, iterations=2))
    found.masks.install_(model, found.state)
    assert {entry.form.signature for entry in installed(model).values()} == {"sparse(dense)"}
    again = Masks.of_sites(find_sites(model))
    assert bits(dict(again.kept)) == bits(dict(found.masks.kept))
    assert again.density == found.masks.density < 0.4
    for name in found.masks.kept:
        assert torch.equal(model.get_submodule(name[0]).weight, found.state[name])


@pytest.mark.parametrize("layout", ["transposed", "stacked", "stacked-transposed"])
def test_masks_of_other_layouts(layout: str) -> None:
    shape = (6, 4) if layout == "transposed" else (2, 6, 4)
    mask = drawn(0, *shape) > 0
    masks = Masks({"w": mask}, {"w": layout})
    rows = {"transposed": 4, "stacked": 12, "stacked-transposed": 8}[layout]
    matrices = masks.matrices()
    assert matrices["w"].shape == (rows, mask.numel() // rows)
    assert torch.equal(masks.from_matrices(matrices).kept["w"], mask)


def test_what_is_skipped_is_trained_and_not_pruned() -> None:
    found = run(lottery_ticket(iterations=2, skip=("3.*",)))
    assert set(found.masks.kept) == {"0.weight"}
    assert (found.state["3.weight"] != net()[3].weight).all()
    with pytest.raises(ConfigError, match="no weight is in the scope"):
        run(lottery_ticket(skip=("*",)))


def test_history_and_masks_on_disk(tmp_path: Path) -> None:
    found = run(lottery_ticket(iterations=2))
    found.save(tmp_path / "out")
    held = json.loads((tmp_path / "out" / "history.json").read_text())
    assert held["history"][1]["density"] == found.history[1].density
    assert held["history"][0]["phase"] == "regularising"
    assert held["settings"]["p"] == 0.5
    lines = (tmp_path / "out" / "history.csv").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("iteration,density,survivors,pqi,gini")
    assert lines[0].endswith("phase,pqi 0.weight,pqi 3.weight")
    masks = load_file(tmp_path / "out" / "masks.safetensors")
    assert bits(masks) == bits(dict(found.masks.kept))
    with pytest.raises(ConfigError, match="is a file"):
        found.save(tmp_path / "out" / "history.csv")


def test_refuses_trainings_that_break_the_rules() -> None:
    def leave(model: nn.Module, masks: Masks, turn) -> None:
        if turn.iteration:
            with torch.no_grad():
                model[0].weight.add_(1.0)

    with pytest.raises(LayerError, match=r"0\.weight: training moved \d+ pruned weights"):
        run(lottery_ticket(iterations=1), train=leave)

    def spoil(model: nn.Module, masks: Masks, turn) -> None:
        with torch.no_grad():
            model[3].weight[0, 0] = float("nan")

    with pytest.raises(LayerError, match=r"3\.weight: training left NaN"):
        run(lottery_ticket(iterations=1), train=spoil)

    def grow(model: nn.Module, masks: Masks, turn) -> None:
        model[3].bias = nn.Parameter(torch.zeros(7))

    with pytest.raises(LayerError, match=r"3\.bias: training changed its shape from \(3,\) to"):
        run(lottery_ticket(iterations=1), train=grow)
    with pytest.raises(ConfigError, match="evaluate gave a score of nan"):
        run(lottery_ticket(iterations=1), evaluate=lambda model: float("nan"))

    def no_number(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight * float("inf")

    with pytest.raises(ConfigError, match=r"0\.weight: a pruning score is NaN or infinite"):
        run(lottery_ticket(iterations=1, criterion=no_number))


def test_a_criterion_of_ones_own_ranks() -> None:
    def last_first(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.arange(weight.numel(), 0, -1.0).reshape(weight.shape)

    found = run(lottery_ticket(0.5, scope="layer", iterations=1, criterion=last_first))
    assert found.masks.kept["0.weight"].flatten().tolist() == [True] * 64 + [False] * 64


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"p": 2.0}, r"p=2.0, q=1.0"),
        ({"p": 0.0}, r"p=0.0 must be at least"),
        ({"rewind": "start"}, r"rewind='start'"),
        ({"rewind": "epoch:0"}, r"rewind='epoch:0'"),
        ({"stop": "pq"}, r"stop='pq'"),
        ({"stop": 0.0}, r"stop=0.0"),
        ({"iterations": 0}, r"iterations=0"),
        ({"scope": "row"}, r"scope='row'"),
        ({"criterion": "size"}, r"criterion='size'"),
        ({"ranked_by": "last"}, r"ranked_by='last'"),
    ],
)
def test_refuses_settings(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        IterativePruning(**wrong)


@pytest.mark.parametrize("wrong", [{"beta": 1.0}, {"beta": 0.0}, {"gamma": -1.0}, {"eta": -0.1}])
def test_refuses_schedules(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name}={wrong[name]}"):
        SparsityInformed(**wrong)
