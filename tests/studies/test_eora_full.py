import pytest
import torch

from laconic import datasets, zoo
from laconic.errors import ConfigError
from laconic.studies import Conditions, eora
from laconic.studies import _eora_full as full
from laconic.studies._eora_harness import share_right, solved

load = datasets.load


class Bytes:
    def encode(self, text, add_special_tokens):
        assert add_special_tokens is False
        return list(text.encode())


class FakeHarness:
    """Gives a better share of right answers the smaller the model's error is."""

    def __init__(self, device):
        self.asked = []

    def texts(self, task):
        return (f"{task} question {number}? An answer of some length.\n" for number in range(2000))

    def accuracy(self, model, tokenizer, tasks, shots):
        self.asked.append((tuple(tasks), shots))
        weight = model.model.layers[0].mlp.up_proj.weight
        true = zoo.byte_llama(width=24, blocks=2, heads=2).model.layers[0].mlp.up_proj.weight
        return {task: 1.0 / (1.0 + float((weight - true).norm().detach())) for task in tasks}


@pytest.fixture
def machine(monkeypatch):
    harness = FakeHarness("cpu")
    model = zoo.byte_llama(width=24, blocks=2, heads=2)
    monkeypatch.setattr(full, "_model_folder", lambda: "folder")
    monkeypatch.setattr(full, "load_model", lambda folder: (model, Bytes()))
    monkeypatch.setattr(full, "Harness", lambda device: harness)
    monkeypatch.setattr(full, "LENGTH", 32)
    monkeypatch.setattr(full, "RANK", 4)
    monkeypatch.setattr(
        full.datasets, "load",
        lambda name, *, calibration, **options: load(
            "stdlib-text", **options, limit=256, test_limit=8, calibration=calibration
        ),
    )  # fmt: skip
    return harness


def test_files_of_the_model_that_are_missing_say_how_to_get_them(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"Meta-Llama-3-8B are not in .*hf download .*16 GB"):
        eora.STUDY.run(scale="full")


def test_the_protocol_gives_a_value_for_every_bar(machine):
    result = eora.STUDY.run(scale="full")
    assert len(result["bars"]) == 4 * 4 + 6
    assert {(row["compressed by"], row["task"]) for row in result["figures"]["full"]["rows"]} == {
        (compressor, task) for compressor in full.COMPRESSORS for task in full.TASKS
    }


@pytest.mark.filterwarnings("ignore::laconic.errors.LaconicWarning")
def test_each_family_is_judged_with_its_own_calibration_and_shots(machine):
    full.run_full(Conditions())
    families = [(("arc_easy", "arc_challenge"), 0), (("mathqa",), 0), (("gsm8k",), 5)]
    a_compressor = [*families, *(family for family in families for _ in range(3))]
    assert machine.asked == 4 * a_compressor + families  # the original last


def test_calibration_is_sixty_four_windows_of_the_task_and_the_web(machine):
    def encode(text):
        return list(text.encode())

    for mix in full.MIXES.values():
        split = full._mixed(mix, machine, encode, 1)
        own = sum(mix.windows.values())
        assert split.tensors["input_ids"].shape == (64, 32)
        texts = [bytes(row.tolist()).decode(errors="replace") for row in split.tensors["input_ids"]]
        assert any("question" in text for text in texts[:own])
        assert not any("question 1" in text for text in texts[own:])


def test_order_and_gain_are_read_off_the_shares():
    by = {
        "none": 0.20, "SVD": 0.25, "ACT-S": 0.24, "EoRA": 0.32,
    }  # fmt: skip
    table = {name: dict.fromkeys(full.TASKS, share) for name, share in by.items()}
    values = full._values(dict.fromkeys(full.COMPRESSORS, table))
    assert values["order, GPTQ 3-bit, mathqa"] == pytest.approx(0.25 / 0.24)
    assert values["points from the paper's gain, GPTQ 3-bit, mathqa"] == pytest.approx(12 - 6.74)


class FakeTask:
    def doc_to_text(self, example):
        return example["question"]

    def doc_to_target(self, example):
        return example["answer"]

    def doc_to_choice(self, example):
        return example["choices"]


@pytest.mark.parametrize(
    ("example", "text"),
    [
        ({"question": "2+2?", "answer": 1, "choices": ["3", "4"]}, "2+2? 4\n"),
        ({"question": "2+2?", "answer": "4 #### 4"}, "2+2? 4 #### 4\n"),
        ({"Problem": "2+2?", "options": "a) 3 b) 4", "Rationale": "It is 4."},
         "2+2? a) 3 b) 4 It is 4.\n"),
    ],
)  # fmt: skip
def test_examples_become_questions_with_answers(example, text):
    assert solved(FakeTask(), example) == text


def test_share_of_right_answers_by_either_name():
    assert share_right("arc_easy", {"acc,none": 0.5, "acc_norm,none": 0.6}) == 0.5
    assert share_right("gsm8k", {"exact_match,strict-match": torch.tensor(0.25)}) == 0.25
    with pytest.raises(ConfigError, match=r"'odd' reports \['f1'\]"):
        share_right("odd", {"f1": 0.5})
