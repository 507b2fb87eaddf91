"""Checkpoints of other engines: exact there and back, and refused where a value would change."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_support import same_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from laconic import artifact
from laconic.artifact.exchange import export_compressed_tensors, import_checkpoint
from laconic.artifact.exchange.words import (
    pack_columns,
    pack_rows,
    unpack_columns,
    unpack_rows,
    words_in_row,
)
from laconic.errors import ConfigError, LaconicWarning, UnsupportedModelError
from laconic.forms import Dense, LowRank, Quantized, Sparse, Sum, densify_, install_, installed
from laconic.forms.activations import Activations
from laconic.forms.base import Form
from laconic.modelspec import load_model

transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")
compressed_tensors = pytest.importorskip(
    "compressed_tensors", reason="the extra 'hf' is not installed"
)

IDS = torch.tensor([[1, 5, 9, 2, 7]])


@given(
    bits=st.integers(1, 8), rows=st.integers(1, 5), cols=st.integers(1, 70), seed=st.integers(0, 99)
)
@settings(deadline=None, max_examples=50)
def test_codes_come_back_from_words(bits: int, rows: int, cols: int, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, cols), generator=drawn, dtype=torch.uint8)
    words = pack_rows(codes, bits)
    assert words.shape == (rows, -(-cols * bits // 32)) == (rows, words_in_row(cols, bits))
    assert torch.equal(unpack_rows(words, bits, cols), codes)
    assert torch.equal(unpack_columns(pack_columns(codes, bits), bits, rows), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_words_are_those_of_compressed_tensors(bits: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = torch.randint(0, 2**bits, (3, 40), dtype=torch.uint8)
    signed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(pack_rows(codes, bits), pack_to_int32(signed, bits))


def test_forty_codes_of_three_bits_take_four_words() -> None:
    assert words_in_row(40, 3) == 4


def _llama(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def _form(
    weight: Tensor, bits: int, group: int, *, symmetric: bool,
    scale: torch.dtype = torch.float32, inputs: Activations | None = None,
) -> Quantized:  # fmt: skip
    rows, cols = weight.shape
    codes = torch.randint(0, 2**bits, (rows, cols), dtype=torch.uint8)
    scales = (torch.rand(rows, cols // group) * 0.02 + 0.01).to(scale)
    zero = None
    if not symmetric:
        zero = torch.randint(0, 2**bits, (rows, cols // group), dtype=torch.uint8)
    return Quantized(
        codes, scales, zero, bits=bits, group_size=group, shape=(rows, cols),
        dtype=weight.dtype, symmetric=symmetric, activations=inputs,
        input_scale=torch.full((1,), 0.02) if inputs and inputs.static else None,
    )  # fmt: skip


def _compressed(model: Any, make: Any) -> Any:
    for name, parameter in list(model.named_parameters()):
        if "proj" in name:
            install_(model, name, make(parameter.detach(), name))
    return model


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(IDS).logits
    return logits


def _through_transformers(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other libraries say of themselves
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        model(IDS)  # the first call decompresses
    return model


def _dense(folder: Path) -> Any:
    """Return the artefact's model with plain layers, which add up as those of any model do."""
    model = artifact.load(folder, kernels="exact")
    densify_(model)
    return model


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"),
    [(4, 32, True), (8, 32, True), (3, 16, True), (2, 8, True)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_gives_the_same_logits(
    tmp_path: Path, bits: int, group: int, symmetric: bool, dtype: torch.dtype
) -> None:
    model = _compressed(
        _llama(dtype), lambda w, _: _form(w, bits, group, symmetric=symmetric, scale=dtype)
    )
    artifact.save(model, tmp_path / "a")
    report = export_compressed_tensors(tmp_path / "a", tmp_path / "out")
    assert len(report.packed) == 14
    assert report.dense == {}
    theirs, mine = _through_transformers(tmp_path / "out"), _dense(tmp_path / "a")
    for name, weight in mine.named_parameters():
        assert torch.equal(theirs.get_parameter(name), weight)
    near = {"rtol": 0.0, "atol": 0.0 if dtype == torch.float32 else 0.02}
    torch.testing.assert_close(_logits(theirs), _logits(mine), **near)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (3, 16), (5, 32), (8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compressed_tensors_gives_the_same_asymmetric_weights(
    tmp_path: Path, bits: int, group: int, dtype: torch.dtype
) -> None:
    """By the library itself: loading asymmetric models in transformers fails in its version 0.20.

    It makes their layers on the meta device with zero points that are not packed.
    """
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    model = _compressed(
        _llama(dtype), lambda w, _: _form(w, bits, group, symmetric=False, scale=dtype)
    )
    artifact.save(model, tmp_path / "a")
    export_compressed_tensors(tmp_path / "a", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    groups = told["config_groups"].values()
    held = load_file(tmp_path / "out" / "model.safetensors")
    for name, site in installed(model).items():
        stem = name.removesuffix("weight")
        parts = {k.removeprefix(stem): t for k, t in held.items() if k.startswith(stem)}
        (mine,) = (g for g in groups if g["targets"] == ["Linear"] or stem[:-1] in g["targets"])
        scheme = QuantizationScheme(**mine)
        theirs = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
        assert torch.equal(theirs, site.form.dense())


def test_whole_rows_are_channels(tmp_path: Path) -> None:
    model = _compressed(_llama(), lambda w, _: _form(w, 4, w.shape[1], symmetric=True))
    artifact.save(model, tmp_path / "a")
    export_compressed_tensors(tmp_path / "a", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (group,) = told["config_groups"].values()
    assert group["weights"]["strategy"] == "channel"
    assert told["ignore"] == ["lm_head"]
    assert torch.equal(_logits(_through_transformers(tmp_path / "out")), _logits(model))


@pytest.mark.parametrize(
    ("granularity", "even"),
    [("token", True), ("tensor", True), ("static", True), ("token", False), ("tensor", False)],
)
@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_inputs_go_along(tmp_path: Path, granularity: Any, even: bool, bits: int) -> None:
    inputs = Activations(bits=bits, granularity=granularity, symmetric=even)
    model = _compressed(
        _llama(), lambda w, _: _form(w, bits, w.shape[1], symmetric=True, inputs=inputs)
    )
    artifact.save(model, tmp_path / "a")
    report = export_compressed_tensors(tmp_path / "a", tmp_path / "out")
    assert set(report.packed.values()) == {
        f"{bits} bit, channel, symmetric, inputs {bits} bit a {granularity}"
    }
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert told["format"] == "int-quantized"
    theirs = _through_transformers(tmp_path / "out")
    mine, exact = _logits(model), _logits(_dense(tmp_path / "a"))
    assert torch.equal(_logits(theirs), mine)
    assert (mine - exact).abs().max() > 1e-3  # rounding shows, so it cannot have been left out
    back = import_checkpoint(tmp_path / "out")
    assert torch.equal(_logits(back), mine)


def test_a_clip_that_the_layout_cannot_say_is_refused(tmp_path: Path) -> None:
    inputs = Activations(clip=0.9)
    model = _compressed(_llama(), lambda w, _: _form(w, 8, 32, symmetric=True, inputs=inputs))
    artifact.save(model, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"clip=0\.9"):
        export_compressed_tensors(tmp_path / "a", tmp_path / "out")


def test_dense_exports_say_that_inputs_are_exact_again(tmp_path: Path) -> None:
    model = _compressed(
        _llama(), lambda w, _: _form(w, 8, 32, symmetric=True, inputs=Activations())
    )
    artifact.save(model, tmp_path / "a")
    with pytest.warns(LaconicWarning, match="14 layers round their inputs"):
        artifact.export_dense(tmp_path / "a", tmp_path / "out")


def test_import_gives_back_the_very_codes(tmp_path: Path) -> None:
    model = _compressed(_llama(), lambda w, _: _form(w, 3, 16, symmetric=False))
    artifact.save(model, tmp_path / "a")
    export_compressed_tensors(tmp_path / "a", tmp_path / "out")
    back = import_checkpoint(tmp_path / "out")
    mine, theirs = installed(model), installed(back)
    assert list(mine) == list(theirs)
    for name, held in mine.items():
        other = theirs[name].form
        assert isinstance(held.form, Quantized)
        assert isinstance(other, Quantized)
        assert torch.equal(held.form.codes(), other.codes())
        assert torch.equal(held.form.scale, other.scale)
        assert torch.equal(held.form.zero(), other.zero())  # type: ignore[arg-type]
    assert torch.equal(_logits(back), _logits(model))


def test_a_packed_folder_is_a_model_for_every_command(tmp_path: Path) -> None:
    model = _compressed(_llama(), lambda w, _: _form(w, 4, 32, symmetric=True))
    artifact.save(model, tmp_path / "a")
    export_compressed_tensors(tmp_path / "a", tmp_path / "out")
    loaded, tokenizer = load_model(str(tmp_path / "out"))
    assert tokenizer is None
    artifact.save(loaded, tmp_path / "again")
    assert same_tensors(artifact.load(tmp_path / "again", kernels="exact"), model)


def test_the_file_is_small(tmp_path: Path) -> None:
    model = _compressed(_llama(), lambda w, _: _form(w, 4, 32, symmetric=True))
    artifact.save(model, tmp_path / "a")
    export_compressed_tensors(tmp_path / "a", tmp_path / "out")
    held = load_file(tmp_path / "out" / "model.safetensors")
    packed = held["model.layers.0.mlp.up_proj.weight_packed"]
    assert packed.numel() * 4 == 64 * 32 // 2
    assert "model.layers.0.mlp.up_proj.weight" not in held


def _two_four(weight: Tensor, values: int) -> Form:
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    mask.view(weight.shape[0], -1, 4)[..., :2] = True
    kept = weight[mask].view(weight.shape[0], -1)
    return Sparse(
        mask, _form(kept, 4, values, symmetric=True),
        shape=tuple(weight.shape), dtype=weight.dtype, pattern="2:4",
    )  # fmt: skip


def test_two_four_is_written_with_its_zeros(tmp_path: Path) -> None:
    model = _compressed(_llama(), lambda w, _: _two_four(w, 8))
    artifact.save(model, tmp_path / "a")
    report = export_compressed_tensors(tmp_path / "a", tmp_path / "out")
    assert set(report.packed.values()) == {"4 bit, group 16, symmetric"}
    assert torch.equal(_logits(_through_transformers(tmp_path / "out")), _logits(model))


def test_a_correction_becomes_an_adapter(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra 'hf' is not installed")

    def corrected(weight: Tensor, name: str) -> Form:
        rank = 5 if "down" in name else 3
        up, down = torch.randn(weight.shape[0], rank) / 9, torch.randn(rank, weight.shape[1]) / 9
        shape = tuple(weight.shape)
        thin = LowRank(Dense(up), Dense(down), shape=shape, dtype=weight.dtype)
        base = _form(weight, 4, 32, symmetric=True)
        return Sum(base, thin, shape=shape, dtype=weight.dtype)

    model = _compressed(_llama(), corrected)
    artifact.save(model, tmp_path / "a")
    report = export_compressed_tensors(tmp_path / "a", tmp_path / "out")
    assert len(report.adapter) == 14
    base = _through_transformers(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls what transformers renames
        whole = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    torch.testing.assert_close(_logits(whole), _logits(model), rtol=1e-4, atol=1e-5)


def test_fused_layers_must_agree(tmp_path: Path) -> None:
    def uneven(weight: Tensor, name: str) -> Form:
        return _form(weight, 3 if "k_proj" in name else 4, 32, symmetric=True)

    artifact.save(_compressed(_llama(), uneven), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"q_proj, k_proj, v_proj as one.*k_proj: 3 bit"):
        export_compressed_tensors(tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_compressed_tensors(tmp_path / "a", tmp_path / "out", mixed=True)
    model = artifact.load(tmp_path / "a", kernels="exact")
    assert torch.equal(_logits(_through_transformers(tmp_path / "out")), _logits(model))


def test_a_scale_that_would_change_is_refused(tmp_path: Path) -> None:
    model = _compressed(
        _llama(torch.bfloat16),
        lambda w, _: _form(w, 4, 32, symmetric=True, scale=torch.float16),
    )
    artifact.save(model, tmp_path / "a")
    with pytest.raises(ConfigError, match="scale_dtype: bfloat16"):
        export_compressed_tensors(tmp_path / "a", tmp_path / "out")


def test_a_model_without_codes_is_refused(tmp_path: Path) -> None:
    artifact.save(_llama(), tmp_path / "a")
    with pytest.raises(ConfigError, match="no linear layer is quantized"):
        export_compressed_tensors(tmp_path / "a", tmp_path / "out")


def _foreign(folder: Path, told: dict[str, Any], pack: Any) -> tuple[Any, dict[str, Form]]:
    """Write a tiny model whose layers another tool has packed; return it with its forms."""
    model = _llama()
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": told}))
    held, forms = load_file(folder / "model.safetensors"), {}
    for key in [k for k in held if "proj" in k]:
        owner = key.removesuffix(".weight")
        forms[owner] = form = _form(held.pop(key), 4, 32, symmetric=False)
        held |= {f"{owner}.{end}": tensor.contiguous() for end, tensor in pack(form).items()}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return model, forms


def _check(folder: Path, forms: dict[str, Form]) -> None:
    back = installed(import_checkpoint(folder))
    assert len(back) == len(forms) == 14
    for owner, form in forms.items():
        assert torch.equal(back[f"{owner}.weight"].form.dense(), form.dense())


def test_gptq_checkpoints_are_read(tmp_path: Path) -> None:
    def pack(form: Quantized) -> dict[str, Tensor]:
        zero = form.zero()
        assert zero is not None
        zero = zero.clamp_min(1)
        form.packed_zero = _form_with(form, zero).packed_zero
        words = torch.zeros(form.cols // 8, form.rows, dtype=torch.int64)
        for place in range(8):
            words |= form.codes().T[place::8].long() << 4 * place
        zeros = torch.zeros(form.groups, form.rows // 8, dtype=torch.int64)
        for place in range(8):
            zeros |= (zero.T[:, place::8].long() - 1) << 4 * place
        index = torch.arange(form.cols) // form.group_size
        return {"qweight": _int32(words), "qzeros": _int32(zeros),
                "scales": form.scale.detach().T, "g_idx": index.int()}  # fmt: skip

    told = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
    _, forms = _foreign(tmp_path / "m", told, pack)
    _check(tmp_path / "m", forms)


def test_awq_checkpoints_are_read(tmp_path: Path) -> None:
    places = (0, 2, 4, 6, 1, 3, 5, 7)  # which column lies at which nibble

    def columns(codes: Tensor) -> Tensor:
        words = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
        for nibble, column in enumerate(places):
            words |= codes[:, column::8].long() << 4 * nibble
        return _int32(words)

    def pack(form: Quantized) -> dict[str, Tensor]:
        zero = form.zero()
        assert zero is not None
        return {"qweight": columns(form.codes().T), "qzeros": columns(zero.T),
                "scales": form.scale.detach().T}  # fmt: skip

    told = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    _, forms = _foreign(tmp_path / "m", told, pack)
    _check(tmp_path / "m", forms)


def _int32(words: Tensor) -> Tensor:
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _form_with(form: Quantized, zero: Tensor) -> Quantized:
    return Quantized(
        form.codes(), form.scale.detach(), zero, bits=form.bits, group_size=form.group_size,
        shape=form.shape, dtype=form.dtype, symmetric=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"quant_method": "aqlm"}, "quant_method 'aqlm' cannot be imported"),
        ({"quant_method": "awq", "bits": 3, "version": "gemm"}, "4 bits in GEMM"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, told: dict[str, Any], reason: str) -> None:
    _foreign(tmp_path / "m", told, lambda form: {"qweight": form.codes().int()})
    with pytest.raises(UnsupportedModelError, match=reason):
        import_checkpoint(tmp_path / "m")


def test_three_bits_of_an_old_version_are_refused(tmp_path: Path) -> None:
    model = _compressed(_llama(), lambda w, _: _form(w, 3, 32, symmetric=True))
    artifact.save(model, tmp_path / "a")
    export_compressed_tensors(tmp_path / "a", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization_config"]["version"] = "0.13.0"
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="leave gaps"):
        import_checkpoint(tmp_path / "out")
