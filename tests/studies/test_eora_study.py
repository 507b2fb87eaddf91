from dataclasses import replace

import pytest
import torch

from laconic import datasets, zoo
from laconic.errors import LaconicWarning
from laconic.studies import Conditions, eora
from laconic.studies import _eora_language as language
from laconic.studies import _eora_layers as layers
from laconic.studies import _eora_models as models
from laconic.studies._eora_methods import BLOCKS, against_rivals, corrections, rounded_in_groups
from laconic.weights.sites import find_sites

# The small networks here meet too few inputs to span all directions; the study tells so.
narrow = pytest.mark.filterwarnings("ignore::laconic.errors.LaconicWarning")


def small_subject(**changes):
    model = zoo.byte_llama(width=24, blocks=2, heads=2, seed=3)
    task = datasets.load("stdlib-text", length=32, limit=64, test_limit=8, calibration=16)
    return models.Subject("toy", model, task, 24, published=False)


def test_bars_are_those_of_the_protocol():
    limits = {bar.name: (bar.limit, bar.strict) for bar in eora.STUDY.bars["small"]}
    assert limits == {
        "A. RTN 3-bit, fc2": (0.40, False),
        "A. 2:4 magnitude, fc2": (0.40, False),
        "A. GPTQ 3-bit, fc2": (0.80, False),
        "A. SparseGPT 2:4, fc2": (0.80, False),
        "A. 2:4 magnitude + RTN 3-bit, whole net, logit KL": (0.20, False),
        **{
            f"B. {compressor}, rank {share}/96 of the width": (limit, False)
            for compressor in (
                "RTN 3-bit per row", "RTN 2-bit group 32", "GPTQ 3-bit per row",
                "2:4 magnitude", "SparseGPT 2:4",
            )
            for share, limit in ((8, 0.95), (16, 0.90))
        },
        "C. code: calibrated on it, over calibrated on the other": (1.0, True),
        "C. english: calibrated on it, over calibrated on the other": (1.0, True),
    }  # fmt: skip


def test_ratio_is_to_the_better_rival():
    assert against_rivals({"SVD": 4.0, "ACT-S": 2.0, "EoRA": 1.0, "none": 0.1}) == 0.5


def test_corrections_differ_in_their_metric_alone():
    steps = corrections(5, where=BLOCKS)
    assert {name: step.metric for name, step in steps.items()} == {
        "SVD": "identity", "ACT-S": "absmean", "EoRA": "gram",
    }  # fmt: skip
    assert len({replace(step, metric="gram") for step in steps.values()}) == 1


def test_blocks_are_corrected_and_embedding_and_output_are_not():
    model = zoo.tiny_llama(width=16, heads=2, tied=False)
    chosen = {
        site.name for site in find_sites(model) if corrections(2, where=BLOCKS)["SVD"].selects(site)
    }
    assert len(chosen) == 2 * 7
    assert all(".layers." in name for name in chosen)


def test_rows_that_groups_do_not_fit_get_the_nearest_size():
    model = zoo.tiny_llama(width=64, hidden=172, heads=8)
    sites = find_sites(model)
    step = rounded_in_groups(2, 32, sites, where=BLOCKS)
    sizes = {
        site.form.cols: step.for_site(site.name).group_size for site in sites if step.selects(site)
    }
    assert sizes == {64: 32, 172: 43}


@narrow
def test_layers_of_a_trained_network(monkeypatch):
    monkeypatch.setattr(layers, "NETWORKS", 1)
    monkeypatch.setattr(layers, "_EPOCHS", 5)
    found = layers.study_layers(Conditions())
    names = {*layers.COMPRESSORS, layers.PLAIN_ORDER}
    assert set(found.ratios) == {(layer, name) for layer in ("fc2", "fc3") for name in names}
    data_free = [found.ratios["fc2", name] for name in ("RTN 3-bit", "2:4 magnitude")]
    assert max(data_free) < 0.4
    assert found.whole < 1
    for row in found.section.rows:
        assert row["EoRA"] < min(row["SVD"], row["ACT-S"]) < row["none"]


@narrow
def test_table_of_a_language_model():
    subject = small_subject()
    ratios, section = language.compare(subject, Conditions())
    names = (*language.COMPRESSORS, language.PLAIN_ORDER)
    assert set(ratios) == {(name, share) for name in names for share in (4, 8, 16)}
    assert [row["rank"] for row in section.rows[:3]] == [1, 2, 4]  # of 24 channels
    assert [row["compressed by"] for row in section.rows[::3]] == list(names)
    for row in section.rows:
        better = min(row["SVD"], row["ACT-S"])
        assert row["ratio"] == pytest.approx(row["EoRA"] / better)
    assert section.facts["bytes, RTN 3-bit"] < section.facts["bytes, RTN 4-bit"]


def test_calibration_and_judgement_share_no_window():
    task = small_subject().task
    held = {tuple(row.tolist()) for row in task.test.tensors["input_ids"]}
    seen = {tuple(row.tolist()) for row in task.calibration_split().tensors["input_ids"]}
    assert not held & seen


def test_without_the_published_model_the_one_trained_here_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("LACONIC_DATA", raising=False)
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "byte_model", lambda conditions: zoo.byte_llama())
    with pytest.warns(LaconicWarning, match=r"stories260K is not used.*trained here"):
        subject = models.language_model(Conditions())
    assert not subject.published
    assert "trained here" in subject.name


def test_trained_weights_are_kept_and_taken_again(monkeypatch, tmp_path):
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    for name, value in (("_STEPS", 3), ("_TRAIN", 16), ("_TEST", 4), ("WIDTH", 24)):
        monkeypatch.setattr(models, name, value)
    monkeypatch.setattr(models, "CALIBRATION", 4)
    first = models.byte_model(Conditions()).state_dict()
    (kept,) = (tmp_path / "studies").iterdir()
    stamp = kept.stat().st_mtime_ns
    again = models.byte_model(Conditions()).state_dict()
    assert kept.stat().st_mtime_ns == stamp
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())
    fresh = zoo.byte_llama(width=24, blocks=6, heads=6).state_dict()
    assert any(not torch.equal(first[name], tensor) for name, tensor in fresh.items())
    models.byte_model(Conditions(seed=1))
    assert len(list((tmp_path / "studies").iterdir())) == 2


@narrow
def test_domains_are_averaged_over_the_draws(monkeypatch):
    def text(domain, seed):
        return datasets.load(
            "stdlib-text",
            domain=domain,
            seed=seed,
            length=32,
            limit=64,
            test_limit=8,
            calibration=16,
        )

    monkeypatch.setattr(language, "domain_task", text)
    monkeypatch.setattr(language, "byte_model", lambda conditions: small_subject().model)
    found = language.study_domains(Conditions())
    assert set(found.ratios) == {"code", "english"}
    for row in found.section.rows:
        assert row["ratio"] == row["calibrated on it"] / row["calibrated on the other"]
        assert max(row["calibrated on it"], row["calibrated on the other"]) < row["none"]
