from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms import _tensortrain_math as tt
from laconic.forms.dense import Dense
from laconic.forms.quantized import Quantized
from laconic.forms.tensortrain import TensorTrain


def _tiles(weight: Tensor, rows: tuple[int, ...], cols: tuple[int, ...]) -> Tensor:
    """Reorder a matrix to (m_1 n_1, m_2 n_2, ...) by loops over digits: an oracle."""
    out = torch.empty([m * n for m, n in zip(rows, cols, strict=True)], dtype=weight.dtype)
    for i in range(prod(rows)):
        for j in range(prod(cols)):
            place, a, b = [], i, j
            for m, n in zip(rows[::-1], cols[::-1], strict=True):
                place.append((a % m) * n + b % n)
                a, b = a // m, b // n
            out[tuple(place[::-1])] = weight[i, j]
    return out


def _train(*, bond: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> TensorTrain:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(1, 2, 3, bond), (bond, 3, 2, bond), (bond, 2, 2, 1)]
    cores = [Dense(torch.randn(s, generator=draw, dtype=dtype).requires_grad_()) for s in shapes]
    return TensorTrain(
        *cores, shape=(12, 12), dtype=dtype, row_modes=(2, 3, 2), col_modes=(3, 2, 2)
    )


def test_two_cores_by_hand() -> None:
    # W = [[1,2],[3,4]] (x) [[0,1],[1,0]], a Kronecker product: one bond of 1 holds it.
    left = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    right = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    form = TensorTrain(
        Dense(left.view(1, 2, 2, 1)), Dense(right.view(1, 2, 2, 1)),
        shape=(4, 4), dtype=torch.float32, row_modes=(2, 2), col_modes=(2, 2),
    )  # fmt: skip
    expected = torch.tensor(
        [[0.0, 1.0, 0.0, 2.0], [1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 4.0], [3.0, 0.0, 4.0, 0.0]]
    )
    assert torch.equal(form.dense(), expected)
    assert torch.equal(
        form.matmul(torch.tensor([1.0, 10.0, 100.0, 1000.0])),
        expected @ torch.tensor([1.0, 10.0, 100.0, 1000.0]),
    )
    assert form.nbytes == 32


def test_a_kronecker_product_is_found_with_bond_one() -> None:
    draw = torch.Generator().manual_seed(1)
    a = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    b = torch.randn(4, 2, generator=draw, dtype=torch.float64)
    weight = torch.kron(a, b)
    form = TensorTrain.from_dense(weight, row_modes=(3, 4), col_modes=(5, 2), ranks=1)
    assert torch.allclose(form.dense(), weight, atol=1e-12)
    assert form.ranks == (1,)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_full_bonds_are_exact(dtype: torch.dtype, limit: float) -> None:
    weight = torch.randn(24, 36, generator=torch.Generator().manual_seed(0), dtype=dtype)
    form = TensorTrain.from_dense(weight, row_modes=(2, 3, 4), col_modes=(3, 3, 4))
    assert form.ranks == tt.full_ranks((2, 3, 4), (3, 3, 4)) == (6, 16)
    assert float((form.dense().detach() - weight).norm() / weight.norm()) < limit
    held = sum(core.dense().numel() for core in form.cores)
    assert held == tt.parameter_count((2, 3, 4), (3, 3, 4), form.ranks)


def test_error_is_the_sum_of_cut_singular_values() -> None:
    rows, cols = (3, 2, 4), (2, 3, 3)
    weight = torch.randn(24, 18, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    tiles = _tiles(weight, rows, cols)
    for bond in (1, 3, 5):
        form = TensorTrain.from_dense(weight, row_modes=rows, col_modes=cols, ranks=bond)
        # The same cuts made on the whole tensor: project the first unfolding, then the second.
        _, s, v = torch.linalg.svd(tiles.reshape(6, -1), full_matrices=False)
        lost = float(s[bond:].square().sum())
        rest = (s[:bond, None] * v[:bond]).reshape(min(bond, 6) * 6, -1)
        lost += float(torch.linalg.svdvals(rest)[bond:].square().sum())
        assert float((form.dense().detach() - weight).square().sum()) == pytest.approx(
            lost, rel=1e-9
        )


def test_outer_digits_of_one_are_the_truncated_svd() -> None:
    weight = torch.randn(10, 14, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    form = TensorTrain.from_dense(weight, row_modes=(10, 1), col_modes=(1, 14), ranks=4)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(form.dense(), u[:, :4] * s[:4] @ v[:4], atol=1e-12)


@pytest.mark.parametrize("tolerance", [0.05, 0.3, 0.7])
def test_tolerance_is_kept_and_used(tolerance: float) -> None:
    weight = torch.randn(27, 27, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    modes = (3, 3, 3)
    form = TensorTrain.from_dense(weight, row_modes=modes, col_modes=modes, tolerance=tolerance)
    error = float((form.dense().detach() - weight).norm() / weight.norm())
    assert error <= tolerance
    tighter = [max(1, r - 3) for r in form.ranks]
    worse = TensorTrain.from_dense(weight, row_modes=modes, col_modes=modes, ranks=tighter)
    assert float((worse.dense().detach() - weight).norm() / weight.norm()) > error


def test_ratio_takes_the_largest_bond_below_it() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(6))
    modes = (8, 8)
    form = TensorTrain.from_dense(weight, row_modes=modes, col_modes=modes, ratio=0.3)
    (bond,) = form.ranks
    assert tt.parameter_count(modes, modes, (bond,)) <= 0.3 * 4096
    assert tt.parameter_count(modes, modes, (bond + 1,)) > 0.3 * 4096
    with pytest.raises(ConfigError, match=r"10 numbers are allowed, but a bond of 1 takes 128"):
        TensorTrain.from_dense(weight, row_modes=modes, col_modes=modes, ratio=10.5 / 4096)


def test_cores_leave_with_equal_norms() -> None:
    weight = 1e4 * torch.randn(64, 64, generator=torch.Generator().manual_seed(7))
    form = TensorTrain.from_dense(weight, row_modes=(4, 4, 4), col_modes=(4, 4, 4), ranks=6)
    assert all(core.dense().is_contiguous() for core in form.cores)  # as they come from a file
    norms = [float(core.dense().detach().norm()) for core in form.cores]
    assert max(norms) / min(norms) < 1.0001


def test_padding_leaves_the_form() -> None:
    weight = torch.randn(97, 13, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    rows, cols = tt.balanced_modes(97, 2), tt.balanced_modes(13, 2)
    assert prod(rows) > 97
    form = TensorTrain.from_dense(weight, row_modes=rows, col_modes=cols)
    x = torch.randn(5, 13, dtype=torch.float64)
    assert torch.allclose(form.dense(), weight, atol=1e-12)
    assert torch.allclose(form.matmul(x), x @ weight.T, atol=1e-12)
    assert torch.allclose(form.embed(torch.tensor([96, 0])), weight[[96, 0]], atol=1e-12)


@pytest.mark.parametrize(
    ("size", "count", "digits"),
    [
        (4096, 3, (16, 16, 16)),
        (11008, 3, (16, 16, 43)),
        (14336, 3, (16, 28, 32)),
        (768, 2, (24, 32)),
        (97, 2, (7, 14)),
        (5, 1, (5,)),
        (1, 2, (1, 1)),
    ],
)
def test_balanced_modes(size: int, count: int, digits: tuple[int, ...]) -> None:
    found = tt.balanced_modes(size, count)
    assert found == digits or (prod(found) == size and found[-1] / found[0] <= 32 / 16)


@settings(deadline=None, max_examples=50)
@given(
    modes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    bond=st.integers(1, 5),
    batch=st.lists(st.integers(1, 3), max_size=2),
)
def test_matmul_and_embed_agree_with_dense(
    modes: list[tuple[int, int]], bond: int, batch: list[int]
) -> None:
    rows, cols = zip(*modes, strict=True)
    form = TensorTrain.empty(
        (prod(rows), prod(cols)), torch.float64, row_modes=rows, col_modes=cols, ranks=bond
    )
    real = [Dense(torch.randn(core.shape, dtype=torch.float64)) for core in form.cores]
    form = TensorTrain(*real, shape=form.shape, dtype=torch.float64, row_modes=rows, col_modes=cols)
    dense = form.dense()
    x = torch.randn(*batch, prod(cols), dtype=torch.float64)
    assert torch.allclose(form.matmul(x), x @ dense.T, atol=1e-9)
    assert form.matmul(torch.empty(2, 0, prod(cols), dtype=torch.float64)).shape == (
        2,
        0,
        prod(rows),
    )
    assert form.embed(torch.empty(0, dtype=torch.int64)).shape == (0, prod(cols))
    ids = torch.arange(prod(rows)).flip(0)
    assert torch.allclose(form.embed(ids), dense.flip(0), atol=1e-9)
    tiles = _tiles(dense, rows, cols).reshape(rows[0] * cols[0], -1)
    assert int(torch.linalg.matrix_rank(tiles)) <= bond


def test_both_sweep_directions_are_taken_and_agree() -> None:
    draw = torch.Generator().manual_seed(9)
    costs = []
    for rows, cols in (((2, 16), (16, 2)), ((16, 2), (2, 16))):
        weight = torch.randn(32, 32, generator=draw, dtype=torch.float64)
        form = TensorTrain.from_dense(weight, row_modes=rows, col_modes=cols, ranks=5)
        forward, backward = tt.sweep_costs([core.shape for core in form.cores])
        costs.append(forward <= backward)
        x = torch.randn(3, 32, generator=draw, dtype=torch.float64)
        assert torch.allclose(form.matmul(x), x @ form.dense().T, atol=1e-10)
    assert sorted(costs) == [False, True]


class _Watch(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the most numbers that any one tensor held."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize(("rows", "cols"), [((1, 64), (64, 1)), ((64, 1), (1, 64))])
def test_the_cheaper_end_goes_first(rows: tuple[int, ...], cols: tuple[int, ...]) -> None:
    # The wrong end first would hold 3 * 64 * 64 * 4 numbers.
    form = TensorTrain.empty((64, 64), torch.float32, row_modes=rows, col_modes=cols, ranks=4)
    with _Watch() as watch, torch.no_grad():
        form.matmul(torch.empty(3, 64, device="meta"))
    assert watch.largest <= 4 * 64


def test_matmul_never_holds_the_dense_tensor() -> None:
    sketch = TensorTrain.empty(
        (4096, 4096), torch.float32, row_modes=(16, 16, 16), col_modes=(16, 16, 16), ranks=4
    )
    with _Watch() as watch, torch.no_grad():
        sketch.matmul(torch.empty(2, 4096, device="meta"))
    assert 2 * 4096 <= watch.largest <= 2 * 4096 * 4  # batch times bond, against 16.8 million


def test_gradients_of_both_paths_are_right_and_equal() -> None:
    form = _train()
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    parameters = list(form.parameters())
    assert len(parameters) == 3
    assert all(p.requires_grad for p in parameters)
    torch.autograd.gradcheck(lambda x, *_: form.matmul(x), (x, *parameters))
    torch.autograd.gradcheck(lambda *_: form.dense(), tuple(parameters))
    one = torch.autograd.grad((form.matmul(x) ** 2).sum(), parameters)
    two = torch.autograd.grad(((x @ form.dense().T) ** 2).sum(), parameters)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(one, two, strict=True))


def _cp(shape: tuple[int, ...], rows: tuple[int, ...], cols: tuple[int, ...]) -> TensorTrain:
    factors = [Dense(torch.randn(n, 3, dtype=torch.float64)) for n in (*rows, *cols)]
    return TensorTrain(
        *factors, shape=shape, dtype=torch.float64, row_modes=rows, col_modes=cols, mode="cp"
    )


def test_cp_by_hand() -> None:
    # Two outer products over (2, 2, 2): e1*e1*(1,2) and e2*e2*(3,4).
    eye = torch.eye(2)
    form = TensorTrain(
        Dense(eye), Dense(eye), Dense(torch.tensor([[1.0, 3.0], [2.0, 4.0]])),
        shape=(2, 2, 2), dtype=torch.float32, row_modes=(2,), col_modes=(2, 2), mode="cp",
    )  # fmt: skip
    expected = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [3.0, 4.0]]])
    assert torch.equal(form.dense(), expected)
    assert form.ranks == (2,)


@pytest.mark.parametrize(
    ("shape", "rows", "cols"),
    [((6, 4, 3, 3), (6,), (4, 3, 3)), ((6, 4), (2, 3), (4,)), ((6, 4), (6,), (2, 2))],
)
def test_cp_paths_agree(
    shape: tuple[int, ...], rows: tuple[int, ...], cols: tuple[int, ...]
) -> None:
    form = _cp(shape, rows, cols)
    factors = [core.dense() for core in form.cores]
    letters = "abcdefg"[: len(factors)]
    oracle = torch.einsum(",".join(f"{c}r" for c in letters) + "->" + letters, *factors)
    assert torch.allclose(form.dense(), oracle.reshape(shape), atol=1e-12)
    x = torch.randn(2, 5, prod(cols), dtype=torch.float64)
    flat = form.dense().reshape(shape[0], -1)
    assert torch.allclose(form.matmul(x), x @ flat.T, atol=1e-10)
    ids = torch.tensor([[5, 0], [3, 3]])
    assert torch.allclose(form.embed(ids), form.dense()[ids], atol=1e-12)
    assert form.matmul(torch.empty(0, prod(cols), dtype=torch.float64)).shape == (0, shape[0])


@pytest.mark.parametrize("rows", [(4, 3), (4,)])
def test_one_way_filters(rows: tuple[int, ...]) -> None:
    shape = (4, 3, 5, 5)
    cols = shape[len(rows) :]
    factors = [Dense(torch.randn(prod(rows), n, 2, dtype=torch.float64)) for n in cols]
    form = TensorTrain(
        *factors, shape=shape, dtype=torch.float64, row_modes=rows, col_modes=cols, mode="one-way"
    )
    kernels = form.dense().reshape(-1, 5, 5)
    if len(rows) == 2:
        assert max(int(torch.linalg.matrix_rank(k)) for k in kernels) == 2
        first, second = (factor.dense() for factor in factors)
        assert torch.allclose(kernels[7], first[7] @ second[7].T, atol=1e-12)
        # Two one-way filters of 5 in place of a 5 x 5 kernel: 2.5 times fewer at rank 1.
        assert sum(core.dense().numel() for core in form.cores) == 4 * 3 * 2 * 10
    x = torch.randn(2, 75, dtype=torch.float64)
    assert torch.allclose(form.matmul(x), x @ form.dense().reshape(4, -1).T, atol=1e-10)
    assert torch.allclose(form.embed(torch.tensor([3, 1])), form.dense()[[3, 1]], atol=1e-12)


def test_a_sequence_of_one_way_layers_is_an_operator() -> None:
    # in -> mid by (k1, 1), then mid -> out by (1, k2): one convolution with this form's weight.
    first = torch.randn(3, 4, 3, 1, dtype=torch.float64)  # (mid, in, k1, 1)
    second = torch.randn(6, 3, 1, 5, dtype=torch.float64)  # (out, mid, 1, k2)
    form = TensorTrain(
        Dense(first.permute(1, 2, 0, 3).reshape(1, 1, 12, 3)),
        Dense(second.permute(1, 0, 2, 3).reshape(3, 6, 5, 1)),
        shape=(6, 4, 3, 5), dtype=torch.float64, row_modes=(1, 6), col_modes=(12, 5),
    )  # fmt: skip
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    conv = torch.nn.functional.conv2d
    assert torch.allclose(conv(x, form.dense()), conv(conv(x, first), second), atol=1e-10)


def _again(form: TensorTrain) -> TensorTrain:
    parts = {name: part.tensor for name, part in form.parts().items()}
    return TensorTrain.from_parts(
        form.shape, form.dtype, form.settings(), parts, form.children_forms()
    )


def test_parts_and_back_with_quantized_cores() -> None:
    codes = torch.randint(0, 16, (3, 12), dtype=torch.uint8)
    core = Quantized(
        codes, torch.rand(3, 1), None,
        bits=4, group_size=12, shape=(3, 4, 3, 1), dtype=torch.float32, symmetric=True,
    )  # fmt: skip
    form = TensorTrain(
        Dense(torch.randn(1, 2, 2, 3)), core,
        shape=(8, 6), dtype=torch.float32, row_modes=(2, 4), col_modes=(2, 3),
    )  # fmt: skip
    again = _again(form)
    assert torch.equal(again.dense(), form.dense())
    assert again.settings() == form.settings()
    assert form.signature == "tensor-train(dense, quantized)"
    assert form.nbytes == 4 * 12 + (36 // 2 + 3 * 4)
    x = torch.randn(4, 6)
    assert torch.allclose(form.matmul(x), x @ form.dense().T, atol=1e-5)


def test_sketch_has_the_bytes_of_the_real_one() -> None:
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    real = TensorTrain.from_dense(weight, row_modes=(8, 8), col_modes=(6, 8), ranks=7)
    sketch = TensorTrain.empty((64, 48), torch.float32, row_modes=(8, 8), col_modes=(6, 8), ranks=7)
    assert sketch.nbytes == real.nbytes == 4 * 7 * (48 + 64)
    assert sketch.dense().shape == (64, 48)
    assert sketch.dense().is_meta


def test_bfloat16_keeps_its_type() -> None:
    form = _train(dtype=torch.bfloat16)
    assert form.dense().dtype == torch.bfloat16
    assert form.matmul(torch.randn(2, 12)).dtype == torch.float32
    assert form.embed(torch.tensor([1])).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changed", "quoted"),
    [
        ({"row_modes": [2, 3]}, r"row_modes=\(2, 3\)"),
        ({"row_modes": [2, 3, 5]}, r"\(2, 3, 5\)"),
        ({"row_modes": [2, 3, 2, 10**9]}, "1000000000"),
        ({"row_modes": [2, 3, -2]}, "-2"),
        ({"row_modes": [2, 3, True]}, "True"),
        ({"row_modes": [2, 3, 2.0]}, "2.0"),
        ({"row_modes": "abc"}, "abc"),
        ({"col_modes": [2] * 40}, "1 to 16 whole numbers"),
        ({"col_modes": [2, 3, 2]}, "do not chain"),
        ({"mode": "mps"}, "'mps'"),
        ({"mode": None}, "None"),
        ({"mode": "cp"}, "do not chain in mode 'cp'"),
    ],
)
def test_hostile_settings_are_refused(changed: dict[str, object], quoted: str) -> None:
    form = _train()
    with pytest.raises(ConfigError, match=quoted):
        TensorTrain.from_parts(
            form.shape, form.dtype, form.settings() | changed, {}, form.children_forms()
        )


def test_hostile_children_are_refused() -> None:
    form = _train()
    cores = form.children_forms()
    for children in (
        {},
        {"core1": cores["core1"]},
        {"core0": cores["core0"], "core1": cores["core2"], "core2": cores["core1"]},
        dict(reversed(cores.items())),
    ):
        with pytest.raises(ConfigError, match="tensor-train"):
            TensorTrain.from_parts(form.shape, form.dtype, form.settings(), {}, children)
    for shape in ((2, 3, 2, 3), (3, 3, 2), (3, 2, 2, 3)):  # bonds, axes or digits that differ
        with pytest.raises(ConfigError, match="do not chain"):
            TensorTrain.from_parts(
                form.shape, form.dtype, form.settings(), {},
                cores | {"core1": Dense(torch.zeros(shape, dtype=form.dtype))},
            )  # fmt: skip
    wide = Dense(torch.zeros(2, 2, 3, 3, dtype=form.dtype))
    with pytest.raises(ConfigError, match="outer bonds 1"):
        TensorTrain.from_parts(form.shape, form.dtype, form.settings(), {}, cores | {"core0": wide})
    with pytest.raises(ConfigError, match="parts"):
        TensorTrain.from_parts(
            form.shape, form.dtype, form.settings(), {"x": torch.zeros(1)}, cores
        )
    with pytest.raises(ConfigError, match=r"shape \(12, 99\)"):
        TensorTrain.from_parts((12, 99), form.dtype, form.settings(), {}, cores)


def test_bad_requests_say_what_to_do() -> None:
    weight = torch.randn(12, 12)
    with pytest.raises(ConfigError, match=r"\(5, 2\).*balanced_modes"):
        TensorTrain.from_dense(weight, row_modes=(5, 2), col_modes=(4, 3))
    with pytest.raises(ConfigError, match="bond=0"):
        TensorTrain.from_dense(weight, row_modes=(4, 3), col_modes=(4, 3), ranks=0)
    with pytest.raises(ConfigError, match=r"ranks=\(2, 2\) must be 1"):
        TensorTrain.from_dense(weight, row_modes=(4, 3), col_modes=(4, 3), ranks=(2, 2))
    with pytest.raises(ConfigError, match="one of the two"):
        TensorTrain.from_dense(weight, row_modes=(4, 3), col_modes=(4, 3), ranks=2, ratio=0.5)
    with pytest.raises(ConfigError, match="not finite"):
        TensorTrain.from_dense(weight / 0, row_modes=(4, 3), col_modes=(4, 3))
    with pytest.raises(IndexError, match=r"ids 0\.\.12 outside 0\.\.11"):
        _train().embed(torch.tensor([0, 12]))
