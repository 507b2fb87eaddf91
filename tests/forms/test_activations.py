"""Rounded inputs: by hand, against a loop, in every kernel, in every form, and at rest."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic import artifact
from laconic.errors import ConfigError, LayerError
from laconic.forms import Dense, LowRank, Quantized, Sparse, Sum, install_
from laconic.forms._int8 import INT8_KERNELS, int8_run, why_unavailable
from laconic.forms.activations import Activations
from laconic.forms.kernels import decide, prepare_

SETTINGS = [
    Activations(bits=bits, granularity=granularity, symmetric=symmetric, clip=clip)  # type: ignore[arg-type]
    for bits, granularity, symmetric, clip in product(
        (4, 8), ("token", "tensor"), (True, False), (1.0, 0.9)
    )
] + [Activations(granularity="static"), Activations(bits=4, granularity="static", clip=0.9)]
WORDS = [" ".join(str(v) for v in s.settings().values()) for s in SETTINGS]


def made(
    activations: Activations | None, *, rows: int = 6, cols: int = 16, dtype=torch.float32
) -> Quantized:
    source = torch.Generator().manual_seed(3)
    static = activations is not None and activations.static
    return Quantized(
        torch.randint(0, 256, (rows, cols), generator=source).to(torch.uint8),
        (torch.rand(rows, 1, generator=source) / 100 + 0.001).to(dtype),
        None,
        bits=8,
        group_size=cols,
        shape=(rows, cols),
        dtype=dtype,
        symmetric=True,
        activations=activations,
        input_scale=activations.fixed_scale(torch.tensor([3.0])) if static else None,
    )


def slowly(x: Tensor, told: Activations, fixed: Tensor | None) -> Tensor:
    """The definition, value by value, in float32: halves are where they are in float32."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    top = 2**told.bits - 1
    for r, row in enumerate(rows):
        seen = row if told.granularity == "token" else rows.reshape(-1)
        if told.symmetric:
            scale = told.clip * seen.abs().max() / (top / 2) if fixed is None else fixed[0]
            low, high, zero = -(2 ** (told.bits - 1)), 2 ** (told.bits - 1) - 1, 0
        else:
            least, most = seen.min().clamp(max=0) * told.clip, seen.max().clamp(min=0) * told.clip
            scale = (most - least) / top
            zero = min(max(round(float(-least / scale)), 0), top)
            low, high = -zero, top - zero
        for c, value in enumerate(row):
            out[r, c] = scale * min(max(round(float(value / scale)), low), high)
    return out.reshape(x.shape)


def test_symmetric_tokens_by_hand() -> None:
    told = Activations(bits=2)
    x = torch.tensor([[3.0, -3.0, 0.9, 0.0], [0.0, 0.0, 0.0, 0.0]])
    # Scale 3 / 1.5 = 2; codes -2..1, so that 3 / 2 rounds to 2 and is clipped to 1.
    assert told.round(x).tolist() == [[2.0, -4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_asymmetric_tensor_by_hand() -> None:
    told = Activations(bits=2, granularity="tensor", symmetric=False)
    # Range 0..6 (zero is included), three steps of 2.
    assert told.round(torch.tensor([[6.0, 3.1], [2.0, 0.4]])).tolist() == [[6.0, 4.0], [2.0, 0.0]]


def test_static_scale_by_hand() -> None:
    told = Activations(bits=2, granularity="static", clip=0.5)
    scale = told.fixed_scale(torch.tensor([2.0, 6.0]))
    assert scale.tolist() == [2.0]  # 0.5 * 6 / 1.5
    assert told.round(torch.tensor([[100.0, 1.1, -9.0]]), scale).tolist() == [[2.0, 2.0, -4.0]]


@pytest.mark.parametrize("told", SETTINGS, ids=WORDS)
def test_against_a_loop(told: Activations) -> None:
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)) + 0.3
    fixed = told.fixed_scale(x.abs().amax()) if told.static else None
    assert torch.allclose(told.round(x, fixed), slowly(x, told, fixed), atol=1e-6)


@pytest.mark.parametrize("told", SETTINGS, ids=WORDS)
def test_rounding_twice_is_rounding_once(told: Activations) -> None:
    if told.clip < 1 and not told.static:
        pytest.skip("a dynamic range that is clipped shrinks each time")
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    fixed = told.fixed_scale(x.abs().amax()) if told.static else None
    codes, scale, zero = told.levels(x, fixed)
    again = (told.round(x, fixed) / scale).round() + zero
    assert torch.equal(again, codes)


@pytest.mark.parametrize("told", SETTINGS, ids=WORDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_is_that_of_the_rounded_input(told: Activations, dtype: torch.dtype) -> None:
    form = made(told, dtype=dtype)
    x = torch.randn(2, 3, 16).to(dtype)
    offset = form.codes().float() - 128
    exact = told.round(x.float(), form.input_scale) @ (offset * form.scale.float()).T
    assert form.matmul(x).dtype == dtype
    assert torch.allclose(
        form.matmul(x), exact.to(dtype), rtol=1e-2 if dtype != x.float().dtype else 1e-5, atol=1e-5
    )
    assert not torch.equal(form.matmul(x), made(None, dtype=dtype).matmul(x))


@pytest.mark.parametrize("kernel", INT8_KERNELS)
@pytest.mark.parametrize("told", SETTINGS, ids=WORDS)
def test_integer_kernels_give_the_same_sums(told: Activations, kernel: str) -> None:
    if why_unavailable(kernel):
        pytest.skip(why_unavailable(kernel))
    form = made(told, rows=24, cols=64)
    with torch.no_grad():
        run = int8_run(form, kernel)
        for shape in ((64,), (1, 64), (33, 64), (2, 5, 64), (0, 64)):
            x = 2 * torch.randn(shape) + 0.1
            assert not isinstance(run, str)
            assert torch.allclose(run(x), form.matmul(x), rtol=1e-5, atol=1e-5)
        bad = torch.randn(2, 64)
        bad[0, 3] = float("inf")
        assert torch.equal(run(bad).isnan(), form.matmul(bad).isnan())


def test_kernels_never_drop_the_rounding() -> None:
    net = nn.Sequential(nn.Linear(16, 6)).eval()
    told = Activations(bits=4)
    install_(net, "0.weight", made(told))
    x = torch.randn(5, 16)
    with torch.no_grad():
        expected = made(told).matmul(x) + net[0].bias
        for mode in ("exact", "dense", "auto", "int8"):
            prepare_(net, mode)  # type: ignore[arg-type]
            assert torch.allclose(net(x), expected, rtol=1e-5, atol=1e-5), mode
    words = decide(net, "exact")["0.weight"].kernel
    assert words == decide(net, "dense")["0.weight"].kernel == "simulated activations"
    known = {"simulated activations", *INT8_KERNELS}
    kernels = set(decide(net, "auto")["0.weight"].by_batch.values())
    assert kernels <= {"form", "simulated", *known}


def test_grouped_scales_cannot_run_in_integers_and_say_that_they_simulate() -> None:
    form = Quantized(
        torch.randint(0, 16, (4, 8)).to(torch.uint8), torch.rand(4, 2) + 0.1, None, bits=4,
        group_size=4, shape=(4, 8), dtype=torch.float32, symmetric=True, activations=Activations(),
    )  # fmt: skip
    net = nn.Sequential(nn.Linear(8, 4)).eval()
    install_(net, "0.weight", form)
    told = decide(net, "auto")["0.weight"]
    assert told.kernel == "simulated activations"
    assert "int8 refused" in told.reason


def nested(told: Activations) -> dict[str, Any]:
    mask = torch.zeros(6, 16, dtype=torch.bool)
    mask[:, ::2] = True
    kept = made(told, cols=8)
    column = torch.zeros(16, dtype=torch.bool)
    column[::2] = True
    dense = Dense(torch.randn(6, 16))
    shape: dict[str, Any] = {"shape": (6, 16), "dtype": torch.float32}
    return {
        "sparse": (Sparse(mask, kept, **shape), lambda x: told.round(x)),
        "column": (
            Sparse(column, made(told, cols=8), **shape, pattern="column"),
            lambda x: torch.zeros_like(x).index_copy(
                -1, column.nonzero().squeeze(1), told.round(x[..., ::2])
            ),
        ),
        "sum": (Sum(made(told), dense, **shape), None),
    }


@pytest.mark.parametrize("kind", ["sparse", "column", "sum"])
def test_inside_other_forms(kind: str) -> None:
    told = Activations(bits=4)
    form, rounded = nested(told)[kind]
    x = torch.randn(3, 16)
    if kind == "sum":
        first, second = form.terms
        expected = first.matmul(x) + second.matmul(x)
        assert torch.equal(second.matmul(x), x @ second.dense().T)
    else:
        expected = rounded(x) @ form.dense().T
    assert form.rounds_inputs
    assert torch.allclose(form.matmul(x), expected, atol=1e-5)
    net = nn.Sequential(nn.Linear(16, 6, bias=False)).eval()
    install_(net, "0.weight", form)
    for mode in ("exact", "auto", "dense"):
        prepare_(net, mode)  # type: ignore[arg-type]
        assert torch.allclose(net(x), expected, atol=1e-4), mode


def test_low_rank_rounds_before_each_factor() -> None:
    told = Activations(bits=4)
    left, right = made(told, rows=6, cols=4), made(told, rows=4, cols=16)
    form = LowRank(left, right, shape=(6, 16), dtype=torch.float32)
    x = torch.randn(3, 16)
    inner = told.round(x) @ right.dense().T
    assert torch.allclose(form.matmul(x), told.round(inner) @ left.dense().T, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_rounds_each_example(groups: int) -> None:
    conv = nn.Conv2d(4, 6, 2, groups=groups, padding=1).eval()
    told = Activations(bits=4)
    cols = 4 // groups * 4
    held = made(told, cols=cols)
    form = Quantized(
        held.codes(), held.scale.detach(), None, bits=8, group_size=cols,
        shape=(6, 4 // groups, 2, 2), dtype=torch.float32, symmetric=True, activations=told,
    )  # fmt: skip
    net = nn.Sequential(deepcopy(conv))
    install_(net, "0.weight", form)
    x = torch.randn(3, 4, 5, 5)
    x[1] *= 10
    each = [told.round(one.reshape(1, -1)).reshape(1, 4, 5, 5) for one in x]
    expected = nn.functional.conv2d(
        torch.cat(each), form.dense(), conv.bias, padding=1, groups=groups
    )
    for mode in ("exact", "auto", "dense"):
        prepare_(net, mode)  # type: ignore[arg-type]
        assert torch.allclose(net(x), expected, atol=1e-4), mode


class Experts(nn.Module):
    """Goes through a stack of weights, one expert at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 3
        self.weight = nn.Parameter(torch.randn(3, 2, 16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([nn.functional.linear(x, self.weight[e]) for e in range(3)])


def test_stacked_experts_round_what_they_multiply() -> None:
    net = nn.Sequential(Experts())
    told = Activations(bits=4)
    form = made(told)
    install_(net, "0.weight", form, layout="stacked")
    x = torch.randn(4, 16)
    expected = (told.round(x) @ form.dense().T).reshape(4, 3, 2).transpose(0, 1)
    assert torch.allclose(net(x), expected, atol=1e-5)


def test_gradients_pass_straight_through_but_not_where_clipped() -> None:
    told = Activations(bits=4, granularity="static")
    scale = told.fixed_scale(torch.tensor([1.0]))
    x = torch.tensor([[0.3, -0.6, 5.0]], requires_grad=True)
    told.round(x, scale).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 1.0, 0.0]]


@pytest.mark.parametrize("told", [None, *SETTINGS[:1], *SETTINGS[-2:]])
def test_saved_and_loaded_it_is_the_same(told: Activations | None, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(16, 6)).eval()
    install_(net, "0.weight", made(told))
    x = torch.randn(3, 16)
    architecture = artifact.Architecture.of(net, x)
    artifact.save(net, tmp_path / "a", architecture=architecture)
    loaded = artifact.load(tmp_path / "a", kernels="exact")
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))
    tree = artifact.inspect(tmp_path / "a")["sites"][0]["tree"]["settings"]
    assert tree.get("activations") == (told.settings() if told else None)


def test_static_scale_stays_float32() -> None:
    form = made(Activations(granularity="static", clip=0.7))
    held = form.input_scale
    assert held is not None
    form.half()
    assert form.input_scale is not None
    assert torch.equal(form.input_scale, held)
    assert form.scale.dtype == torch.float16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "bits=1 must be"),
        ({"bits": 9}, "bits=9 must be"),
        ({"bits": True}, "bits=True must be"),
        ({"granularity": "tokens"}, "granularity='tokens'.*Did you mean 'token'"),
        ({"symmetric": 1}, "symmetric=1"),
        ({"clip": 0.05}, "clip=0.05"),
        ({"clip": float("nan")}, "clip=nan"),
        ({"granularity": "static", "symmetric": False}, "static scales"),
        ({"bit": 4}, "no setting 'bit'.*Did you mean 'bits'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Activations.of(settings)


def test_scale_and_granularity_belong_together() -> None:
    form = made(Activations(granularity="static"))
    parts = {name: part.tensor for name, part in form.parts().items()}
    held = form.settings()
    without = {name: t for name, t in parts.items() if name != "input_scale"}
    bad = parts | {"input_scale": torch.tensor([-1.0])}
    dynamic = {**held, "activations": Activations().settings()}
    word = {**held, "activations": "int8"}
    for settings, given, message in (
        (held, without, "input_scale is missing"),
        (dynamic, parts, "input_scale is given"),
        (held, bad, "above 0"),
        (word, parts, "must be a mapping"),
    ):
        with pytest.raises(ConfigError, match=message):
            Quantized.from_parts(form.shape, form.dtype, settings, given, {})


def test_a_transposed_use_is_refused() -> None:
    net = nn.Sequential(nn.Linear(16, 6))
    install_(net, "0.weight", Dense(torch.randn(16, 6)), layout="transposed")
    form = made(Activations(), rows=16, cols=6)
    install_(net, "0.weight", form)
    with pytest.raises(LayerError, match="transposed"):
        net(torch.randn(2, 16))


def test_sketch_has_the_bytes() -> None:
    for told in (None, Activations(), Activations(granularity="static")):
        sketch = Quantized.empty(
            (6, 16), torch.float32, bits=8, group_size=16, scale_dtype=torch.float32,
            symmetric=True, activations=told,
        )  # fmt: skip
        assert sketch.nbytes == made(told).nbytes
        assert sketch.settings() == made(told).settings()
