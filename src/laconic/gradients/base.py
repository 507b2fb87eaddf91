"""What every way of making gradients smaller is: messages that are gathered, or added up.

A method is one subclass in one file. It says how many bytes one tensor takes and how one tensor
becomes bytes and comes back; everything between DDP and the wire is :mod:`.exchange`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.gradients.observer import Observer as Observer
from laconic.gradients.state import CommState as CommState
from laconic.gradients.state import Keep as Keep
from laconic.gradients.state import Value as Value


class GatherState(CommState):
    """A method whose messages are gathered: every rank decodes those of all ranks."""

    route: ClassVar[Literal["gather", "reduce"]] = "gather"

    @abstractmethod
    def encode(self, name: str, grad: Tensor, out: Tensor) -> None:
        """Write a tensor's message.

        Args:
            name: Which tensor.
            grad: Local gradient in the shape of the parameter, float32 or float64, finite, not
                divided by the number of ranks. Not to be kept or changed.
            out: (payload_bytes(name),) uint8, zeros, aligned to 16 bytes.

        What is to be remembered goes through :meth:`draft`.
        """

    @abstractmethod
    def accumulate(self, name: str, payload: Tensor, out: Tensor) -> None:
        """Add one rank's decoded message to ``out``, in place.

        Args:
            name: Which tensor.
            payload: (payload_bytes(name),) uint8, aligned to 16 bytes.
            out: Sum so far, in the shape of the parameter, contiguous, of ``work_dtype(name)``.
        """

    def decode(self, name: str, payloads: Tensor, out: Tensor) -> None:
        """Write the sum of all ranks' messages (N, bytes) to ``out``, in rank order."""
        out.zero_()
        for payload in payloads:
            self.accumulate(name, payload, out)


class ReduceState(CommState):
    """A method whose messages can be added up on the way: they are all-reduced.

    A tensor takes ``rounds`` all-reduces one after another.
    """

    route: ClassVar[Literal["gather", "reduce"]] = "reduce"
    rounds: ClassVar[int] = 1

    @abstractmethod
    def reduce_size(self, name: str, stage: int) -> int:
        """Return the number of values in round ``stage``, 0 .. rounds - 1."""

    def reduce_dtype(self, name: str) -> torch.dtype:
        """Return the type of those values."""
        return self.work_dtype(name)

    @abstractmethod
    def encode(self, name: str, grad: Tensor, out: Tensor) -> None:
        """Write the values (reduce_size(name, 0),) of the first round; as in GatherState."""

    def next_round(self, name: str, stage: int, reduced: Tensor, out: Tensor) -> None:
        """Write the values of round ``stage`` >= 1, given the sum of the round before."""
        raise ConfigError(f"{type(self).__name__}: {name!r} has no round {stage}.")

    @abstractmethod
    def finish(self, name: str, reduced: Tensor, out: Tensor) -> None:
        """Write the mean over all ranks to ``out``, given the sum of the last round."""
