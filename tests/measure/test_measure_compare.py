"""Divergence and errors of outputs against models that were changed by known amounts."""

from __future__ import annotations

from copy import deepcopy
from math import exp, log

import pytest
import torch
from measure_support import Chain, Echo, chances, classification, language, regression
from torch import Tensor, nn

from laconic.errors import BackendError, ConfigError
from laconic.forms import Dense
from laconic.forms.layers import install_
from laconic.measure import logit_kl, output_errors
from laconic.measure.compare import divergence
from laconic.task import Task, TensorSplit


class Fixed(nn.Module):
    """Returns the same logits for every example."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_divergence_of_two_distributions_by_hand() -> None:
    p, q = chances([0.75, 0.25], [0.5, 0.5])
    forth = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)
    back = 0.5 * log(0.5 / 0.75) + 0.5 * log(0.5 / 0.25)
    task = classification(torch.zeros(5, 1), [0] * 5, batch_size=2)
    found = logit_kl(Fixed(p), Fixed(q), task)
    for end in ("value", "low", "high"):
        assert found[end] == pytest.approx(forth, rel=1e-6)  # type: ignore[literal-required]
    assert found["n"] == 5
    assert logit_kl(Fixed(q), Fixed(p), task)["value"] == pytest.approx(back, rel=1e-6)


def test_equal_models_diverge_by_nothing_and_so_do_shifted_logits() -> None:
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    task = classification(logits, [0] * 7)
    zero = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 7}
    model = Echo()
    assert logit_kl(model, model, task) == zero
    assert logit_kl(model, deepcopy(model), task) == zero
    shifted = Echo()
    shifted.shift.data.fill_(3.0)  # softmax does not see it
    assert logit_kl(model, shifted, task)["value"] == pytest.approx(0.0, abs=1e-9)


def test_one_logit_shifted_by_a_known_amount() -> None:
    # From (0, 0) to (d, 0): ln((1 + e^d) / 2) - d / 2.
    task, d = classification(torch.zeros(2, 1), [0, 1]), 1.5
    found = logit_kl(Fixed(torch.zeros(2)), Fixed(torch.tensor([d, 0.0])), task)
    assert found["value"] == pytest.approx(log((1 + exp(d)) / 2) - d / 2, rel=1e-6)


def test_divergence_of_text_counts_the_tokens_that_are_scored() -> None:
    # After 0 both say the same; after 1 they differ. Of the places that predict, 0 1 1 0, the
    # last predicts nothing, and in the second row the second 1 predicts padding.
    one, two = chances([0.5, 0.5], [0.75, 0.25]), chances([0.5, 0.5], [0.5, 0.5])
    gap = 0.75 * log(1.5) + 0.25 * log(0.5)
    ids = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    found = logit_kl(Chain(one), Chain(two), language(ids, attention_mask=mask))
    assert found["n"] == 5
    assert found["value"] == pytest.approx(3 * gap / 5, rel=1e-6)
    with pytest.raises(ConfigError, match="logit_kl: task 'task': no token counts"):
        logit_kl(Chain(one), Chain(two), language(ids, attention_mask=mask * 0))


def test_divergence_does_not_depend_on_the_batch_size() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(23, 4, generator=draw)
    left, right = nn.Linear(4, 3), nn.Linear(4, 3)
    found = [logit_kl(left, right, classification(x, [0] * 23, batch_size=b)) for b in (1, 6, 64)]
    assert found[0] == pytest.approx(found[2], abs=1e-5)
    assert found[1] == pytest.approx(found[2], abs=1e-5)
    assert found[0]["value"] > 0.01


def test_a_class_masked_in_both_models_adds_nothing() -> None:
    p = torch.tensor([[log(0.75), log(0.25), -torch.inf]])
    q = torch.tensor([[log(0.5), log(0.5), -torch.inf]])
    expected = 0.75 * log(1.5) + 0.25 * log(0.5)
    assert divergence(p, p).tolist() == [0.0]
    assert divergence(p, q).tolist() == pytest.approx([expected])
    # A class that only the original has gone without: its chance is 0, so it adds nothing too.
    assert divergence(p, torch.zeros(1, 3)).item() == pytest.approx(log(3) + expected - log(2))


def test_a_class_masked_in_the_compressed_model_alone_is_infinite() -> None:
    masked = Fixed(torch.tensor([0.0, -torch.inf]))
    task = classification(torch.zeros(3, 1), [0] * 3, batch_size=2)
    with pytest.raises(BackendError, match="examples 0 to 1: the KL divergence is NaN or infinite"):
        logit_kl(Fixed(torch.zeros(2)), masked, task)


def test_divergence_refuses_what_has_no_common_classes() -> None:
    with pytest.raises(ConfigError, match="is a regression"):
        logit_kl(Echo(), Echo(), regression(torch.ones(2), torch.ones(2)))
    task = classification(torch.zeros(2, 1), [0, 0])
    with pytest.raises(ConfigError, match=r"shapes \(2, 2\) and \(2, 3\)"):
        logit_kl(Fixed(torch.zeros(2)), Fixed(torch.zeros(3)), task)
    with pytest.raises(BackendError, match="examples 0 to 1: the model returned NaN"):
        logit_kl(Fixed(torch.zeros(2)), Fixed(torch.full((2,), torch.nan)), task)


# Errors of layers


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6, bias=False),
        nn.ReLU(),
        nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.Linear(5, 3, bias=False))),
    )


def inputs(*shape: int, **options: object) -> Task:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    return classification(x, [0] * shape[0], batch_size=4, **options)


def test_equal_models_have_no_errors() -> None:
    model = net()
    names = ["0.weight", "2.0.weight", "2.1.0.weight"]
    assert output_errors(model, deepcopy(model), inputs(9, 4)) == dict.fromkeys(names, 0.0)
    assert output_errors(model, model, inputs(9, 4)) == dict.fromkeys(names, 0.0)
    assert all(not module._forward_hooks for module in model.modules())


def test_a_layer_made_larger_by_a_tenth_has_the_error_a_tenth() -> None:
    model = net()
    changed = deepcopy(model)
    with torch.no_grad():
        changed[0].weight.mul_(1.1)
        changed[2][1][0].weight.mul_(0.75)
    found = output_errors(model, changed, inputs(9, 4))
    assert found["0.weight"] == pytest.approx(0.1, rel=1e-5)
    assert found["2.0.weight"] == 0.0  # it is given what the original's layer was given
    assert found["2.1.0.weight"] == pytest.approx(0.25, rel=1e-5)


def test_the_error_of_one_weight_by_hand() -> None:
    # Outputs (1, 2), (3, 4) are changed by (0, 1), (0, 2): sqrt(5 / 30).
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.eye(2)
    changed = deepcopy(model)
    changed[0].weight.data[1, 1] = 1.5
    task = classification(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [0, 0], batch_size=1)
    assert output_errors(model, changed, task) == {"0.weight": pytest.approx((5 / 30) ** 0.5)}
    assert output_errors(model, changed, task, limit=1) == {"0.weight": pytest.approx(0.2**0.5)}


def test_only_installed_sites_are_judged_where_there_are_some() -> None:
    model = net()
    changed = deepcopy(model)
    install_(changed, "2.0.weight", Dense(changed[2][0].weight.detach() * 1.5))
    changed[2][0].bias.data.mul_(1.5)
    changed[0].weight.data.mul_(2)
    found = output_errors(model, changed, inputs(9, 4))
    assert found == {"2.0.weight": pytest.approx(0.5, rel=1e-5)}


class Attention(nn.Module):
    """An encoder layer of torch, whose projections run without their modules being called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[:, 0])


def test_attention_is_judged_at_its_own_output() -> None:
    model = Attention()
    changed = deepcopy(model)
    task = inputs(6, 5, 8)
    inside = ("layer.self_attn.in_proj_weight", "layer.self_attn.out_proj.weight")
    same = output_errors(model, changed, task)
    assert set(inside) < set(same)
    assert same == dict.fromkeys(same, 0.0)
    with torch.no_grad():
        changed.layer.self_attn.out_proj.weight.mul_(1.25)
        changed.layer.self_attn.out_proj.bias.mul_(1.25)
    found = output_errors(model, changed, task)
    assert [found[name] for name in inside] == pytest.approx([0.25, 0.25], rel=1e-5)
    assert all(error == 0.0 for name, error in found.items() if name not in inside)


def test_attention_on_forms_is_judged() -> None:
    model = Attention()
    changed = deepcopy(model)
    weight = changed.layer.self_attn.in_proj_weight.detach().clone()
    install_(changed, "layer.self_attn.in_proj_weight", Dense(weight))
    task = inputs(6, 5, 8)
    assert output_errors(model, changed, task) == {
        "layer.self_attn.in_proj_weight": pytest.approx(0.0, abs=1e-6)
    }
    weight[16:] *= 3.0  # the values, and so all that attention mixes: its biases are zero
    install_(changed, "layer.self_attn.in_proj_weight", Dense(weight))
    found = output_errors(model, changed, task)
    assert found["layer.self_attn.in_proj_weight"] == pytest.approx(2.0, rel=1e-5)


class Deep(nn.Module):
    """Layers whose outputs are nested: a tuple, and a dictionary of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, batch_first=True)
        self.bag = Bag()

    def forward(self, x: Tensor) -> Tensor:
        return self.bag(self.rnn(x)[0])["out"][0]


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        return {"out": [x[:, -1] @ self.weight.T]}


def test_nested_outputs_are_judged() -> None:
    model = Deep()
    changed = deepcopy(model)
    changed.bag.weight.data.mul_(1.5)
    found = output_errors(model, changed, inputs(5, 3, 4))
    assert found == {
        "rnn.weight_ih_l0": 0.0,
        "rnn.weight_hh_l0": 0.0,
        "bag.weight": pytest.approx(0.5, rel=1e-5),
    }


class Wrapper(nn.Module):
    """Uses a weight of its own, and a module given to it."""

    def __init__(self, inner: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.inner, self.weight = inner, nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) @ self.weight


def test_a_module_that_both_models_share_is_not_counted_twice() -> None:
    inner, weight = nn.Linear(4, 4, bias=False), torch.randn(4, 3)
    scale = nn.Linear(4, 4, bias=False)
    left = nn.Sequential(scale, Wrapper(inner, weight))
    right = nn.Sequential(deepcopy(scale), Wrapper(inner, 2 * weight))
    found = output_errors(left, right, inputs(5, 4))
    assert found == {
        "0.weight": 0.0,
        "1.weight": pytest.approx(1.0, rel=1e-5),
        "1.inner.weight": 0.0,
    }


def test_a_layer_that_is_called_twice_counts_both_times() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    model = Twice()
    model.layer.weight.data = torch.eye(2) * 2
    changed = deepcopy(model)
    changed.layer.weight.data[1, 1] = 3.0
    # On (1, 1), then on (2, 2): errors (0, 1), (0, 2) of outputs (2, 2), (4, 4).
    task = classification(torch.ones(1, 2), [0])
    assert output_errors(model, changed, task) == {"layer.weight": pytest.approx((5 / 40) ** 0.5)}


def test_a_layer_that_the_task_never_runs_has_no_entry() -> None:
    model = net()
    changed = deepcopy(model)
    changed[2][0].weight.data.zero_()
    task = inputs(5, 4, forward=lambda model, batch: model[0](batch["x"]))
    assert output_errors(model, changed, task) == {"0.weight": 0.0}


def test_an_output_of_zeros_has_no_relative_error() -> None:
    model = net()
    model[0].weight.data.zero_()
    same = deepcopy(model)
    assert output_errors(model, same, inputs(5, 4))["0.weight"] == 0.0
    same[0].weight.data.fill_(1.0)
    with pytest.raises(BackendError, match=r"output_errors: 0\.weight: the error of its output"):
        output_errors(model, same, inputs(5, 4))


def test_models_that_do_not_belong_together_are_refused() -> None:
    model = net()
    with pytest.raises(ConfigError, match=r"the original has no module '2\.0'"):
        output_errors(
            nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), model, inputs(2, 4)
        )
    narrow = deepcopy(model)
    narrow[0] = nn.Linear(4, 2, bias=False)
    with pytest.raises(ConfigError, match=r"0: outputs have shapes \(2, 6\) and \(2, 2\)"):
        output_errors(model, narrow, inputs(2, 4))
    assert all(not module._forward_hooks for module in model.modules())


def test_a_layer_without_an_output_is_refused() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))

        def forward(self, x: Tensor) -> None:
            return None

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.silent = Silent()

        def forward(self, x: Tensor) -> Tensor:
            self.silent(x)
            return x

    with pytest.raises(ConfigError, match="silent: the module returned NoneType"):
        output_errors(Odd(), Odd(), inputs(2, 2))


def test_text_models_and_modes() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.drop, self.head = nn.Embedding(7, 4), nn.Dropout(0.5), nn.Linear(4, 7)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.head(self.drop(self.table(input_ids)))

    model = Small().train()
    changed = deepcopy(model)
    changed.table.weight.data.mul_(1.5)
    task = Task(kind="causal-lm", test=TensorSplit({"input_ids": torch.arange(6).view(2, 3)}))
    found = output_errors(model, changed, task)
    assert found == {"table.weight": pytest.approx(0.5, rel=1e-5), "head.weight": 0.0}
    assert all(module.training for module in (*model.modules(), *changed.modules()))
