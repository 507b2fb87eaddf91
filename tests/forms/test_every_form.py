"""What every form promises, whatever it holds."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from form_table import TABLE
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms import Form, Sparse, form_class

TYPES = (torch.float32, torch.float16, torch.bfloat16)
ROUNDING = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

every_form = pytest.mark.parametrize("name", TABLE)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=lambda d: str(d).removeprefix("torch."))


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    error = (found.double() - expected.double()).norm()
    return bool(error <= ROUNDING[dtype] * expected.double().norm().clamp_min(1e-12))


def at_rest(form: Form) -> dict[str, Any]:
    """What lies on disk: tensors, and settings that went through JSON."""
    return {
        "kind": form.kind,
        "shape": form.shape,
        "dtype": form.dtype,
        "settings": json.loads(json.dumps(form.settings())),
        "parts": {name: part.tensor.clone() for name, part in form.parts().items()},
        "children": {name: at_rest(child) for name, child in form.children_forms().items()},
    }


def rebuilt(record: dict[str, Any]) -> Form:
    children = {name: rebuilt(child) for name, child in record["children"].items()}
    cls = form_class(record["kind"])
    return cls.from_parts(
        record["shape"], record["dtype"], record["settings"], record["parts"], children
    )


def same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def held(form: Form) -> dict[str, Tensor]:
    return form.state_dict()


@every_form
@every_type
def test_dense_has_the_shape_and_type_it_stands_for(name: str, dtype: torch.dtype) -> None:
    form = TABLE[name](dtype)
    value = form.dense()
    assert (tuple(value.shape), value.dtype) == (form.shape, dtype)
    assert form.rows * form.cols == value.numel()
    assert value.detach().float().std() > 0 or name == "codebook-one"


@every_form
@every_type
def test_matmul_is_the_product_with_the_dense_tensor(name: str, dtype: torch.dtype) -> None:
    form = TABLE[name](dtype)
    matrix = form.dense().detach().double().reshape(form.rows, form.cols)
    for batch in ((3,), (2, 3), (), (0,)):
        x = torch.randn(*batch, form.cols).to(dtype)
        found = form.matmul(x)
        assert (tuple(found.shape), found.dtype) == ((*batch, form.rows), dtype)
        assert close(found.detach(), x.double() @ matrix.T, dtype)
        assert torch.equal(form(x), found)


@every_form
@every_type
def test_embed_is_a_look_up_in_the_dense_tensor(name: str, dtype: torch.dtype) -> None:
    form = TABLE[name](dtype)
    table = form.dense().detach()
    for ids in (
        torch.tensor([[0, form.rows - 1], [1, 0]]),
        torch.tensor(form.rows - 1),
        torch.zeros(0, dtype=torch.long),
        torch.arange(form.rows).flip(0),
    ):
        found = form.embed(ids)
        assert (found.shape, found.dtype) == (table[ids].shape, dtype)
        assert close(found.detach(), table[ids], dtype)


@every_form
@pytest.mark.parametrize("bad", [-1, 10_000])
def test_embed_refuses_rows_that_are_not_there(name: str, bad: int) -> None:
    form = TABLE[name](torch.float32)
    with pytest.raises(IndexError):
        form.embed(torch.tensor([0, bad]))


@every_form
@every_type
def test_parts_give_the_form_back_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    form = TABLE[name](dtype)
    record = at_rest(form)
    again = rebuilt(record)
    assert again.signature == form.signature
    assert again.nbytes == form.nbytes
    assert held(again).keys() == held(form).keys()
    assert all(same_bits(held(again)[key], value) for key, value in held(form).items())
    assert same_bits(again.dense(), form.dense())
    twice = at_rest(again)
    assert twice["settings"] == record["settings"]
    assert all(same_bits(twice["parts"][key], value) for key, value in record["parts"].items())


@every_form
def test_symbols_lie_below_their_alphabet(name: str) -> None:
    for _, form in TABLE[name](torch.float32).walk():
        for part in form.parts().values():
            if part.alphabet is not None:
                assert part.tensor.dtype == (torch.uint8 if part.alphabet <= 256 else torch.int32)
                assert int(part.tensor.min()) >= 0
                assert int(part.tensor.max()) < part.alphabet
            assert not part.tensor.requires_grad
            assert not part.sparse_pattern or part.alphabet == 2


def bytes_of_parts(form: Form) -> int:
    """Bytes at fixed width, counted from what lies at rest."""
    total = 0
    for _, below in form.walk():
        for part in below.parts().values():
            count = part.tensor.numel()
            if part.alphabet is None:
                total += count * part.tensor.element_size()
            elif isinstance(below, Sparse) and below.pattern in ("row", "column"):
                total += 4 * int(part.tensor.sum())  # an index in place of bits
            elif part.alphabet > 256:
                total += 4 * count
            else:
                total += -(-count * max(1, (part.alphabet - 1).bit_length()) // 8)
    return total


@every_form
@every_type
def test_nbytes_counts_everything_once(name: str, dtype: torch.dtype) -> None:
    form = TABLE[name](dtype)
    assert form.nbytes == bytes_of_parts(form)


@every_form
def test_on_the_meta_device_bytes_and_names_stay(name: str) -> None:
    form = TABLE[name](torch.float16)
    sketch = deepcopy(form).to("meta")
    assert all(t.is_meta for t in (*sketch.parameters(), *sketch.buffers()))
    assert (sketch.nbytes, sketch.signature) == (form.nbytes, form.signature)
    assert (sketch.shape, sketch.dtype) == (form.shape, form.dtype)
    record = at_rest(sketch)
    assert rebuilt(record).nbytes == form.nbytes


@every_form
@pytest.mark.parametrize("call", ["dense", "matmul", "embed"])
def test_gradients_reach_every_trainable_part(name: str, call: str) -> None:
    form = TABLE[name](torch.float32)
    if call == "dense":
        out = form.dense()
    elif call == "matmul":
        out = form.matmul(torch.randn(20, form.cols))
    else:
        out = form.embed(torch.arange(form.rows))
    (out * torch.randn_like(out)).sum().backward()
    parameters = dict(form.named_parameters())
    assert parameters
    for path, parameter in parameters.items():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all()
        assert bool(parameter.grad.any()), path


@every_form
def test_gradients_are_those_of_differences(name: str) -> None:
    form = TABLE[name](torch.float64)
    names = [path for path, _ in form.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in form.parameters()]
    x, ids = torch.randn(2, form.cols, dtype=torch.float64), torch.tensor([1, 0])

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        held = dict(zip(names, given, strict=True))
        outs = [torch.func.functional_call(form, held, (x,))]
        for method in ("dense", "embed"):
            probe = _Calls(form, method)
            inner = {f"form.{path}": value for path, value in held.items()}
            outs.append(torch.func.functional_call(probe, inner, (ids,)))
        return tuple(outs)

    assert torch.autograd.gradcheck(run, values, atol=1e-6)


class _Calls(torch.nn.Module):
    def __init__(self, form: Form, method: str) -> None:
        super().__init__()
        self.form, self.method = form, method

    def forward(self, ids: Tensor) -> Tensor:
        return self.form.dense() if self.method == "dense" else self.form.embed(ids)


@every_form
def test_copies_states_and_moves(name: str) -> None:
    form = TABLE[name](torch.float32)
    value = form.dense().detach().clone()
    copied = deepcopy(form)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    assert torch.equal(form.dense(), value)
    assert not torch.equal(copied.dense(), value)
    copied.load_state_dict(form.state_dict())
    assert torch.equal(copied.dense(), value)
    half = deepcopy(form).to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.dense().dtype == torch.bfloat16
    assert half.embed(torch.tensor([0])).dtype == torch.bfloat16
    assert all(child.dtype == torch.bfloat16 for _, child in half.walk())


def part_damages(record: dict[str, Any], form: Form) -> list[tuple[str, dict[str, Any]]]:
    """Every way to spoil one part of a record."""
    found = []
    for name, part in form.parts().items():
        tensor = part.tensor
        wrong = {
            "longer": torch.cat([tensor, tensor[:1]]),
            "flat": tensor.reshape(-1, 1, 1, 1, 1, 1),
            "integers": tensor.to(torch.int16),
        }
        if form.kind == "codebook" and name == "table":
            del wrong["longer"]  # a table with one more entry is a table
        if part.alphabet is not None and part.alphabet <= 255:
            wrong["symbol"] = torch.full_like(tensor, part.alphabet)
        if part.alphabet is not None and part.alphabet > 256:
            wrong["symbol"] = torch.full_like(tensor, part.alphabet)
            wrong["negative"] = torch.full_like(tensor, -1)
        found += [
            (f"{name} {how}", {**record, "parts": {**record["parts"], name: spoilt}})
            for how, spoilt in wrong.items()
        ]
        rest = {key: value for key, value in record["parts"].items() if key != name}
        found.append((f"{name} missing", {**record, "parts": rest}))
    return found


@every_form
def test_hostile_records_are_refused(name: str) -> None:
    form = TABLE[name](torch.float32)
    record = at_rest(form)
    damaged = part_damages(record, form)
    extra = {**record["parts"], "extra": torch.zeros(1)}
    damaged.append(("extra part", {**record, "parts": extra}))
    far = (2**40, 2**40)
    shapes = [far, (2**40,), (-1, 4), ()]
    if form.kind != "hashed":  # whose table stands for any number of rows
        shapes.append((form.rows + 1, *form.shape[1:]))
    for shape in shapes:
        damaged.append((f"shape {shape}", {**record, "shape": shape}))
    for key in record["settings"]:
        for value in (None, "x", -1, 10**30, [10**30]):
            settings = {**record["settings"], key: value}
            if not (key == "group_size" and value is None):
                damaged.append((f"{key}={value}", {**record, "settings": settings}))
    names = list(record["children"])
    for child in names[: -1 if form.kind == "sum" else None]:  # a sum may have fewer terms
        rest = {key: value for key, value in record["children"].items() if key != child}
        damaged.append((f"no {child}", {**record, "children": rest}))
    if record["children"]:
        stranger = at_rest(TABLE["dense"](torch.float32))
        more = {**record["children"], "stranger": stranger}
        damaged.append(("stranger", {**record, "children": more}))
    assert len(damaged) >= 6
    for what, hostile in damaged:
        try:
            made = rebuilt(hostile)
        except ConfigError:
            continue
        raise AssertionError(f"{what}: {made.signature} was built")


@every_form
def test_printing_needs_no_values(name: str) -> None:
    text = repr(deepcopy(TABLE[name](torch.float32)).to("meta"))
    assert "shape=" in text


def test_every_kind_is_in_the_table() -> None:
    made = {form.kind for make in TABLE.values() for _, form in make(torch.float32).walk()}
    kinds = "dense quantized codebook sparse low-rank tensor-train hashed permuted rotated sum"
    assert made == set(kinds.split()) == set(Form._kinds)


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'quantised'. Did you mean 'quantized'"):
        form_class("quantised")
