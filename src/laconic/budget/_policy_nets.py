"""The recurrent networks behind a policy: what they read, and the logits that they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError

Feedback = Callable[[int, Tensor], Tensor]
"""Features of a step for each rollout, (N, F), from its index and the actions before, (N, step)."""


@dataclass(frozen=True)
class Decisions:
    """A sequence of decisions: what is known of each, and which options it has.

    Args:
        features: What the policy reads, (steps, F) float32.
        allowed: Options of each step, (steps, options) bool, at least one a step. A step with
            one option is fixed: it is taken for certain and never trains the policy.
        feedback: Features of a step once earlier actions are known, for policies that decide
            one step after another; the same ``features`` where None.

    Raises:
        ConfigError: Shapes that do not belong together, or a step without an option.
    """

    features: Tensor
    allowed: Tensor
    feedback: Feedback | None = None

    def __post_init__(self) -> None:
        f, a = tuple(self.features.shape), tuple(self.allowed.shape)
        if (
            len(f) != 2
            or len(a) != 2
            or f[0] != a[0]
            or not f[0]
            or self.allowed.dtype is not torch.bool
        ):
            raise ConfigError(
                f"decisions: features {f} and allowed {a} {self.allowed.dtype} must be (steps, F) "
                "and (steps, options) bool, with at least one step."
            )
        if not bool(self.allowed.any(1).all()):
            bad = int((~self.allowed.any(1)).nonzero()[0])
            raise ConfigError(
                f"decisions: step {bad} allows no option; each must allow at least one."
            )

    @property
    def steps(self) -> int:
        """Number of decisions."""
        return len(self.features)

    @property
    def options(self) -> int:
        """Number of options, the same for every step."""
        return self.allowed.shape[1]

    @property
    def free(self) -> Tensor:
        """Steps at which there is something to decide, (steps,) bool."""
        return self.allowed.sum(1) > 1


@dataclass(frozen=True)
class Played:
    """Rollouts of a policy.

    Attributes:
        actions: Chosen options, (N, steps) int64.
        log_probs: Log-probability of each rollout's free actions, (N,).
        entropies: Entropy of the free decisions, summed over steps, (N,).
        value: What the critic expects of the reward, a scalar; None without a critic.
    """

    actions: Tensor
    log_probs: Tensor
    entropies: Tensor
    value: Tensor | None = None


class Bidirectional(nn.Module):
    """A bidirectional LSTM that decides all steps at once, each for itself.

    Args:
        features: Numbers that describe a step.
        options: Options of a step.
        hidden: Units of an LSTM layer and direction.
        layers: LSTM layers.
        critic: Add a head that expects the reward from the mean of what the LSTM gives.

    Shapes:
        (steps, features) -> (steps, 2 * hidden) -> logits (steps, options)

    Source: Ashok et al. 2018 (N2N Learning), section 3.1; actor-critic variant in its appendix.
    """

    def __init__(
        self, features: int, options: int, hidden: int, layers: int, *, critic: bool = False
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, layers, bidirectional=True)
        self.head = nn.Linear(2 * hidden, options)
        self.critic = nn.Linear(2 * hidden, 1) if critic else None

    def play(
        self,
        decisions: Decisions,
        *,
        actions: Tensor | None,
        count: int,
        generator: torch.Generator | None,
    ) -> Played:
        """Score given actions, or sample ``count`` rollouts."""
        read, _ = self.lstm(decisions.features[:, None])  # (steps, 1, 2 * hidden)
        log_p = masked_log_softmax(self.head(read[:, 0]), decisions.allowed)  # (steps, options)
        if actions is None:
            picked = torch.multinomial(log_p.exp(), count, replacement=True, generator=generator)
            actions = picked.t().contiguous()
        free = decisions.free
        taken = log_p.expand(len(actions), -1, -1).gather(2, actions[..., None])[..., 0]
        entropy = entropy_of(log_p)[free].sum().expand(len(actions))
        value = None if self.critic is None else self.critic(read[:, 0].mean(0))[0]
        return Played(actions, taken[:, free].sum(1), entropy, value)


class Sequential(nn.Module):
    """A stack of LSTM cells that decides one step after another and knows what it decided.

    At each step it reads the step's description, as earlier actions have changed it, and which
    option it took before; with an encoder also what a bidirectional LSTM read at that step of
    the description before any action.

    Args:
        features: Numbers that describe a step.
        options: Options of a step.
        hidden: Units of a cell.
        layers: Cells on top of each other.
        encoder: Add the encoder.

    Shapes:
        (N, features + options (+ 2 * hidden)) -> (N, hidden) -> logits (N, options), each step

    Source: Ashok et al. 2018 (N2N Learning), section 3.2.

    Differs: the option taken before is read too, so that the policy also serves decisions whose
    descriptions do not change.
    """

    def __init__(
        self, features: int, options: int, hidden: int, layers: int, *, encoder: bool = False
    ) -> None:
        super().__init__()
        width = features + options + (2 * hidden if encoder else 0)
        self.encoder = nn.LSTM(features, hidden, bidirectional=True) if encoder else None
        self.cells = nn.ModuleList(
            nn.LSTMCell(hidden if layer else width, hidden) for layer in range(layers)
        )
        self.head = nn.Linear(hidden, options)
        self.hidden = hidden

    def play(
        self,
        decisions: Decisions,
        *,
        actions: Tensor | None,
        count: int,
        generator: torch.Generator | None,
    ) -> Played:
        """Score given actions, or sample ``count`` rollouts."""
        count = count if actions is None else len(actions)
        read = None if self.encoder is None else self.encoder(decisions.features[:, None])[0]
        zero = torch.zeros(count, self.hidden)
        states = [(zero, zero) for _ in self.cells]
        before = torch.zeros(count, decisions.options)
        taken: list[Tensor] = []
        log_probs, entropies = torch.zeros(count), torch.zeros(count)
        free = decisions.free.tolist()
        for step in range(decisions.steps):
            x = torch.cat([self._description(decisions, step, taken, count), before], 1)
            if read is not None:
                x = torch.cat([x, read[step].expand(count, -1)], 1)
            for depth, cell in enumerate(self.cells):
                states[depth] = cell(x, states[depth])
                x = states[depth][0]
            log_p = masked_log_softmax(self.head(x), decisions.allowed[step])  # (N, options)
            if actions is None:
                picked = torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]
            else:
                picked = actions[:, step]
            if free[step]:
                log_probs = log_probs + log_p.gather(1, picked[:, None])[:, 0]
                entropies = entropies + entropy_of(log_p)
            taken.append(picked)
            before = nn.functional.one_hot(picked, decisions.options).float()
        return Played(torch.stack(taken, 1), log_probs, entropies)

    @staticmethod
    def _description(decisions: Decisions, step: int, taken: list[Tensor], count: int) -> Tensor:
        if decisions.feedback is None:
            return decisions.features[step].expand(count, -1)
        prefix = torch.stack(taken, 1) if taken else torch.zeros(count, 0, dtype=torch.int64)
        return decisions.feedback(step, prefix)


def masked_log_softmax(logits: Tensor, allowed: Tensor) -> Tensor:
    """Return log-probabilities, -inf for options that are not allowed."""
    return logits.masked_fill(~allowed, float("-inf")).log_softmax(-1)


def entropy_of(log_p: Tensor) -> Tensor:
    """Return the entropy over the last axis in nats; an impossible option adds nothing."""
    finite = log_p.masked_fill(torch.isneginf(log_p), 0.0)
    return -(log_p.exp() * finite).sum(-1)
