"""The message of a bucket, the counters, and virtual ranks that fail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import CommunicationError
from laconic.gradients import LoopbackGroup
from laconic.gradients.entries import Entries
from laconic.gradients.loopback import fake_buckets
from laconic.gradients.transport import Traffic
from laconic.gradients.wire import Layout, as_bytes, as_values

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int32]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 100), max_size=40), st.integers(0, 2**62))
def test_sections_are_aligned_and_do_not_meet(sizes: list[int], step: int) -> None:
    names = [f"tensor{at}" for at in range(len(sizes))]
    layout = Layout.of(names, sizes)
    message = layout.empty(step, torch.device("cpu"))
    assert message.numel() == layout.total
    assert layout.heads(message[None]).tolist() == [[layout.digest, step]]
    layout.flags(message).fill_(255)
    for at in range(len(sizes)):
        assert layout.starts[at] % 16 == 0
        layout.section(message, at).fill_(at + 1)
    assert layout.heads(message[None]).tolist() == [[layout.digest, step]]
    for at, size in enumerate(sizes):
        assert layout.section(message[None], at).tolist() == [[at + 1] * size]
    assert layout.flags(message).tolist() == [255] * len(sizes)
    assert layout.total <= 16 + -(-len(sizes) // 16) * 16 + sum(sizes) + 15 * len(sizes)


def test_a_digest_tells_setups_apart() -> None:
    digests = {
        Layout.of(*setup).digest
        for setup in (
            (["a", "b"], [16, 8]),
            (["a", "b"], [8, 16]),
            (["b", "a"], [16, 8]),
            (["a", "b"], [16, 8], "other"),
        )
    }
    assert len(digests) == 4


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(DTYPES), st.integers(0, 9), st.integers(0, 20))
def test_any_type_survives_as_bytes(dtype: torch.dtype, offset: int, count: int) -> None:
    bits = torch.arange(count * dtype.itemsize, dtype=torch.int64).mul_(37).to(torch.uint8)
    values = bits.view(dtype)
    shifted = torch.zeros(offset + bits.numel(), dtype=torch.uint8)
    shifted[offset:] = as_bytes(values)
    assert torch.equal(as_bytes(as_values(shifted[offset:], dtype)), bits)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3000), st.floats(0, 1), st.sampled_from(["float32", "bfloat16", "float16"]),
    st.sampled_from(["auto", "delta16", "int32", "bitmap"]), st.integers(0, 2**31),
)  # fmt: skip
def test_entries_there_and_back(
    length: int, share: float, values: str, code: str, seed: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    flat = torch.randn(length, generator=source)
    count = max(1, int(length * share))
    chosen = torch.randperm(length, generator=source)[:count].sort().values
    entries = Entries(length, count, getattr(torch, values), code)
    message, rest = torch.zeros(entries.total, dtype=torch.uint8), flat.clone()
    entries.write_(rest, chosen, message)
    out = torch.zeros(length)
    entries.add_(message, out)
    assert torch.equal(out + rest, flat)
    assert set(out.nonzero().view(-1).tolist()) <= set(chosen.tolist())
    if values == "float32":
        assert torch.equal(out[chosen], flat[chosen])


def test_values_beyond_half_precision_arrive_as_the_largest() -> None:
    entries = Entries(4, 1, torch.float16)
    flat, message = torch.tensor([0.0, 1e6, 0, 0]), torch.zeros(entries.total, dtype=torch.uint8)
    entries.write_(flat, torch.tensor([1]), message)
    assert flat[1] == 1e6 - 65504


def test_bytes_of_a_ring() -> None:
    traffic = Traffic()
    traffic.gather(100, 4)
    traffic.reduce(400, 4)
    traffic.broadcast(50, 4, source=False)
    assert traffic.as_dict() == {
        "handed": 500,
        "sent": 100 + 600,
        "received": 300 + 600 + 50,
        "collectives": 3,
    }
    traffic.gather(100, 1)
    traffic.reduce(100, 1)
    traffic.broadcast(100, 1, source=True)
    assert traffic.collectives == 3


def test_virtual_ranks_do_collectives() -> None:
    group = LoopbackGroup(3)

    def work(rank: int) -> tuple[list[float], list[int], list[float]]:
        transport = group.transport(rank)
        total = transport.all_reduce(torch.tensor([float(rank), 1.0]), where="sum")
        lots = transport.all_gather(torch.tensor([rank], dtype=torch.uint8), where="lots")
        told = transport.broadcast(torch.tensor([rank * 10.0]), source=2, where="word")
        return total.wait().tolist(), lots.wait().view(-1).tolist(), told.tolist()

    assert group.run(work) == [([3.0, 3.0], [0, 1, 2], [20.0])] * 3
    assert group.run(work) == [([3.0, 3.0], [0, 1, 2], [20.0])] * 3


def test_a_virtual_rank_that_fails_stops_the_others() -> None:
    group = LoopbackGroup(3, timeout_s=30)
    seen = []

    def work(rank: int) -> None:
        if rank == 1:
            raise KeyError("mine")
        try:
            group.transport(rank).all_reduce(torch.zeros(1), where="step 4, bucket 2").wait()
        except CommunicationError as error:
            seen.append(str(error))
            raise

    with pytest.raises((KeyError, CommunicationError)) as caught:
        group.run(work)
    assert caught.type is KeyError
    assert seen == ["step 4, bucket 2: rank 1 raised KeyError."] * 2


def test_a_virtual_rank_that_stays_away_is_named() -> None:
    group = LoopbackGroup(3, timeout_s=0.2)

    def work(rank: int) -> None:
        if rank != 2:
            group.transport(rank).all_reduce(torch.zeros(1), where="step 4").wait()

    with pytest.raises(CommunicationError, match=r"step 4: ranks \[2\] did not come in 0\.2 s"):
        group.run(work)


def test_fake_buckets_hold_one_type_and_go_backwards() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4).bfloat16())
    named = dict(model.named_parameters())
    lots = {name: torch.ones_like(p) for name, p in named.items() if name != "0.bias"}
    buckets = fake_buckets(named, lots, bucket_bytes=8)
    held = [[tuple(p.shape) for p in bucket.parameters()] for bucket in buckets]
    assert held == [[(4,)], [(4, 4)], [(4,)], [(4, 4)]]
    assert [bucket.buffer().dtype for bucket in buckets] == [torch.bfloat16] * 2 + [
        torch.float32
    ] * 2
    assert [bucket.is_last() for bucket in buckets] == [False, False, False, True]
    assert not buckets[2].buffer().any()
    buckets[3].gradients()[0].fill_(2)
    assert buckets[3].buffer().tolist() == [2.0] * 16
