"""States of tokens as packed codes that grow along the token axis."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from laconic.errors import LayerError
from laconic.forms.packing import pack, unpack

Axis = Literal["channel", "token"]
_WORD = 8  # symbols that fill whole bytes at every width


class Codes:
    """Asymmetric codes of ``bits`` bits: ``least + scale * code``, packed without gaps.

    With axis ``"channel"`` a group is ``group`` consecutive tokens of one channel, with
    ``"token"`` it is ``group`` consecutive channels of one token. Tensors grow by ``step`` tokens
    at a time, so that adding one token does not copy all others; what is allocated counts.

    Args:
        bits: Bits of a code, 1..8.
        group: Values that share a scale and a least value.
        axis: Along what values lie alike.
        step: Tokens by which room grows; a multiple of ``group``.

    Shapes:
        states (batch, heads, tokens, width) -> codes (batch, heads, tokens, bytes) uint8, scale
        and least (batch, heads, tokens / group, width) or (batch, heads, tokens, width / group)
    """

    def __init__(self, bits: int, group: int, axis: Axis, step: int) -> None:
        self.bits, self.group, self.axis, self.step = bits, group, axis, step
        self.length = 0
        self._held: dict[str, Tensor] = {}
        self._dtype = torch.float32

    @property
    def nbytes(self) -> int:
        """Bytes allocated for codes, scales and least values."""
        return sum(t.numel() * t.element_size() for t in self._held.values())

    def append(self, states: Tensor) -> None:
        """Round states (batch, heads, tokens, width) and add them at the end.

        Raises:
            LayerError: Values are not finite, or too large for the type of the scales.
        """
        self._dtype = states.dtype
        groups = self._grouped(states.detach().float())
        low, high = torch.aminmax(groups, dim=-1, keepdim=True)
        store = torch.bfloat16 if states.dtype == torch.bfloat16 else torch.float16
        scale = ((high - low) / (2**self.bits - 1)).to(store)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        least = low.to(store)
        if not bool(torch.isfinite(scale).all() and torch.isfinite(least).all()):
            raise LayerError(
                f"kv-cache: states from {float(low.amin()):.3g} to {float(high.amax()):.3g} are "
                f"not finite or beyond {store}. Keep this model's cache in full precision."
            )
        # Codes come from the rounded scale and least value, as they are read.
        codes = ((groups - least.float()) / scale.float()).round_().clamp_(0, 2**self.bits - 1)
        new = {
            "codes": self._packed(self._flat(codes.to(torch.uint8), states.shape[-1])),
            "scale": scale.squeeze(-1),
            "least": least.squeeze(-1),
        }
        for name, tensor in new.items():
            self._write(name, tensor)
        self.length += states.shape[-2]

    def states(self, start: int = 0) -> Tensor:
        """Return what the codes stand for from a token on, in the type that was added.

        Args:
            start: First token; a multiple of ``group`` where groups lie along tokens.
        """
        first = start // self.group if self.axis == "channel" else start
        last = self.length // self.group if self.axis == "channel" else self.length
        scale = self._held["scale"][:, :, first:last].float()
        least = self._held["least"][:, :, first:last].float()
        width = scale.shape[-1] * (1 if self.axis == "channel" else self.group)
        codes = self._unpacked(self._held["codes"][:, :, start : self.length], width)
        groups = self._grouped(codes.float())
        values = groups.mul_(scale.unsqueeze(-1)).add_(least.unsqueeze(-1))
        return self._flat(values, width).to(self._dtype)

    def cut(self, length: int) -> None:
        """Forget all but the first tokens; a multiple of ``group`` where groups lie along them."""
        self.length = length

    def select(self, index: Tensor) -> None:
        """Take rows of the batch: the new row i is the old row ``index[i]``."""
        self._held = {name: t[index.to(t.device)] for name, t in self._held.items()}

    def repeat(self, times: int) -> None:
        """Repeat every row of the batch so many times in a row."""
        self._held = {name: t.repeat_interleave(times, 0) for name, t in self._held.items()}

    def _grouped(self, states: Tensor) -> Tensor:
        """Return groups along the last axis."""
        batch, heads, tokens, width = states.shape
        if self.axis == "token":
            return states.reshape(batch, heads, tokens, width // self.group, self.group)
        parts = states.reshape(batch, heads, tokens // self.group, self.group, width)
        return parts.transpose(-1, -2)

    def _flat(self, groups: Tensor, width: int) -> Tensor:
        """Return groups in the order of states: the inverse of grouping."""
        if self.axis == "channel":
            groups = groups.transpose(-1, -2)
        return groups.reshape(*groups.shape[:2], -1, width)

    def _packed(self, codes: Tensor) -> Tensor:
        spare = -codes.shape[-1] % _WORD
        padded = torch.nn.functional.pad(codes, (0, spare))
        size = padded.shape[-1] // _WORD * self.bits
        return pack(padded.reshape(-1), self.bits).view(*codes.shape[:-1], size)

    def _unpacked(self, packed: Tensor, width: int) -> Tensor:
        symbols = packed.shape[-1] // self.bits * _WORD
        count = packed.numel() // max(packed.shape[-1], 1) * symbols
        flat = unpack(packed.reshape(-1), self.bits, count)
        return flat.view(*packed.shape[:-1], symbols)[..., :width]

    def _write(self, name: str, new: Tensor) -> None:
        """Write rows of the token axis behind those that count, in room that grows by steps."""
        tokens = name == "codes" or self.axis == "token"
        share = 1 if tokens else self.group
        used, step = self.length // share, max(self.step // share, 1)
        held = self._held.get(name)
        room = 0 if held is None else held.shape[2]
        if used + new.shape[2] > room:
            more = -(-(used + new.shape[2] - room) // step) * step
            fresh = new.new_zeros(*new.shape[:2], more, new.shape[3])
            self._held[name] = fresh if held is None else torch.cat([held, fresh], 2)
        self._held[name][:, :, used : used + new.shape[2]] = new
