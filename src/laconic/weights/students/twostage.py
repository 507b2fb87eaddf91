"""N2N: a smaller student found by policies that drop layers and then shrink what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, fx, nn

from laconic.budget.policy import PolicySpec
from laconic.errors import ConfigError, nearest
from laconic.measure.intervals import share
from laconic.progress import Progress
from laconic.task import Split, Task
from laconic.weights.students.lab import Child, Lab
from laconic.weights.students.result import N2NResult, Student
from laconic.weights.students.reward import Reward
from laconic.weights.students.search import StageResult, run_stage, smallest
from laconic.weights.students.spaces import RATIOS, RemovalSpace, ShrinkSpace, Space, Stage
from laconic.weights.students.train import ChildTraining, Lesson, answers, gathered, train_child
from laconic.weights.students.units import KINDS, PAPER_KEEP, Granularity, Network, require_free

FINAL = ChildTraining(epochs=55, lr=5e-3)
Policies = PolicySpec | Mapping[Stage, PolicySpec]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What may be changed, and how.

    Args:
        keep: Kinds or names of units that are neither dropped nor shrunk; linear layers and
            average pools, as in the paper.
        granularity: ``unit`` drops a layer with its norm and activation; ``layer`` each alone.
        ratios: Options of shrinking; 1 must be among them. ``PAPER_RATIOS`` has the paper's.
        min_filters: Fewest filters of a shrunk layer.
        padding: ``follow`` keeps odd kernels odd; ``free`` decides padding by itself.
    """

    keep: tuple[str, ...] = PAPER_KEEP
    granularity: Granularity = "unit"
    ratios: tuple[float, ...] = RATIOS
    min_filters: int = 10
    padding: Literal["follow", "free"] = "follow"

    def space(self, model: nn.Module, example: Tensor, stage: Stage) -> Space:
        """Return what is decided in a stage that starts from a model.

        Raises:
            ConfigError: ``keep`` or a setting of shrinking is out of its range.
            UnsupportedModelError: The model cannot be traced, or nothing can be dropped.
        """
        network = Network.of(
            model, example, keep=_present(self.keep, model), granularity=self.granularity
        )
        if stage == "removal":
            require_free(network)
            return RemovalSpace(network)
        return ShrinkSpace(
            network, tuple(self.ratios), self.min_filters, self.padding, tuple(self.keep)
        )


def _present(keep: Sequence[str], model: nn.Module) -> tuple[str, ...]:
    """Leave out the names of units that an earlier stage dropped."""
    if not isinstance(model, fx.GraphModule):
        return tuple(keep)
    names = {n.name for n in model.graph.nodes} | {name for name, _ in model.named_modules()}
    return tuple(name for name in keep if name in KINDS or name in names)


# Long for its signature and docstring: every setting of the search is named and told here once.
def n2n(
    teacher: nn.Module,
    task: Task,
    *,
    stages: Sequence[Stage] = ("removal", "shrinkage"),
    start: nn.Module | None = None,
    rollouts: int = 5,
    iterations: Sequence[int] | int = (100, 50),
    child: ChildTraining | None = None,
    final: ChildTraining | None = FINAL,
    reward: Reward | None = None,
    policy: Policies | None = None,
    rules: Rules | None = None,
    validation: Split | None = None,
    holdout: float = 0.25,
    inherit: bool = False,
    any_order: bool = False,
    test: bool = True,
    workers: int = 1,
    seed: int = 0,
    device: str = "cpu",
    resume: Path | str | None = None,
    progress: Progress | None = None,
) -> N2NResult:
    """Search a student of a trained teacher, then train it for long.

    Each stage's policy proposes children; each new architecture is built with fresh weights,
    trained on the teacher's cached logits and judged on validation examples; the policy learns
    from the rewards. The second stage starts from the best child of the first. Teacher, its
    accuracy and its size stay those of the original throughout.

    Args:
        teacher: Trained convolutional classifier that ``torch.fx`` can trace; never changed.
        task: Classification; its test split is read once, at the very end.
        stages: ``removal``, ``shrinkage``, or both in this order.
        start: Network that the first stage cuts from, for example the student of an earlier
            search; the teacher where None. Rewards and distillation stay those of the teacher.
        rollouts: Children sampled for an update of the policy; 5, as in the paper.
        iterations: Updates, for each stage; 100 and 50, as in the paper.
        child: How children are trained.
        final: How the chosen student is trained; None keeps it as it was judged.
        reward: What children are worth, and limits that they must keep.
        policy: One policy for all stages or one for each; a bidirectional one for removal and an
            autoregressive one for shrinkage where None.
        rules: What may be dropped and shrunk.
        validation: Examples that judge; drawn from the training examples where None.
        holdout: Their share of the training examples then.
        inherit: Children start from the leading weights of the network they are cut from; off,
            for with it this is pruning.
        any_order: Allow shrinkage before removal.
        test: Measure teacher and student on the test split at the end.
        workers: Processes that train children; the answer does not depend on it.
        seed: Source of everything random.
        device: Where children are trained.
        resume: Folder that keeps what was done; a stopped search goes on from it and ends in
            the same answer.
        progress: Where progress is shown.

    Returns:
        The student, the Pareto set, the history and the policies.

    Raises:
        BudgetError: No child keeps the limits.
        ConfigError: A setting out of its range, or a folder of another search.
        UnsupportedModelError: The teacher cannot be traced, or nothing may be dropped.

    Source: Ashok et al. 2018, N2N Learning: Network to Network Compression via Policy Gradient
    Reinforcement Learning, sections 3 and 4.

    Differs: the reward's accuracy comes from validation, not from test examples; each rollout
    has its own advantage; actions of fixed units do not train the policy.
    """
    counts = _counts(stages, iterations, rollouts, any_order=any_order)
    rules, reward, child = rules or Rules(), reward or Reward(), child or ChildTraining()
    lesson = Lesson.of(
        teacher, task, validation=validation, holdout=holdout, seed=seed, device=device
    )
    with ExitStack() as stack:
        lab = stack.enter_context(
            Lab(
                teacher, lesson, training=child, reward=reward, seed=seed, inherit=inherit,
                workers=workers, device=device, folder=None if resume is None else Path(resume),
            )
        )  # fmt: skip
        found = _stages(
            lab,
            start if start is not None else teacher,
            counts,
            rules,
            policy,
            rollouts,
            seed,
            progress,
        )
        best = found[-1].best
        weights = lab.weights_of(best)
        if final is not None and best.spec is not None:
            weights = train_child(
                best.spec, lesson, final, seed=seed, device=device,
                inherited=weights if inherit else None,
            ).weights  # fmt: skip
        student = _student(best, found[-1].reward, weights)
        figures = _tested(teacher, student.module, task, device) if test else None
        return N2NResult(
            best=student,
            pareto=tuple(pareto([c for stage in found for c in stage.children.values()])),
            stages=tuple(found),
            top=tuple(lab.top()),
            teacher=lab.teacher_size,
            teacher_accuracy=lab.accuracy,
            test=figures,
            example=lab.example,
        )


def _counts(
    stages: Sequence[Stage], iterations: Sequence[int] | int, rollouts: int, *, any_order: bool
) -> list[tuple[Stage, int]]:
    """Check stages and their lengths, and pair them."""
    known = get_args(Stage)
    for stage in stages:
        if stage not in known:
            raise ConfigError(
                f"students: stage {stage!r} is not one of {known}.{nearest(str(stage), known)}"
            )
    if not stages or len(set(stages)) != len(stages):
        raise ConfigError(f"students: stages={tuple(stages)} must be one or two, each once.")
    if list(stages) != sorted(stages) and not any_order:
        raise ConfigError(
            f"students: stages={tuple(stages)} shrink before they drop, the other way round than "
            "the paper. Swap them, or give any_order=True."
        )
    lengths = [iterations] if isinstance(iterations, int) else list(iterations)
    if len(stages) == 1 and len(lengths) == 2:
        lengths = [lengths[known.index(stages[0])]]
    if len(lengths) != len(stages) or min(lengths) < 1 or rollouts < 1:
        raise ConfigError(
            f"students: iterations={iterations} must be a number of at least 1 for each of "
            f"{tuple(stages)}, and rollouts={rollouts} at least 1."
        )
    return list(zip(stages, lengths, strict=True))


def _spec_for(stage: Stage, policy: Policies | None) -> PolicySpec:
    if isinstance(policy, PolicySpec):
        return policy
    if policy is not None and stage in policy:
        return policy[stage]
    return PolicySpec(kind="bidirectional" if stage == "removal" else "autoregressive")


def _stages(
    lab: Lab,
    base: nn.Module,
    counts: Sequence[tuple[Stage, int]],
    rules: Rules,
    policy: Policies | None,
    rollouts: int,
    seed: int,
    progress: Progress | None,
) -> list[StageResult]:
    found: list[StageResult] = []
    weights = dict(base.state_dict())
    limited = lab.reward
    for number, (stage, iterations) in enumerate(counts):
        space = rules.space(base, lab.example, stage)
        before = found[-1].best if found else lab.judge_start(space, weights)
        if not bool(space.decisions.free.any()):
            found.append(_unchanged(lab, stage, before))
            continue
        last = number == len(counts) - 1
        if not last and smallest(lab, space) is not None:  # a later stage may reach the limits
            lab.reward = replace(limited, max_params=None, max_cost=None)
        try:
            found.append(
                run_stage(
                    lab, space, stage, iterations=iterations, rollouts=rollouts, weights=weights,
                    policy=_spec_for(stage, policy), seed=seed, start=before, progress=progress,
                )
            )  # fmt: skip
        finally:
            lab.reward = limited
        best = found[-1].best
        if best.spec is not None:
            base = best.spec.build(seed=seed)
            weights = dict(lab.weights_of(best)) if lab.inherit else {}
    return found


def _unchanged(lab: Lab, stage: Stage, before: Child | None) -> StageResult:
    """Return the result of a stage that has nothing to decide: what it starts from."""
    if before is None:
        raise ConfigError(f"students: stage {stage!r} has nothing to decide on this network.")
    return StageResult(stage, before, lab.plain(before), [], None, {before.key: before})


def _student(child: Child, reward: float, weights: Mapping[str, Tensor]) -> Student:
    if child.spec is None or child.size is None or child.accuracy is None:
        raise ConfigError("students: the best child is invalid.")
    module = child.spec.build(weights=weights)
    size = child.size
    return Student(
        child.spec, module, size.params, size.macs, child.accuracy, reward, dict(child.told)
    )


def _tested(
    teacher: nn.Module, student: nn.Module, task: Task, device: str
) -> dict[str, dict[str, Any]]:
    """Measure teacher and student in one walk over the test split."""
    data = gathered(task.test)
    told = {}
    for name, model in (("teacher", teacher), ("student", student)):
        right = answers(model, data, task.forward, device=device).argmax(-1) == data["y"]
        told[name] = dict(share(int(right.sum()), len(right)))
    return told


def pareto(children: Sequence[Child]) -> list[Child]:
    """Return the children that no other beats in both cost and accuracy, by rising cost."""
    judged = [c for c in children if c.size is not None and c.accuracy is not None]
    unique = {c.key: c for c in judged}.values()
    kept: list[Child] = []
    for one in sorted(unique, key=lambda c: (_cost(c), -_accuracy(c), c.key)):
        if not kept or _accuracy(one) > _accuracy(kept[-1]):
            kept.append(one)
    return kept


def _cost(child: Child) -> float:
    return child.size.cost if child.size is not None else float("inf")


def _accuracy(child: Child) -> float:
    return -1.0 if child.accuracy is None else child.accuracy
