import copy

import pytest
import torch

from laconic.budget.policy import Decisions, Policy, PolicySpec, Reinforce
from laconic.errors import ConfigError

KINDS = ("bidirectional", "autoregressive", "actor-critic", "encoder-decoder")


def decisions(steps=5, features=3, options=4, fixed=()):
    allowed = torch.ones(steps, options, dtype=torch.bool)
    for step in fixed:
        allowed[step, 1:] = False
    described = torch.randn(steps, features, generator=torch.Generator().manual_seed(1))
    return Decisions(described, allowed)


def learner(kind="bidirectional", problem=None, **changes):
    spec = PolicySpec(kind=kind, hidden=8, **changes)
    return Reinforce.start(spec, problem or decisions(), seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_actions_are_allowed_and_repeat_with_the_seed(kind):
    problem = decisions(fixed=(0, 3))
    first, second = (learner(kind, problem).sample(problem, 40) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (40, 5)
    assert not first[:, [0, 3]].any()
    assert (first[:, 1].unique().numel()) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_all_sequences_sum_to_one(kind):
    problem = decisions(steps=3, options=2, fixed=(1,))
    actions = torch.tensor([[a, 0, b] for a in (0, 1) for b in (0, 1)])
    total = learner(kind, problem).policy.score(problem, actions).log_probs.detach().exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scored_log_probabilities_are_those_that_were_sampled_from(kind):
    """Independent estimate: the share of samples of a sequence is its probability."""
    problem = decisions(steps=2, options=2)
    policy = learner(kind, problem).policy
    drawn = policy.sample(problem, 4000, torch.Generator().manual_seed(0))
    actions = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    told = policy.score(problem, actions).log_probs.detach().exp()
    seen = torch.stack([(drawn == row).all(1).float().mean() for row in actions])
    assert torch.allclose(told, seen, atol=0.03)


def test_estimator_is_the_exact_gradient_of_a_two_action_bandit():
    """J = p r1 + (1 - p) r0 with p = sigmoid(z1 - z0): dJ/dz1 = p (1 - p)(r1 - r0)."""
    problem = decisions(steps=1, options=2)
    it = learner(problem=problem)
    it.baseline = 0.37
    bias = it.policy.net.head.bias
    p = float(it.policy.score(problem, torch.tensor([[1]])).log_probs.detach().exp())
    actions = it.sample(problem, 10_000)
    rewards = torch.where(actions[:, 0] == 1, 0.9, 0.2)
    (gradient,) = torch.autograd.grad(-it.loss(problem, actions, rewards), bias)
    exact = p * (1 - p) * (0.9 - 0.2)
    assert float(gradient[1]) == pytest.approx(exact, abs=0.01)
    assert float(gradient[0]) == pytest.approx(-exact, abs=0.01)


def test_each_rollout_is_weighted_by_its_own_advantage():
    """Rewards whose mean is the baseline must still move the policy to the better rollout."""
    problem = decisions(steps=1, options=2)
    it = learner(problem=problem, lr=0.01)
    it.baseline = 0.5
    good = torch.tensor([[1]])
    before = float(it.policy.score(problem, good).log_probs.detach())
    it.update(problem, torch.tensor([[0], [1]]), torch.tensor([0.0, 1.0]))
    assert float(it.policy.score(problem, good).log_probs.detach()) > before


@pytest.mark.parametrize("kind", ["bidirectional", "autoregressive", "encoder-decoder"])
def test_equal_rewards_at_the_baseline_change_nothing(kind):
    it = learner(kind)
    before = copy.deepcopy(it.policy.state_dict())
    actions = it.sample(decisions(), 5)
    it.update(decisions(), actions, torch.full((5,), 0.25))  # the first baseline is their mean
    assert all(torch.equal(before[name], t) for name, t in it.policy.state_dict().items())


def test_baseline_starts_at_the_first_mean_and_then_moves_by_its_share():
    it, problem = learner(), decisions()
    for rewards, wanted in (([0.2, 0.4], 0.3), ([1.0, 1.0], 0.7 * 0.3 + 0.3 * 1.0)):
        it.update(problem, it.sample(problem, 2), torch.tensor(rewards))
        assert it.baseline == pytest.approx(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_steps_give_no_gradient(kind):
    """All steps fixed: the score is zero and so is every gradient."""
    problem = decisions(fixed=range(5))
    it = learner(kind, problem)
    played = it.policy.score(problem, it.sample(problem, 3))
    assert torch.equal(played.log_probs, torch.zeros(3))
    before = copy.deepcopy(it.policy.state_dict())
    it.update(problem, it.sample(problem, 3), torch.tensor([0.0, 1.0, 2.0]))
    assert all(torch.equal(before[name], t) for name, t in it.policy.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_score_of_free_steps_does_not_depend_on_fixed_ones(kind):
    problem = decisions(options=2, fixed=(2,))
    it = learner(kind, problem)
    each = [0, 1, 0, 1, 1]
    taken = torch.tensor([each])
    log_p = float(it.policy.score(problem, taken).log_probs.detach())
    steps = torch.tensor([[a if s == keep else 0 for s, a in enumerate(each)] for keep in range(5)])
    assert log_p < 0
    if kind in ("bidirectional", "actor-critic"):  # steps are independent there
        alone = it.policy.score(problem, steps).log_probs.detach()
        others = it.policy.score(problem, torch.zeros(1, 5, dtype=torch.int64)).log_probs.detach()
        assert log_p == pytest.approx(float(alone.sum() - 4 * others), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_trained(kind):
    it, problem = learner(kind), decisions()
    held = {id(p) for group in it.optimizer.param_groups for p in group["params"]}
    named = dict(it.policy.named_parameters())
    assert {id(p) for p in named.values()} == held
    assert any("weight_hh" in name for name in named)
    before = copy.deepcopy(it.policy.state_dict())
    it.update(problem, it.sample(problem, 4), torch.tensor([0.0, 1.0, 0.3, 0.6]))
    still = [name for name in named if torch.equal(before[name], it.policy.state_dict()[name])]
    assert still == []


def test_entropy_bonus_adds_exactly_the_entropy():
    plain, bonus = learner(), learner(entropy=0.5)
    problem, rewards = decisions(), torch.tensor([0.1, 0.9])
    actions = plain.sample(problem, 2)
    entropy = plain.policy.score(problem, actions).entropies.mean().detach()
    difference = plain.loss(problem, actions, rewards) - bonus.loss(problem, actions, rewards)
    assert float(difference.detach()) == pytest.approx(0.5 * float(entropy), rel=1e-5)
    assert 0 < plain.entropy(problem, actions) <= torch.log(torch.tensor(4.0)) + 1e-6


def test_the_critic_learns_the_mean_reward():
    it, problem = learner("actor-critic", lr=0.05), decisions()
    for _ in range(60):
        it.update(problem, it.sample(problem, 4), torch.full((4,), 0.8))
    assert float(it.policy.score(problem, it.sample(problem, 1)).value.detach()) == pytest.approx(
        0.8, abs=0.05
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_reads_the_descriptions(kind):
    """Shuffled descriptions give other probabilities: nothing else can be transferred."""
    problem = decisions()
    shuffled = Decisions(problem.features.flip(0), problem.allowed)
    policy = learner(kind, problem).policy
    actions = torch.tensor([[0, 1, 2, 3, 0]])
    a, b = (float(policy.score(p, actions).log_probs.detach()) for p in (problem, shuffled))
    assert abs(a - b) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_saved_policies_go_on_with_longer_problems(kind, tmp_path):
    it = learner(kind)
    it.policy.save(tmp_path / "policy.safetensors")
    spec = PolicySpec(kind=kind, hidden=8, init=tmp_path / "policy.safetensors")
    longer = decisions(steps=9)
    again = Reinforce.start(spec, longer)
    assert again.sample(longer, 2).shape == (2, 9)
    actions = torch.zeros(1, 5, dtype=torch.int64)
    scores = [
        float(p.score(decisions(), actions).log_probs.detach()) for p in (it.policy, again.policy)
    ]
    assert scores[0] == scores[1]


def test_saved_policies_of_another_kind_or_size_are_refused(tmp_path):
    path = tmp_path / "policy.safetensors"
    learner().policy.save(path)
    with pytest.raises(ConfigError, match="holds kind 'bidirectional', not 'autoregressive'"):
        learner("autoregressive", init=path)
    with pytest.raises(ConfigError, match="have 7 features and 4 options"):
        learner(problem=decisions(features=7), init=path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ConfigError, match="not a saved policy"):
        Policy.load(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_taken_up_learner_goes_on_as_the_uninterrupted_one(kind):
    whole, problem = learner(kind), decisions()
    parts = learner(kind)

    def step(it):
        actions = it.sample(problem, 3)
        it.update(problem, actions, actions.float().mean(1))

    for _ in range(4):
        step(whole)
    step(parts)
    step(parts)
    fresh = learner(kind)
    fresh.load_state(copy.deepcopy(parts.state()))
    step(fresh)
    step(fresh)
    for a, b in zip(whole.policy.parameters(), fresh.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_feedback_changes_what_later_steps_read():
    seen = []

    def feedback(step, before):
        seen.append((step, tuple(before.shape)))
        return before.float().sum(1, keepdim=True).expand(-1, 3)

    problem = Decisions(torch.zeros(3, 3), torch.ones(3, 2, dtype=torch.bool), feedback)
    learner("autoregressive", problem).sample(problem, 4)
    assert seen == [(0, (4, 0)), (1, (4, 1)), (2, (4, 2))]


def test_mistakes_are_told():
    with pytest.raises(ConfigError, match="step 1 allows no option"):
        Decisions(torch.zeros(2, 1), torch.tensor([[True], [False]]))
    with pytest.raises(ConfigError, match=r"features \(2, 1\) and allowed \(3, 1\)"):
        Decisions(torch.zeros(2, 1), torch.ones(3, 1, dtype=torch.bool))
    with pytest.raises(ConfigError, match="kind='lstm' must be one of"):
        PolicySpec(kind="lstm")
    it = learner()
    with pytest.raises(ConfigError, match="must all be finite"):
        it.update(decisions(), it.sample(decisions(), 1), torch.tensor([float("nan")]))
