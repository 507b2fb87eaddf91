from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from zoo_support import needs_data

from laconic import modelspec, zoo
from laconic.errors import ConfigError, DataError


@needs_data
def test_stories260k_is_a_hugging_face_folder(tmp_path: Path) -> None:
    folder = zoo.save_stories260k(tmp_path / "stories")
    ours, tokenizer = zoo.stories260k()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Tom had a <unk> dog.\n\nIt was née 日 big!"
    assert fast.encode(text) == tokenizer(text)
    assert fast.decode(tokenizer(text), skip_special_tokens=True) == text
    ids = torch.tensor([tokenizer(text)])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, ours(input_ids=ids).logits)
    loaded, found = modelspec.load_model(str(folder))
    assert found.encode(text) == tokenizer(text)
    assert type(loaded) is type(ours)
    with pytest.raises(ConfigError, match="exists"):
        zoo.save_stories260k(folder)
    zoo.save_stories260k(folder, force=True)


def test_a_missing_file_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"stories260K\.bin: not found"):
        zoo.save_stories260k(tmp_path / "stories")
    assert not (tmp_path / "stories").exists()
