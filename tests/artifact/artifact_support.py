"""Models, forms and hostile edits that the artefact's tests and its fuzz benchmark share."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.forms import Codebook, Dense, Form, LowRank, Quantized, Sparse, Sum, install_
from laconic.forms.hashed import Hashed
from laconic.forms.permuted import Permuted
from laconic.forms.rotated import Rotated
from laconic.forms.tensortrain import TensorTrain


def quantized(weight: Tensor, *, bits: int = 4, group: int | None = None) -> Quantized:
    """Round to absmax levels, symmetric."""
    rows = weight.shape[0]
    grouped = weight.detach().float().reshape(rows, -1, group or weight[0].numel())
    scale = grouped.abs().amax(-1).clamp_min(1e-8) / (2 ** (bits - 1) - 1)
    codes = (grouped / scale.unsqueeze(-1)).round() + 2 ** (bits - 1)
    return Quantized(
        codes.clamp(0, 2**bits - 1).to(torch.uint8).reshape(rows, -1), scale, None, bits=bits,
        group_size=grouped.shape[-1], shape=tuple(weight.shape), dtype=weight.dtype, symmetric=True,
    )  # fmt: skip


def every_form(shape: tuple[int, int] = (16, 16), *, seed: int = 0) -> dict[str, Form]:
    """One form of every kind, and nested ones, that stand for a matrix of 16 x 16."""
    draw = torch.Generator().manual_seed(seed)
    rows, cols = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw)

    def common() -> dict[str, Any]:
        return {"shape": shape, "dtype": torch.float32}

    weight = normal(rows, cols)
    codes = torch.randint(0, 8, (rows, cols), generator=draw)
    mask = normal(rows, cols) > 0.3
    two_of_four = torch.zeros(rows, cols // 4, 4, dtype=torch.bool)
    two_of_four[..., [0, 3]] = True
    zero = torch.randint(0, 8, (rows, 2), generator=draw).to(torch.uint8)
    low_rank = LowRank(Dense(normal(rows, 3)), quantized(normal(3, cols)), **common())
    return {
        "dense": Dense(weight),
        "quantized": quantized(weight, bits=3, group=8),
        "asymmetric": Quantized(
            codes.to(torch.uint8), normal(rows, 2).half(), zero, bits=3, group_size=cols // 2,
            symmetric=False, **common(),
        ),
        "codebook": Codebook(codes.to(torch.uint8), normal(8, 1), **common()),
        "many": Codebook(
            torch.randint(0, 300, (rows, cols // 2), generator=draw).int(), normal(300, 2),
            scale=normal(rows, 1), group_size=cols, **common(),
        ),
        "sparse": Sparse(mask, Dense(normal(1, int(mask.sum()))), **common()),
        "two-four": Sparse(
            two_of_four.reshape(rows, cols), quantized(normal(rows, cols // 2)), pattern="n:m",
            **common(),
        ),
        "low-rank": low_rank,
        "sum": Sum(quantized(weight), low_rank, **common()),
        "rotated": Rotated(
            quantized(weight), side="in", rotation={"kind": "hadamard", "seed": 5}, **common()
        ),
        "permuted": Permuted(quantized(weight), torch.randperm(cols), **common()),
        "tensor-train": TensorTrain(
            Dense(normal(1, 4, 4, 2)), Dense(normal(2, 4, 4, 1)),
            row_modes=(4, 4), col_modes=(4, 4), **common(),
        ),
        "hashed": Hashed(normal(9, cols), seeds=(1, 2), buckets=9, combine="sum", **common()),
    }  # fmt: skip


class FormsNet(nn.Module):
    """A linear layer for every kind of form, a convolution, a table, and what stays dense."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.table = nn.Embedding(16, 16)
        self.place = nn.Parameter(torch.randn(1, 16))
        self.layers = nn.ModuleDict({name: nn.Linear(16, 16) for name in every_form()})
        self.register_buffer("steps", torch.arange(5), persistent=False)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(image))).flatten(1)
        x = x + self.table(ids) + self.place + self.steps[1]
        for layer in self.layers.values():
            x = x + 0.1 * torch.tanh(layer(x))
        return x


def forms_net() -> FormsNet:
    """The net with its forms installed."""
    torch.manual_seed(3)
    net = FormsNet().eval()
    for name, form in every_form().items():
        install_(net, f"layers.{name}.weight", form)
    install_(net, "stem.weight", quantized(net.stem.weight, bits=8))
    install_(net, "table.weight", quantized(net.table.weight))
    return net


def inputs() -> tuple[Tensor, Tensor]:
    """A batch for the net."""
    draw = torch.Generator().manual_seed(9)
    return torch.randn(3, 1, 2, 2, generator=draw), torch.tensor([0, 5, 15])


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, those in forms included."""
    found = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    return found | dict(model.named_buffers(remove_duplicate=False))


def same_tensors(left: nn.Module, right: nn.Module) -> bool:
    """Whether two models hold the same names, types and bits."""
    a, b = tensors_of(left), tensors_of(right)
    return a.keys() == b.keys() and all(
        t.dtype == b[n].dtype and t.shape == b[n].shape and _bits(t) == _bits(b[n])
        for n, t in a.items()
    )


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read_body(folder: Path) -> dict[str, Any]:
    """The manifest as JSON without its digest."""
    body = dict(json.loads((folder / "laconic.json").read_bytes()))
    del body["digest"]
    return body


def write_body(folder: Path, body: Any) -> None:
    """Write a manifest with a digest that fits: what an attacker does."""
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    rest = text[1:].encode("utf-8", "surrogatepass") if text.startswith("{") else text.encode()
    digest = hashlib.sha256(rest).hexdigest()
    (folder / "laconic.json").write_bytes(b'{"digest":"%s",' % digest.encode() + rest)


def sign_files(folder: Path) -> None:
    """Bring sizes and checksums of all files in the manifest up to date."""
    body = read_body(folder)
    for name in body["files"]:
        data = (folder / name).read_bytes()
        body["files"][name] = [len(data), hashlib.sha256(data).hexdigest()]
    write_body(folder, body)


_NASTY: list[Any] = [
    None, True, False, 0, 1, 2, -1, 3, 7, 16, 255, 256, 257, 2**16, 2**31, 2**40,
    2**63, 2**70, 10**30, 0.5, -1e300, "", "x", "F32", "BF16", "I64", "U8", "zstd", "packed", "raw",
    "rans", "huffman", "gaps-zstd", "planes-zstd", "dense", "quantized", "sum", "../x",
    "/etc/passwd", "\u0000", "__class__", "a" * 5000, [], [0], [2**40, 2**40], [16, 16], [-1],
    [[[[]]]], {}, {"n": 0},
    {"t": [1]}, {"bits": 4}, {"kind": "hadamard"},
]  # fmt: skip


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict | list):
        items: Any = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            found += _paths(item, (*path, key))
    return found


def edit_json(value: Any, rng: random.Random) -> Any:
    """Change one place of a JSON value: replaced, dropped, nudged, copied from elsewhere."""
    edited = copy.deepcopy(value)
    paths = _paths(edited)
    if not paths:
        return edited
    path = rng.choice(paths)
    owner = edited
    for step in path[:-1]:
        owner = owner[step]
    held = owner[path[-1]]
    way = rng.randrange(5)
    if way == 0 or (way == 1 and type(held) is not int):
        owner[path[-1]] = copy.deepcopy(rng.choice(_NASTY))
    elif way == 1:
        owner[path[-1]] = held + rng.choice([-1, 1, -held, held, 2 ** rng.randrange(70)])
    elif way == 2:
        del owner[path[-1]]
    elif way == 3:
        other = edited
        for step in rng.choice(paths):
            other = other[step]
        owner[path[-1]] = copy.deepcopy(other)
    elif isinstance(owner, dict):
        owner[rng.choice(["x", "kind", "shape", "", "weight", "a.b", "../y"])] = owner.pop(path[-1])
    else:
        owner.insert(0, copy.deepcopy(held))
    return edited


def _damage(data: bytes, rng: random.Random) -> bytes:
    way, at = rng.randrange(5), rng.randrange(max(1, len(data)))
    if way == 0:
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if way == 1:
        return data[:at]
    if way == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
    if way == 3:
        return data + rng.randbytes(rng.randrange(1, 9))
    return data[:at] + rng.randbytes(min(len(data) - at, rng.randrange(1, 9))) + data[at + 8 :]


def damage_file(folder: Path, rng: random.Random) -> bool:
    """Flip, cut, insert or overwrite bytes of one file; return whether anything changed."""
    path = rng.choice(sorted(folder.iterdir()))
    data = path.read_bytes()
    changed = _damage(data, rng)
    path.write_bytes(changed)
    return changed != data


def forge_manifest(folder: Path, rng: random.Random) -> bool:
    """Change one to three fields of the manifest and sign it again."""
    body: Any = read_body(folder)
    for _ in range(rng.randrange(1, 4)):
        body = edit_json(body, rng)
    write_body(folder, body)
    return True


def forge_weights(folder: Path, rng: random.Random) -> bool:
    """Damage the weights and sign the manifest again."""
    path = folder / "model.safetensors"
    path.write_bytes(_damage(path.read_bytes(), rng))
    sign_files(folder)
    return True


def forge_header(folder: Path, rng: random.Random) -> bool:
    """Change the header of the weights and sign again."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = edit_json(json.loads(data[8 : 8 + size]), rng)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    sign_files(folder)
    return True


def forge_config(folder: Path, rng: random.Random) -> bool:
    """Change ``config.json``, where there is one, and sign again."""
    path = folder / "config.json"
    if not path.exists():
        return forge_manifest(folder, rng)
    path.write_text(json.dumps(edit_json(json.loads(path.read_text()), rng)))
    sign_files(folder)
    return True


Mutation = Callable[[Path, random.Random], bool]
FORGERIES: dict[str, Mutation] = {
    "manifest": forge_manifest,
    "weights": forge_weights,
    "header": forge_header,
    "config": forge_config,
}
