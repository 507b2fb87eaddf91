"""Size on disk and time to load of a 4-bit model: ours, safetensors, compressed-tensors.

Run ``python benchmarks/loading.py``: prints a table and writes results/benchmarks/loading.json.
One thread. safetensors maps its file and reads nothing until a value is used; ours checks every
byte and decodes. The model has 21 M Gaussian weights in linear layers, 4 bits in groups of 128.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors.torch import load_file, save_file
from torch import nn

import laconic
from laconic import artifact, measure
from laconic.forms.layers import installed

OUT = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "loading.json"
WIDTH, LAYERS, REPEATS, BITS = 1024, 20, 5, 4

RECIPE = """
name: w4-group-128
steps:
  - round-to-nearest: {bits: 4, group_size: 128, range: mse}
"""


def fastest(work: Callable[[], Any]) -> float:
    """Return the least seconds of several runs."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def write_compressed_tensors(model: nn.Module, path: Path) -> None:
    """Write the same codes and scales in the pack-quantized layout."""
    tensors: dict[str, torch.Tensor] = {}
    for name, held in installed(model).items():
        parts = held.form.parts()
        codes = parts["codes"].tensor.to(torch.int16) - 2 ** (BITS - 1)
        stem = name.removesuffix(".weight")
        tensors[f"{stem}.weight_packed"] = pack_to_int32(codes.to(torch.int8), BITS)
        tensors[f"{stem}.weight_scale"] = parts["scale"].tensor.contiguous()
        tensors[f"{stem}.weight_shape"] = torch.tensor(codes.shape)
    save_file(tensors, path)


def read_compressed_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load the packed file and unpack its codes to one a byte."""
    held = load_file(path)
    shape = torch.Size([WIDTH, WIDTH])
    return {
        name: unpack_from_int32(tensor, BITS, shape)
        for name, tensor in held.items()
        if name.endswith("packed")
    }


def main() -> None:
    """Build the files, time their loading, print and write the figures."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.02)
    model = nn.Sequential(*layers).eval()
    weights = LAYERS * WIDTH * WIDTH
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_file(model.state_dict(), folder / "dense.safetensors")
        recipe = laconic.Recipe.from_yaml(RECIPE)
        result = laconic.compress(model, recipe, out=folder / "fast")
        artifact.save(result.model, folder / "smallest", effort="smallest")
        write_compressed_tensors(result.model, folder / "packed.safetensors")
        variants: dict[str, tuple[Path, Callable[[], Any]]] = {
            "safetensors fp32": (
                folder / "dense.safetensors",
                lambda: load_file(folder / "dense.safetensors"),
            ),
            "compressed-tensors, packed as stored": (
                folder / "packed.safetensors",
                lambda: load_file(folder / "packed.safetensors"),
            ),
            "compressed-tensors, codes unpacked": (
                folder / "packed.safetensors",
                lambda: read_compressed_tensors(folder / "packed.safetensors"),
            ),
            "laconic fast": (
                folder / "fast",
                lambda: artifact.load(folder / "fast", kernels="exact"),
            ),
            "laconic smallest": (
                folder / "smallest",
                lambda: artifact.load(folder / "smallest", kernels="exact"),
            ),
        }
        rows = []
        for name, (path, work) in variants.items():
            seconds = fastest(work)
            size = sum(measure.model_bytes(path).values())
            rows.append(
                {
                    "name": name,
                    "bytes": size,
                    "bits_per_weight": 8 * size / weights,
                    "seconds": seconds,
                    "mweights_s": weights / seconds / 1e6,
                }
            )
    report(rows)


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table and write the JSON."""
    by_name = {row["name"]: row for row in rows}
    fast, smallest = by_name["laconic fast"], by_name["laconic smallest"]
    packed = by_name["compressed-tensors, packed as stored"]
    ratios = [
        {
            "name": "weights loaded a second and core, fast (M)",
            "ours": fast["mweights_s"],
            "peer": 100.0,
            "ratio": fast["mweights_s"] / 100,
            "goal": ">= 1",
            "met": fast["mweights_s"] >= 100,
        },
        {
            "name": "bytes, smallest over fast",
            "ours": smallest["bytes"],
            "peer": fast["bytes"],
            "ratio": smallest["bytes"] / fast["bytes"],
            "goal": "<= 1",
            "met": smallest["bytes"] <= fast["bytes"],
        },
        {
            "name": "bytes, fast over compressed-tensors",
            "ours": fast["bytes"],
            "peer": packed["bytes"],
            "ratio": fast["bytes"] / packed["bytes"],
            "goal": "<= 1",
            "met": fast["bytes"] <= packed["bytes"],
        },
    ]
    for row in rows:
        print(
            f"{row['name']:38} {row['bytes']:>10} B {row['bits_per_weight']:6.3f} bits "
            f"{row['seconds'] * 1000:8.1f} ms {row['mweights_s']:8.1f} M weights/s"
        )
    for ratio in ratios:
        print(f"{ratio['name']}: {ratio['ratio']:.3f} (goal {ratio['goal']}, met {ratio['met']})")
    found = {"benchmark": "loading", "rows": rows, "ratios": ratios}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found | {"environment": measure.environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
