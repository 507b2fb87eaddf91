"""The tensors of a bucket that are added up on the way: dense ones, and methods that allow it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from laconic.gradients.tensors import Tensors
from laconic.gradients.transport import Pending

if TYPE_CHECKING:
    from laconic.gradients.base import CommState, ReduceState

_FLAGS = 2  # values behind a coded tensor's first round: ranks that used it, ranks not finite


@dataclass
class _Flat:
    """Tensors of one dtype in one all-reduce: name -> (start, stop)."""

    dtype: torch.dtype
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    size: int = 0
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    pending: Pending | None = None

    def add(self, name: str, size: int) -> None:
        self.places[name] = (self.size, self.size + size)
        self.size += size

    def part(self, name: str) -> Tensor:
        start, stop = self.places[name]
        return self.values[start:stop]

    def wait(self) -> None:
        if self.pending is not None:
            self.values, self.pending = self.pending.wait(), None


class Reduced:
    """All-reduce dense tensors and, in one round or several, those of a ``ReduceState``."""

    def __init__(self, state: CommState, tensors: Tensors, reducer: ReduceState | None) -> None:
        self._state, self._tensors, self._reducer = state, tensors, reducer
        self._dense = set(tensors.dense)
        self._coded = tensors.coded if reducer is not None else []
        self._flags = _FLAGS if state.stateful else 0
        self._first: list[_Flat] = []
        self._latest: list[_Flat] = []
        self._stage = 0

    def launch(self) -> None:
        """Launch the first round; dense tensors ride along where the type is the same."""
        tensors = self._tensors
        if len(tensors.dense) == len(tensors.views):
            # The buffer itself, multiplied before the sum as DDP does where it has no hook.
            tensors.buffer.mul_(1.0 / self._state.transport.size)
            self._send([_Flat(tensors.buffer.dtype, values=tensors.buffer)])
            self._first = self._latest
            return
        flats = self._lay_out(stage=0)
        for flat in flats:
            for name in flat.places:
                part = flat.part(name)
                if name in self._dense:
                    part.copy_(tensors.views[name].reshape(-1))
                    part.mul_(1.0 / self._state.transport.size)
                else:
                    self._encode(name, part)
        self._send(flats)
        self._first = flats

    def _encode(self, name: str, part: Tensor) -> None:
        grad, used, finite = self._tensors.local(name)
        if self._flags:
            part[-2], part[-1] = used, 1 - finite
            part = part[: -self._flags]
        if self._reducer is not None:
            self._reducer.encode(name, grad, part)

    def next_round(self) -> bool:
        """Wait for the latest round and launch the one after it; false where there is none."""
        reducer = self._reducer
        if reducer is None or not self._coded or self._stage + 1 >= reducer.rounds:
            return False
        before = self._sums()
        self._stage += 1
        flats = self._lay_out(self._stage)
        for flat in flats:
            for name in flat.places:
                reducer.next_round(name, self._stage, before[name], flat.part(name))
        self._send(flats)
        return True

    def decode(self) -> None:
        """Wait for what is under way, then write every tensor's mean."""
        for flat in [*self._first, *self._latest]:
            flat.wait()
        self._decode_dense()
        sums = self._sums()
        for name in self._coded:
            used, finite = self._verdict(name)
            write = partial(self._write, name, sums[name])
            self._tensors.settle(name, write, used=used, finite=finite)

    def _write(self, name: str, total: Tensor, out: Tensor) -> None:
        if self._reducer is not None:
            self._reducer.finish(name, total, out)

    def _decode_dense(self) -> None:
        tensors = self._tensors
        for flat in self._first:
            if flat.values is not tensors.buffer and not flat.places:
                tensors.buffer.copy_(flat.values)
            for name in flat.places:
                if name in self._dense:
                    view = tensors.views[name]
                    view.copy_(flat.part(name).view(view.shape))
        if self._state.stateful and not all(_finite(tensors.views[name]) for name in tensors.dense):
            tensors.finite = False

    def _verdict(self, name: str) -> tuple[bool, bool]:
        if not self._flags:
            return True, True
        flat = next(flat for flat in self._first if name in flat.places)
        used, bad = flat.part(name)[-2:].tolist()
        return used > 0, bad == 0

    def _lay_out(self, stage: int) -> list[_Flat]:
        flats: dict[torch.dtype, _Flat] = {}
        tensors, reducer = self._tensors, self._reducer
        for name in tensors.views:
            if name in self._coded and reducer is not None:
                dtype = reducer.reduce_dtype(name)
                size = reducer.reduce_size(name, stage) + (0 if stage else self._flags)
            elif name in self._dense and not stage:
                dtype, size = tensors.buffer.dtype, tensors.views[name].numel()
            else:
                continue
            flats.setdefault(dtype, _Flat(dtype)).add(name, size)
        for flat in flats.values():
            flat.values = torch.zeros(flat.size, dtype=flat.dtype, device=tensors.buffer.device)
        return list(flats.values())

    def _send(self, flats: list[_Flat]) -> None:
        where = self._tensors.where(f"all-reduce {self._stage + 1}")
        for flat in flats:
            flat.pending = self._state.transport.all_reduce(flat.values, where=where)
        self._latest = flats

    def _sums(self) -> dict[str, Tensor]:
        cut = self._flags if not self._stage else 0
        out = {}
        for flat in self._latest:
            flat.wait()
            for name in flat.places:
                part = flat.part(name)
                out[name] = part[: part.numel() - cut]
        return out


def _finite(values: Tensor) -> bool:
    if not values.dtype.is_floating_point or not values.numel():
        return True
    return all(math.isfinite(end) for end in torch.stack(torch.aminmax(values)).tolist())
