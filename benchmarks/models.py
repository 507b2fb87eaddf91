"""Two real pretrained models through the built-in recipes, with bars: a Llama and a ResNet.

Run ``LACONIC_DATA=folder python benchmarks/models.py [llama] [resnet]``: prints a table and
writes results/benchmarks/models-NAME.json. The Llama is stories260K (TinyStories, 260 032
parameters), measured on stories that calibration never saw; the ResNet is a published CIFAR-10
ResNet-20, measured on 5 000 test images that are JPEG copies (its accuracy on them is lower than
on the originals, before and after alike).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import laconic
from laconic import datasets, measure, zoo
from laconic.progress import progress_on

OUT = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
WIDE = """
name: w4-large-groups
steps:
  - round-to-nearest: {bits: 4, where: {types: [linear, embedding]}}
"""
RESNET = """
name: deep-compression
coding: smallest
steps:
  - magnitude: {sparsity: 0.8, scope: global}
  - recover: {epochs: 8, batch_size: 128, lr: 0.001}
  - kmeans: {bits: 5}
  - recover: {epochs: 3, batch_size: 128, lr: 0.0003}
"""


def bar(name: str, ours: float, limit: float, *, least: bool = False) -> dict[str, Any]:
    """Return a bar as a row of ``ratios``; ``least`` marks a limit from below."""
    return {
        "name": name,
        "ours": ours,
        "peer": limit,
        "ratio": ours / limit,
        "goal": f"{'>=' if least else '<='} {limit}",
        "met": ours >= limit if least else ours <= limit,
    }


def row(model: str, recipe: str, report: dict[str, Any]) -> dict[str, Any]:
    """Return what one run measured."""
    before, after = report["original"], report["compressed"]
    return {
        "model": model,
        "recipe": recipe,
        "bytes_original": before["bytes"],
        "bytes": after["bytes"],
        "ratio": report["ratio"],
        "metrics_original": {k: v for k, v in before["metrics"].items() if k != "per_class"},
        "metrics": {k: v for k, v in after["metrics"].items() if k != "per_class"},
        "steps": [{"step": s["step"], "seconds": s["seconds"]} for s in report["steps"]],
    }


def fixed_width_bytes(result: laconic.Result) -> int:
    """Return the bytes of the installed forms packed at fixed width, before entropy coding."""
    from laconic.forms.layers import installed

    return sum(held.form.nbytes for held in installed(result.model).values())


def llama(folder: Path) -> dict[str, Any]:
    """Compress stories260K by every built-in recipe that fits it."""
    model, tokenizer = zoo.pretrained("stories260k")
    task = datasets.load("tinystories", tokenizer=tokenizer.encode, length=256)
    rows, bars = [], []
    wide = laconic.Recipe.from_yaml(WIDE)
    for recipe in ("w8", "w4", "w4-gptq", wide, "w3-eora", "2:4", "2:4-w4"):
        name = recipe if isinstance(recipe, str) else recipe.name
        place = folder / name.replace(":", "-")
        result = laconic.compress(model, recipe, task, out=place, progress=progress_on())
        rows.append(row("stories260K", name, result.to_dict()))
        if recipe is wide:
            stored = sum(site.bytes_stored or 0 for site in result.report.sites)
            share = stored / fixed_width_bytes(result)
            bars.append(bar("4 bits in large groups: entropy-coded over fixed width", share, 0.88))
    ratio = {held["recipe"]: held["ratio"] for held in rows}
    kl = {held["recipe"]: held["metrics"]["logit_kl"]["value"] for held in rows}
    bars += [
        bar("w4: original bytes over bytes on disk", ratio["w4"], 6.2, least=True),
        bar("w4-gptq: original bytes over bytes on disk", ratio["w4-gptq"], 6.2, least=True),
        bar("KL of w4-gptq over KL of w4", kl["w4-gptq"] / kl["w4"], 0.6),
        # What plain 4-bit rows cost a byte-level Llama of 0.71 M parameters: another model.
        bar("w4: logit KL to the original, nats a token", kl["w4"], 0.0129),
    ]
    return {"rows": rows, "ratios": bars}


def resnet(folder: Path) -> dict[str, Any]:
    """Compress a CIFAR-10 ResNet-20 by pruning, clustering and entropy coding."""
    model = zoo.pretrained("resnet20")
    task = datasets.load("cifar10", jpeg=True, test="jpeg", normalise=True)
    recipe = laconic.Recipe.from_yaml(RESNET)
    result = laconic.compress(model, recipe, task, out=folder / "resnet", progress=progress_on())
    found = row("ResNet-20, CIFAR-10", "deep-compression", result.to_dict())
    lost = 100 * (found["metrics_original"]["top1"]["value"] - found["metrics"]["top1"]["value"])
    exact = datasets.load("cifar10", test="lossless", normalise=True)
    found["top1_on_200_exact_images"] = {
        "original": measure.evaluate(model, exact)["top1"],
        "compressed": measure.evaluate(result.model, exact)["top1"],
    }
    bars = [
        bar("original bytes over bytes on disk", found["ratio"], 12, least=True),
        bar("top-1, points lost", lost, 1.0),
    ]
    return {"rows": [found], "ratios": bars}


def main() -> None:
    """Run what is asked for, print and write the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", choices=[[], "llama", "resnet"], default=[])
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    for name in chosen.names or ["llama", "resnet"]:
        with tempfile.TemporaryDirectory() as temporary:
            found = {"llama": llama, "resnet": resnet}[name](Path(temporary))
        for held in found["rows"]:
            metric = "perplexity" if "perplexity" in held["metrics"] else "top1"
            kl = held["metrics"]["logit_kl"]["value"]
            print(
                f"{held['model']:22} {held['recipe']:18} {held['bytes']:>8} B "
                f"{held['ratio']:6.2f}x  {metric} "
                f"{held['metrics_original'][metric]['value']:.4f} -> "
                f"{held['metrics'][metric]['value']:.4f}  KL {kl:.5f}"
            )
        for ratio in found["ratios"]:
            print(f"{ratio['name']}: {ratio['ours']:.4f} (goal {ratio['goal']}, {ratio['met']})")
        text = json.dumps(
            {"benchmark": f"models-{name}", **found, "environment": measure.environment()}, indent=2
        )
        (OUT / f"models-{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
