"""Policy gradient: a recurrent policy learns from rewards alone which option to take where.

It knows nothing of weights: it sees a sequence of feature vectors, the options of each step, and
the rewards of whole sequences. A policy that was trained on one problem can be saved and go on
with another of a different length.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from laconic.budget._policy_nets import Bidirectional, Decisions, Played, Sequential
from laconic.errors import ConfigError
from laconic.files import write_atomic
from laconic.seeds import generator_for
from laconic.settings import check_settings, setting

__all__ = ["Decisions", "Played", "Policy", "PolicySpec", "Reinforce"]

Kind = Literal["bidirectional", "autoregressive", "actor-critic", "encoder-decoder"]
_FORMAT = "laconic-policy"


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """Which policy, and how it learns.

    Args:
        kind: ``bidirectional`` decides all steps at once; ``autoregressive`` one after another,
            each knowing the last; ``actor-critic`` is bidirectional with a learned baseline;
            ``encoder-decoder`` reads everything before it decides one after another.
        hidden: Units of a recurrent layer; 30, as in the paper.
        layers: Recurrent layers; 2, as in the paper.
        lr: Step size of Adam; 0.003, as in the paper, suits hundreds of iterations. Searches of
            some tens of iterations want about 0.03; with 0.1 a policy collapses within a few.
        entropy: Weight of the entropy of decisions; 0 is plain REINFORCE.
        baseline_decay: Share of the old baseline that an iteration keeps; 0.7.
        critic_weight: Weight of the critic's squared error; for ``actor-critic`` alone.
        init: File of a saved policy to go on from.

    Raises:
        ConfigError: A value out of its bounds.

    Source: Ashok et al. 2018 (N2N Learning), sections 3.1, 3.2 and 4.2.
    """

    kind: Kind = setting("bidirectional", help="which recurrent policy")
    hidden: int = setting(30, help="units of a recurrent layer", low=1, high=4096)
    layers: int = setting(2, help="recurrent layers", low=1, high=16)
    lr: float = setting(0.003, help="step size of Adam", low=1e-6, high=1.0)
    entropy: float = setting(0.0, help="weight of the entropy of decisions", low=0, high=10)
    baseline_decay: float = setting(0.7, help="share of the old baseline kept", low=0, high=1)
    critic_weight: float = setting(0.5, help="weight of the critic's error", low=0, high=100)
    init: Path | None = setting(None, help="saved policy to go on from")

    def __post_init__(self) -> None:
        check_settings(self, owner="policy")


class Policy(nn.Module):
    """A recurrent policy over sequences of decisions.

    Args:
        spec: Which network; how it learns does not matter here.
        features: Numbers that describe a step.
        options: Options of a step.
        seed: Source of the initial weights; the global random state is left alone.
    """

    def __init__(self, spec: PolicySpec, features: int, options: int, *, seed: int = 0) -> None:
        super().__init__()
        self.kind, self.features, self.options = spec.kind, features, options
        self.hidden, self.layers = spec.hidden, spec.layers
        sizes = (features, options, spec.hidden, spec.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_for(seed, "policy weights").initial_seed())
            self.net: Bidirectional | Sequential
            if spec.kind in ("bidirectional", "actor-critic"):
                self.net = Bidirectional(*sizes, critic=spec.kind == "actor-critic")
            else:
                self.net = Sequential(*sizes, encoder=spec.kind == "encoder-decoder")

    def sample(
        self, decisions: Decisions, count: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``count`` sequences of actions, (count, steps) int64."""
        self._check(decisions)
        with torch.no_grad():
            return self.net.play(decisions, actions=None, count=count, generator=generator).actions

    def score(self, decisions: Decisions, actions: Tensor) -> Played:
        """Return log-probabilities and entropies of sequences of actions, with gradients."""
        self._check(decisions)
        return self.net.play(decisions, actions=actions, count=len(actions), generator=None)

    def _check(self, decisions: Decisions) -> None:
        came = (decisions.features.shape[1], decisions.options)
        if came != (self.features, self.options):
            raise ConfigError(
                f"policy: decisions have {came[0]} features and {came[1]} options; this policy "
                f"was made for {self.features} and {self.options}. Describe both problems alike."
            )

    def save(self, path: Path | str) -> None:
        """Write the policy as one safetensors file, atomically."""
        about = {
            key: getattr(self, key) for key in ("kind", "features", "options", "hidden", "layers")
        }
        tensors = {name: t.detach().contiguous() for name, t in self.state_dict().items()}
        write_atomic(Path(path), save(tensors, metadata={_FORMAT: json.dumps(about)}))

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """Read a policy that :meth:`save` wrote.

        Raises:
            ConfigError: The file is not a policy, or is damaged.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {})[_FORMAT])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            spec = PolicySpec(**{key: about[key] for key in ("kind", "hidden", "layers")})
            policy = cls(spec, int(about["features"]), int(about["options"]))
            policy.load_state_dict(tensors)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(
                f"policy file {Path(path).name}: not a saved policy ({error}). Give a file that "
                "Policy.save wrote."
            ) from error
        return policy


class Reinforce:
    """Trains a policy by REINFORCE with a baseline.

    After N rollouts with rewards R_i the gradient of the expected reward is taken as
    (1/N) sum_i (R_i - b) grad log pi(rollout i). The baseline b is an exponential moving average
    of mean rewards; it starts at the first one. With a critic b is what the critic expects.

    Args:
        policy: Trained in place.
        spec: How it learns.
        seed: Source of what is sampled.

    Source: Williams 1992; Ashok et al. 2018, section 3.4 and equation 4.

    Differs: each rollout is weighted by its own advantage; the authors' code gives all rollouts
    of an iteration the same one.
    """

    def __init__(self, policy: Policy, spec: PolicySpec, *, seed: int = 0) -> None:
        self.policy, self.spec = policy, spec
        self.generator = generator_for(seed, "policy actions")
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=spec.lr, foreach=False)
        self.baseline: float | None = None

    @classmethod
    def start(cls, spec: PolicySpec, decisions: Decisions, *, seed: int = 0) -> Reinforce:
        """Make a policy for a problem, or take up the saved one that ``spec.init`` names.

        Raises:
            ConfigError: The saved policy is of another kind or size.
        """
        if spec.init is None:
            policy = Policy(spec, decisions.features.shape[1], decisions.options, seed=seed)
        else:
            policy = Policy.load(spec.init)
            if policy.kind != spec.kind:
                raise ConfigError(
                    f"policy file {spec.init.name} holds kind {policy.kind!r}, not {spec.kind!r}. "
                    "Give PolicySpec the kind of the file."
                )
            policy._check(decisions)
        return cls(policy, spec, seed=seed)

    def sample(self, decisions: Decisions, count: int) -> Tensor:
        """Draw the rollouts of an iteration, (count, steps) int64."""
        return self.policy.sample(decisions, count, self.generator)

    def loss(self, decisions: Decisions, actions: Tensor, rewards: Tensor) -> Tensor:
        """Return what an update minimises; its gradient is minus that of the reward.

        Args:
            decisions: The problem.
            actions: Rollouts, (N, steps) int64.
            rewards: Their rewards, (N,).
        """
        played = self.policy.score(decisions, actions)
        baseline: Tensor | float
        if played.value is not None:
            baseline = played.value.detach()
        else:
            baseline = float(rewards.mean()) if self.baseline is None else self.baseline
        loss = -((rewards - baseline) * played.log_probs).mean()
        if self.spec.entropy:
            loss = loss - self.spec.entropy * played.entropies.mean()
        if played.value is not None:
            loss = loss + self.spec.critic_weight * (rewards - played.value).square().mean()
        return loss

    def update(self, decisions: Decisions, actions: Tensor, rewards: Tensor) -> None:
        """Do one step of Adam and move the baseline.

        Raises:
            ConfigError: A reward that is not finite.
        """
        if not bool(torch.isfinite(rewards).all()):
            raise ConfigError(f"policy: rewards {rewards.tolist()} must all be finite.")
        rewards = rewards.float()
        self.optimizer.zero_grad()
        loss = self.loss(decisions, actions, rewards)
        if loss.requires_grad and bool(decisions.free.any()):
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        mean, keep = float(rewards.mean()), self.spec.baseline_decay
        held = self.baseline
        self.baseline = mean if held is None else keep * held + (1 - keep) * mean

    def entropy(self, decisions: Decisions, actions: Tensor) -> float:
        """Return the mean entropy of a free decision in nats."""
        with torch.no_grad():
            total = self.policy.score(decisions, actions).entropies.mean()
        return float(total) / max(int(decisions.free.sum()), 1)

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run needs: tensors and plain values alone."""
        return {
            "policy": {name: t.clone() for name, t in self.policy.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "baseline": self.baseline,
            "spec": {**asdict(self.spec), "init": None},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up an earlier :meth:`state`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.baseline = state["baseline"]
