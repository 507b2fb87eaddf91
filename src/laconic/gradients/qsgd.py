"""Round gradients at random to a few levels, so that the mean stays right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms.packing import pack, packed_bytes, unpack
from laconic.gradients.base import GatherState, Keep, Value
from laconic.gradients.buckets import bucket_count, cut, join
from laconic.gradients.tables import rounding_error
from laconic.gradients.wire import aligned, as_bytes, as_values
from laconic.registry import method
from laconic.seeds import generator_for
from laconic.settings import setting


@method(
    "qsgd",
    family="quantize",
    source="Alistarh, Grubic, Li, Tomioka and Vojnovic 2017",
    wing="gradients",
)
@dataclass(kw_only=True, eq=False, repr=False)
class QSGD(GatherState):
    """Round every entry at random to one of ``2**bits - 1`` levels, scaled by its bucket.

    For a bucket x of ``bucket`` entries, with s = 2**(bits - 1) - 1 and u uniform in [0, 1):

    ```
    scale = norm(x);   level = floor(s * x / scale + u), in -s .. s;   sent: level * scale / s
    ```

    so that the expectation of what is sent is x. A bucket of zeros sends zeros.

    Args:
        bits: Bits an entry, 2..8, packed on the wire; 2 are the three levels of TernGrad.
        bucket: Entries that share a scale (1024); None is the whole tensor.
        norm: ``"max"``: largest magnitude; ``"l2"``: Euclidean norm, as in the paper's theory,
            with far more variance in long buckets.
        error_feedback: Remember what rounding lost and add it to the next gradient. Not needed,
            as rounding has no bias; lowers the error that adds up at 2 and 3 bits. With
            ``norm="l2"`` it may diverge, and is refused.
        seed: Of the random rounding; what is drawn depends on it, the step, the rank and the
            tensor, and on nothing else.

    Shapes:
        gradient (...) of n entries -> scales (buckets,), zeros up to a multiple of 16 bytes,
        then n codes of ``bits`` bits: level + s, little-endian.

    Source: Alistarh et al. 2017, section 3.1; ``"max"`` as in their section 5.
    Differs: Codes have a fixed width instead of Elias coding: all ranks know the size.
    """

    bits: int = setting(4, help="Bits an entry.", low=2, high=8)
    bucket: int | None = setting(1024, help="Entries that share a scale.", low=1)
    norm: Literal["max", "l2"] = setting("max", help="What a bucket is scaled by.")
    error_feedback: bool = setting(False, help="Remember what rounding lost.")
    seed: int = setting(0, help="Of the random rounding.")

    tuned: ClassVar[str | None] = "bits"
    slots: ClassVar[Mapping[str, Keep]] = {"residual": "sum"}

    @property
    def stateful(self) -> bool:
        """Whether there is an error memory."""
        return self.error_feedback

    def check(self) -> None:
        """Refuse error feedback around a rounding that may enlarge the error."""
        super().check()
        if self.error_feedback and self.norm == "l2":
            raise ConfigError(
                "QSGD: error_feedback=True does not go with norm='l2', whose rounding error may "
                "be larger than the gradient and would grow. Use norm='max'."
            )

    def check_parameter(self, name: str, value: Value) -> None:
        """Refuse bits that are no whole number, or out of bounds."""
        super().check_parameter(name, value)
        if value != int(value):
            raise ConfigError(f"QSGD: {name}: bits={value} must be a whole number.")

    def _codes_at(self, name: str) -> int:
        size = self.named[name].numel()
        return aligned(bucket_count(size, self.bucket) * self.work_dtype(name).itemsize)

    def payload_bytes_at(self, name: str, value: Value) -> int:
        """Return the bytes of scales and packed codes."""
        return self._codes_at(name) + packed_bytes(self.named[name].numel(), int(value))

    def candidates(self, name: str) -> tuple[int, ...]:
        """Return 2 to 8 bits."""
        return tuple(range(2, 9))

    def encode(self, name: str, grad: Tensor, out: Tensor) -> None:
        """Write scales, then packed codes."""
        bits = int(self.parameter(name))
        total = self.corrected(name, grad) if self.error_feedback else grad
        runs = cut(total.view(-1), self.bucket)
        scale = self._scale(runs)
        codes = self._round(name, runs, scale, bits)
        split, size = self._codes_at(name), grad.numel()
        out[: scale.numel() * scale.element_size()].copy_(as_bytes(scale))
        out[split:].copy_(pack(join(codes, size), bits))
        if self.error_feedback:
            sent = join(_values(codes, scale, bits), size).view(grad.shape)
            self.draft(name, residual=total - sent)

    def _scale(self, runs: Tensor) -> Tensor:
        """Return (buckets, 1)."""
        order = float("inf") if self.norm == "max" else 2.0
        scale: Tensor = torch.linalg.vector_norm(runs, order, dim=1, keepdim=True)
        return scale

    def _round(self, name: str, runs: Tensor, scale: Tensor, bits: int) -> Tensor:
        """Return codes (buckets, size) uint8."""
        levels = 2 ** (bits - 1) - 1
        source = generator_for(self.seed, self.step, self.transport.rank, self.index[name])
        if runs.device.type != "cpu":
            source = torch.Generator(runs.device).manual_seed(source.initial_seed())
        places = torch.rand(runs.shape, dtype=runs.dtype, device=runs.device, generator=source)
        # scale / levels first: a scale that is barely a number must not become infinite
        step = torch.where(scale > 0, scale / levels, 1.0)
        places.addcdiv_(runs, step).add_(levels).floor_().clamp_(0, 2 * levels)
        return places.to(torch.uint8)

    def accumulate(self, name: str, payload: Tensor, out: Tensor) -> None:
        """Add one rank's values."""
        bits, size = int(self.parameter(name)), out.numel()
        buckets = bucket_count(size, self.bucket)
        scale = as_values(payload[: buckets * out.element_size()], out.dtype).view(-1, 1)
        codes = unpack(payload[self._codes_at(name) :].contiguous(), bits, size)
        values = _values(cut(codes, self.bucket), scale, bits)
        out.view(-1).add_(join(values, size))

    def error_at(self, name: str, grad: Tensor, value: Value) -> float:
        """Return the root of the expected squared rounding error."""
        runs = cut(grad.reshape(-1), self.bucket)
        return rounding_error(runs, 2 ** (int(value) - 1) - 1, self._scale(runs))


def _values(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    levels = 2 ** (bits - 1) - 1
    return codes.to(scale.dtype).sub_(levels).mul_(scale / levels)
