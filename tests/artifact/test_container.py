from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from laconic.artifact.container import Container, Payload, write
from laconic.artifact.dtypes import DTYPES, from_raw, raw_bytes
from laconic.errors import ArtifactError


def _file(folder: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path = folder / "model.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_is_read_by_the_reference_library(tmp_path: Path, name: str) -> None:
    dtype = DTYPES[name]
    raw = torch.arange(24, dtype=torch.uint8) % 2
    tensor = raw[: 3 * dtype.itemsize].view(dtype) if dtype.itemsize > 1 else raw[:3].view(dtype)
    write(
        tmp_path / "model.safetensors",
        [Payload("one", "U8", (1,), b"\x07"), Payload("t", name, (3,), raw_bytes(tensor).data)],
    )
    with safe_open(tmp_path / "model.safetensors", "pt") as theirs:
        held = theirs.get_tensor("t")
        assert held.dtype == dtype
        assert torch.equal(held.view(torch.uint8), tensor.view(torch.uint8))
    with Container(tmp_path / "model.safetensors") as ours:
        assert ours.entries["t"].dtype == name
        back = from_raw(ours.raw("t"), name, (3,))
        assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))
        assert bytes(ours.raw("one")) == b"\x07"


@given(sizes=st.lists(st.integers(0, 40), max_size=8))
@settings(deadline=None, max_examples=30)
def test_any_number_of_tensors_comes_back(tmp_path_factory: pytest.TempPathFactory,
                                          sizes: list[int]) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    held = {f"t{i}": bytes(range(size)) for i, size in enumerate(sizes)}
    write(path, [Payload(name, "U8", (len(data),), data) for name, data in held.items()])
    with Container(path) as container:
        assert {name: bytes(container.raw(name)) for name in container.entries} == held
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def _record(start: int, stop: int, dtype: str = "U8", shape: object = None) -> dict[str, object]:
    whole = [stop - start] if shape is None else shape
    return {"dtype": dtype, "shape": whole, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"a": _record(0, 4)}, b"abc", "cut short"),
        ({"a": _record(0, 4)}, b"abcde", "trailing bytes"),
        ({"a": _record(1, 4)}, b"abcd", "overlap or leave a gap"),
        ({"a": _record(0, 3), "b": _record(2, 4)}, b"abcd", "overlap or leave a gap"),
        ({"a": _record(0, 4, "F32", [2])}, b"abcd", "do not fill"),
        ({"a": _record(0, 4, "F99", [1])}, b"abcd", "unknown dtype"),
        ({"a": _record(0, 4, "U8", [-4])}, b"abcd", "whole numbers"),
        ({"a": _record(0, 4, "U8", [4.0])}, b"abcd", "whole numbers"),
        ({"a": _record(0, 4, "U8", [True, 4])}, b"abcd", "whole numbers"),
        ({"a": _record(0, 0, "U8", [2**41, 0])}, b"", "extent"),
        ({"a": _record(0, 0, "U8", [0] * 17)}, b"", "axes"),
        ({"a": {"dtype": "U8", "shape": [4]}}, b"abcd", "header record"),
        ([1], b"", "not a JSON object"),
        (b'{"a":1,"a":2}', b"", "stands twice"),
        (b'{"a":NaN}', b"", "not a number"),
        (b"{" * 100_000, b"", "JSON"),
        (b"\xff\xfe", b"", "JSON"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, header: object, data: bytes, reason: str
) -> None:
    with pytest.raises(ArtifactError, match=reason):
        Container(_file(tmp_path, header, data))


@pytest.mark.parametrize("length", [2**62, 10**6])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ArtifactError, match="header of"):
        Container(_file(tmp_path, {}, length=length))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with Container(_file(tmp_path, {})) as container:
        with pytest.raises(ArtifactError, match=r"fc1\.weight: missing tensor") as caught:
            container.raw("fc1.weight")
        assert caught.value.tensor == "fc1.weight"
