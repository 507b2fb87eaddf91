"""What a search for a student came to, and how it is kept on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from laconic import artifact
from laconic.budget.policy import Policy
from laconic.errors import ConfigError
from laconic.files import folder_atomic, write_atomic
from laconic.weights.students.lab import Child
from laconic.weights.students.reward import Sized
from laconic.weights.students.search import StageResult
from laconic.weights.students.spec import StudentSpec, architecture


@dataclass(frozen=True)
class Student:
    """The chosen student.

    Attributes:
        spec: Its architecture, from which it can be built again.
        module: The trained network in eval mode.
        params: Number of parameters.
        macs: Multiply-additions for one example.
        accuracy: On the validation examples, when it was judged.
        reward: Its reward without limits.
        told: What was dropped or shrunk in the last stage, by unit name.
    """

    spec: StudentSpec
    module: nn.Module
    params: int
    macs: int
    accuracy: float
    reward: float
    told: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return all but the network as plain values."""
        return {
            "params": self.params, "macs": self.macs, "accuracy": self.accuracy,
            "reward": self.reward, **self.told,
        }  # fmt: skip


@dataclass(frozen=True)
class N2NResult:
    """What a search came to.

    Attributes:
        best: The student, trained.
        pareto: Children of all stages that no other beats in cost and accuracy.
        stages: What each stage came to.
        top: The best children with their weights as they were judged.
        teacher: What the teacher costs.
        teacher_accuracy: Its accuracy on the validation examples.
        test: Accuracy of teacher and student on the test split, each ``{"value", "low",
            "high", "n"}``; None where it was not measured.
        example: One example, for tracing.
    """

    best: Student
    pareto: tuple[Child, ...]
    stages: tuple[StageResult, ...]
    top: tuple[tuple[Child, Mapping[str, Tensor]], ...]
    teacher: Sized
    teacher_accuracy: float
    test: dict[str, dict[str, Any]] | None
    example: Tensor

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows of every iteration of every stage, as plain values."""
        return [row for stage in self.stages for row in stage.history]

    @property
    def policy(self) -> Policy:
        """The policy of the last stage that had one.

        Raises:
            ConfigError: No stage had anything to decide.
        """
        for stage in reversed(self.stages):
            if stage.policy is not None:
                return stage.policy
        raise ConfigError("students: no stage trained a policy.")

    def policy_of(self, stage: str) -> Policy:
        """Return the policy of a stage.

        Raises:
            ConfigError: There was no such stage, or it had nothing to decide.
        """
        for held in self.stages:
            if held.stage == stage and held.policy is not None:
                return held.policy
        raise ConfigError(
            f"students: no policy of stage {stage!r}; there are "
            f"{[s.stage for s in self.stages if s.policy is not None]}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return figures, Pareto set and history as plain values."""
        return {
            "teacher": {
                "params": self.teacher.params,
                "macs": self.teacher.macs,
                "accuracy": self.teacher_accuracy,
            },
            "student": self.best.to_dict(),
            "ratio": self.teacher.params / self.best.params,
            "test": self.test,
            "stages": [
                {"stage": s.stage, "reward": s.reward, "best": s.best.to_dict(),
                 "architectures": len(s.children)}
                for s in self.stages
            ],
            "pareto": [child.to_dict() for child in self.pareto],
            "history": self.history,
        }  # fmt: skip

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write the student and everything that tells how it was found.

        The folder is an artefact that loads without any code of this search, and beside it in
        the same folder ``search/`` with ``student.json`` (the architecture), ``result.json``,
        the children of the Pareto set and of the top, and ``policy-STAGE.safetensors``.

        Args:
            path: Folder to make.
            force: Replace what stands there.

        Raises:
            ConfigError: The path is taken.
        """
        with folder_atomic(Path(path), force=force) as work:
            artifact.save(
                self.best.module,
                work,
                architecture=architecture(self.best.module, self.example),
                force=True,
            )
            place = work / "search"
            write_atomic(place / "student.json", self.best.spec.to_json())
            write_atomic(place / "result.json", json.dumps(self.to_dict(), indent=1) + "\n")
            write_atomic(place / "children.json", json.dumps(_specs(self.pareto)) + "\n")
            for stage in self.stages:
                if stage.policy is not None:
                    stage.policy.save(place / f"policy-{stage.stage}.safetensors")


def _specs(children: Sequence[Child]) -> list[dict[str, Any]]:
    return [
        {**child.to_dict(), "spec": json.loads(child.spec.to_json())}
        for child in children
        if child.spec is not None
    ]
