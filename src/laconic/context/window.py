"""States of tokens: old ones in codes, the last ones in full precision."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from laconic.context._codes import Codes
from laconic.errors import ConfigError

Along = Literal["channel", "token", "full"]


class Window:
    """Keys, or values, of one attention layer, that grow token by token.

    Groups along tokens (``"channel"``) can only be rounded when they are whole: the window fills
    up to ``residual`` tokens, which are then rounded together. Groups along channels (``"token"``)
    are rounded for each token that leaves a window of the last ``residual`` tokens. However
    tokens come, one at a time or many, the same ones are rounded.

    Args:
        bits: Bits of a code, 1..8.
        group: Values that share a scale and a least value.
        residual: Tokens in full precision, a multiple of ``group``; None for all.
        along: ``"channel"``, ``"token"``, or ``"full"``: all stay in full precision.

    Source: Liu et al. 2024 (KIVI), section 3 and algorithm 1.
    """

    def __init__(self, bits: int, group: int, residual: int | None, along: Along) -> None:
        self.group, self.along = group, along
        self.residual = None if along == "full" else residual
        self.old: Codes | None = None
        if along != "full" and residual is not None:
            self.old = Codes(bits, group, along, residual)
        self.recent: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.rounded + (0 if self.recent is None else self.recent.shape[-2])

    @property
    def rounded(self) -> int:
        """Tokens held as codes: always the first ones."""
        return 0 if self.old is None else self.old.length

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        recent = 0 if self.recent is None else self.recent.numel() * self.recent.element_size()
        return recent + (0 if self.old is None else self.old.nbytes)

    def append(self, states: Tensor) -> Tensor:
        """Add states of new tokens; return those of all tokens, the new ones as they came.

        What a call adds is rounded after it: a first call attends to exact states, as in the
        paper.

        Shapes:
            states (batch, heads, new, width) -> (batch, heads, tokens, width)

        Raises:
            ConfigError: ``group`` does not divide the width, where groups lie along it.
            LayerError: States are not finite.
        """
        self._check_width(states.shape[-1])
        recent = states if self.recent is None else torch.cat([self.recent, states], dim=-2)
        whole = recent
        if self.old is not None and self.rounded:
            whole = torch.cat([self.old.states(), recent], dim=-2)
        leaving = self._leaving(recent.shape[-2])
        if self.old is not None and leaving:
            self.old.append(recent[..., :leaving, :])
            recent = recent[..., leaving:, :].clone()  # a view would hold on to what has left
        self.recent = recent
        return whole

    def cut(self, length: int) -> None:
        """Forget all but the first ``length`` tokens.

        Where that cuts through a group of codes, its remaining tokens go on as rounded values in
        the window.
        """
        if length >= self.length or self.recent is None:
            return
        if self.old is None or length >= self.rounded:
            self.recent = self.recent[..., : length - self.rounded, :].clone()
            return
        keep = length // self.group * self.group if self.along == "channel" else length
        rest = self.old.states(keep)[..., : length - keep, :]
        self.old.cut(keep)
        self.recent = rest.clone()

    def select(self, index: Tensor) -> None:
        """Take rows of the batch, as a beam search does."""
        if self.recent is not None:
            self.recent = self.recent[index.to(self.recent.device)]
        if self.old is not None:
            self.old.select(index)

    def repeat(self, times: int) -> None:
        """Repeat every row of the batch so many times in a row."""
        if self.recent is not None:
            self.recent = self.recent.repeat_interleave(times, 0)
        if self.old is not None:
            self.old.repeat(times)

    def _leaving(self, held: int) -> int:
        """Return how many of the window's tokens are rounded now."""
        if self.residual is None:
            return 0
        if self.along == "channel":
            return held // self.residual * self.residual
        return max(held - self.residual, 0)

    def _check_width(self, width: int) -> None:
        if self.along == "token" and self.residual is not None and width % self.group:
            fits = [n for n in range(1, self.group + 1) if width % n == 0][-3:]
            raise ConfigError(
                f"kv-cache: group={self.group} does not divide the {width} channels of a head. "
                f"Use one of {fits}."
            )
