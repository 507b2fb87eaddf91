"""Loaders on small files of the same formats, worked out by hand."""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets_support import decoded, put, put_text

from laconic.datasets import _cifar, _grey, _language, _photos, load
from laconic.errors import ConfigError, DataError


def idx(array: np.ndarray) -> bytes:
    head = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


def grey(folder: Path) -> tuple[Any, ...]:
    """Six images to train on and three to test with; pixel i of image k is (k + i) % 256."""
    images = (np.arange(9)[:, None] + np.arange(784)) % 256
    labels = np.arange(9) % 10
    parts = [images[:6], labels[:6], images[6:], labels[6:]]
    shaped = [part.reshape(-1, 28, 28) if part.ndim == 2 else part for part in parts]
    return tuple(put(folder, f"grey/{i}.gz", idx(part)) for i, part in enumerate(shaped))


@pytest.mark.parametrize(("name", "entry"), [("mnist", "MNIST"), ("fashion-mnist", "FASHION")])
def test_grey_images(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, entry: str) -> None:
    monkeypatch.setattr(_grey, entry, grey(folder))
    task = load(name, calibration=4)
    train, test = task.train.tensors, task.test.tensors  # type: ignore[union-attr,attr-defined]
    assert train["x"].shape == (6, 1, 28, 28)
    assert test["y"].tolist() == [6, 7, 8]
    assert train["x"][2, 0, 0, :3].tolist() == pytest.approx([2 / 255, 3 / 255, 4 / 255])
    assert train["x"].max() == 1.0
    assert (task.name, len(task.classes)) == (name, 10)
    drawn = task.calibration.tensors["y"]  # type: ignore[union-attr]
    assert len(drawn) == 4
    assert set(drawn.tolist()) <= {0, 1, 2, 3, 4, 5}
    assert load(name, limit=2).train.tensors["y"].tolist() == [0, 1]  # type: ignore[union-attr]
    assert len(load(name, limit=2).calibration) == 2  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"'{name}': limit=0"):
        load(name, limit=0)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00",  # floats
        b"\x00\x00",
        b"\x00\x00\x08\x02\x00\x00\x00\x01",
        b"\x00\x00\x08\x01\x00\x00\x00\x03ab",
        b"\x00\x00\x08\x01\x00\x00\x00\x03abcd",
        b"\x00\x00\x08\x02\xff\xff\xff\xff\xff\xff\xff\xffab",
    ],
)
def test_what_is_no_idx_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match=r"a\.gz: (not an idx file|the header says)"):
        _grey.read_idx(tmp_path / "a.gz")


def png(array: np.ndarray, **options: Any) -> bytes:
    image = pytest.importorskip("PIL.Image").fromarray(array.astype(np.uint8))
    file = io.BytesIO()
    image.save(file, **{"format": "PNG"} | options)
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def flat(value: int) -> np.ndarray:
    """One image of a single colour: red is the value, green twice, blue three times."""
    return np.ones((32, 32, 3)) * np.array([value, 2 * value, 3 * value])


@pytest.fixture
def _cifar_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [np.stack([flat(2 * i), flat(2 * i + 1)]).reshape(2, 1024, 3) for i in range(4)]
    names = ("train/frog/7.jpg", "train/airplane/1.jpg")
    jpeg = {name: png(flat(60), format="JPEG", quality=95) for name in names}
    test = io.BytesIO()
    np.savez(test, images=np.stack([flat(80)]).astype(np.uint8), labels=np.array([3], np.uint8))
    entries = {
        "TRAIN_ROWS": tuple(put(folder, f"c/{i}.png", png(row)) for i, row in enumerate(rows)),
        "TRAIN_LABELS": put(folder, "c/labels.npy", npy(np.arange(8, dtype=np.uint8))),
        "TRAIN_JPEG": put(folder, "c/train.zip", zipped(jpeg)),
        "TEST_JPEG": put(folder, "c/test.zip", zipped({"test/dog/4.jpg": jpeg[names[0]]})),
        "TEST_LOSSLESS": put(folder, "c/test.npz", test.getvalue()),
    }
    for name, entry in entries.items():
        monkeypatch.setattr(_cifar, name, entry)


@pytest.mark.usefixtures("_cifar_files")
def test_cifar_is_read_from_all_its_formats() -> None:
    task = load("cifar10", test="lossless", calibration=3)
    train, test = task.train.tensors, task.test.tensors  # type: ignore[union-attr,attr-defined]
    assert train["x"].shape == (8, 3, 32, 32)
    assert train["y"].tolist() == list(range(8))
    for image, y in zip(train["x"], train["y"].tolist(), strict=True):
        expected = torch.tensor([y, 2 * y, 3 * y])[:, None, None] / 255
        assert torch.allclose(image, expected.expand(3, 32, 32))
    assert test["y"].tolist() == [3]
    assert test["x"][0, :, 0, 0].tolist() == pytest.approx([80 / 255, 160 / 255, 240 / 255])
    assert len(task.calibration) == 3  # type: ignore[arg-type]
    both = load("cifar10", jpeg=True, calibration=8)
    assert both.train.tensors["y"].tolist() == [*range(8), 0, 6]  # type: ignore[union-attr]
    near = both.train.tensors["x"][-1, :, 5, 5] * 255  # type: ignore[union-attr]
    assert near.tolist() == pytest.approx([60, 120, 180], abs=4)
    assert both.test.tensors["y"].tolist() == [5]  # type: ignore[attr-defined]
    # Calibration comes from exact images alone.
    assert set(both.calibration.tensors["y"].tolist()) == set(range(8))  # type: ignore[union-attr]


@pytest.mark.usefixtures("_cifar_files")
def test_cifar_is_normalised_by_the_numbers_of_imagenet() -> None:
    x = load("cifar10", test="lossless", normalise=True).test.tensors["x"]  # type: ignore[attr-defined]
    by_hand = [
        (80 / 255 - 0.485) / 0.229,
        (160 / 255 - 0.456) / 0.224,
        (240 / 255 - 0.406) / 0.225,
    ]
    assert x[0, :, 3, 9].tolist() == pytest.approx(by_hand, rel=1e-5)
    with pytest.raises(ConfigError, match="test='png' must be 'jpeg' or 'lossless'"):
        load("cifar10", test="png")


@pytest.fixture
def _photo_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, table = {}, io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["file", "class_index", "wnid", "name"])
    for i in range(4):
        frame = np.full((256, 256, 3), 255)
        frame[16:240, 16:240] = 20 * i  # the centre, in a white frame
        images[f"{i}.png"] = png(frame)
        writer.writerow([f"{i}.png", 2 * i, f"n{i}", f"thing {i}"])
    monkeypatch.setattr(_photos, "IMAGES", put(folder, "p/images.zip", zipped(images)))
    monkeypatch.setattr(_photos, "LABELS", put(folder, "p/labels.csv", table.getvalue().encode()))


@pytest.mark.usefixtures("_photo_files")
def test_photographs_are_cut_scaled_and_parted() -> None:
    task = load("imagenet-samples", calibration=1, scale=(-1, 1))
    assert task.train is None
    parts = [task.test.tensors, task.calibration.tensors]  # type: ignore[union-attr,attr-defined]
    assert [len(part["y"]) for part in parts] == [3, 1]
    assert sorted(y for part in parts for y in part["y"].tolist()) == [0, 2, 4, 6]
    for part in parts:
        for image, y in zip(part["x"], part["y"].tolist(), strict=True):
            assert image.shape == (3, 224, 224)
            assert torch.allclose(image, torch.tensor(10 * y / 255 * 2 - 1), atol=1e-6)
    drawn = [load("imagenet-samples", calibration=1, seed=s).calibration for s in range(8)]
    assert len({int(part.tensors["y"]) for part in drawn}) > 1  # type: ignore[union-attr]
    whole = load("imagenet-samples", calibration=0)
    assert len(whole.test) == 4
    assert whole.calibration is None


@pytest.mark.usefixtures("_photo_files")
@pytest.mark.parametrize("calibration", [-1, 4, 5])
def test_photographs_are_left_for_the_test(calibration: int) -> None:
    with pytest.raises(ConfigError, match=f"'imagenet-samples': calibration={calibration} must"):
        load("imagenet-samples", calibration=calibration)


# Texts


def entered(monkeypatch: pytest.MonkeyPatch, folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        monkeypatch.setattr(_language, name, put_text(folder, f"t/{name}.gz", text))


def by_words(count: int = 2) -> dict[str, Any]:
    """Options: a token a word, its number at its end; windows of some words."""
    return {
        "length": count,
        "tokenizer": lambda t: [int(w[-1]) for w in t.split() if w[-1:].isdigit()],
    }


def tokens(part: Any) -> list[int]:
    found: list[int] = part.tensors["input_ids"].flatten().tolist()
    return found


def test_every_fifth_article_is_held_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    article = " \n = Title = \n \n words a{i} b{i} \n = = Section = = \n \n c{i} d{i} \n"
    text = "".join(article.format(i=i) for i in range(7))
    entered(monkeypatch, folder, WIKITEXT=text)
    task = load("wikitext2", **by_words(4))
    assert tokens(task.test) == [4] * 4
    assert tokens(task.train) == [i for i in (0, 1, 2, 3, 5, 6) for _ in range(4)]
    single = load("wikitext2", by_document=True, **by_words(3))
    assert tokens(single.test) == [4] * 3
    assert "attention_mask" in single.test.tensors  # type: ignore[attr-defined]


def test_every_fifth_story_is_held_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"text": f"Once\nupon a{i} time{i}\u2028"}) for i in range(10)]
    entered(monkeypatch, folder, STORIES="\n".join(lines) + "\n")
    assert _language.stories()[3] == "Once\nupon a3 time3\u2028"
    task = load("tinystories", **by_words())
    assert tokens(task.test) == [4, 4, 9, 9]
    assert tokens(task.train) == [i for i in (0, 1, 2, 3, 5, 6, 7, 8) for _ in range(2)]


def test_stories_may_hold_what_other_alphabets_take_for_a_line_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"text": f"a\u2028b\x85{i}"}, ensure_ascii=False) for i in range(5)]
    entered(monkeypatch, folder, STORIES="\n".join(lines) + "\n")
    assert _language.stories() == [f"a\u2028b\x85{i}" for i in range(5)]


def test_the_last_tenth_of_a_novel_is_held_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"line {i:04d}\n" for i in range(1000))
    entered(monkeypatch, folder, BRONTE=text, SHAKESPEARE="To be\n" * 50)
    task = load("gutenberg", length=10)
    train, test = decoded(task.train), decoded(task.test)
    assert train == text[: len(train)]
    assert len(text) * 9 // 10 - 10 <= len(train) <= len(text) * 9 // 10 + 20
    assert test.startswith("line 090")
    assert decoded(load("gutenberg", author="shakespeare", length=6).train).startswith("To be\nTo")
    with pytest.raises(ConfigError, match="author='woolf' must be 'bronte' or 'shakespeare'"):
        load("gutenberg", author="woolf")


def test_penn_treebank_has_its_own_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered(monkeypatch, folder, PTB_TRAIN=" no it was \n n't \n", PTB_VALID=" black monday \n")
    task = load("ptb", length=4)
    assert decoded(task.train) == " no it was \n n't"
    assert decoded(task.test) == " black monday \n\0"


def test_text_to_calibrate_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = "\n".join(json.dumps({"text": f"page{i} {i}"}) for i in range(5))
    lines = "".join(f"lemma{i} {i} \n \n" for i in range(10))
    entered(monkeypatch, folder, C4=web, WIKIPEDIA=lines)
    task = load("calibration-text", **by_words())
    assert tokens(task.train) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert tokens(task.test) == [4, 4]
    other = load("calibration-text", source="wikipedia", **by_words())
    assert tokens(other.test) == [4, 4, 9, 9]  # blank lines are no documents
    with pytest.raises(ConfigError, match="source='pile' must be 'c4' or 'wikipedia'"):
        load("calibration-text", source="pile")
