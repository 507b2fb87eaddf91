"""The tensors of one bucket: gradients as a method may see them, means as DDP wants them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from laconic.gradients.base import CommState
    from laconic.gradients.exchange import Bucket

Flag = int | Tensor


class Tensors:
    """One bucket of one step.

    Args:
        state: The method and its memory.
        bucket: What DDP handed over.
        scale: Loss scale that the gradients carry.

    Attributes:
        views: Gradients by name, views of the bucket's buffer, in the order of the bucket.
        dense: Names that are all-reduced as they are.
        coded: The other names.
        used: Of coded names that are decoded: whether any rank's gradient was not zero.
        finite: Whether all that was decoded so far was finite on all ranks.
    """

    def __init__(self, state: CommState, bucket: Bucket, scale: float) -> None:
        self.state, self.at = state, bucket.index()
        self.scale = scale if state.stateful else 1.0  # memory outlives a loss scale
        self.buffer = bucket.buffer()
        names = [state.name_of(parameter) for parameter in bucket.parameters()]
        self.views = dict(zip(names, bucket.gradients(), strict=True))
        dense = set(names) if state.warming else state.dense_names
        self.dense = [name for name in names if name in dense]
        self.coded = [name for name in names if name not in dense]
        self.used: dict[str, bool] = {}
        self.finite = True

    def where(self, collective: str) -> str:
        """Return the place of a collective, for messages."""
        return f"step {self.state.step}, bucket {self.at}, {collective}"

    def local(self, name: str) -> tuple[Tensor, Flag, Flag]:
        """Return one local gradient as a method may see it, and its flags.

        Returns:
            The gradient without the loss scale, contiguous, of the working type; zeros in the
            place of one that is not finite, unless it travels as it is. Then whether
            it was used here (not all zeros) and whether it was finite, as 0 or 1; tensors on
            devices on which looking would make backward wait.
        """
        view, state = self.views[name], self.state
        used, finite = _flags(view)
        grad = view.to(state.work_dtype(name)).contiguous()
        if self.scale != 1.0:
            grad = grad / self.scale
        if state.stateful or state.route == "gather":
            if isinstance(finite, Tensor):
                grad = torch.where(finite.bool(), grad, 0.0)
            elif not finite:
                grad = torch.zeros_like(grad)
        for observer in state.observers:
            observer.gradient_ready(state, name, grad)
        return grad, used, finite

    def settle(
        self, name: str, write: Callable[[Tensor], None], *, used: bool, finite: bool
    ) -> None:
        """Put the mean of one tensor where DDP takes it from.

        Args:
            name: Which tensor.
            write: Writes the mean, without the loss scale, to the tensor it is given:
                contiguous, in the parameter's shape, of the working type.
            used: Whether any rank's gradient was not zero. Where none was the mean is zero and
                the memory stays: DDP may throw the result away.
            finite: Whether all ranks' gradients were finite; else the mean is NaN everywhere,
                so that every rank skips the optimiser's step alike.
        """
        view, dtype = self.views[name], self.state.work_dtype(name)
        self.used[name] = used
        if not finite:
            self.finite = False
            view.fill_(math.nan)
        elif not used:
            view.zero_()
        else:
            direct = view.dtype == dtype and view.is_contiguous()
            out = view if direct else torch.empty(view.shape, dtype=dtype, device=view.device)
            write(out)
            if self.scale != 1.0:
                out.mul_(self.scale)
            if not direct:
                view.copy_(out)


def _flags(view: Tensor) -> tuple[Flag, Flag]:
    low, high = torch.aminmax(view)
    if view.device.type == "cpu":
        ends = float(low), float(high)
        return int(ends != (0.0, 0.0)), int(all(map(math.isfinite, ends)))
    used = (low != 0) | (high != 0)
    finite = torch.isfinite(low) & torch.isfinite(high)
    return used.to(torch.uint8), finite.to(torch.uint8)
