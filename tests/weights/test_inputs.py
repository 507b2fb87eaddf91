from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from calibration_oracle import check, gathered, naive, task_of
from torch import nn

from laconic.task import Task, TensorSplit
from laconic.weights.sites import find_sites

transformers = pytest.importorskip("transformers")
ALL = frozenset({"gram", "absmax", "absmean", "sumsq"})


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1, stride=2),
        nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2),
        nn.Conv2d(4, 8, 3, groups=2, padding=(0, 2), padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, groups=4, padding="valid"),
        nn.Conv1d(4, 6, 3, stride=2, padding=1),
        nn.Conv1d(4, 6, 4, groups=2, padding="same", padding_mode="circular"),
    ],
)
def test_convolutions_see_im2col_rows(layer):
    """Oracle: the mean square of each output channel is w G w with the Gram of its group."""
    x = torch.randn(5, 4, 9) if isinstance(layer, nn.Conv1d) else torch.randn(5, 4, 9, 8)
    model = nn.Sequential(layer)
    (site,) = find_sites(model)
    found, _ = gathered(model, [site], task_of(x, size=2))
    statistics = found["0.weight"]
    with torch.no_grad():
        layer.bias.zero_()
        out = layer(x)
    grams = statistics.gram if layer.groups > 1 else statistics.gram.unsqueeze(0)
    weight = site.original.reshape(layer.groups, -1, site.form.cols)
    energy = torch.einsum("gri,gij,grj->gr", weight, grams, weight).flatten()
    torch.testing.assert_close(energy, out.square().transpose(0, 1).flatten(1).mean(1))
    assert statistics.count == out.numel() // out.shape[1]
    assert statistics.absmax.shape == statistics.gram.shape[:-1]


def test_padding_does_not_count():
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    ids = torch.randint(1, 50, (6, 9))
    mask = torch.ones_like(ids)
    mask[::2, 6:] = 0
    split = TensorSplit({"input_ids": ids, "attention_mask": mask})
    task = Task(kind="causal-lm", test=split, calibration=split, batch_size=4)
    found, _ = gathered(model, find_sites(model)[1:], task)
    keep = mask.bool().flatten()
    for name, rows in naive(model, task, list(found)).items():
        check(found[name], rows[keep])
    changed = ids.clone()
    changed[mask == 0] = 7
    other = TensorSplit({"input_ids": changed, "attention_mask": mask})
    again, _ = gathered(
        model, find_sites(model)[1:], Task(kind="causal-lm", test=other, calibration=other)
    )
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(again[name].gram, found[name].gram)


@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
def test_experts_see_their_own_tokens(name):
    torch.manual_seed(0)
    extra = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=50, hidden_size=16, intermediate_size=12, num_hidden_layers=1, head_dim=8,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, **(extra if name == "GptOss" else {}),
    )  # fmt: skip
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    split = TensorSplit({"input_ids": torch.randint(0, 50, (6, 8))})
    task = Task(kind="causal-lm", test=split, calibration=split, batch_size=4)
    sites = [site for site in find_sites(model) if site.kind == "experts"]
    seen, inputs = {}, []
    experts = model.get_submodule(sites[0].module_name)
    handle = experts.register_forward_pre_hook(
        lambda module, args: inputs.append([a.detach().clone() for a in args])
    )
    with torch.no_grad():
        for batch in split.batches(4):
            model.eval()(**batch)
    handle.remove()
    seen, _ = gathered(model, sites, task)
    assert seen[sites[0].name].gram.shape == (4, 16, 16)
    assert seen[sites[1].name].gram.shape == (4, 12, 12)
    hidden = torch.cat([a[0].reshape(-1, 16) for a in inputs])
    chosen = torch.cat([a[1].reshape(-1, 2) for a in inputs])
    for expert in range(4):
        rows = hidden[(chosen == expert).any(1)]
        gram = seen[sites[0].name].gram[expert]
        torch.testing.assert_close(gram, rows.T @ rows / max(len(rows), 1), rtol=1e-4, atol=1e-6)
    assert seen[sites[0].name].count == 2 * len(hidden)
    inner = seen[sites[1].name].gram
    assert bool((inner.diagonal(dim1=1, dim2=2).sum(1) > 0).any())


def test_a_layer_that_is_called_twice_counts_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Linear(4, 4)

        def forward(self, x):
            return self.same(F.relu(self.same(x)))

    model = Twice()
    task = task_of(torch.randn(6, 4))
    found, _ = gathered(model, find_sites(model), task)
    check(found["same.weight"], naive(model, task, ["same.weight"])["same.weight"])


def test_half_precision_inputs_are_summed_in_float32():
    model = nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16)
    x = torch.randn(4000, 4).to(torch.bfloat16)
    found, _ = gathered(model, find_sites(model), task_of(x, size=50))
    rows = x.double()
    torch.testing.assert_close(
        found["0.weight"].gram.double(), rows.T @ rows / 4000, rtol=1e-4, atol=1e-4
    )
