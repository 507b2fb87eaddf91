"""The place where children are built, trained and judged, each architecture once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.files import write_atomic
from laconic.weights.students._workers import Trainers
from laconic.weights.students.build import Draft, InvalidChildError, draft
from laconic.weights.students.reward import INVALID, Reward, Sized
from laconic.weights.students.spaces import Space
from laconic.weights.students.spec import StudentSpec
from laconic.weights.students.train import (
    ChildTraining,
    Lesson,
    Trained,
    accuracy_of,
    train_child,
)
from laconic.weights.students.units import Network

KEPT = 5  # children whose weights are kept


@dataclass(frozen=True)
class Child:
    """One child as it was judged.

    Attributes:
        key: Stands for its architecture; empty where it is invalid.
        told: What was dropped or shrunk, by unit name, from the network of its stage.
        size: What it costs; None where it is invalid.
        spec: Its architecture; None where it is invalid.
        accuracy: On the validation examples; None where it was not trained.
        seconds: Time of its training.
        reason: Why it is invalid or was not trained; empty where it was.
    """

    key: str
    told: Mapping[str, Any]
    size: Sized | None = None
    spec: StudentSpec | None = None
    accuracy: float | None = None
    seconds: float = 0.0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the child as plain values."""
        return {
            "key": self.key,
            **self.told,
            "params": self.size and self.size.params,
            "macs": self.size and self.size.macs,
            "cost": self.size and self.size.cost,
            "accuracy": self.accuracy,
            "seconds": round(self.seconds, 3),
            "reason": self.reason,
        }


class Lab:
    """Trains children and remembers what came of them; close it, or use it in a ``with`` block.

    Args:
        teacher: Trained classifier; never changed.
        lesson: What children are trained and judged on.
        training: How every child is trained.
        reward: What counts as cost, and the limits.
        seed: Source of every child's weights and order of batches; the same for all.
        inherit: Children start from the leading weights of the network they are cut from.
        workers: Processes that train; 1 trains in this process.
        device: Where children are trained.
        folder: Where results are kept for a later run; None keeps them in memory.

    Raises:
        ConfigError: ``workers`` is below 1, or the teacher gets no validation example right.
    """

    def __init__(
        self,
        teacher: nn.Module,
        lesson: Lesson,
        *,
        training: ChildTraining,
        reward: Reward,
        seed: int = 0,
        inherit: bool = False,
        workers: int = 1,
        device: str = "cpu",
        folder: Path | None = None,
    ) -> None:
        self.lesson, self.training, self.reward = lesson, training, reward
        self.seed, self.device = seed, device
        self.inherit, self.folder = inherit, folder
        self.example = next(iter(lesson.validation.values()))[:1]
        self.network = Network.of(teacher, self.example)
        self.accuracy = accuracy_of(teacher, lesson.validation, lesson.forward, device=device)
        self.teacher_size = self._sized(
            self.network.blueprint.params, self.network.blueprint.macs, self.network.blueprint.spec
        )
        self.trainers = Trainers(lesson, training, seed=seed, workers=workers, device=device)
        self._seen: dict[str, Child] = {}
        self._space: Space | None = None
        self._met: dict[tuple[int, ...], Child] = {}  # by the actions that gave it, in that space
        self._weights: dict[str, Mapping[str, Tensor]] = {}
        if self.accuracy <= 0:
            raise ConfigError("students: the teacher gets no validation example right. Train it.")
        self._read(teacher)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker processes."""
        self.trainers.close()

    @property
    def children(self) -> list[Child]:
        """Every architecture that was trained, in the order of training."""
        return list(self._seen.values())

    def top(self) -> list[tuple[Child, Mapping[str, Tensor]]]:
        """Return the best children with their weights, the best first."""
        ranked = sorted(self._weights, key=lambda k: (-self.plain(self._seen[k]), k))
        return [(self._seen[key], self._weights[key]) for key in ranked]

    def judge_start(
        self, space: Space, weights: Mapping[str, Tensor] | None = None
    ) -> Child | None:
        """Judge the network that a stage starts from; None where it is not smaller."""
        child = self.judge(space, [space.still()], weights=weights)[0]
        return None if child.accuracy is None else child

    def judge(
        self,
        space: Space,
        rollouts: Sequence[Sequence[int]],
        *,
        base: Sized | None = None,
        iteration: int | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> list[Child]:
        """Build the children of rollouts and train those that were not trained before.

        Args:
            space: What the actions mean.
            rollouts: Sequences of actions.
            base: What compression is counted from; the teacher where None.
            iteration: A child whose reward is -1 then whatever its accuracy is not trained.
            weights: What children inherit.
        """
        drafts = [self._draft(space, actions) for actions in rollouts]
        wanted: dict[str, tuple[Draft, Child]] = {}
        for made, child in drafts:
            if made is not None and child.key not in self._seen and child.key not in wanted:
                if self._lost(child, base, iteration):
                    continue
                wanted[child.key] = made, replace(child, spec=made.spec())
        specs = [child.spec for _, child in wanted.values() if child.spec is not None]
        given = weights if self.inherit else None
        results = self.trainers.train(specs, given)
        for (_, child), trained in zip(wanted.values(), results, strict=True):
            self._note(child, trained)
        found = []
        for _, child in drafts:
            held = self._seen.get(child.key)
            if held is not None:
                child = replace(held, told=child.told)
            elif not child.reason:
                child = replace(child, reason="not trained: it cannot keep the limits")
            found.append(child)
        return found

    def _lost(self, child: Child, base: Sized | None, iteration: int | None) -> bool:
        size = child.size
        if size is None or self.reward.plain(size, 1.0, base or self.teacher_size, 1.0) == INVALID:
            return True
        late = iteration is not None and iteration >= self.reward.soft
        return late and not self.reward.keeps_limits(size, 1.0)

    def value(self, child: Child, iteration: int, base: Sized | None = None) -> float:
        """Return the reward of a child at an iteration, counted from 0."""
        if child.size is None or child.accuracy is None:
            return INVALID
        return self.reward.value(
            child.size, child.accuracy, base or self.teacher_size, self.accuracy, iteration
        )

    def plain(self, child: Child, base: Sized | None = None) -> float:
        """Return the reward of a child without limits."""
        if child.size is None or child.accuracy is None:
            return INVALID
        return self.reward.plain(
            child.size, child.accuracy, base or self.teacher_size, self.accuracy
        )

    def keeps_limits(self, child: Child) -> bool:
        """Return whether a trained child is valid and keeps every limit."""
        if child.size is None or child.accuracy is None:
            return False
        return self.reward.keeps_limits(child.size, child.accuracy)

    def weights_of(self, child: Child) -> Mapping[str, Tensor]:
        """Return a child's trained weights; trains again, to the same ones, where they are gone."""
        held = self._weights.get(child.key)
        if held is None and child.spec is not None:
            held = train_child(
                child.spec, self.lesson, self.training, seed=self.seed, device=self.device
            ).weights
        if held is None:
            raise ConfigError("students: an invalid child has no weights.")
        return held

    def _draft(self, space: Space, actions: Sequence[int]) -> tuple[Draft | None, Child]:
        if self._space is not space:
            self._space, self._met = space, {}
        met = self._met.get(tuple(actions))
        if met is not None and (met.reason or met.key in self._seen):
            return None, met
        made, child = self._built(space, actions)
        self._met[tuple(actions)] = child
        return made, child

    def _built(self, space: Space, actions: Sequence[int]) -> tuple[Draft | None, Child]:
        told = space.tell(actions)
        try:
            made = draft(space.network, space.plan(actions))
        except InvalidChildError as error:
            return None, Child("", told, reason=str(error))
        size = self._sized(made.params, made.macs, made)
        key = made.key
        if self.inherit:  # then where the layers come from matters too
            names = [str(node.target) for node in made.module.graph.nodes]
            network = space.network.blueprint.spec.to_json()
            key += hashlib.sha256(repr((names, network)).encode()).hexdigest()[:8]
        return made, Child(key, told, size)

    def _sized(self, params: int, macs: int, made: Draft | StudentSpec) -> Sized:
        cost = self.reward.cost
        if not callable(cost):
            return Sized(params, macs, float(params if cost == "params" else macs))
        spec = made if isinstance(made, StudentSpec) else made.spec()
        return Sized(params, macs, float(cost(spec.build(seed=self.seed), self.example)))

    def _note(self, child: Child, trained: Trained | str) -> None:
        """Remember what came of a child, on disk first."""
        if isinstance(trained, str):
            child = replace(child, reason=trained)
        else:
            child = replace(child, accuracy=trained.accuracy, seconds=trained.seconds)
            self._weights[child.key] = trained.weights
        self._seen[child.key] = child
        best = [held.key for held, _ in self.top()]
        for key in best[KEPT:]:
            del self._weights[key]
        if self.folder is None:
            return
        place = self.folder / "children"
        for key in best[KEPT:]:
            (place / f"{key}.safetensors").unlink(missing_ok=True)
        if child.key in self._weights:
            tensors = {n: t.contiguous() for n, t in self._weights[child.key].items()}
            write_atomic(place / f"{child.key}.safetensors", save(tensors))
        spec = json.loads(child.spec.to_json()) if child.spec else None
        number = len(self._seen)
        row = {**child.to_dict(), "told": dict(child.told), "number": number, "spec": spec}
        write_atomic(place / f"{child.key}.json", json.dumps(row))

    def _fingerprint(self, teacher: nn.Module) -> dict[str, str]:
        """Return what must agree for a child's result to stand."""
        cost = self.reward.cost
        return {
            "teacher": _digest(teacher.state_dict()),
            "training examples": _digest(self.lesson.train),
            "validation examples": _digest(self.lesson.validation),
            "child training": repr(self.training),
            "seed": str(self.seed),
            "inherit": str(self.inherit),
            "cost": getattr(cost, "__qualname__", type(cost).__name__) if callable(cost) else cost,
        }

    def _read(self, teacher: nn.Module) -> None:
        """Take up what an earlier run of the same folder left.

        Raises:
            ConfigError: The folder belongs to a run with other settings; says which differ.
        """
        if self.folder is None:
            return
        place = self.folder / "children"
        _claim(self.folder / "lab.json", self._fingerprint(teacher))
        rows = sorted(
            (json.loads(path.read_text()) for path in place.glob("*.json")),
            key=lambda row: int(row["number"]),
        )
        for row in rows:
            self._seen[row["key"]] = Child(
                row["key"],
                row["told"],
                Sized(row["params"], row["macs"], row["cost"]),
                StudentSpec.from_json(json.dumps(row["spec"])),
                row["accuracy"],
                row["seconds"],
                row["reason"],
            )
            path = place / f"{row['key']}.safetensors"
            if path.exists():
                self._weights[row["key"]] = load_file(path)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _claim(path: Path, fingerprint: Mapping[str, str]) -> None:
    """Write whose folder this is, or compare with what was written."""
    if not path.exists():
        write_atomic(path, json.dumps(fingerprint, indent=1))
        return
    held = json.loads(path.read_text())
    other = [name for name, value in fingerprint.items() if held.get(name) != value]
    if other:
        raise ConfigError(
            f"students: the resume folder {path.parent.name} belongs to another run: "
            f"{', '.join(other)} differ. Give the settings of that run, or another folder."
        )
