"""Questions with answers, from lm-eval: texts to calibrate with, and the share of right ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from laconic.errors import ConfigError
from laconic.extras import require

_PURPOSE = "judging a language model by its answers"
_KEYS = ("acc,none", "exact_match,strict-match")


class Harness:
    """Asks a model the questions of lm-eval's tasks.

    Args:
        device: Where the model lies.

    Raises:
        MissingExtraError: lm-eval is not installed.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.eval = require("lm_eval", "eval", purpose=_PURPOSE)
        self.models = require("lm_eval.models.huggingface", "eval", purpose=_PURPOSE)
        self.tasks = require("lm_eval.tasks", "eval", purpose=_PURPOSE)

    def texts(self, task: str) -> Iterator[str]:
        """Yield the training examples of a task as questions with their right answers."""
        held = self.tasks.get_task_dict([task])[task]
        for example in held.training_docs():
            yield solved(held, example)

    def accuracy(
        self, model: nn.Module, tokenizer: Any, tasks: Sequence[str], shots: int
    ) -> dict[str, float]:
        """Return the share of right answers by task."""
        asked = self.models.HFLM(pretrained=model, tokenizer=tokenizer, device=self.device)
        found = self.eval.simple_evaluate(model=asked, tasks=list(tasks), num_fewshot=shots)
        return {task: share_right(task, found["results"][task]) for task in tasks}


def solved(task: Any, example: Mapping[str, Any]) -> str:
    """Return one question with its answer: with the way to it where the example tells that."""
    if "Rationale" in example:
        return f"{example['Problem']} {example['options']} {example['Rationale']}\n"
    answer = task.doc_to_target(example)
    if isinstance(answer, int):
        answer = task.doc_to_choice(example)[answer]
    return f"{task.doc_to_text(example)} {answer}\n"


def share_right(task: str, figures: Mapping[str, Any]) -> float:
    """Return the share of right answers among what lm-eval reports on a task.

    Raises:
        ConfigError: None of the figures we know is there.
    """
    key = next((key for key in _KEYS if key in figures), None)
    if key is None:
        raise ConfigError(
            f"lm-eval's task {task!r} reports {sorted(figures)}, none of {list(_KEYS)}. Use "
            "lm-eval 0.4.5 or later."
        )
    return float(figures[key])
