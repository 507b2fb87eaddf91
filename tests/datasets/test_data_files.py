"""Where files are looked for, and what is said where they are wrong or missing."""

from __future__ import annotations

import gzip
import http.client
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from datasets_support import digest, put

from laconic.datasets import DataFile, _files, find, load
from laconic.errors import DataError

TEXT = b"some text\n" * 50


@pytest.fixture
def cache(folder: Path) -> Path:
    return folder.parent / "cache" / "datasets"


def test_the_data_folder_comes_before_the_cache(folder: Path, cache: Path) -> None:
    file = put(cache, "a/b.txt", TEXT)
    assert find(file) == cache / "a/b.txt"
    put(folder, "a/b.txt", TEXT)
    assert find(file) == folder / "a/b.txt"


def test_without_a_data_folder_the_cache_is_searched(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(cache, "b.txt", TEXT)
    monkeypatch.delenv("LACONIC_DATA")
    assert find(file) == cache / "b.txt"
    monkeypatch.delenv("LACONIC_CACHE")
    monkeypatch.setattr(Path, "home", lambda: cache.parent.parent / "home")
    put(cache.parent.parent / "home/.cache/laconic/datasets", "b.txt", TEXT)
    assert find(file) == cache.parent.parent / "home/.cache/laconic/datasets/b.txt"


def test_a_damaged_file_is_named_with_both_sums(folder: Path) -> None:
    file = put(folder, "a/b.txt", TEXT, recipe="of the Authors")
    (folder / "a/b.txt").write_bytes(TEXT + b"more")
    with pytest.raises(DataError) as caught:
        find(file)
    said = str(caught.value)
    assert str(folder / "a/b.txt") in said
    assert digest(TEXT) in said
    assert digest(TEXT + b"more") in said
    assert "remove it. Put the file (of the Authors) at $LACONIC_DATA/a/b.txt" in said


def test_a_damaged_file_in_the_data_folder_is_not_passed_over(folder: Path, cache: Path) -> None:
    file = put(cache, "b.txt", TEXT)
    put(folder, "b.txt", b"other")
    with pytest.raises(DataError, match=re.escape(str(folder / "b.txt"))):
        find(file)


def test_a_missing_file_says_what_to_put_where(folder: Path, cache: Path) -> None:
    file = DataFile("a/B.txt.gz", digest(TEXT), recipe="data/B.txt of https://host/Some.tgz")
    with pytest.raises(DataError) as caught:
        find(file)
    assert str(caught.value) == (
        "a/B.txt.gz: not found. Put the file (data/B.txt of https://host/Some.tgz) at"
        f" $LACONIC_DATA/a/B.txt.gz or {cache / 'a/B.txt.gz'}; its SHA-256 must be"
        f" {digest(TEXT)}."
    )
    packed = DataFile("B.gz", digest(TEXT), content=digest(b"x"))
    with pytest.raises(DataError, match=f"must be {digest(b'x')} when unpacked"):
        find(packed)


def test_a_missing_set_says_what_to_put_where(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        load("ptb")
    said = str(caught.value)
    assert said.startswith("ptb/ptb.train.txt.gz: not found. Put the file (data/ptb.train.txt of ")
    assert "at $LACONIC_DATA/ptb/ptb.train.txt.gz or " in said
    assert "d1ec43563d7ce27da8b43f9069b2a58cb9e7f2656e96d7aab0ddc61ef728e176" in said


def test_a_missing_set_that_cannot_be_downloaded_says_so(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        load("mnist")
    said = str(caught.value)
    assert said.startswith("mnist/train-images-idx3-ubyte.gz: not found, and the download of http")
    assert "no network in tests" in said
    assert "Put the file (from http://yann.lecun.com/exdb/mnist/train-images-idx3-ubyte.gz)" in said
    assert "at $LACONIC_DATA/mnist/train-images-idx3-ubyte.gz or " in said


def test_a_checksum_is_computed_once_until_the_file_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = []
    whole = _files.sha256
    monkeypatch.setattr(_files, "sha256", lambda path: count.append(path) or whole(path))
    file = put(folder, "b.txt", TEXT)
    find(file)
    find(file)
    assert len(count) == 1
    put(folder, "b.txt", TEXT[:-1])
    with pytest.raises(DataError):
        find(file)
    with pytest.raises(DataError, match=digest(b"other")):
        find(DataFile("b.txt", digest(b"other")))


def test_another_packing_of_the_same_bytes_is_accepted(folder: Path) -> None:
    packed = gzip.compress(TEXT, 9, mtime=1)
    put(folder, "b.txt.gz", packed)
    file = DataFile("b.txt.gz", digest(b"ours"), content=digest(TEXT))
    assert find(file).read_bytes() == packed
    with pytest.raises(DataError, match=f"is {digest(packed)}, expected {digest(b'theirs')}"):
        find(DataFile("b.txt.gz", digest(b"theirs"), content=digest(b"else")))
    with pytest.raises(DataError, match=f"expected {digest(b'whole')}"):
        find(DataFile("b.txt.gz", digest(b"whole")))


def broken(packed: bytes) -> list[bytes]:
    """Return no gzip file, half of one, one with a wrong sum, one of damaged blocks."""
    wrong_sum = packed[:-8] + bytes(8)
    return [b"plain", packed[: len(packed) // 2], wrong_sum, packed[:10] + b"\xff" * 40]


@pytest.mark.parametrize("damage", range(4))
def test_a_damaged_packing_is_refused(folder: Path, damage: int) -> None:
    put(folder, "b.txt.gz", broken(gzip.compress(TEXT))[damage])
    with pytest.raises(DataError, match=r"b\.txt\.gz: SHA-256 is"):
        find(DataFile("b.txt.gz", digest(b"ours"), content=digest(TEXT)))


def source(tmp_path: Path, data: bytes, name: str = "there.txt") -> str:
    (tmp_path / name).write_bytes(data)
    return (tmp_path / name).as_uri()


def test_a_plain_file_is_downloaded_into_the_cache(folder: Path, cache: Path) -> None:
    url = source(folder.parent, TEXT)
    file = DataFile("a/b.txt", digest(TEXT), url=url)
    assert find(file) == cache / "a/b.txt"
    assert (cache / "a/b.txt").read_bytes() == TEXT
    (folder.parent / "there.txt").unlink()
    assert find(file) == cache / "a/b.txt"
    assert [path.name for path in (cache / "a").iterdir()] == ["b.txt"]


def test_a_download_is_packed_where_the_folder_keeps_it_packed(folder: Path, cache: Path) -> None:
    url = source(folder.parent, TEXT)
    path = find(DataFile("b.txt.gz", digest(b"ours"), content=digest(TEXT), url=url))
    assert path == cache / "b.txt.gz"
    assert gzip.decompress(path.read_bytes()) == TEXT
    packed = source(folder.parent, gzip.compress(TEXT, mtime=3), "there.gz")
    path = find(DataFile("c.txt.gz", digest(b"ours"), content=digest(TEXT), url=packed))
    assert gzip.decompress(path.read_bytes()) == TEXT


def test_a_download_of_other_bytes_is_not_kept(folder: Path, cache: Path) -> None:
    url = source(folder.parent, b"other")
    with pytest.raises(DataError) as caught:
        find(DataFile("b.txt", digest(TEXT), url=url))
    said = str(caught.value)
    assert f"{url} gave a file with SHA-256 {digest(b'other')}, expected {digest(TEXT)}." in said
    assert "Nothing was kept. Put the file" in said
    assert f"at $LACONIC_DATA/b.txt or {cache / 'b.txt'}" in said
    assert not cache.exists()


@pytest.mark.parametrize("damage", range(4))
def test_a_damaged_download_is_not_kept(folder: Path, cache: Path, damage: int) -> None:
    url = source(folder.parent, broken(gzip.compress(TEXT))[damage], "there.gz")
    with pytest.raises(DataError, match=r"b\.txt\.gz: .*there\.gz gave a"):
        find(DataFile("b.txt.gz", digest(b"ours"), content=digest(TEXT), url=url))
    assert not cache.exists()


def test_a_download_that_breaks_off_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: Any, **__: Any) -> Any:
        raise http.client.IncompleteRead(b"some", 99)

    monkeypatch.setattr(urllib.request, "urlopen", cut)
    with pytest.raises(DataError, match=r"download of http://host/b failed \(IncompleteRead"):
        find(DataFile("b.txt", digest(TEXT), url="http://host/b"))


def test_a_download_that_is_not_there_says_what_to_do(folder: Path) -> None:
    url = (folder.parent / "nowhere").as_uri()
    with pytest.raises(DataError, match=rf"the download of {url} failed .* Put the file"):
        find(DataFile("b.txt", digest(TEXT), url=url))
