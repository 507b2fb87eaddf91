from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from artifact_support import (
    FORGERIES,
    Mutation,
    damage_file,
    forms_net,
    quantized,
    read_body,
    same_tensors,
    sign_files,
    write_body,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from laconic import artifact
from laconic.artifact.container import Container, Payload, write
from laconic.errors import ArtifactError, LaconicError
from laconic.forms import install_


def _load(path: Path) -> nn.Module:
    return artifact.load(path, kernels="exact")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "a"
    artifact.save(forms_net(), path)
    return path


def _copy(sound: Path, folder: Path) -> Path:
    target = folder / "copy"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(sound, target)
    return target


def _small(folder: Path) -> Path:
    """One quantized layer of 64 weights, a bias in a bundle."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    install_(model, "0.weight", quantized(model[0].weight))
    artifact.save(model, folder / "small")
    return folder / "small"


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    folder = _small(tmp_path)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for at in range(len(data)):
            flipped = bytearray(data)
            flipped[at] ^= 1 << at % 8
            path.write_bytes(flipped)
            with pytest.raises(ArtifactError) as caught:
                _load(folder)
            assert caught.value.file in ("laconic.json", "model.safetensors")
        path.write_bytes(data)
    _load(folder)


def test_any_cut_and_any_extra_byte_is_noticed(tmp_path: Path) -> None:
    folder = _small(tmp_path)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for changed in (*(data[:at] for at in range(0, len(data), 7)), data + b"\0", b"\0" + data):
            path.write_bytes(changed)
            with pytest.raises(ArtifactError):
                _load(folder)
        path.write_bytes(data)


def test_damage_names_the_tensor(sound: Path, tmp_path: Path) -> None:
    folder = _copy(sound, tmp_path)
    path = folder / "model.safetensors"
    with Container(path) as container:
        entry = container.entries["layers.codebook.weight/codes"]
        at = container._data + entry.start + 20
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged") as caught:
        _load(folder)
    assert caught.value.file == "model.safetensors"
    assert caught.value.tensor == "layers.codebook.weight/codes"
    checks = artifact.verify(folder, strict=False)
    failed = [check.name for check in checks if not check.passed]
    assert failed == ["model.safetensors", "layers.codebook.weight"]
    with pytest.raises(ArtifactError, match=r"layers\.codebook\.weight"):
        artifact.verify(folder)


@pytest.mark.parametrize("name", ["laconic.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = _small(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: missing"):
        _load(folder)
    (folder / name).mkdir()
    with pytest.raises(ArtifactError, match="not a regular file"):
        _load(folder)
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    with pytest.raises(ArtifactError, match="not a regular file"):
        _load(folder)


def test_links_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = _small(tmp_path)
    for name in ("laconic.json", "model.safetensors"):
        outside = tmp_path / f"{name}.outside"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)
        with pytest.raises(ArtifactError, match=f"{name}: is a link that leads out"):
            _load(folder)
        (folder / name).unlink()
        outside.rename(folder / name)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "laconic.json").unlink()
    (folder / "laconic.json").symlink_to(folder / "loop")
    with pytest.raises(ArtifactError):
        _load(folder)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _edit(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    body = read_body(folder)
    edit(body)
    write_body(folder, body)


_FORM = ["quantized", [8, 8], "F32", {"bits": 4, "group_size": 8, "symmetric": True}]


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(body: dict[str, Any]) -> None:
        owner: Any = body
        for step in path[:-1]:
            owner = owner[step]
        owner[path[-1]] = value

    return edit


_CODES = ("forms", "0.weight", 4, "codes")


@pytest.mark.parametrize(
    "edit",
    [
        _set(*_CODES, 1, value=[2**20, 2**20]),
        _set(*_CODES, 1, value=[2**40, 0]),
        _set(*_CODES, 1, value=[8, 9]),
        _set(*_CODES, 1, value=[4, 16]),
        _set(*_CODES, 1, value=[2**26]),
        _set(*_CODES, 0, value="nothing"),
        _set(*_CODES, 0, value="gaps-gaps-gaps-zstd"),
        _set(*_CODES, 0, value="raw"),
        _set(*_CODES, 2, value=2),
        _set(*_CODES, 2, value=65536),
        _set(*_CODES, 2, value="F32"),
        _set(*_CODES, 3, value=1),
        _set("forms", "0.weight", 0, value="nothing"),
        _set("forms", "0.weight", 0, value="hashed"),
        _set("forms", "0.weight", 1, value=[2**20, 2**20]),
        _set("forms", "0.weight", 1, value=[64]),
        _set("forms", "0.weight", 1, value=[]),
        _set("forms", "0.weight", 2, value="I64"),
        _set("forms", "0.weight", 3, "bits", value=10**30),
        _set("forms", "0.weight", 3, "bits", value="4"),
        _set("forms", "0.weight", 3, "bits", value=2),
        _set("forms", "0.weight", 3, "group_size", value=0),
        _set("forms", "0.weight", 3, "group_size", value=-8),
        _set("forms", "0.weight", 3, "symmetric", value=False),
        _set("forms", "0.weight", 3, value={}),
        _set("forms", "0.weight", 4, value={}),
        _set("forms", "0.weight", 4, "scale", value=["", [8, 1], "I64"]),
        _set("forms", "0.weight", 4, "scale", value=["", [2**30, 2**10], "F32"]),
        _set("forms", "0.weight", 4, "extra", value=["", [8], "F32"]),
        _set("values", "0.bias", value=["", [9], "F32"]),
        _set("values", "0.bias", value=["", [4], "F64"]),
        _set("values", "0.bias", value=["", [2, 4], "F32"]),
        _set("values", "0.bias", value=["", [8], "I32"]),
        _set("values", "0.bias", value=["", [16], "F16"]),
        _set("values", "0.bias", value=["raw", [8], "F32", 0]),
        _set("bundles", "F32", 0, value="zstd"),
        _set("bundles", "F32", 1, value=2**39),
        _set("bundles", "F32", 2, value=0),
        _set("bundles", "F16", value=["raw", 0, 0]),
        _set("files", "other.bin", value=[0, "0" * 64]),
        _set("files", value={}),
        _set("aliases", value={"0.weight.x": "0.weight"}),
        _set("sites", value={"0.weight": {"layout": "stacked", "parameter_shape": [2, 4, 8]}}),
        _set("architecture", value={"kind": "huggingface", "class": "LlamaForCausalLM"}),
    ],
)  # fmt: skip
def test_signed_forgeries_are_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    folder = _small(tmp_path)
    assert read_body(folder)["forms"]["0.weight"][:4] == _FORM
    _edit(folder, edit)
    before, begun = _peak(), time.perf_counter()
    with pytest.raises(ArtifactError):
        _load(folder)
    assert _peak() - before < 64 * 2**20
    assert time.perf_counter() - begun < 5


def test_a_frame_that_blows_up_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = _small(tmp_path)
    size = 2**31
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(2**26))
    body = read_body(folder)
    with Container(folder / "model.safetensors") as held:
        kept = [
            Payload(name, entry.dtype, entry.shape, bytes(held.raw(name)))
            for name, entry in held.entries.items()
            if name != "0.weight/codes"
        ]
    write(
        folder / "model.safetensors",
        [*kept, Payload("0.weight/codes", "U8", (len(bomb) + 1,), b"\x01" + bomb)],
    )
    for count in (2**26, size):
        body["forms"]["0.weight"][4]["codes"][:3] = ["zstd", [count], 16]
        body["forms"]["0.weight"][4]["codes"][3] = zlib.crc32(b"")
        write_body(folder, body)
        sign_files(folder)
        before = _peak()
        with pytest.raises(ArtifactError, match="declares"):
            _load(folder)
        assert _peak() - before < 32 * 2**20


def test_many_constant_tensors_share_one_allowance(tmp_path: Path) -> None:
    model = nn.Module()
    for index in range(10):
        model.register_buffer(f"zeros{index}", torch.zeros(2**20, dtype=torch.float32))
    told = artifact.Architecture.factory("a:b")
    report = artifact.save(model, tmp_path / "a", architecture=told)
    # Three tensors of 4 MiB fit the allowance of 16 MiB with what their own bytes allow ...
    stored = sorted(report.tensors.values())
    assert stored[2] < 2000
    # ... the others are stored at their full size rather than as what no reader would accept.
    assert stored[-1] == 2**22
    fresh = nn.Module()
    for index in range(10):
        fresh.register_buffer(f"zeros{index}", torch.ones(2**20))
    assert same_tensors(artifact.load(tmp_path / "a", model=fresh), model)


def _sound_or_refused(folder: Path, original: nn.Module) -> None:
    """Nothing but an exact model or an error of ours comes from damage."""
    try:
        loaded = _load(folder)
    except ArtifactError:
        return
    assert same_tensors(loaded, original)


@given(seed=st.integers(0, 2**32))
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damage_never_gives_another_model(sound: Path, tmp_path: Path, seed: int) -> None:
    folder = _copy(sound, tmp_path)
    if damage_file(folder, random.Random(seed)):
        with pytest.raises(ArtifactError):
            _load(folder)
    else:
        _sound_or_refused(folder, forms_net())


@pytest.mark.parametrize("name", ["manifest", "weights", "header"])
@given(seed=st.integers(0, 2**32))
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_forgery_never_crashes_hangs_or_takes_memory(
    sound: Path, tmp_path: Path, name: str, seed: int
) -> None:
    folder = _copy(sound, tmp_path)
    forge: Mutation = FORGERIES[name]
    forge(folder, random.Random(seed))
    before, begun = _peak(), time.perf_counter()
    with contextlib.suppress(LaconicError):  # refused, or a consistent artefact of another model
        _load(folder)
    assert _peak() - before < 128 * 2**20
    assert time.perf_counter() - begun < 10
