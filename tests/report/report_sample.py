"""A report made by hand: a small language-free model with every kind of value."""

from __future__ import annotations

from typing import Any


def metric(value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 450, **more}


def quality(top1: float, worst: float, name: str) -> dict[str, Any]:
    return {
        "top1": metric(top1, top1 - 0.017, min(1.0, top1 + 0.013)),
        "worst_class": metric(worst, worst - 0.11, min(1.0, worst + 0.06), name=name),
        "per_class": {
            "three": metric(worst, worst - 0.11, worst + 0.06),
            "seven": metric(top1, top1 - 0.02, top1 + 0.01),
        },
        "loss": metric(3 * (1 - top1), 2.9 * (1 - top1), 3.1 * (1 - top1)),
    }


def site(index: int, kind: str, form: str, shape: tuple[int, ...], **more: Any) -> dict[str, Any]:
    weights = shape[0] * shape[1]
    held = {"quantized": weights // 2 + 4 * shape[0], "dense": 4 * weights}
    stored = held.get(form, weights // 3)
    return {
        "name": f"blocks.{index}.{kind}.weight",
        "kind": "linear",
        "form": form,
        "shape": shape,
        "weights": weights,
        "bytes_original": 4 * weights,
        "bytes_stored": stored,
        "bits": 8 * stored / weights,
        "entropy_bits": 3.1 if form != "dense" else None,
        "error": 0.02 * (index + 1) if form != "dense" else 0.0,
        **more,
    }


def sample() -> dict[str, Any]:
    sites = []
    for index in range(6):
        sites.append(site(index, "attention.query_key_value", "quantized", (192, 64)))
        sites.append(site(index, "mlp.up", "sparse(quantized)", (256, 64)))
        sites.append(site(index, "mlp.down", "quantized", (64, 256)))
    sites.append(site(6, "head", "dense", (10, 64), error=None))
    return {
        "name": "digits_vit",
        "task": {"name": "digits", "split": "test", "n": 450},
        "original": {
            "bytes": 1_050_120,
            "metrics": quality(0.9756, 0.93, "three"),
            "latency_ms": {"median": 1.92, "min": 1.88, "spread": 0.06, "batch_size": 1},
        },
        "compressed": {
            "bytes": 131_044,
            "files": {"model.safetensors": 121_000, "laconic.json": 10_044},
            "metrics": quality(0.9711, 0.91, "three") | {"logit_kl": metric(0.012, 0.010, 0.014)},
            "latency_ms": {"median": 2.71, "min": 2.66, "spread": 0.08, "batch_size": 1},
        },
        "ratio": 1_050_120 / 131_044,
        "steps": [
            {"step": "magnitude", "seconds": 0.4, "bytes_after": 610_000,
             "metrics_after": quality(0.9289, 0.79, "three")},
            {"step": "recover", "seconds": 61.0, "bytes_after": 610_400,
             "metrics_after": quality(0.9778, 0.93, "three")},
            {"step": "round-to-nearest", "seconds": 0.2, "bytes_after": 142_000,
             "metrics_after": quality(0.9600, 0.88, "three")},
            {"step": "gptq", "seconds": 130.0, "bytes_after": None, "metrics_after": None},
        ],
        "sites": sites,
        "recipe": {"name": "deep", "steps": [{"magnitude": {"sparsity": 0.5}}, {"recover": "60s"}]},
        "environment": {"laconic": "0.1.0", "torch": "2.13.0", "cpu": "2 x AVX512", "threads": 1},
        "kernels": {row["name"]: "dense fp32" for row in sites},
        "skipped": {"pos_embed": "not a layer's weight"},
        "trade_off": [
            {"name": "original", "kind": "original", "bytes": 1_050_120,
             "metrics": quality(0.9756, 0.93, "three")},
            {"name": "magnitude", "kind": "step", "bytes": 610_000,
             "metrics": quality(0.9289, 0.79, "three")},
            {"name": "recover", "kind": "step", "bytes": 610_400,
             "metrics": quality(0.9778, 0.93, "three")},
            {"name": "round-to-nearest", "kind": "step", "bytes": 142_000,
             "metrics": quality(0.96, 0.88, "three")},
            {"name": "8 bits", "kind": "uniform", "bytes": 282_000,
             "metrics": quality(0.9756, 0.93, "three")},
            {"name": "4 bits", "kind": "uniform", "bytes": 151_000,
             "metrics": quality(0.9667, 0.90, "three")},
            {"name": "3 bits", "kind": "uniform", "bytes": 118_000,
             "metrics": quality(0.9244, 0.80, "three")},
            {"name": "compressed", "kind": "compressed", "bytes": 131_044,
             "metrics": quality(0.9711, 0.91, "three")},
        ],
        "commands": ["laconic compress zoo:digits_vit --recipe deep --data digits --out small"],
        "warnings": ["blocks.0.mlp.up: group_size=128 does not divide 64; one scale a row."],
    }  # fmt: skip
