"""Send the largest entries; remember the rest and add it to the next gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from laconic.errors import ConfigError
from laconic.gradients.base import GatherState, Keep, Value
from laconic.gradients.entries import Entries, ValueChoice, value_dtype
from laconic.gradients.indices import IndexChoice
from laconic.gradients.select import select_top
from laconic.gradients.tables import topk_errors
from laconic.registry import method
from laconic.settings import setting

_GRID = range(-3, 4)  # candidates: the density times these powers of two


@method(
    "top-k",
    family="sparsify",
    source="Aji and Heafield 2017; error feedback as in Stich, Cordonnier and Jaggi 2018",
    wing="gradients",
)
@dataclass(kw_only=True, eq=False, repr=False)
class TopK(GatherState):
    """Send the entries of largest magnitude, with error feedback.

    On each rank, for a tensor of n entries (e: error memory, K = ceil(density * n)):

    ```
    v = e + g;   S = the K entries of v of largest magnitude;   send S and v[S]
    e = v, with v[S] taken off: 0, or what rounding the values lost
    gradient for the optimiser = sum of what all ranks sent / N
    ```

    With momentum in the optimiser this is gradient dropping; for thousandths see ``DGC``, which
    keeps the momentum on the ranks.

    Args:
        density: Share of entries sent, above 0 and up to 1.
        values: What values are sent as; what half precision rounds away stays in e. float32
            stands for float64 where the parameter has it.
        indices: How indices are written; ``"auto"`` is the smallest for each tensor.
        sample_ratio: Share of a tensor that the selection's first threshold is read from.

    Shapes:
        gradient (...) -> values (K,), then the code of K indices.

    Source: Aji and Heafield 2017, section 3; Stich et al. 2018, Algorithm 1.
    Differs: K entries of every tensor, not of the whole gradient; ties go to the lower index.
    """

    density: float = setting(0.01, help="Share of a tensor's entries sent.", low=0, high=1)
    values: ValueChoice = setting("float32", help="What values are sent as.")
    indices: IndexChoice = setting("auto", help="How indices are written.")
    sample_ratio: float = setting(0.01, help="Share read for the threshold.", low=1e-6, high=1)

    tuned: ClassVar[str | None] = "density"
    slots: ClassVar[Mapping[str, Keep]] = {"residual": "sum"}

    def check(self) -> None:
        """Refuse a density of 0."""
        super().check()
        if self.density == 0:
            raise ConfigError(
                f"{type(self).__name__}: density=0 must be above 0; nothing would ever be sent."
            )

    def check_parameter(self, name: str, value: Value) -> None:
        """Refuse a density of 0 for one tensor."""
        super().check_parameter(name, value)
        if value == 0:
            raise ConfigError(f"{type(self).__name__}: {name}: density=0 must be above 0.")

    def kept(self, name: str, value: Value) -> int:
        """Return K at a density: at least one entry."""
        size = self.named[name].numel()
        # 1e-9: a density such as 0.07 is not to round 7.000000000000001 entries up to 8
        return min(size, max(1, math.ceil(value * size * (1 - 1e-9))))

    def entries(self, name: str, value: Value) -> Entries:
        """Return how a tensor's entries are written at a density."""
        dtype = value_dtype(self.values, self.work_dtype(name))
        return Entries(self.named[name].numel(), self.kept(name, value), dtype, self.indices)

    def payload_bytes_at(self, name: str, value: Value) -> int:
        """Return the bytes of K values and their indices."""
        return self.entries(name, value).total

    def fits(self, name: str) -> bool:
        """Return whether the message is no larger than the gradient."""
        return self.payload_bytes(name) <= self.dense_bytes(name)

    def encode(self, name: str, grad: Tensor, out: Tensor) -> None:
        """Write the K largest entries of v, then where they are."""
        total = self.corrected(name, grad)
        entries = self.entries(name, self.parameter(name))
        flat = total.view(-1)
        chosen = select_top(flat, entries.count, sample_ratio=self.sample_ratio)
        entries.write_(flat, chosen, out)
        self.draft(name, residual=total)

    def accumulate(self, name: str, payload: Tensor, out: Tensor) -> None:
        """Add one rank's entries at their places."""
        self.entries(name, self.parameter(name)).add_(payload, out.view(-1))

    def candidates(self, name: str) -> tuple[float, ...]:
        """Return the density and up to eight times less and more, cheapest first."""
        return tuple(self.density * 2.0**power for power in _GRID if self.density * 2**power <= 1)

    def error_at(self, name: str, grad: Tensor, value: Value) -> float:
        """Return the norm of the entries that stay behind."""
        return topk_errors(grad, [self.kept(name, value)])[0]
