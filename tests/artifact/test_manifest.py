from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.artifact import strictjson
from laconic.artifact.manifest import FormRecord, Manifest, PartRecord
from laconic.errors import ArtifactError


def _body(**changed: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "files": {"model.safetensors": [10, "0" * 64]},
        "architecture": {"kind": "factory", "factory": "a:b", "reason": "none"},
        "forms": {"w": ["dense", [2, 2], "F32", {}, {"value": ["raw", [2, 2], "F32", 7]}]},
        "values": {"b": ["", [2], "F32"]},
        "bundles": {"F32": ["raw", 8, 5]},
        **changed,
    }


def _signed(body: Any) -> bytes:
    rest = strictjson.dumps(body)[1:].encode()
    return b'{"digest":"%s",' % hashlib.sha256(rest).hexdigest().encode() + rest


def test_a_manifest_comes_back_and_is_written_the_same() -> None:
    data = _signed(_body())
    manifest = Manifest.from_bytes(data)
    assert manifest.forms["w"].parts["value"].decoded_bytes == 16
    assert manifest.to_bytes() == data


def test_defaults_are_left_out() -> None:
    record = PartRecord(coder="", shape=[3], content="BF16")
    assert record.row() == ["", [3], "BF16"]
    form = FormRecord(kind="dense", shape=[3], dtype="BF16", settings={}, parts={"value": record})
    assert form.row() == ["dense", [3], "BF16", {}, {"value": ["", [3], "BF16"]}]


def test_every_bit_counts() -> None:
    data = _signed(_body())
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(ArtifactError):
                Manifest.from_bytes(bytes(flipped))


def test_a_newer_format_is_told_apart_from_damage() -> None:
    with pytest.raises(ArtifactError, match="made by a newer laconic"):
        Manifest.from_bytes(_signed(_body(format=2, something={"new": 1})))


def _form(**changed: Any) -> dict[str, Any]:
    fields = {"kind": "dense", "shape": [2], "dtype": "F32", "settings": {}, "parts": {}}
    return {"forms": {"w": list({**fields, **changed}.values())}}


def _deep(levels: int) -> list[Any]:
    record: list[Any] = ["dense", [1], "F32", {}, {}]
    for _ in range(levels):
        record = ["sum", [1], "F32", {}, {}, {"term0": record}]
    return record


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"format": 0}, "1"),
        ({"format": True}, "1"),
        ({"format": "1"}, "1"),
        ({"files": {"../x": [1, "0" * 64]}}, "file name"),
        ({"files": {"a/b": [1, "0" * 64]}}, "file name"),
        ({"files": {"laconic.json": [1, "0" * 64]}}, "file name"),
        ({"files": {".hidden": [1, "0" * 64]}}, "file name"),
        ({"files": {"a": [-1, "0" * 64]}}, "greater than or equal"),
        ({"files": {"a": [1.0, "0" * 64]}}, "integer"),
        ({"files": {"a": [1, "z" * 64]}}, "pattern"),
        ({"architecture": {"kind": "pickle"}}, "tag"),
        ({"architecture": {"kind": "huggingface", "class": "os.system"}}, "pattern"),
        (_form(shape=[-1]), "greater than or equal"),
        (_form(shape=[2**41]), "less than or equal"),
        (_form(shape=[2**30, 2**30]), "elements"),
        (_form(shape=[1.5]), "integer"),
        (_form(shape=[1] * 17), "at most 16"),
        (_form(dtype="F31"), "unknown dtype"),
        (_form(parts={"a": ["zstd", [2], 1, 1]}), "alphabet must be"),
        (_form(parts={"a": ["zstd", [2], 2**17, 1]}), "alphabet must be"),
        (_form(parts={"a": ["", [2], 4]}), "bundle"),
        (_form(parts={"a": ["zstd", [2], 4, 2**32]}), "less than"),
        (_form(parts={"a": ["zstd", [2], 4, 1, 1]}), "at most 4"),
        ({"forms": {"w": _deep(40)}}, "deep"),
        ({"forms": {"b": ["dense", [2], "F32", {}, {}]}}, "both"),
        ({"aliases": {"x": "nowhere"}}, "alias"),
        ({"aliases": {"b": "w"}}, "alias"),
        ({"sites": {"b": {"layout": "natural", "parameter_shape": [2]}}}, "not stored"),
        ({"sites": {"w": {"layout": "sideways", "parameter_shape": [2]}}}, "natural"),
        ({"buffers": ["w"]}, "not stored"),
        ({"bundles": {"X": ["raw", 8, 5]}}, "unknown dtype"),
        ({"surprise": 1}, "not permitted"),
        ({"values": []}, "dictionary"),
    ],
)
def test_fields_are_checked(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        Manifest.from_bytes(_signed(_body(**changed)))


@pytest.mark.parametrize("nested", ["[" * 200_000, '{"a":' * 50_000, '{"x":' + "[" * 100_000])
def test_deep_nesting_is_an_artifact_error(nested: str) -> None:
    with pytest.raises(ArtifactError):
        Manifest.from_bytes(nested.encode())


def test_deep_settings_are_an_artifact_error() -> None:
    deep = '"F32",{"a":' + "[" * 900 + "]" * 900 + "},"
    text = strictjson.dumps(_body())[1:].replace('"F32",{},', deep)
    data = b'{"digest":"%s",' % hashlib.sha256(text.encode()).hexdigest().encode() + text.encode()
    with pytest.raises(ArtifactError):
        Manifest.from_bytes(data)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=50)
def test_noise_is_an_artifact_error(noise: bytes) -> None:
    with pytest.raises(ArtifactError):
        Manifest.from_bytes(noise)
    with pytest.raises(ArtifactError):
        Manifest.from_bytes(b'{"digest":"' + noise)
