"""``laconic search`` from end to end on small models."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from laconic.cli.main import main

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
pytestmark = pytest.mark.extra

CODE = """
import torch
from torch import nn
from laconic.task import Task, TensorSplit

def build():
    return nn.Sequential(nn.Linear(16, 160), nn.ReLU(), nn.Linear(160, 160), nn.ReLU(),
                         nn.Linear(160, 4))

def task():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 16, generator=generator)
    y = x[:, :4].argmax(1)
    return Task(
        kind="classification", name="argmax", test=TensorSplit({"x": x[:100], "y": y[:100]}),
        train=TensorSplit({"x": x[100:], "y": y[100:]}),
    )
"""
MODEL = ("sought_net:build", "--weights", "w.safetensors")
DATA = ("--data", "sought_net:task")
SHORT = ("--generations", "2", "--offspring", "6", "--tokens", "100")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sought")
    (folder / "sought_net.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("LACONIC_CACHE", str(folder / "cache"))
        import sought_net

        torch.set_num_threads(1)
        torch.manual_seed(0)
        save_file(sought_net.build().state_dict(), folder / "w.safetensors")
        config = transformers.LlamaConfig(
            vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(folder / "tiny")
        yield folder
    sys.modules.pop("sought_net", None)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def test_bits_from_the_command_to_the_artefact(place: Path) -> None:
    done = run(
        "search", *MODEL, *DATA, "--levels", "bits", "--budget", "6x", *SHORT, "--out", "bits",
        "--include", "2.*", "--include", "0.*", "--exclude", "4.*",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Levels taken" in done.stdout
    assert "held-out fitness" in done.stdout
    names = {file.name for file in (place / "bits").iterdir()}
    assert {"assignment.json", "search.json", "search.html", "report.html"} <= names
    levels = json.loads((place / "bits" / "assignment.json").read_text())
    assert set(levels["assignment"]) == {"0.weight", "2.weight"}
    report = json.loads((place / "bits" / "report.json").read_text())
    deployed = sum(
        (place / "bits" / n).stat().st_size for n in ("model.safetensors", "laconic.json")
    )
    assert report["compressed"]["bytes"] == deployed <= report["budget"]["bytes"]
    assert "--include '2.*' --include '0.*'" in report["commands"][0]
    assert run("verify", "bits").exit_code == 0
    page = (place / "bits" / "search.html").read_text()
    assert "0.weight" in page
    assert page.count("<svg") == 3
    assert 'src="' not in page
    again = run("search", *MODEL, *DATA, "--levels", "bits", "--budget", "6x", "--out", "bits")
    assert again.exit_code == 1
    assert "--force" in again.stderr


def test_the_command_in_the_report_gives_the_same_answer(place: Path) -> None:
    args = ("search", *MODEL, *DATA, "--levels", "bits", "--budget", "7x", *SHORT)
    assert run(*args, "--out", "one").exit_code == 0
    done = run(*args, "--out", "two", "--json")
    assert done.exit_code == 0, done.output
    for name in ("model.safetensors", "laconic.json", "assignment.json"):
        assert (place / "one" / name).read_bytes() == (place / "two" / name).read_bytes()
    assert json.loads(done.stdout)["search"]["method"] == "evolve"
    finished = run(*args, "--out", "two", "--resume", "--json")
    assert json.loads(finished.stdout) == json.loads(done.stdout)


def test_depth_of_a_hugging_face_folder(place: Path) -> None:
    text = ("--data", "stdlib-text", "--data-option", "length=32", "--data-option", "limit=12")
    done = run(
        "search", "tiny", *text, "--levels", "depth", "--budget", "50%", "--method", "greedy",
        "--out", "shallow",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    import laconic

    model = laconic.load(place / "shallow")
    levels = json.loads((place / "shallow" / "assignment.json").read_text())["assignment"]
    gone = [name for name, level in levels.items() if level == "dropped"]
    assert len([name for name in gone if "attn" in name]) == 2
    assert len([name for name in gone if "mlp" in name]) == 2
    whole = sum(
        p.numel() for p in transformers.LlamaForCausalLM.from_pretrained("tiny").parameters()
    )
    assert sum(p.numel() for p in model.parameters()) < whole
    ids = torch.randint(0, 260, (1, 6))
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4,
                         do_sample=False)  # fmt: skip
    assert out.shape == (1, 10)


def test_dry_run_prints_the_space_and_writes_nothing(place: Path) -> None:
    before = set(place.iterdir())
    done = run("search", *MODEL, "--levels", "mixed", "--budget", "8x", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "Search space" in done.stdout
    assert "2:4 at 4 bits" in done.stdout
    rows = json.loads(
        run("search", *MODEL, "--levels", "bits", "--budget", "8x", "--dry-run", "--json").stdout
    )
    assert [row["name"] for row in rows] == ["0.weight", "2.weight", "4.weight"]
    assert rows[0]["levels"]["2 bits"] < rows[0]["levels"]["8 bits"] < rows[0]["original_bytes"]
    parts = json.loads(
        run("search", "tiny", "--levels", "depth", "--budget", "25%", "--dry-run", "--json").stdout
    )
    assert [row["kind"] for row in parts] == ["attention", "mlp"] * 4
    assert set(place.iterdir()) == before


def test_levels_from_a_file(place: Path) -> None:
    (place / "own.yaml").write_text(
        "calibrate: small\nlevels:\n"
        "  - {name: small, steps: [round-to-nearest: 2]}\n"
        "  - {name: corrected, family: both, steps: [round-to-nearest: 3, eora: {rank: 2, "
        "metric: identity}]}\n"
        "  - {name: large, steps: [round-to-nearest: 8]}\n  - {name: gone, steps: [drop]}\n"
    )
    done = run(
        "search", *MODEL, *DATA, "--levels", "own.yaml", "--budget", "7x", *SHORT, "--out", "own"
    )
    assert done.exit_code == 0, done.output
    levels = json.loads((place / "own" / "assignment.json").read_text())["assignment"]
    assert set(levels.values()) <= {"small", "corrected", "large", "gone"}


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--levels", "bits", "--budget", "6y"), 2, "must be a size"),
        (("--levels", "bits", "--budget", "120%"), 2, "between 0 and 100"),
        (("--levels", "bitz", "--budget", "6x"), 1, "Did you mean 'bits'"),
        (("--levels", "bits", "--budget", "70%"), 1, "is a share"),
        (("--levels", "bits", "--budget", "40ms"), 1, "cost='latency'"),
        (("--levels", "bits", "--budget", "6x", "--cost", "macs"), 1, "counts bytes"),
        (("--levels", "bits", "--budget", "90x"), 1, "below the smallest"),
        (("--levels", "depth", "--budget", "25%"), 1, "no list of residual blocks"),
        (("--levels", "bits", "--budget", "6x", "--fitness", "kk"), 1, "Did you mean 'kl'"),
        (("--levels", "bits", "--budget", "6x", "--method", "owls"), 2, "owls"),
        (("--levels", "bits", "--budget", "6x", "--include", "nothing*"), 1, "no weight of"),
        (("--levels", "none.yaml", "--budget", "6x"), 1, "does not exist"),
    ],
)
def test_mistakes_are_told_in_a_line(
    args: tuple[str, ...], code: int, words: str, place: Path
) -> None:
    done = run("search", *MODEL, *DATA, *args, *SHORT, "--out", "wrong")
    assert done.exit_code == code, done.output
    assert words in done.stderr
    assert not (place / "wrong").exists()
    assert not (place / ".wrong.work").exists()


def test_a_search_without_data_is_told_so(place: Path) -> None:
    done = run("search", *MODEL, "--levels", "bits", "--budget", "6x", "--out", "blind")
    assert done.exit_code == 1
    assert "judges candidates on data" in done.stderr
    done = run("search", *MODEL, "--levels", "bits", "--budget", "6x", "--method", "dp", "--out",
               "blind")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "no held-out data" in done.stdout
