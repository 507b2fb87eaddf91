"""One small network through every command, as a user would go."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from laconic.cli.main import main

CODE = """
import torch
from torch import nn
from laconic.task import Task, TensorSplit

def build():
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))

def task():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 16, generator=generator)
    y = x[:, :4].argmax(1)
    return Task(
        kind="classification", name="argmax", test=TensorSplit({"x": x[:200], "y": y[:200]}),
        train=TensorSplit({"x": x[200:], "y": y[200:]}),
    )
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "whole_net.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("LACONIC_CACHE", str(folder / "cache"))
        import whole_net

        torch.set_num_threads(1)  # kept in the manifest; this comes before the suite's own setting
        torch.manual_seed(0)
        save_file(whole_net.build().state_dict(), folder / "w.safetensors")
        done = compress("w8", "small")
        assert done.exit_code == 0, done.output
        yield folder
    sys.modules.pop("whole_net", None)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def compress(recipe: str, out: str, *more: str) -> Result:
    model = ("whole_net:build", "--weights", "w.safetensors", "--data", "whole_net:task")
    return run("compress", *model, "--recipe", recipe, "--out", out, *more)


def test_compress_writes_a_model_and_its_report(place: Path) -> None:
    names = {file.name for file in (place / "small").iterdir()}
    assert {"model.safetensors", "laconic.json", "report.json", "report.html"} <= names
    report = json.loads((place / "small" / "report.json").read_text())
    needed = ("model.safetensors", "laconic.json")
    deployed = sum((place / "small" / name).stat().st_size for name in needed)
    assert report["compressed"]["bytes"] == deployed
    assert report["commands"][0] == (
        "laconic compress whole_net:build --recipe w8 --weights w.safetensors "
        "--data whole_net:task --out small"
    )
    again = compress("w8", "small")
    assert again.exit_code == 1
    assert "--force" in again.stderr


def test_the_command_in_the_report_gives_the_same_bytes(place: Path) -> None:
    assert compress("w8", "twin").exit_code == 0
    for name in ("model.safetensors", "laconic.json"):
        assert (place / "twin" / name).read_bytes() == (place / "small" / name).read_bytes()


def test_dry_run_prints_the_plan_and_writes_nothing(place: Path) -> None:
    done = run(
        "compress", "whole_net:build", "--weights", "w.safetensors", "--recipe", "w4", "--dry-run"
    )
    assert done.exit_code == 0, done.output
    assert "round-to-nearest" in done.stdout
    assert "Predicted: " in done.stdout
    found = json.loads(
        run("compress", "whole_net:build", "--recipe", "w4", "--dry-run", "--json").stdout
    )
    assert found["bytes_predicted"] < found["bytes_original"] == 4 * (16 * 64 + 64 + 64 * 4 + 4)


def test_inspect_verify_and_damage(place: Path) -> None:
    found = json.loads(run("inspect", "small", "--json").stdout)
    assert {row["name"] for row in found["sites"]} == {"0.weight", "2.weight"}
    assert "stored bits a weight" in run("inspect", "small").stdout
    sparse = json.loads(run("inspect", "small", "--sparsity", "--json").stdout)["sparsity"]
    assert [(row["name"], row["survivors"]) for row in sparse] == [
        ("0.weight", 16 * 64), ("2.weight", 64 * 4)
    ]  # fmt: skip
    assert all((row["p"], row["q"], row["scope"]) == (0.5, 1.0, "layer") for row in sparse)
    assert all(0 < row["pqi"] < row["gini"] < 1 for row in sparse)
    shown = run("inspect", "small", "--sparsity").stdout
    assert "p = 0.5, q = 1; zeros are counted" in shown
    assert "survivors" in shown
    done = run("verify", "small", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["sound"] is True
    assert compress("w8", "hurt").exit_code == 0
    file = place / "hurt" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    done = run("verify", "hurt")
    assert done.exit_code == 1
    assert "DAMAGED" in done.stdout
    assert done.stderr.startswith("laconic: error: hurt: ")
    assert len(done.stderr.splitlines()) == 1


def test_measure_agrees_with_the_report(place: Path) -> None:
    done = run("measure", "small", "--data", "whole_net:task", "--json")
    metrics = json.loads(done.stdout)["metrics"]
    report = json.loads((place / "small" / "report.json").read_text())
    assert metrics["top1"] == report["compressed"]["metrics"]["top1"]
    done = run(
        "measure", "small", "--data", "whole_net:task", "--original", "whole_net:build",
        "--original-weights", "w.safetensors", "--limit", "50",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Logit KL" in done.stdout
    assert run("measure", "small").exit_code == 2


def test_export_to_dense_gives_every_tensor_back(place: Path) -> None:
    done = run("export", "small", "--to", "dense", "--out", "dense", "--json")
    assert done.exit_code == 0, done.output
    dense, original = load_file(place / "dense" / "model.safetensors"), load_file("w.safetensors")
    assert {n: t.shape for n, t in dense.items()} == {n: t.shape for n, t in original.items()}
    assert json.loads(done.stdout)["bytes"] == sum(
        file.stat().st_size for file in (place / "dense").iterdir() if file.suffix == ".safetensors"
    )


@pytest.mark.extra
def test_export_to_onnx_holds_no_path_of_this_machine(place: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    done = run("export", "small", "--to", "onnx", "--input", "1,16", "--out", "small.onnx")
    assert done.exit_code == 0, done.output
    assert "torchvision" not in done.stderr
    held = (place / "small.onnx").read_bytes()
    assert b'File "' not in held
    assert len(held) < 1.3 * (place / "w.safetensors").stat().st_size
    again = run("export", "small", "--to", "onnx", "--input", "1,16", "--out", "small.onnx")
    assert again.exit_code == 1
    wrong = run("export", "small", "--to", "onnx", "--input", "1,17", "--out", "never.onnx")
    assert wrong.exit_code == 1
    assert "does not take input (1, 17)" in wrong.stderr


def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "two.yaml").write_text(
        "steps: [magnitude: {sparsity: 0.5}, kmeans: {bits: 4}, recover: {epochs: 1}]"
    )
    assert compress("two.yaml", "straight").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr("laconic.pipeline.build_report", _stop)
        assert compress("two.yaml", "resumed").exit_code == 1
    assert not (place / "resumed").exists()
    again = compress("two.yaml", "resumed")
    assert again.exit_code == 1
    assert "--resume" in again.stderr
    other = compress("w4", "resumed", "--resume")
    assert other.exit_code == 1
    assert "another" in other.stderr
    done = compress("two.yaml", "resumed", "--resume")
    assert done.exit_code == 0, done.output
    assert "magnitude: " not in done.stderr  # the finished steps did not run again
    for name in ("model.safetensors", "laconic.json"):
        assert (place / "resumed" / name).read_bytes() == (place / "straight" / name).read_bytes()


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_doctor_judges_without_data(place: Path) -> None:
    done = run("doctor", "whole_net:build", "--weights", "w.safetensors")
    assert done.exit_code == 0, done.output
    assert "2 weights" in done.stdout
    assert "round-to-nearest" in done.stdout


def test_budget_too_small_says_the_smallest_size(place: Path) -> None:
    done = compress("w4", "tiny", "--budget", "100B")
    assert done.exit_code == 1
    assert "laconic: error: " in done.stderr
    assert not (place / "tiny").exists()


def test_compare_two_runs(place: Path) -> None:
    assert compress("w4", "four").exit_code == 0
    done = run("compare", "small", "four", "--html", "page.html")
    assert done.exit_code == 0, done.output
    assert "Not at equal bytes" in done.stdout
    assert (place / "page.html").is_file()


def test_bench_needs_to_know_the_input(place: Path) -> None:
    done = run("bench", "small")
    assert done.exit_code == 1
    assert "--input SHAPE" in done.stderr


@pytest.mark.extra
@pytest.mark.slow
def test_bench_times_two_baselines_in_turns(place: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    done = run("bench", "small", "--input", "1,16", "--batch", "1", "--repeats", "3", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [*found["timings"], *found["missing"]] == [
        "compressed", "torch fp32", "ONNX Runtime fp32",
    ]  # fmt: skip
    assert all(row["1"]["median"] > 0 for row in found["timings"].values())
