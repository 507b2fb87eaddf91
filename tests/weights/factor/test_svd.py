from __future__ import annotations

import pytest
import torch

from laconic.errors import ConfigError, LaconicWarning, LayerError, RecipeError
from laconic.forms.dense import Dense
from laconic.weights.base import Site
from laconic.weights.factor import _leading
from laconic.weights.factor._leading import leading_svd
from laconic.weights.factor.svd import Svd
from laconic.weights.prune.magnitude import Magnitude


def fit(weight, **options):
    site = Site("w", "linear", Dense(weight), weight)
    return Svd(**options).fit(site, torch.Generator().manual_seed(0))


def test_by_hand():
    # Singular values 6, 2, 1: rank 1 keeps the 6 and its factors share it evenly.
    weight = torch.diag(torch.tensor([2.0, 6.0, 1.0]))
    form = fit(weight, rank=1)
    torch.testing.assert_close(form.dense(), torch.diag(torch.tensor([0.0, 6.0, 0.0])))
    B, A = (factor.dense().detach() for factor in form.factors)
    assert float(B.abs().max()) == pytest.approx(6**0.5)
    assert float(A.abs().max()) == pytest.approx(6**0.5)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 8, 3, 3)])
def test_error_is_what_the_dropped_singular_values_say(shape):
    weight = torch.randn(shape)
    form = fit(weight, rank=5)
    assert form.shape == shape
    values = torch.linalg.svdvals(weight.reshape(shape[0], -1))
    error = (form.dense().detach() - weight).norm()
    torch.testing.assert_close(error, values[5:].norm(), rtol=1e-4, atol=1e-5)


def test_keep_and_energy():
    weight = torch.randn(60, 40)
    form = fit(weight, keep=0.5)
    held = sum(p.numel() for p in form.parameters())
    assert 0.5 * 2400 - 100 < held <= 0.5 * 2400
    assert fit(weight).rank == form.rank  # the default
    values = torch.linalg.svdvals(weight).square()
    share = 0.7
    rank = fit(weight, energy=share).rank
    assert float(values[:rank].sum() / values.sum()) >= share
    assert float(values[: rank - 1].sum() / values.sum()) < share


def test_stays_dense_with_a_warning_where_nothing_is_saved():
    weight = torch.randn(10, 10)
    site = Site("w", "linear", Dense(weight), weight)
    with pytest.warns(LaconicWarning, match="w: rank 5 of a 10 x 10 weight saves nothing"):
        form = Svd(rank=5).fit(site, torch.Generator())
    assert form is site.form
    sketch = Svd(rank=5).sketch(Dense(torch.empty(10, 10, device="meta")), site="w")
    assert sketch.signature == "dense"
    with pytest.warns(LaconicWarning, match="w: rank 10 of"):
        Svd(rank=99).fit(site, torch.Generator())


def test_sketch_and_levels():
    weight = torch.randn(40, 64).to(torch.bfloat16)
    sizes = []
    for level in Svd(rank=3).levels():
        form = level.fit(Site("w", "linear", Dense(weight), weight), torch.Generator())
        sketch = level.sketch(
            Dense(torch.empty(40, 64, dtype=torch.bfloat16, device="meta")), site="w"
        )
        assert (sketch.signature, sketch.nbytes) == (form.signature, form.nbytes)
        sizes.append(form.nbytes)
    assert sizes == sorted(sizes)
    assert len(sizes) == 10


def test_refusals():
    weight = torch.randn(8, 8)
    sparse = Magnitude().fit(Site("w", "linear", Dense(weight), weight), torch.Generator())
    with pytest.raises(RecipeError, match=r"svd cannot follow sparse\(dense\)"):
        Svd().fit(Site("w", "linear", sparse, weight), torch.Generator())
    with pytest.raises(ConfigError, match="svd: rank and keep are given; give one"):
        Svd(rank=4, keep=0.5)
    bad = weight.clone()
    bad[0] = float("inf")
    with pytest.raises(LayerError, match="w: 8 of 64"):
        fit(bad, rank=2)


def test_iteration_agrees_with_the_full_decomposition(monkeypatch):
    source = torch.Generator().manual_seed(3)
    left = torch.linalg.qr(torch.randn(300, 200, generator=source)).Q
    right = torch.linalg.qr(torch.randn(250, 200, generator=source)).Q
    matrix = left * torch.logspace(0, -2, 200) @ right.T
    full = leading_svd(matrix, 8)
    monkeypatch.setattr(_leading, "_LARGE", 100)
    fast = leading_svd(matrix, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fast[1], full[1], rtol=1e-4, atol=0)
    best, found = (float((matrix - u * s @ vt).norm()) for u, s, vt in (full, fast))
    assert best * (1 - 1e-5) <= found <= best * (1 + 1e-4)
    again = leading_svd(matrix, 8, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(fast, again, strict=True))
