import pytest
import torch

from laconic import compress, datasets, measure, zoo
from laconic.forms.layers import installed
from laconic.recipe import Recipe
from laconic.studies.stand import Stand, bytes_of
from laconic.weights.base import Where
from laconic.weights.factor.eora import Eora
from laconic.weights.prune.sparsegpt import SparseGpt
from laconic.weights.quantize.gptq import Gptq
from laconic.weights.quantize.round_to_nearest import RoundToNearest

ALL = Where(types=("linear",))


@pytest.fixture(scope="module")
def task():
    return datasets.load("digits", limit=256, calibration=256)


@pytest.fixture
def net():
    return zoo.mlp((64, 32, 24, 10), seed=1)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_forms_are_those_that_compress_leaves(net, task):
    steps = (SparseGpt(pattern="2:4", where=ALL), Gptq(bits=4, group_size=4, where=ALL))
    stand = Stand(net)
    ours, theirs = stand.apply(steps, task), compress(net, Recipe(steps=steps), task).model
    assert set(installed(theirs)) == set(ours)
    for name, held in installed(theirs).items():
        assert torch.equal(held.form.dense(), ours[name].dense())


def test_the_given_model_stays_as_it_was(net, task):
    before, modes = weights(net), [p.requires_grad for p in net.parameters()]
    stand = Stand(net.train())
    stand.put(stand.apply([RoundToNearest(bits=2)], task))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training
    assert modes == [p.requires_grad for p in net.parameters()]


def test_a_set_of_forms_replaces_the_one_before_it(net, task):
    stand = Stand(net)
    coarse = stand.apply([RoundToNearest(bits=2)], None)
    only = {"fc2.weight": coarse["fc2.weight"]}
    assert stand.divergence(coarse, task) > stand.divergence(only, task) > 0
    kinds = {name: held.form.kind for name, held in installed(stand.put(only)).items()}
    assert kinds == {"fc1.weight": "dense", "fc2.weight": "quantized", "fc3.weight": "dense"}
    assert stand.divergence(stand.dense, task) == 0


def test_many_corrections_on_one_walk_are_those_fitted_alone(net, task):
    stand = Stand(net)
    bases = {str(bits): stand.apply([RoundToNearest(bits=bits)], None) for bits in (2, 3)}
    steps = {
        metric: Eora(rank=3, metric=metric, factor_dtype="float32", where=ALL)
        for metric in ("identity", "absmean")
    }
    together = stand.correct(bases, steps, task)
    assert set(together) == {(base, step) for base in bases for step in steps}
    for (base, step), forms in together.items():
        alone = stand.apply([steps[step]], task, start=bases[base])
        for name, form in forms.items():
            torch.testing.assert_close(form.dense(), alone[name].dense())


def test_corrections_leave_the_compressed_forms_alone(net, task):
    stand = Stand(net)
    base = stand.apply([RoundToNearest(bits=2)], None)
    before = {name: form.dense().clone() for name, form in base.items()}
    steps = {"thin": Eora(rank=2, metric="identity", where=ALL)}
    corrected = stand.correct({"b": base}, steps, task)["b", "thin"]
    assert all(torch.equal(before[name], form.dense()) for name, form in base.items())
    for name, original in stand.dense.items():
        left = (original.dense() - corrected[name].dense()).norm()
        assert left < (original.dense() - base[name].dense()).norm()
    sizes = {"fc1.weight": (32, 64), "fc2.weight": (24, 32), "fc3.weight": (10, 24)}
    thin = sum(2 * 2 * (rows + cols) for rows, cols in sizes.values())  # rank 2, 2 bytes a value
    assert bytes_of(corrected, list(sizes)) == bytes_of(base, list(sizes)) + thin


def test_divergence_is_the_library_s_logit_kl(net, task):
    stand = Stand(net)
    forms = stand.apply([RoundToNearest(bits=3)], None)
    expected = measure.logit_kl(net, stand.put(forms), task)["value"]
    assert stand.divergence(forms, task) == expected
