"""Damage and forge artefacts by the thousand; every one must load exactly or be refused.

Two kinds of attack. *Damage* changes bytes of a file: the loader must raise ``ArtifactError`` or
give tensors that are equal bit for bit. *Forgery* changes the manifest, the weights, their header
or the configuration and computes every checksum anew: the loader may accept what is consistent,
but must not crash, hang or take memory. Cases run in forked children, each with a limit on address
space; a case fails that raises anything but an error of ours, lasts longer than the time limit,
takes more memory than the ceiling, or ends its process.

    python benchmarks/fuzz_artifact.py [--cases 10000] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "artifact"))

import torch
from artifact_support import FORGERIES, damage_file, forms_net, quantized, same_tensors
from torch import nn

from laconic import artifact
from laconic.errors import ArtifactError, LaconicError
from laconic.forms import install_
from laconic.measure import environment

BATCH = 50
CEILING_BYTES = 128 * 2**20
ADDRESS_BYTES = 4 * 2**30
LIMIT_SECONDS = 10.0
RESULTS = Path(__file__).parents[1] / "results" / "benchmarks" / "fuzz_artifact.json"


def tiny_llama() -> nn.Module:
    """A Hugging Face model with quantized layers and tied embeddings."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, pad_token_id=0,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    for name, _ in list(model.named_parameters()):
        if "proj" in name:
            install_(model, name, quantized(model.get_parameter(name)))
    return model


def peak_bytes() -> int:
    """Return the greatest memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attack(folder: Path, seed: int) -> tuple[str, bool]:
    """Damage or forge an artefact; return the name of the attack and whether it is damage."""
    rng = random.Random(seed)
    name = rng.choice(["damage", "damage", *FORGERIES])
    if name == "damage":
        return (name, True) if damage_file(folder, rng) else ("nothing", True)
    FORGERIES[name](folder, rng)
    return name, False


def judge(folder: Path, original: nn.Module, damaged: bool) -> str:
    """Load once; return the verdict."""
    try:
        loaded = artifact.load(folder, kernels="exact")
    except ArtifactError:
        return "refused"
    except LaconicError as error:
        return f"refused ({type(error).__name__})"
    except BaseException as error:
        return f"FAILED: {type(error).__name__}: {error}"
    if same_tensors(loaded, original):
        return "equal"
    return "FAILED: wrong tensors" if damaged else "consistent"


def run_batch(
    bases: dict[str, tuple[Path, nn.Module]], seeds: range, pipe: int, folder: Path
) -> None:
    """Run cases in this process and write a record of each to the pipe."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_BYTES, used + ADDRESS_BYTES))
    warnings.simplefilter("ignore")
    with os.fdopen(pipe, "w") as out:
        for seed in seeds:
            base = sorted(bases)[seed % len(bases)]
            source, original = bases[base]
            target = folder / "case"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
            name, damaged = attack(target, seed)
            held, begun = peak_bytes(), time.perf_counter()
            verdict = judge(target, original, damaged)
            seconds, taken = time.perf_counter() - begun, peak_bytes() - held
            if seconds > LIMIT_SECONDS:
                verdict = f"FAILED: {seconds:.1f} s"
            if taken > CEILING_BYTES:
                verdict = f"FAILED: took {taken} bytes"
            record = json.dumps([seed, base, name, verdict, seconds, taken])
            out.write(f"{record}\n")
            out.flush()


def forked(
    bases: dict[str, tuple[Path, nn.Module]], seeds: range
) -> list[tuple[int, str, str, str, float, int]]:
    """Run a batch in a child; a child that dies fails the case it was at."""
    receive, send = os.pipe()
    with tempfile.TemporaryDirectory(prefix="laconic-fuzz-") as folder:
        child = os.fork()
        if child == 0:
            os.close(receive)
            try:
                run_batch(bases, seeds, send, Path(folder))
            finally:
                os._exit(0)
        os.close(send)
        with os.fdopen(receive) as stream:
            records = [tuple(json.loads(line)) for line in stream]
        os.waitpid(child, 0)
    if len(records) < len(seeds):
        lost = seeds[len(records)]
        records.append((lost, "", "", "FAILED: the process died", 0.0, 0))
        records += forked(bases, range(lost + 1, seeds.stop)) if lost + 1 < seeds.stop else []
    return records


def goal(name: str, ours: float, limit: float, met: bool) -> dict[str, object]:
    """Return a bar as a row of ``ratios``: what was measured beside the limit."""
    ratio = ours / limit if limit else float(ours)
    return {
        "name": name, "ours": ours, "peer": limit, "ratio": ratio, "goal": "<= limit", "met": met
    }  # fmt: skip


def main() -> int:
    """Run the cases, print a summary and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="laconic-fuzz-") as folder:
        bases = {}
        for name, model in (("graph", forms_net()), ("huggingface", tiny_llama())):
            artifact.save(model, Path(folder) / name)
            artifact.load(Path(folder) / name, kernels="exact")
            bases[name] = (Path(folder) / name, model)
        begun, records = time.perf_counter(), []
        for first in range(options.seed, options.seed + options.cases, BATCH):
            last = min(first + BATCH, options.seed + options.cases)
            records += forked(bases, range(first, last))
        seconds = time.perf_counter() - begun
    failures = [record for record in records if record[3].startswith("FAILED")]
    verdicts = Counter((base, name, verdict) for _, base, name, verdict, *_ in records)
    slowest = round(max(record[4] for record in records), 3)
    most = max(record[5] for record in records)
    summary = {
        "benchmark": "fuzz_artifact",
        "rows": [
            {"base": key[0], "mutation": key[1], "verdict": key[2], "cases": count}
            for key, count in sorted(verdicts.items())
        ],
        "ratios": [
            goal("crashes, hangs and wrong tensors accepted", len(failures), 0, len(failures) == 0),
            goal("slowest case, seconds", slowest, LIMIT_SECONDS, slowest <= LIMIT_SECONDS),
            goal("memory of a case, bytes", most, CEILING_BYTES, most <= CEILING_BYTES),
        ],
        "cases": len(records),
        "failures": [{"seed": seed, "verdict": verdict} for seed, _, _, verdict, *_ in failures],
        "seed": options.seed,
        "seconds": round(seconds, 1),
        "environment": environment(),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
