"""Step time of data-parallel training over thin links, and how fast gradients are compressed.

    python benchmarks/gradients.py [--ranks 4] [--links 100 1000] [--steps 50]

Prints tables and writes results/benchmarks/gradients.json. Each rank is a process in a network
namespace of its own behind a token bucket (root is needed; without it the links are those of the
cost model, and the JSON says so). The model has five million parameters. Peers: plain DDP,
PyTorch's fp16 hook and its PowerSGD hook (all gradients in one bucket: with several it fails on
gloo). Other packages of this kind were tried and do not install without a compiler and MPI, or
hold no code on PyPI; docs/gradients.md names them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from laconic.gradients import LoopbackGroup
from laconic.gradients.costs import all_gather_seconds, all_reduce_seconds
from laconic.gradients.launch import run_ranks
from laconic.gradients.links import LinksUnavailableError, shaped_links
from laconic.gradients.loopback import FakeBucket
from laconic.gradients.timing import build_state, summarize
from laconic.measure import environment

OUT = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "gradients.json"
PEERS = ("DDP", "PyTorch fp16", "PyTorch PowerSGD")
VARIANTS: list[dict[str, Any]] = [
    {"label": "DDP", "method": "ddp"},
    {"label": "PyTorch fp16", "method": "torch-fp16"},
    {"label": "PyTorch PowerSGD", "method": "torch-powersgd",
     "settings": {"matrix_approximation_rank": 4}},
    {"label": "DGC 0.001", "method": "dgc", "settings": {"density": 0.001}},
    {"label": "top-k 0.01", "method": "top-k", "settings": {"density": 0.01}},
    {"label": "QSGD 4 bit", "method": "qsgd", "settings": {"bits": 4}},
    {"label": "PowerSGD rank 4", "method": "powersgd", "settings": {"rank": 4}},
    {"label": "sign", "method": "signsgd"},
    {"label": "no exchange", "method": "no-exchange"},
]  # fmt: skip
WIDTH, CLASSES, BATCH = 1216, 64, 16


def model() -> nn.Module:
    """Return a multilayer perceptron of five million parameters, the same on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH // 2), nn.ReLU(),
        nn.Linear(WIDTH // 2, CLASSES),
    )  # fmt: skip


def rank_main(spec_file: str, out_file: str) -> None:
    """Time one rank."""
    import torch.distributed as dist

    from laconic.gradients.timing import Variant, time_rank

    spec = json.loads(Path(spec_file).read_text())
    dist.init_process_group("gloo")
    torch.manual_seed(1 + dist.get_rank())
    batches = [(torch.randn(BATCH, WIDTH), torch.randint(CLASSES, (BATCH,))) for _ in range(8)]

    def loss(module: nn.Module, step: int) -> torch.Tensor:
        inputs, targets = batches[step % len(batches)]
        return nn.functional.cross_entropy(module(inputs), targets)

    found = time_rank(
        [Variant(**row) for row in VARIANTS], model(), loss,
        lr=0.01, warmup=spec["warmup"], steps=spec["steps"], block=5,
    )  # fmt: skip
    Path(out_file).write_text(json.dumps(found))
    dist.destroy_process_group()


def over_links(ranks: int, link: float | None, steps: int) -> list[dict[str, Any]]:
    """Return the rows of one link speed."""
    spec = {"steps": steps, "warmup": 6}
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    with shaped_links(ranks, link) as places:
        before = places[0].traffic()
        told = run_ranks("_gradients_rank", spec, places, timeout_s=3600)
        after = places[0].traffic()
    rows = summarize(told)
    kernel = sum(after) - sum(before)
    return [{"ranks": ranks, "link_mbit": link, "kernel_bytes_of_rank_0": kernel, **row}
            for row in rows]  # fmt: skip


def modelled(rows: list[dict[str, Any]], ranks: int, link: float) -> list[dict[str, Any]]:
    """Return rows of the cost model, with the times of computing that loopback gave."""
    size = 4 * sum(p.numel() for p in model().parameters())
    idle = next(r["step_ms"] for r in rows if r["variant"] == "no exchange")
    found = []
    for row in rows:
        extra = row["step_ms"] - idle
        if row["variant"] in ("DDP", "PyTorch fp16"):
            wire = all_reduce_seconds(size // (1 + (row["variant"] != "DDP")), ranks, megabits=link)
        elif "sent_bytes" in row:
            wire = all_gather_seconds(row["sent_bytes"], ranks, megabits=link)
        else:
            continue
        step = idle + max(extra, 0) + 1e3 * wire
        found.append({"ranks": ranks, "link_mbit": link, "model": "ring", **row, "step_ms": step})
    return found


def throughput() -> list[dict[str, Any]]:
    """Return GB/s of one core for each method, beside a copy in memory of the same gradients."""
    net = model()
    parameters = list(net.parameters())
    gradients = [torch.randn_like(p) * 1e-2 for p in parameters]
    size = sum(4 * g.numel() for g in gradients)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    target = torch.empty_like(flat)
    copied = _median(lambda: target.copy_(flat))
    rows = [{"variant": "memory copy", "gbytes_s": size / copied / 1e9}]
    for variant in VARIANTS:
        if variant["method"] in ("ddp", "torch-fp16", "torch-powersgd", "no-exchange"):
            continue
        settings = {**variant.get("settings", {}), "transport": LoopbackGroup(1).transport(0)}
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        state = build_state(variant["method"], net, optimizer, settings)

        def step(state: Any = state) -> None:
            state.exchange.take(FakeBucket(0, parameters, gradients, last=True))

        seconds = _median(step)
        rows.append({"variant": variant["label"], "gbytes_s": size / seconds / 1e9})
    return rows


def _median(work: Any, repeats: int = 7) -> float:
    work()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def ratios(rows: list[dict[str, Any]], speed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return our best step beside each peer's, at every speed."""
    found = []
    for link in sorted({r["link_mbit"] for r in rows if r["link_mbit"]}):
        here = {r["variant"]: r["step_ms"] for r in rows if r["link_mbit"] == link}
        mine = {v: ms for v, ms in here.items() if v not in (*PEERS, "no exchange")}
        best = min(mine, key=lambda v: mine[v])
        for peer in [p for p in PEERS if p in here]:
            goal = "< 1" if link <= 100 else "reported"
            ratio = mine[best] / here[peer]
            found.append({
                "name": f"step at {link:g} Mbit/s, {best} over {peer}", "ours": mine[best],
                "peer": here[peer], "ratio": ratio, "goal": goal,
                "met": ratio < 1 or goal == "reported",
            })  # fmt: skip
        if link == 100:
            ratio = here["DDP"] / here["DGC 0.001"]
            found.append({
                "name": "speed of DGC 0.001 over DDP at 100 Mbit/s", "ours": here["DGC 0.001"],
                "peer": here["DDP"], "ratio": ratio, "goal": ">= 5", "met": ratio >= 5,
            })  # fmt: skip
    copy = speed[0]["gbytes_s"]
    for row in speed[1:]:
        found.append({
            "name": f"GB/s a core of {row['variant']} over a memory copy", "ours": row["gbytes_s"],
            "peer": copy, "ratio": row["gbytes_s"] / copy, "goal": "reported", "met": True,
        })  # fmt: skip
    return found


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--links", type=float, nargs="+", default=[100.0, 1000.0])
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    speed = throughput()
    loopback = over_links(given.ranks, None, given.steps)
    rows, how = list(loopback), "token buckets on network namespaces"
    for link in given.links:
        try:
            rows += over_links(given.ranks, link, given.steps)
        except LinksUnavailableError as error:
            how = f"cost model: {error}"
            rows += modelled(loopback, given.ranks, link)
    for row in rows:
        print({k: v for k, v in row.items() if not k.startswith("kernel")})
    judged = ratios(rows, speed)
    for r in judged:
        print(f"{'met   ' if r['met'] else 'MISSED'} {r['ratio']:8.3f} {r['goal']:9} {r['name']}")
    cores = len(os.sched_getaffinity(0))
    result = {"benchmark": "gradients", "links": how, "ranks": given.ranks, "cores": cores,
              "rows": rows + speed, "ratios": judged, "environment": environment()}  # fmt: skip
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
