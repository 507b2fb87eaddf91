from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from zoo_support import needs_data

from laconic import zoo
from laconic.datasets._language import stories
from laconic.errors import DataError

SIZES = (8, 12, 2, 2, 1, 10, 6)  # width, hidden, blocks, heads, kv heads, vocabulary, context


def checkpoint(sizes: tuple[int, ...] = SIZES) -> tuple[bytes, dict[str, np.ndarray]]:
    """A llama2.c file of random numbers, and its tensors by the names of llama2.c."""
    width, hidden, blocks, heads, kv, vocabulary, context = sizes
    draw, keys = np.random.default_rng(0), width // heads * kv
    shapes = {
        "emb": (abs(vocabulary), width), "norm1": (blocks, width), "q": (blocks, width, width),
        "k": (blocks, keys, width), "v": (blocks, keys, width), "o": (blocks, width, width),
        "norm2": (blocks, width), "w1": (blocks, hidden, width), "w2": (blocks, width, hidden),
        "w3": (blocks, hidden, width), "norm": (width,), "turn": (context, width // heads),
        "out": (abs(vocabulary) if vocabulary < 0 else 0, width),
    }  # fmt: skip
    tensors = {n: draw.normal(size=s).astype("<f4") for n, s in shapes.items()}
    return struct.pack("<7i", *sizes) + b"".join(t.tobytes() for t in tensors.values()), tensors


def forward(w: dict[str, np.ndarray], ids: list[int], sizes: tuple[int, ...]) -> np.ndarray:
    """Run the network as llama2.c does, one token and one head after another."""
    width, _, blocks, heads, kv, vocabulary, _ = sizes
    head = width // heads
    held: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {b: [] for b in range(blocks)}
    logits = []

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean() + 1e-5) * gain

    def turn(x: np.ndarray, place: int) -> np.ndarray:
        y = x.copy()
        for i in range(0, len(x), 2):  # neighbours turn together
            angle = place / 10000 ** ((i % head) / head)
            y[i] = x[i] * np.cos(angle) - x[i + 1] * np.sin(angle)
            y[i + 1] = x[i] * np.sin(angle) + x[i + 1] * np.cos(angle)
        return y

    for place, token in enumerate(ids):
        x = w["emb"][token].astype("f8")
        for b in range(blocks):
            h = norm(x, w["norm1"][b])
            q = turn(w["q"][b] @ h, place)
            held[b].append((turn(w["k"][b] @ h, place), w["v"][b] @ h))
            mixed = []
            for i in range(heads):
                part = slice((i * kv // heads) * head, (i * kv // heads + 1) * head)
                scores = np.array([q[i * head : (i + 1) * head] @ k[part] for k, _ in held[b]])
                weights = np.exp(scores / head**0.5 - (scores / head**0.5).max())
                rows = np.stack([v[part] for _, v in held[b]])
                mixed.append(weights / weights.sum() @ rows)
            x = x + w["o"][b] @ np.concatenate(mixed)
            h = norm(x, w["norm2"][b])
            gate = w["w1"][b] @ h
            x = x + w["w2"][b] @ (gate / (1 + np.exp(-gate)) * (w["w3"][b] @ h))
        logits.append(w["out" if vocabulary < 0 else "emb"] @ norm(x, w["norm"]))
    return np.stack(logits)


@pytest.mark.parametrize("vocabulary", [10, -10])
def test_a_checkpoint_computes_what_llama2c_computes(tmp_path: Path, vocabulary: int) -> None:
    sizes = (*SIZES[:5], vocabulary, SIZES[6])
    data, tensors = checkpoint(sizes)
    (tmp_path / "m.bin").write_bytes(data)
    model = zoo.read_llama2c(tmp_path / "m.bin")
    ids = [1, 7, 3, 3, 9]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(
        logits.double(), torch.from_numpy(forward(tensors, ids, sizes)), rtol=1e-4, atol=1e-4
    )
    assert model.config.tie_word_embeddings is (vocabulary > 0)


@pytest.mark.parametrize("change", [lambda d: d[:-4], lambda d: d + bytes(4), lambda d: d[:20]])
def test_a_file_of_another_size_is_refused(tmp_path: Path, change: object) -> None:
    (tmp_path / "m.bin").write_bytes(change(checkpoint()[0]))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"m\.bin: \d+ bytes"):
        zoo.read_llama2c(tmp_path / "m.bin")


def test_a_llama_of_the_same_sizes_has_as_many_parameters() -> None:
    model = zoo.tiny_llama(vocabulary=512, width=64, hidden=172, blocks=5, heads=8, kv_heads=4)
    assert sum(p.numel() for p in model.parameters()) == 260_032


@needs_data
def test_stories260k_knows_its_stories() -> None:
    model, tokenizer = zoo.pretrained("stories260k")
    assert sum(p.numel() for p in model.parameters()) == 260_032
    nats, count = 0.0, 0
    for story in stories():
        ids = torch.tensor([tokenizer(story)[:512]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        nats += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    assert count == 30_122
    assert nats / count == pytest.approx(1.456, abs=5e-4)


@needs_data
def test_stories260k_tells_a_story() -> None:
    model, tokenizer = zoo.stories260k()
    ids = torch.tensor([tokenizer("Once upon a time")])
    out = model.generate(ids, max_new_tokens=24, do_sample=False)
    assert tokenizer.decode(out[0].tolist()).startswith(
        "Once upon a time, there was a little girl named Lily. She loved"
    )
