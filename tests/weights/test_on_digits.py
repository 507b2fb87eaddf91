"""Methods against their baselines on a trained network and images it was not calibrated on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from laconic.forms.layers import install_
from laconic.task import Task, TensorSplit
from laconic.weights.base import Override
from laconic.weights.calibrate import gather_
from laconic.weights.factor.eora import Eora
from laconic.weights.prune.magnitude import Magnitude
from laconic.weights.prune.sparsegpt import SparseGpt
from laconic.weights.quantize.gptq import Gptq
from laconic.weights.quantize.round_to_nearest import RoundToNearest
from laconic.weights.sites import find_sites

sklearn = pytest.importorskip("sklearn.datasets")
ROW = {"group_size": "channel"}
HIDDEN = ("2.weight", "4.weight")


@pytest.fixture(scope="module")
def digits():
    """A ReLU network on 1000 digits, and the 797 others."""
    torch.manual_seed(0)
    data = sklearn.load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x, y = (
        torch.tensor(data.data / 16, dtype=torch.float32)[order],
        torch.tensor(data.target)[order],
    )
    layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(400):
        at = torch.randint(1000, (64,), generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        F.cross_entropy(model(x[at]), y[at]).backward()
        optimiser.step()
    model.requires_grad_(False)
    assert (model(x[1000:]).argmax(1) == y[1000:]).float().mean() > 0.95
    test = TensorSplit({"x": x[1000:], "y": y[1000:]})
    seen = TensorSplit({"x": x[:512], "y": y[:512]})
    return model, Task(kind="classification", test=test, calibration=seen)


def layer_errors(model, task, steps):
    """Relative output error of hidden layers on unseen images, by step and layer."""
    unseen, inputs = task.test.tensors["x"], {}
    with torch.no_grad():
        for number, layer in enumerate(model):
            inputs[f"{number}.weight"] = unseen
            unseen = layer(unseen)
    sites = [site for site in find_sites(model) if site.name in HIDDEN]
    wants = frozenset({"gram", "absmean"})
    errors = {}
    for group in gather_(model, sites, task, dict.fromkeys(HIDDEN, wants)):
        for site in group:
            plain = site.form
            for name, chain in steps.items():
                for step in chain:
                    site.form = step.fit(site, torch.Generator().manual_seed(0))
                x, matrix = inputs[site.name], site.matrix()
                missing = (matrix - site.original_matrix()) @ x.T
                errors[name, site.name] = float(
                    missing.norm() / (site.original_matrix() @ x.T).norm()
                )
                site.form = plain
    return errors


@pytest.mark.filterwarnings("ignore::laconic.errors.LaconicWarning")
@pytest.mark.parametrize(
    ("step", "bar"),
    [
        (RoundToNearest(bits=3, symmetric=False, **ROW), 0.4),
        (Magnitude(pattern="2:4"), 0.4),
        (Gptq(bits=3, symmetric=False, order="none", **ROW), 0.8),
        (Gptq(bits=3, symmetric=False, **ROW), 0.9),  # leaves less to mend
        (SparseGpt(pattern="2:4"), 0.8),
    ],
)
def test_eora_against_plain_and_diagonal_metrics(digits, step, bar):
    metrics = ("gram", "absmean", "identity")
    errors = layer_errors(
        *digits, {metric: (step, Eora(rank=16, metric=metric)) for metric in metrics}
    )
    for name in HIDDEN:
        best = min(errors["absmean", name], errors["identity", name])
        assert errors["gram", name] <= bar * best, (name, errors)


def test_second_order_methods_against_their_baselines(digits):
    errors = layer_errors(
        *digits,
        {
            "rounded": (RoundToNearest(bits=3, **ROW),),
            "gptq": (Gptq(bits=3, **ROW),),
            "magnitude": (Magnitude(pattern="2:4"),),
            "sparsegpt": (SparseGpt(pattern="2:4"),),
            "both, rounded": (SparseGpt(pattern="2:4"), RoundToNearest(bits=4, **ROW)),
            "both": (SparseGpt(pattern="2:4"), Gptq(bits=4, **ROW)),
        },
    )
    for name in HIDDEN:
        assert errors["gptq", name] <= 0.6 * errors["rounded", name]
        assert errors["sparsegpt", name] <= 0.65 * errors["magnitude", name]
        assert errors["both", name] < errors["both, rounded", name]


def divergence(model, steps, task):
    """KL of the logits on unseen images after the steps at all layers."""
    original, work = model, nn.Sequential(*(type_of(layer) for layer in model))
    sites = find_sites(original)
    for step in steps:
        needs = {site.name: step.needs for site in sites}
        source = work if step.propagate == "compensated" else original
        for group in gather_(source, sites, task, needs, propagate=step.propagate):
            for site in group:
                own = step.for_site(site.name)
                site.form = own.fit(site, torch.Generator().manual_seed(0))
                install_(work, site.name, site.form)
    x = task.test.tensors["x"]
    with torch.no_grad():
        expected, found = original(x).log_softmax(1), work(x).log_softmax(1)
    return float(F.kl_div(found, expected, log_target=True, reduction="batchmean"))


def type_of(layer):
    if not isinstance(layer, nn.Linear):
        return layer
    copy = nn.Linear(layer.in_features, layer.out_features)
    copy.load_state_dict(layer.state_dict())
    return copy.requires_grad_(False)


@pytest.mark.filterwarnings("ignore::laconic.errors.LaconicWarning")
def test_whole_network(digits):
    model, task = digits
    base = (Magnitude(pattern="2:4"), RoundToNearest(bits=3, symmetric=False, **ROW))
    last = (Override(("6.weight",), {"rank": 10}),)  # ten classes: no higher rank
    none = divergence(model, base, task)
    plain = divergence(model, (*base, Eora(rank=16, metric="identity", overrides=last)), task)
    both = [
        divergence(model, (*base, Eora(rank=16, propagate=whose, overrides=last)), task)
        for whose in ("original", "compensated")
    ]
    assert plain < none
    assert max(both) <= 0.2 * plain
    rounded = divergence(model, (RoundToNearest(bits=3, **ROW),), task)
    assert divergence(model, (Gptq(bits=3, **ROW),), task) <= 0.6 * rounded
