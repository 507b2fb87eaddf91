import subprocess
import sys

import pytest
import torch
from students_child import search
from students_support import OneWalk, held_out, small_task, vgg
from torch import nn

from laconic import artifact
from laconic.budget.policy import Policy, PolicySpec
from laconic.errors import BudgetError, ConfigError, UnsupportedModelError
from laconic.task import Task
from laconic.weights.students import ChildTraining, Reward, Rules, StudentSpec, n2n
from laconic.weights.students import train as training_module
from laconic.weights.students.baselines import (
    best_reward,
    greedy_drop,
    random_search,
    uniform_width,
    without_teacher,
)
from laconic.weights.students.lab import KEPT, Lab
from laconic.weights.students.train import AIM, Lesson, train_child

QUICK = ChildTraining(epochs=1, lr=4e-3, batch_size=32)
RULES = Rules(keep=("max-pool",))


@pytest.fixture(scope="module")
def found():
    torch.set_num_threads(1)
    return search()


def lab(model=None, task=None, **changes):
    model, task = model or vgg(), task or small_task()
    lesson = Lesson.of(model, task, validation=None, holdout=0.25, seed=0)
    return Lab(model, lesson, **{"training": QUICK, "reward": Reward(), **changes})


def test_both_stages_end_in_a_smaller_student(found):
    assert [stage.stage for stage in found.stages] == ["removal", "shrinkage"]
    assert [len(stage.history) for stage in found.stages] == [3, 2]
    best = found.best
    assert best.params == sum(p.numel() for p in best.module.parameters()) < found.teacher.params
    assert found.stages[1].reward >= found.stages[0].reward
    assert best.reward == found.stages[1].reward
    assert {row["stage"] for row in found.history} == {"removal", "shrinkage"}
    assert all(len(row["rewards"]) == 3 for row in found.history)
    costs = [child.size.cost for child in found.pareto]
    rates = [child.accuracy for child in found.pareto]
    assert costs == sorted(costs)
    assert rates == sorted(rates)
    assert len(found.top) <= KEPT
    assert found.policy_of("removal").kind == "bidirectional"


def test_rewards_are_those_of_the_formula(found):
    child = found.stages[0].best
    saved = 1 - child.size.params / found.teacher.params
    wanted = saved * (2 - saved) * child.accuracy / found.teacher_accuracy
    assert found.stages[0].reward == pytest.approx(wanted)


def test_the_student_is_an_artefact_that_needs_none_of_this(found, tmp_path):
    found.save(tmp_path / "student")
    x = torch.randn(3, 1, 8, 8)
    wanted = found.best.module(x)
    code = (
        "import sys, torch, laconic.artifact as a; m = a.load(sys.argv[1]);"
        "torch.save(m(torch.load(sys.argv[2], weights_only=True)), sys.argv[3]);"
        "assert not any('students' in n for n in sys.modules)"
    )
    torch.save(x, tmp_path / "x.pt")
    paths = [str(tmp_path / name) for name in ("student", "x.pt", "y.pt")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "y.pt", weights_only=True), wanted)
    assert all(check.passed for check in artifact.verify(tmp_path / "student"))
    place = tmp_path / "student" / "search"
    spec = StudentSpec.from_json((place / "student.json").read_text())
    again = spec.build(weights=found.best.module.state_dict())
    assert torch.equal(again(x), wanted)
    assert Policy.load(place / "policy-removal.safetensors").options == 2
    with pytest.raises(ConfigError, match="exists"):
        found.save(tmp_path / "student")


def test_the_test_split_is_read_once_and_the_teacher_left_alone():
    task, teacher = small_task(), vgg()
    guard = OneWalk(task.test)
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    drawn = torch.random.get_rng_state()
    result = n2n(
        teacher,
        Task(kind="classification", train=task.train, test=guard),
        iterations=(1, 1), rollouts=2, child=QUICK, final=None, rules=RULES,
    )  # fmt: skip
    assert guard.walks == 1
    assert result.test["student"]["n"] == result.test["teacher"]["n"] == len(task.test)
    assert all(torch.equal(before[n], t) for n, t in teacher.state_dict().items())
    assert torch.equal(drawn, torch.random.get_rng_state())


def test_the_teacher_is_asked_once_for_its_logits(monkeypatch):
    calls = []
    teacher = vgg()
    teacher.register_forward_hook(lambda *_: calls.append(1))
    hookless = vgg()
    monkeypatch.setattr(
        training_module, "answers", _counted(training_module.answers, teacher, calls)
    )
    with lab(hookless) as place:
        asked = len(calls)
        space = RULES.space(hookless, place.example, "removal")
        place.judge(space, [space.least(), space.still()])
        # what is left are one walk a child over the validation examples, none over the teacher's
        assert len(calls) == asked + 1
    assert place.lesson.train[AIM].shape == (120, 10)


def _counted(answers, teacher, calls):
    def count(model, *args, **kwargs):
        calls.append(1)
        return answers(model, *args, **kwargs)

    return count


def test_an_architecture_is_trained_once(monkeypatch):
    trained = []
    monkeypatch.setattr(
        "laconic.weights.students._workers.train_child",
        lambda spec, *args, **kwargs: trained.append(spec) or train_child(spec, *args, **kwargs),
    )
    with lab(vgg((8, 8, 8))) as place:
        space = RULES.space(vgg((8, 8, 8)), place.example, "removal")
        rows = [[1, 0, 1, 1, 1], [1, 1, 0, 1, 1], [1, 0, 1, 1, 1]]
        first = place.judge(space, rows)
        again = place.judge(space, rows)
    assert len(trained) == 1  # two ways to the same network, met six times
    assert [c.accuracy for c in first] == [c.accuracy for c in again]
    assert first[0].told != first[1].told


def test_children_that_cannot_count_are_not_trained(monkeypatch):
    monkeypatch.setattr("laconic.weights.students._workers.train_child", None)
    with lab(reward=Reward(max_params=1)) as place:
        space = RULES.space(vgg(), place.example, "removal")
        same, late = (
            place.judge(space, [row], iteration=20)[0] for row in (space.still(), space.least())
        )
        assert same.accuracy is late.accuracy is None
        assert place.value(same, 0) == place.value(late, 20) == -1


def test_invalid_children_are_told_and_worth_minus_one(monkeypatch):
    monkeypatch.setattr("laconic.weights.students._fitting.LARGEST_LINEAR", 300)
    model = vgg()
    with lab(model) as place:
        space = Rules(keep=()).space(model, place.example, "removal")
        child = place.judge(space, [space.least()])[0]
    assert "a linear layer would read 512 numbers" in child.reason
    assert place.value(child, 0) == -1
    assert child.to_dict()["params"] is None


def test_training_that_leaves_the_numbers_is_an_invalid_child():
    wild = ChildTraining(epochs=2, lr=1.0, loss="labels", batch_size=8)
    with lab(training=wild) as place:
        bad = Lesson(
            {**place.lesson.train, "x": place.lesson.train["x"] * float("nan")},
            place.lesson.validation,
            place.lesson.forward,
        )
        place.trainers.lesson = bad
        space = RULES.space(vgg(), place.example, "removal")
        child = place.judge(space, [space.least()])[0]
    assert "must be finite" in child.reason
    assert place.value(child, 0) == -1


def test_weights_are_not_inherited_unless_asked():
    model = vgg()
    with lab(model, inherit=True) as warm, lab(model) as cold:
        space = RULES.space(model, warm.example, "removal")
        state = dict(model.state_dict())
        given = warm.judge(space, [space.least()], weights=state)[0]
        fresh = cold.judge(space, [space.least()], weights=state)[0]
        first = "0.weight"
        moved = [
            float((place.weights_of(child)[first] - state[first]).norm())
            for place, child in ((warm, given), (cold, fresh))
        ]
    assert moved[0] < 0.5 * moved[1]
    assert given.key != fresh.key


def test_a_limit_on_size_is_kept(found):
    limit = found.teacher.params // 3
    result = search(stages=("removal",), iterations=3, reward=Reward(max_params=limit))
    assert result.best.params <= limit
    with pytest.raises(BudgetError, match=r"the smallest child has .* cannot be kept"):
        search(reward=Reward(max_params=50))
    with pytest.raises(
        BudgetError, match=r"no child keeps .*min_accuracy=1.0: .* best accuracy is"
    ):
        search(stages=("removal",), iterations=1, reward=Reward(min_accuracy=1.0))


def test_a_limit_that_removal_cannot_reach_is_left_to_shrinkage():
    rules = Rules(keep=("max-pool",), min_filters=2)
    result = search(iterations=(1, 3), reward=Reward(max_params=400), rules=rules)
    assert result.stages[0].best.size.params > 400 >= result.best.params


def test_cost_may_be_measured():
    asked = []

    def cost(model, example):
        asked.append(tuple(example.shape))
        return float(sum(isinstance(m, nn.Conv2d) for m in model.modules()))

    result = search(stages=("removal",), iterations=1, reward=Reward(cost=cost))
    assert result.teacher.cost == 4
    assert result.stages[0].best.size.cost < 4
    assert set(asked) == {(1, 1, 8, 8)}


def test_a_first_stage_with_nothing_to_decide_is_refused():
    with pytest.raises(ConfigError, match="has nothing to decide on this network"):
        search(stages=("shrinkage",), rules=Rules(keep=("max-pool", "linear", "conv")))


def test_a_second_stage_with_nothing_to_decide_hands_on_the_first():
    keep = ("max-pool", "conv")  # only the hidden linear layer may go
    rules = Rules(keep=keep, min_filters=99)
    result = search(rules=rules, iterations=(2, 2))
    assert len(result.history) == 2
    assert result.stages[1].best == result.stages[0].best
    assert result.policy is result.stages[0].policy


def test_a_stage_may_start_from_an_earlier_student(found):
    start = found.stages[0].best.spec.build()
    result = search(stages=("shrinkage",), iterations=1, start=start)
    assert result.teacher == found.teacher
    assert result.stages[0].best.size.params <= found.stages[0].best.size.params


def test_a_saved_policy_goes_on_with_a_deeper_teacher(found, tmp_path):
    found.policy_of("removal").save(tmp_path / "p.safetensors")
    spec = PolicySpec(lr=0.01, hidden=8, init=tmp_path / "p.safetensors")
    deep = vgg((8, 8, 8, 8, "pool", 12, 12, "pool"))
    result = n2n(
        deep, small_task(), stages=("removal",), iterations=1, rollouts=2, child=QUICK,
        final=None, policy=spec, rules=RULES, test=False,
    )  # fmt: skip
    assert result.test is None
    assert result.policy.features == found.policy_of("removal").features


def test_baselines():
    model = vgg()
    with lab(model) as place:
        removal = RULES.space(model, place.example, "removal")
        shrinkage = RULES.space(model, place.example, "shrinkage")
        random = random_search(place, removal, 3, seed=1)
        assert len({child.key for child in random}) == 3
        assert len(random_search(place, removal, 50)) < 50  # 16 sequences, fewer networks
        widths = uniform_width(place, shrinkage)
        params = [child.size.params for child in widths]
        assert params == sorted(params)
        assert params[0] < params[-1] < place.teacher_size.params
        greedy = greedy_drop(place, removal)
        assert [len(child.told["dropped"]) for child in greedy] == [1, 2, 3, 4]
        best = best_reward(place, [*random, *greedy])
        assert place.plain(best) == max(place.plain(c) for c in [*random, *greedy])
        alone = without_teacher(place, best, QUICK)
        assert 0 <= alone.accuracy <= 1
        assert alone.weights.keys() == place.weights_of(best).keys()


def test_losses_differ_in_what_they_learn_from():
    model = vgg()
    with lab(model) as place:
        space = RULES.space(model, place.example, "removal")
        spec = place.judge(space, [space.least()])[0].spec
        made = {
            loss: train_child(spec, place.lesson, ChildTraining(epochs=1, loss=loss)).weights
            for loss in ("mse", "kd", "labels")
        }
        wrong = Lesson(
            {**place.lesson.train, AIM: torch.zeros_like(place.lesson.train[AIM])},
            place.lesson.validation,
            place.lesson.forward,
        )
        blind = train_child(spec, wrong, ChildTraining(epochs=1, loss="labels")).weights
    sums = {loss: float(w["0.weight"].double().sum()) for loss, w in made.items()}
    assert len(set(sums.values())) == 3
    assert torch.equal(blind["0.weight"], made["labels"]["0.weight"])


def test_validation_examples_are_held_out_of_training():
    task = small_task()
    lesson = Lesson.of(vgg(), task, validation=None, holdout=0.25, seed=0)
    train, judge = ({tuple(x.flatten().tolist()) for x in part["x"]} for part in
                    (lesson.train, lesson.validation))  # fmt: skip
    assert len(lesson.train["x"]) == 120
    assert len(lesson.validation["x"]) == 40
    assert not train & judge
    given = Lesson.of(vgg(), task, validation=held_out(), holdout=0.25, seed=0)
    assert len(given.train["x"]) == 160


def test_mistakes_are_told():
    task = small_task()
    for changes, message in (
        ({"stages": ("removals",)}, "stage 'removals' is not one of .*Did you mean 'removal'"),
        ({"stages": ("shrinkage", "removal")}, "Swap them, or give any_order=True"),
        ({"stages": ("removal", "removal")}, "each once"),
        ({"iterations": (1, 2, 3)}, "for each of"),
        ({"rollouts": 0}, "rollouts=0 at least 1"),
        ({"holdout": 1.0}, "leaves 0 to train on"),
        ({"workers": 0}, "workers=0 must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            search(**changes)
    with pytest.raises(ConfigError, match="accuracy needs a classification task"):
        n2n(vgg(), Task(kind="regression", test=task.test, train=task.train))
    with pytest.raises(ConfigError, match="no training examples"):
        n2n(vgg(), Task(kind="classification", test=task.test))
    with pytest.raises(UnsupportedModelError, match="no removable unit"):
        search(rules=Rules(keep=("max-pool", "linear", "conv")))
    with pytest.raises(ConfigError, match="child training: lr=3"):
        ChildTraining(lr=3)


def test_stages_swap_only_when_told():
    result = search(stages=("shrinkage", "removal"), iterations=(1, 1), any_order=True)
    assert [stage.stage for stage in result.stages] == ["shrinkage", "removal"]
