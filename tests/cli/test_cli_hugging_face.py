"""A small Hugging Face folder through the commands that know such models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from laconic.cli.main import main

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
pytestmark = pytest.mark.extra

TEXT = ("--data", "stdlib-text", "--data-option", "length=32", "--data-option", "limit=4")
DEPLOYED = ("model.safetensors", "laconic.json", "config.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("hub")
    torch.set_num_threads(1)  # kept in the manifest; this comes before the suite's own setting
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LACONIC_CACHE", str(folder / "cache"))
        done = run("compress", "tiny", "--recipe", "w4", "--out", "small")
        assert done.exit_code == 0, done.output
        yield folder


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def deployed(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in DEPLOYED)


def test_the_artefact_is_a_model_of_its_own_class(place: Path) -> None:
    import laconic

    model: Any = laconic.load(place / "small")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert deployed(place / "small") < 0.45 * deployed_dense(place / "tiny")
    assert run("verify", "small").exit_code == 0


def deployed_dense(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in ("model.safetensors", "config.json"))


def test_dense_export_loads_without_laconic_and_computes_the_same(place: Path) -> None:
    done = run("export", "small", "--to", "dense", "--out", "dense", "--json")
    assert done.exit_code == 0, done.output
    assert "Writing model shards" not in done.stderr
    import laconic

    plain = transformers.AutoModelForCausalLM.from_pretrained(place / "dense").eval()
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        ours = laconic.load(place / "small", kernels="exact")(input_ids=ids).logits
        assert torch.allclose(plain(input_ids=ids).logits, ours, atol=1e-5)
    assert (place / "dense" / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_coding_overrides_the_recipe_and_smallest_is_never_larger(place: Path) -> None:
    for coding in ("fast", "smallest"):
        done = run("compress", "tiny", "--recipe", "w4", "--coding", coding, "--out", coding)
        assert done.exit_code == 0, done.output
        report = json.loads((place / coding / "report.json").read_text())
        assert f"--coding {coding}" in report["commands"][0]
    assert (place / "fast" / "model.safetensors").read_bytes() == (
        place / "small" / "model.safetensors"
    ).read_bytes()
    assert deployed(place / "smallest") < deployed(place / "fast")
    assert run("compress", "tiny", "--recipe", "w4", "--coding", "slow").exit_code == 2


def test_measure_beside_the_original(place: Path) -> None:
    done = run("measure", "small", *TEXT, "--limit", "4", "--original", "tiny", "--json")
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)["metrics"]
    assert set(metrics) == {"perplexity", "loss", "logit_kl"}
    assert 0 < metrics["logit_kl"]["value"] < 0.1
    assert metrics["logit_kl"]["n"] == metrics["perplexity"]["n"] == 4 * 31


def test_doctor_judges_every_family(place: Path) -> None:
    done = run("doctor", "tiny", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {row["family"] for row in found["expectations"]} == {
        "quantize", "cluster", "prune", "factor",
    }  # fmt: skip
    assert found["sites"] == 16
    assert "What to expect, without data" in run("doctor", "tiny").stdout


def test_a_plan_says_what_the_steps_lack_and_what_a_budget_means(place: Path) -> None:
    done = run("compress", "tiny", "--recipe", "w4-gptq", "--dry-run", "--budget", "4x")
    assert done.exit_code == 0, done.output
    assert "Not yet: step 1: gptq needs calibration data" in done.stdout
    assert "Budget 4x: at most" in done.stdout
    more = ("--dry-run", "--budget", "4x", "--json")
    found = json.loads(run("compress", "tiny", "--recipe", "w4-gptq", *TEXT, *more).stdout)
    assert found["lacking"] == []
    tensors = load_file(place / "tiny" / "model.safetensors").values()
    assert abs(4 * found["budget_bytes"] / sum(t.numel() * 4 for t in tensors) - 1) < 0.1


def test_gptq_meets_a_budget_on_text(place: Path) -> None:
    done = run("compress", "tiny", "--recipe", "w4-gptq", *TEXT, "--budget", "2.5x", "--out", "g")
    assert done.exit_code == 0, done.output
    report = json.loads((place / "g" / "report.json").read_text())
    assert deployed(place / "g") == report["compressed"]["bytes"] <= report["budget"]["bytes"]
    assert "Perplexity" in done.stdout


def damaged(place: Path, name: str) -> Path:
    folder = place / name
    shutil.copytree(place / "tiny", folder)
    return folder


def test_a_folder_without_all_weights_is_refused(place: Path) -> None:
    folder = damaged(place, "lacking")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    done = run("doctor", "lacking")
    assert done.exit_code == 1
    assert "hold no model.layers.1.mlp.up_proj.weight, which would be random" in done.stderr


def test_a_damaged_folder_is_one_line(place: Path) -> None:
    folder = damaged(place, "cut")
    (folder / "model.safetensors").write_bytes(b"\0" * 8)
    done = run("compress", "cut", "--recipe", "w4", "--out", "never")
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("laconic: error: MODEL 'cut' cannot be loaded: ")
    assert not (place / "never").exists()


@pytest.mark.parametrize("command", ["inspect", "bench", "export"])
def test_a_folder_that_laconic_did_not_write_is_named(place: Path, command: str) -> None:
    out = ("--out", "never") if command == "export" else ()
    done = run(command, "tiny", *out)
    assert done.exit_code == 1
    assert "tiny is not a folder that laconic wrote" in done.stderr


@pytest.mark.parametrize("out", ["tiny", ".", "small"])
def test_force_never_deletes_what_is_read(place: Path, out: str) -> None:
    done = (
        run("export", "small", "--out", out, "--force")
        if out == "small"
        else run("compress", "tiny", "--recipe", "w4", "--out", out, "--force")
    )
    assert done.exit_code == 1
    assert "which is read here" in done.stderr
    assert (place / "tiny" / "config.json").is_file()
    assert (place / "small" / "laconic.json").is_file()
