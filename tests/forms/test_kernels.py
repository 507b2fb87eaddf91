from __future__ import annotations

import copy
import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic.errors import ConfigError, LaconicWarning
from laconic.forms import _int8, _timings, kernels
from laconic.forms._int8 import INT8_KERNELS, IntMm, OnednnInt8, int8_run, int8_weights
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.kernels import Decision, decide, prepare_, release_
from laconic.forms.layers import install_
from laconic.forms.lowrank import LowRank
from laconic.forms.owner import kernel_of
from laconic.forms.quantized import Quantized
from laconic.forms.rotated import Rotated, rotate_weight
from laconic.forms.sum import Sum

PRODUCTS = {"int8-onednn": OnednnInt8, "int8-intmm": IntMm}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    return tmp_path / "kernels.json"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Timings that the tests choose, in place of the machine's; calls are run once all the same."""
    times = {"form": 50.0, "dense": 100.0, "int8-onednn": 20.0, "int8-intmm": 30.0, "calls": 0.0}

    def fake(calls: Mapping[str, Callable[[], Tensor]], device: torch.device) -> dict[str, float]:
        times["calls"] += 1
        for call in calls.values():
            call()
        return {name: times[name] for name in calls}

    monkeypatch.setattr(kernels, "measure", fake)
    return times


def _quantized(
    weight: Tensor, *, bits: int = 8, group: int | None = None, symmetric: bool = True
) -> Quantized:
    rows, cols = weight.shape[0], weight[0].numel()
    group = group or cols
    grouped = weight.reshape(rows, -1, group)
    top = 2 ** (bits - 1)
    if symmetric:
        scale = grouped.abs().amax(-1) / (top - 1)
        codes = (grouped / scale[..., None]).round() + top
        zero = None
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scale = (high - low) / (2 * top - 1)
        zero = (-low / scale).round().to(torch.uint8)
        codes = (grouped / scale[..., None]).round() + zero[..., None]
    codes = codes.clamp(0, 2 * top - 1).to(torch.uint8).reshape(rows, cols)
    return Quantized(
        codes, scale, zero, bits=bits, group_size=group,
        shape=tuple(weight.shape), dtype=weight.dtype, symmetric=symmetric,
    ).requires_grad_(False)  # fmt: skip


def _low_rank(rows: int, cols: int, rank: int = 2, *, train: bool = False) -> LowRank:
    factors = [Dense(torch.randn(rows, rank)), Dense(torch.randn(rank, cols))]
    form = LowRank(*factors, shape=(rows, cols), dtype=torch.float32)
    return form.requires_grad_(train)


def _net(form: Form | None = None) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    net.requires_grad_(False)
    install_(net, "0.weight", form or _low_rank(16, 24))
    return net


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


# The integer products.


@pytest.mark.parametrize("kernel", INT8_KERNELS)
def test_the_kernels_run_here(kernel: str) -> None:
    assert _int8.why_unavailable(kernel) == ""


@pytest.mark.parametrize("kernel", INT8_KERNELS)
@pytest.mark.parametrize(("rows", "cols", "batch"), [(96, 512, 1), (96, 512, 32), (40, 77, 7)])
def test_gaussian_inputs_lose_less_than_one_percent(
    kernel: str, rows: int, cols: int, batch: int
) -> None:
    form = _quantized(torch.randn(rows, cols))
    run = int8_run(form, kernel)
    assert not isinstance(run, str)
    x = torch.randn(batch, cols)
    wanted = x @ form.dense().T
    assert 1e-4 < _relative(run(x), wanted) < 0.01


@pytest.mark.parametrize("kernel", INT8_KERNELS)
def test_the_error_against_the_unrounded_weight_has_two_equal_parts(kernel: str) -> None:
    weight, x = torch.randn(96, 512), torch.randn(32, 512)
    form = _quantized(weight)
    run = int8_run(form, kernel)
    assert not isinstance(run, str)
    stored = _relative(x @ form.dense().T, x @ weight.T)  # what the file lost already
    both = _relative(run(x), x @ weight.T)
    assert 0.004 < stored < 0.01
    assert both < 0.014
    assert both == pytest.approx(
        (stored**2 + _relative(run(x), x @ form.dense().T) ** 2) ** 0.5, rel=0.1
    )


@pytest.mark.parametrize("kernel", INT8_KERNELS)
def test_whole_numbers_are_multiplied_exactly(kernel: str) -> None:
    # Activations that lie on the levels of their own scale: no rounding is left.
    weight = torch.randint(-128, 128, (16, 64), dtype=torch.int8)
    x = torch.randint(-127, 128, (6, 64)).float()
    x[:, 0] = 127
    x[:, 1] = -128 if kernel == "int8-onednn" else -127  # 255 steps of 1, or 254
    scale = torch.rand(16) + 0.5
    found = PRODUCTS[kernel](weight, scale)(x)
    exact = (x.long() @ weight.long().T) * scale.double()
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("batch", [1, 5])
def test_outputs_of_a_relu_use_all_levels(batch: int) -> None:
    form = _quantized(torch.randn(64, 256))
    x = torch.randn(batch, 256).relu()
    wanted = x @ form.dense().T
    one, two = (int8_run(form, kernel) for kernel in INT8_KERNELS)
    assert not isinstance(one, str)
    assert not isinstance(two, str)
    assert _relative(one(x), wanted) < 0.7 * _relative(two(x), wanted)
    assert _relative(one(-x), -wanted) < 0.7 * _relative(two(x), wanted)


@pytest.mark.parametrize("kernel", INT8_KERNELS)
def test_a_row_of_its_own_scale_is_not_drowned_by_another(kernel: str) -> None:
    form = _quantized(torch.randn(64, 256))
    run = int8_run(form, kernel)
    assert not isinstance(run, str)
    x = torch.randn(4, 256)
    x[2] *= 1000
    assert _relative(run(x)[0], (x @ form.dense().T)[0]) < 0.015


@pytest.mark.parametrize("kernel", INT8_KERNELS)
def test_odd_inputs(kernel: str) -> None:
    run = PRODUCTS[kernel](torch.full((4, 8), 3, dtype=torch.int8), torch.ones(4))
    assert run(torch.empty(0, 8)).shape == (0, 4)
    assert run(torch.empty(2, 0, 8)).shape == (2, 0, 4)
    assert torch.equal(run(torch.zeros(2, 3, 8)), torch.zeros(2, 3, 4))
    assert torch.allclose(run(torch.ones(8)), torch.full((4,), 24.0), rtol=1e-2)
    assert run(torch.ones(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    x = torch.ones(2, 8)
    x[0, 0], x[1, 0] = float("nan"), float("inf")
    found = run(x)
    assert bool(found[0].isnan().all())
    assert bool((found[1] == float("inf")).all())
    tiny = run(torch.full((2, 8), 1e-38))
    assert bool(tiny.isfinite().all())


def test_seven_bits_with_zero_points_fit() -> None:
    form = _quantized(torch.randn(8, 32) + 1, bits=7, symmetric=False)
    weights = int8_weights(form)
    assert not isinstance(weights, str)
    assert torch.allclose(weights[0].float() * weights[1][:, None], form.dense())


def test_groups_run_only_where_folding_is_exact() -> None:
    codes = torch.randint(0, 16, (2, 8), dtype=torch.uint8)
    scale = torch.tensor([[0.5, 0.5], [0.25, 2.0]])  # equal; eight times the smaller one
    form = Quantized(
        codes, scale, None,
        bits=4, group_size=4, shape=(2, 8), dtype=torch.float32, symmetric=True,
    ).requires_grad_(False)  # fmt: skip
    weights = int8_weights(form)
    assert not isinstance(weights, str)
    assert torch.equal(weights[0].float() * weights[1][:, None], form.dense())
    with torch.no_grad():
        form.scale[1, 1] = 2.01
    assert "scales by group of 4" in str(int8_weights(form))
    with torch.no_grad():
        form.scale[1, 1] = 16.0  # 64 times: -8 * 64 leaves 8 bits
        form.packed.zero_()
    assert "-512..-8 do not fit" in str(int8_weights(form))
    with torch.no_grad():
        form.scale.zero_()
    weights = int8_weights(form)
    assert not isinstance(weights, str)


def test_eight_bits_with_zero_points_are_refused() -> None:
    form = _quantized(torch.rand(4, 16) + 0.01, bits=8, symmetric=False)
    assert "do not fit into signed 8 bits" in str(int8_run(form, "int8-onednn"))


def test_integers_run_inside_sums_and_rotations() -> None:
    weight = torch.randn(16, 64)
    inner = _quantized(rotate_weight(weight, side="both", seed=2))
    turned = Rotated(
        inner, shape=(16, 64), dtype=torch.float32, side="both",
        rotation={"kind": "hadamard", "seed": 2},
    )  # fmt: skip
    form = Sum(turned, _low_rank(16, 64), shape=(16, 64), dtype=torch.float32)
    run = int8_run(form, "int8-onednn")
    assert not isinstance(run, str)
    x = torch.randn(5, 64)
    assert 1e-5 < _relative(run(x), x @ form.dense().T) < 0.01
    pair = Sum(_low_rank(16, 64), _low_rank(16, 64), shape=(16, 64), dtype=torch.float32)
    assert "does not hold integers" in str(int8_run(pair, "int8-onednn"))


def test_a_cpu_that_saturates_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Saturating(IntMm):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x).clamp(-32768, 32767)

    monkeypatch.setattr(_int8, "IntMm", Saturating)
    _int8.why_unavailable.cache_clear()
    try:
        assert "saturate" in _int8.why_unavailable("int8-intmm")
        monkeypatch.setattr(_int8, "OnednnInt8", _missing)
        assert "does not run here (no such" in _int8.why_unavailable("int8-onednn")
        net = _net(_quantized(torch.randn(16, 24)))
        with pytest.warns(LaconicWarning, match="saturate"):
            assert "int8" not in prepare_(net, "int8")["0.weight"]
    finally:
        _int8.why_unavailable.cache_clear()


def _missing(*_: object) -> Callable[[Tensor], Tensor]:
    raise RuntimeError("no such operator")


# Choosing.


def test_auto_takes_the_faster_and_never_a_slower_one_than_dense(
    clock: dict[str, float], cache: Path
) -> None:
    clock["form"] = 50
    assert prepare_(_net(), "auto") == {"0.weight": "form"}
    for form in (100, 99, 150):  # as fast, faster within the noise, slower
        cache.unlink()
        clock["form"] = form
        net = _net()
        assert prepare_(net, "auto") == {"0.weight": "dense"}
        decision = decide(net, "auto")["0.weight"]
        assert decision.timings_us[32] == {"form": form, "dense": 100}
        assert decision.reason == "the fastest measured"
        assert decision.slowdown == 1.0


def test_auto_on_this_machine_follows_its_own_clock() -> None:
    net = nn.Sequential(nn.Linear(512, 512)).eval().requires_grad_(False)
    install_(net, "0.weight", _quantized(torch.randn(512, 512), bits=3))
    decision = decide(net, "auto", batches=(1,))["0.weight"]
    times = decision.timings_us[1]
    assert decision.kernel == ("form" if times["form"] * 1.05 <= times["dense"] else "dense")
    assert decide(net, "auto", batches=(1,))["0.weight"] == decision  # from the cache


def test_each_batch_size_has_its_own_kernel(
    monkeypatch: pytest.MonkeyPatch, clock: dict[str, float]
) -> None:
    def fake(calls: Mapping[str, Callable[[], Tensor]], device: torch.device) -> dict[str, float]:
        rows = next(iter(calls.values()))().shape[0]
        return {"form": 10.0 * rows, "dense": 100.0}

    monkeypatch.setattr(kernels, "measure", fake)
    net = _net()
    assert prepare_(net) == {"0.weight": "form (batch 1), dense (batch 32, 256)"}
    form = net[0].weight_form
    calls: list[int] = []
    real = form.matmul
    form.matmul = lambda x: calls.append(len(x)) or real(x)
    with torch.no_grad():
        for rows in (1, 5, 6, 32, 1000):  # the geometric mean of 1 and 32 is 5.66
            net(torch.randn(rows, 24))
    assert calls == [1, 5]


def test_measured_once(clock: dict[str, float]) -> None:
    prepare_(_net())
    taken = clock["calls"]
    assert taken == 3  # a batch size each
    prepare_(_net())
    assert clock["calls"] == taken
    prepare_(_net(_low_rank(16, 24, rank=5)))
    assert clock["calls"] == taken + 3  # another rank is another product


def test_exact_and_dense_measure_nothing(clock: dict[str, float], cache: Path) -> None:
    net = _net()
    assert prepare_(net, "exact") == {"0.weight": "form"}
    assert kernel_of(net[0]) is None
    assert prepare_(net, "dense") == {"0.weight": "dense"}
    assert clock["calls"] == 0
    assert not cache.exists()


@pytest.mark.parametrize("mode", ["auto", "exact", "dense"])
def test_exact_modes_give_the_forms_output(mode: Any) -> None:
    for form in (_low_rank(16, 24), _quantized(torch.randn(16, 24), bits=3, group=8)):
        net = _net(form)
        x = torch.randn(3, 7, 24)
        with torch.no_grad():
            before = net(x)
            prepare_(net, mode)
            assert torch.allclose(net(x), before, atol=1e-5)


def test_int8_runs_what_it_can_and_says_what_not(clock: dict[str, float]) -> None:
    net = _net(_quantized(torch.randn(16, 24)))
    install_(net, "2.weight", _quantized(torch.randn(5, 16), bits=4, group=8))
    x = torch.randn(32, 24)
    with torch.no_grad():
        before = net(x)
        match = r"1 of 2 sites .*2\.weight: scales by group of 8 .*group_size='channel'"
        with pytest.warns(LaconicWarning, match=match):
            kinds = prepare_(net, "int8")
        assert kinds == {"0.weight": "int8-onednn", "2.weight": "form"}
        after = net(x)
    assert 1e-4 < _relative(after, before) < 0.03
    decision = decide(net, "int8")["0.weight"]
    assert decision.timings_us[1] == {"int8-onednn": 20, "int8-intmm": 30, "dense": 100}
    assert decision.reason == "int8: asked for"


def test_int8_that_is_slower_is_said(clock: dict[str, float]) -> None:
    clock.update({"int8-onednn": 900, "int8-intmm": 300})
    net = _net(_quantized(torch.randn(16, 24)))
    with pytest.warns(LaconicWarning, match=r"slower than dense .*up to 3\.0x, 0\.weight"):
        assert prepare_(net, "int8") == {"0.weight": "int8-intmm"}
    assert decide(net, "int8")["0.weight"].slowdown == 3.0


def test_decision_names() -> None:
    decision = Decision({1: "form", 32: "dense", 256: "dense"}, {}, "")
    assert decision.kernel == "form (batch 1), dense (batch 32, 256)"
    assert Decision({1: "dense", 8: "dense"}, {}, "").kernel == "dense"


def test_other_sites_are_listed(clock: dict[str, float]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 6)
            self.head = nn.Linear(6, 9)
            self.free = nn.Parameter(torch.randn(3, 4))
            self.conv = nn.Conv2d(3, 4, 3)

    net = Net().eval().requires_grad_(False)
    install_(net, "table.weight", _quantized(torch.randn(9, 6)))
    install_(net, "head.weight", Dense(torch.randn(9, 6)))
    install_(net, "free", _quantized(torch.randn(3, 4)))
    install_(net, "conv.weight", _quantized(torch.randn(4, 3, 3, 3)))
    clock["form"] = 500
    found = decide(net)
    assert {name: d.kernel for name, d in found.items()} == {
        "table.weight": "form", "head.weight": "dense", "free": "form", "conv.weight": "dense",
    }  # fmt: skip
    assert "looked up" in found["table.weight"].reason
    assert "builds the dense tensor" in found["free"].reason
    assert set(found["conv.weight"].timings_us) == {1}
    x = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        before = net.conv(x)
        prepare_(net)
        assert kernel_of(net.conv) is not None
        assert torch.allclose(net.conv(x), before, atol=1e-6)
    with pytest.warns(LaconicWarning, match="conv"):
        prepare_(net, "int8")


def test_tied_layers_share_one_cached_tensor(clock: dict[str, float]) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 6)
            self.head = nn.Linear(6, 9, bias=False)
            self.head.weight = self.table.weight

    net = Tied().eval().requires_grad_(False)
    install_(net, "table.weight", _quantized(torch.randn(9, 6)))
    clock["form"] = 500
    assert prepare_(net) == {"table.weight": "dense"}
    assert kernel_of(net.table) is None
    x = torch.randn(2, 6)
    assert torch.allclose(net.head(x), x @ net.table.weight_form.dense().T, atol=1e-6)


# What a prepared model is and is not.


def test_caches_are_in_no_state_and_no_size() -> None:
    net = _net(_quantized(torch.randn(16, 24), bits=3))
    form = net[0].weight_form
    state, size = set(net.state_dict()), form.nbytes
    prepare_(net, "dense")
    with torch.no_grad():
        net(torch.randn(2, 24))
    assert set(net.state_dict()) == state
    assert form.nbytes == size
    assert {id(t) for t in (*net.parameters(), *net.buffers())} == {
        id(t) for t in net.state_dict(keep_vars=True).values()
    }


def test_release_undoes(clock: dict[str, float]) -> None:
    net = _net()
    attributes = set(vars(net[0]))
    prepare_(net, "dense")
    assert kernel_of(net[0]) is not None
    release_(net)
    assert kernel_of(net[0]) is None
    assert set(vars(net[0])) == attributes
    release_(net)


def test_changed_weights_are_seen() -> None:
    for mode in ("dense", "int8"):
        net = _net(_quantized(torch.randn(16, 24)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LaconicWarning)  # slower than dense at this size
            prepare_(net, mode)
        x = torch.randn(4, 24)
        with torch.no_grad():
            before = net[0](x) - net[0].bias
            net[0].weight_form.scale.mul_(2)
            assert torch.allclose(net[0](x) - net[0].bias, 2 * before, atol=1e-5)


def test_gradients_flow_as_without_kernels() -> None:
    x = torch.randn(4, 24)
    net = _net(_low_rank(16, 24, train=True))
    parameters = list(net[0].weight_form.parameters())
    wanted = torch.autograd.grad(net(x).sum(), parameters)
    prepare_(net, "dense")
    found = torch.autograd.grad(net(x).sum(), parameters)
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("mode", ["dense", "int8"])
def test_gradients_reach_the_input(mode: Any) -> None:
    net = _net(_quantized(torch.randn(16, 24)))
    x = torch.randn(4, 24, requires_grad=True)
    (wanted,) = torch.autograd.grad(net(x).sum(), x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LaconicWarning)
        prepare_(net, mode)
    (found,) = torch.autograd.grad(net(x).sum(), x)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_training_and_moving_drop_the_kernels() -> None:
    for change in (lambda net: net.train(), lambda net: net.double()):
        net = _net()
        prepare_(net, "dense")
        change(net)
        assert kernel_of(net[0].eval()) is None


def test_copies_carry_no_cache_and_run() -> None:
    net = _net(_quantized(torch.randn(16, 24)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LaconicWarning)
        prepare_(net, "int8")
    x = torch.randn(2, 24)
    with torch.no_grad():
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.allclose(other(x), net(x), atol=0.1)
            assert kernel_of(other[0]) is None


def test_inference_mode_and_training_after_it(clock: dict[str, float]) -> None:
    net = _net(_quantized(torch.randn(16, 24)))
    with torch.inference_mode():
        prepare_(net, "dense")
        net(torch.randn(2, 24))
    x = torch.randn(2, 24, requires_grad=True)
    net(x).sum().backward()
    assert x.grad is not None


# The cache file.


def _entries(cache: Path) -> dict[str, float]:
    held: dict[str, float] = json.loads(cache.read_text())["timings_us"]
    return held


def test_cache_holds_one_entry_for_each_product(clock: dict[str, float], cache: Path) -> None:
    prepare_(_net(), batches=(1, 32))
    held = _entries(cache)
    assert len(held) == 4
    assert sorted(held.values()) == [50.0, 50.0, 100.0, 100.0]
    key = next(iter(held))
    for word in ("16x24", "/b1/", "torch.float32", "cpu", "t1"):
        assert word in key
    assert {p.name for p in cache.parent.iterdir()} == {"kernels.json"}  # no temporary file left


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe", "cannot be read"),
        (b"[1]", "holds no timings"),
        (b'{"timings_us": {"a": "fast"}}', "holds no timings"),
        (b'{"timings_us": {"a": -1}}', "holds no timings"),
        (b'{"timings_us": {"a": NaN}}', "holds no timings"),
        (b'{"timings_us": {"a": true}}', "holds no timings"),
        (b'{"format": 1, "machine": {"cpu": "Z80"}, "timings_us": {}}', "another machine"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_bad_cache_is_ignored_said_and_rebuilt(
    content: bytes, reason: str, clock: dict[str, float], cache: Path
) -> None:
    cache.write_bytes(content)
    with pytest.warns(LaconicWarning, match=reason):
        assert prepare_(_net()) == {"0.weight": "form"}
    assert len(_entries(cache)) == 6
    prepare_(_net())  # without a warning: it is good now


def test_another_version_of_torch_measures_again(clock: dict[str, float], cache: Path) -> None:
    prepare_(_net())
    document = json.loads(cache.read_text())
    document["machine"]["torch"] = "1.0"
    cache.write_text(json.dumps(document))
    taken = clock["calls"]
    with pytest.warns(LaconicWarning, match="another machine or version"):
        prepare_(_net())
    assert clock["calls"] == 2 * taken


def test_timings_of_others_are_kept(clock: dict[str, float], cache: Path) -> None:
    mine = _timings.Timings(cache)
    prepare_(_net())
    mine.put("theirs", 7.0)
    mine.save()
    assert len(_entries(cache)) == 7


def test_cache_that_cannot_be_written_is_said(
    clock: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "file"))
    with pytest.warns(LaconicWarning) as caught:
        assert prepare_(_net()) == {"0.weight": "form"}
    assert any("Set LACONIC_CACHE" in str(w.message) for w in caught)


def test_home_is_used_without_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LACONIC_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _timings.cache_path() == tmp_path / ".cache" / "laconic" / "kernels.json"


def test_measure_takes_turns_and_the_shortest() -> None:
    order: list[str] = []

    def call(name: str) -> Callable[[], Tensor]:
        return lambda: order.append(name) or torch.zeros(())  # type: ignore[func-returns-value]

    found = _timings.measure({"a": call("a"), "b": call("b")}, torch.device("cpu"))
    assert order[:6] == ["a", "b", "a", "b", "a", "b"]
    assert 0 < found["a"] < 1e5


def test_bad_requests() -> None:
    net = _net()
    with pytest.raises(ConfigError, match=r"mode='int9' must be one of .*Did you mean 'int8'"):
        prepare_(net, "int9")  # type: ignore[arg-type]
    for batches in ((), (0,), (1.5,), (True,)):
        with pytest.raises(ConfigError, match="batches"):
            prepare_(net, batches=batches)  # type: ignore[arg-type]
    sketch = Quantized.empty(
        (16, 24), torch.float32, bits=4, group_size=8, scale_dtype=torch.float16, symmetric=True
    )
    install_(net, "0.weight", sketch)
    with pytest.raises(ConfigError, match=r"0\.weight: a form on the meta device"):
        prepare_(net)
