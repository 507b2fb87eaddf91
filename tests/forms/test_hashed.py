from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms.dense import Dense
from laconic.forms.hashed import PRIME, Hashed, hash_coefficients
from laconic.forms.quantized import Quantized


def _hashed(
    *,
    rows: int = 50,
    cols: int = 6,
    seeds: tuple[int, ...] = (1, 2),
    buckets: Any = 7,
    combine: Any = "sum",
    dtype: torch.dtype = torch.float64,
) -> Hashed:
    entries = buckets if isinstance(buckets, int) else sum(buckets)
    functions = len(seeds) or len(buckets)
    width = cols // functions if combine == "concat" else cols
    table = torch.randn(entries, width, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return Hashed(
        table.requires_grad_(),
        shape=(rows, cols), dtype=dtype, seeds=seeds, buckets=buckets, combine=combine,
    )  # fmt: skip


SHAPES: list[dict[str, Any]] = [
    {"seeds": (3,), "combine": "single"},
    {"seeds": (3,), "combine": "single", "buckets": 90},
    {"combine": "sum"},
    {"seeds": (1, 2, 9), "combine": "concat"},
    {"combine": "product"},
    {"combine": "sum", "buckets": (5, 9)},
    {"combine": "concat", "buckets": (5, 9)},
    {"seeds": (), "combine": "product", "buckets": (10, 5)},
    {"seeds": (), "combine": "concat", "buckets": (4, 4, 4)},
    {"seeds": (), "combine": "sum", "buckets": (10, 5)},
]


def test_coefficients_are_the_same_on_every_machine() -> None:
    # Golden numbers: a file written elsewhere must find its rows here.
    assert hash_coefficients(0) == (1292015328, 1291068387)
    assert hash_coefficients(1) == (616276399, 924742038)
    assert hash_coefficients(7) == (648953269, 42795598)


def test_positions_by_python_integers() -> None:
    form = _hashed(rows=PRIME, seeds=(5, 11), buckets=1000)
    ids = [0, 1, 12345, 2**30, PRIME - 1]  # the last ones overflow 32-bit products
    found = form.positions(torch.tensor(ids))
    for row, seed in zip(found.tolist(), (5, 11), strict=True):
        a, b = hash_coefficients(seed)
        assert row == [((a * i + b) % PRIME) % 1000 for i in ids]


def test_buckets_fill_evenly_and_pairs_collide_as_promised() -> None:
    ids = torch.arange(20_000)
    form = _hashed(rows=20_000, seeds=(4,), buckets=100, combine="single")
    counts = torch.bincount(form.positions(ids)[0], minlength=100).double()
    assert 150 <= float(counts.min()) <= float(counts.max()) <= 250
    collisions = 0
    for seed in range(400):  # any two ids collide for about 1 seed in 10
        a, b = hash_coefficients(seed)
        collisions += ((a * 17 + b) % PRIME) % 10 == ((a * 400 + b) % PRIME) % 10
    assert 15 <= collisions <= 75


def test_single_is_a_lookup_by_hand() -> None:
    table = torch.tensor([[1.0], [10.0], [100.0]])
    form = Hashed(table, shape=(4, 1), dtype=torch.float32, seeds=(0,), buckets=3, combine="single")
    a, b = hash_coefficients(0)
    expected = [10.0 ** (((a * i + b) % PRIME) % 3) for i in range(4)]
    assert form.dense().flatten().tolist() == expected


def test_quotient_remainder_by_hand() -> None:
    # id = 3 * quotient + remainder: 5 -> (1, 2), and the row is Q[1] * R[2].
    table = torch.tensor([[2.0], [3.0], [10.0], [100.0], [1000.0]])
    form = Hashed(
        table, shape=(6, 1), dtype=torch.float32, seeds=(), buckets=(2, 3), combine="product"
    )
    expected = [20.0, 200.0, 2000.0, 30.0, 300.0, 3000.0]
    assert form.dense().flatten().tolist() == expected
    assert form.positions(torch.tensor([5])).tolist() == [[1], [4]]


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), data=st.data())
def test_digits_are_unique(sizes: list[int], data: st.DataObject) -> None:
    total = int(torch.tensor(sizes).prod())
    rows = data.draw(st.integers(1, total))
    form = _hashed(rows=rows, cols=2, seeds=(), buckets=tuple(sizes), combine="sum")
    codes = form.positions(torch.arange(rows)).T
    assert len({tuple(code) for code in codes.tolist()}) == rows


@pytest.mark.parametrize("options", SHAPES)
def test_dense_embed_and_matmul_agree(options: dict[str, Any]) -> None:
    form = _hashed(**options)
    dense = form.dense()
    table = form.table.dense()
    places = form.positions(torch.arange(50))
    for row in (0, 17, 49):
        picked = [table[places[k, row]] for k in range(len(places))]
        if options["combine"] == "concat":
            oracle = torch.cat(picked)
        elif options["combine"] == "product":
            oracle = torch.stack(picked).prod(0)
        else:
            oracle = torch.stack(picked).sum(0)
        assert torch.allclose(dense[row], oracle)
    ids = torch.tensor([[3, 3], [49, 0]])
    assert torch.equal(form.embed(ids), dense[ids])
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    assert torch.allclose(form.matmul(x), x @ dense.T, atol=1e-10)
    assert form.matmul(x[:0]).shape == (0, 3, 50)


@pytest.mark.parametrize("options", SHAPES)
def test_gradients(options: dict[str, Any]) -> None:
    form = _hashed(**options)
    (table,) = form.parameters()
    assert table.requires_grad
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x, _: form.matmul(x), (x, table))
    torch.autograd.gradcheck(lambda _: form.dense(), (table,))


def test_gradients_reach_touched_rows_only() -> None:
    form = _hashed(combine="sum")
    ids = torch.tensor([3])
    form.embed(ids).sum().backward()
    (table,) = form.parameters()
    assert table.grad is not None
    touched = {int(place) for place in form.positions(ids).flatten()}
    assert {int(i) for i in table.grad.abs().sum(1).nonzero()} == touched


class _Watch(torch.utils._python_dispatch.TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.numel())
        return out


def test_embed_never_builds_the_table() -> None:
    form = _hashed(rows=1_000_000, cols=8, buckets=100)
    with _Watch() as watch, torch.no_grad():
        form.embed(torch.arange(10))
    assert watch.largest <= 100 * 8


def test_matmul_works_in_the_small_table() -> None:
    form = _hashed(rows=10_000, cols=64, seeds=(1,), buckets=100, combine="single")
    with _Watch() as watch, torch.no_grad():
        form.matmul(torch.randn(1, 64, dtype=torch.float64))
    assert watch.largest <= 10_000  # one number a row, not 64


def test_nbytes_is_the_table_alone() -> None:
    form = _hashed(rows=10**6, cols=8, seeds=(1, 2, 3, 4), buckets=100, dtype=torch.float32)
    assert form.nbytes == 100 * 8 * 4
    assert set(form.state_dict()) == {"table.value"}


def _again(form: Hashed, **changed: object) -> Hashed:
    return Hashed.from_parts(
        form.shape, form.dtype, form.settings() | changed, {}, form.children_forms()
    )


@pytest.mark.parametrize("options", SHAPES)
def test_parts_and_back(options: dict[str, Any]) -> None:
    form = _hashed(**options)
    again = _again(form)
    assert torch.equal(again.dense(), form.dense())
    assert again.settings() == form.settings()
    assert form.parts() == {}


def test_a_quantized_table() -> None:
    codes = torch.randint(0, 16, (9, 6), dtype=torch.uint8)
    table = Quantized(
        codes, torch.rand(9, 1), None,
        bits=4, group_size=6, shape=(9, 6), dtype=torch.float32, symmetric=True,
    )  # fmt: skip
    form = Hashed(table, shape=(40, 6), dtype=torch.float32, seeds=(1, 2), buckets=9, combine="sum")
    assert form.signature == "hashed(quantized)"
    assert torch.equal(form.embed(torch.arange(40)), form.dense())
    values = table.dense()
    one, two = form.positions(torch.tensor(7))
    assert torch.allclose(form.dense()[7], values[one] + values[two])


def test_quotient_remainder_constructor() -> None:
    form = Hashed.quotient_remainder((103, 4), torch.float32, remainders=10)
    assert form.buckets == (11, 10)
    (table,) = form.parameters()
    assert table.requires_grad
    table = table.detach()
    assert float((table[11:] - 1).abs().max()) <= 103**-0.5 + 1e-6
    assert float(table[:11].abs().max()) <= 103**-0.5
    rows = form.dense().detach()
    assert 0.3 <= float(rows.abs().mean()) / (103**-0.5 / 2) <= 3  # starts like a plain table
    sketch = Hashed.quotient_remainder((103, 4), torch.float32, remainders=10, device="meta")
    assert sketch.nbytes == form.nbytes == 21 * 4 * 4
    with pytest.raises(ConfigError, match="remainders=0"):
        Hashed.quotient_remainder((103, 4), torch.float32, remainders=0)


@pytest.mark.parametrize(
    ("changed", "quoted"),
    [
        ({"seeds": [-1, 2]}, "-1"),
        ({"seeds": [2**63, 2]}, "9223372036854775808"),
        ({"seeds": [1.5, 2]}, "1.5"),
        ({"seeds": [True, 2]}, "True"),
        ({"seeds": list(range(65))}, "at most 64"),
        ({"seeds": None}, "None"),
        ({"seeds": []}, "0 seeds and buckets"),
        ({"seeds": [], "buckets": []}, "0 seeds and buckets"),
        ({"seeds": [], "buckets": [4, 3]}, "reach 12 ids"),
        ({"buckets": 0}, "0"),
        ({"buckets": 8}, r"table \(7, 6\) must be \(8, 6\)"),
        ({"buckets": [3, 3, 1]}, "2 seeds and buckets"),
        ({"buckets": "7"}, "7"),
        ({"combine": "sums"}, "Did you mean 'sum'"),
        ({"combine": None}, "None"),
        ({"combine": "single"}, "takes one function, got 2"),
        ({"combine": "concat"}, r"must be \(7, 3\)"),
    ],
)
def test_hostile_settings_are_refused(changed: dict[str, object], quoted: str) -> None:
    with pytest.raises(ConfigError, match=quoted):
        _again(_hashed(), **changed)


def test_hostile_shapes_and_children_are_refused() -> None:
    form = _hashed()
    children = form.children_forms()
    for shape in ((2**31, 6), (0, 6), (), (50, 0)):
        with pytest.raises(ConfigError, match="hashed"):
            Hashed.from_parts(shape, form.dtype, form.settings(), {}, children)
    for held, parts in (
        ({}, {}),
        ({"tables": children["table"]}, {}),
        (children, {"x": torch.zeros(1)}),
        (children | {"more": Dense(torch.zeros(1))}, {}),
    ):
        with pytest.raises(ConfigError, match="hashed"):
            Hashed.from_parts(form.shape, form.dtype, form.settings(), parts, held)
    with pytest.raises(ConfigError, match="do not divide cols=5"):
        Hashed(
            torch.zeros(7, 2), shape=(50, 5), dtype=torch.float32,
            seeds=(1, 2), buckets=7, combine="concat",
        )  # fmt: skip


@pytest.mark.parametrize("bad", [-1, 50])
def test_ids_outside_are_refused(bad: int) -> None:
    with pytest.raises(IndexError, match=f"{bad}.* outside 0\\.\\.49"):
        _hashed().embed(torch.tensor([bad]))
