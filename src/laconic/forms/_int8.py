"""Integer products: signed 8-bit weights times activations rounded to 8 bits at each call."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import isfinite

import torch
from torch import Tensor

from laconic.forms.base import Form
from laconic.forms.permuted import Permuted
from laconic.forms.quantized import Quantized
from laconic.forms.rotated import Rotated
from laconic.forms.sparse import Sparse
from laconic.forms.sum import Sum

Run = Callable[[Tensor], Tensor]
INT8_KERNELS = ("int8-onednn", "int8-intmm")
_TINY = 1e-30  # smallest step: rows of zeros are divided by it


def int8_weights(form: Quantized) -> tuple[Tensor, Tensor] | str:
    """Return signed weights (rows, cols) int8 and scales (rows,) float32, or why there are none.

    The integers times the scale are exactly what the form stands for. Scales by group cannot run
    in a kernel that has one scale a row; they are folded into the integers where they are whole
    multiples of the row's smallest one and all fits into 8 bits, and refused otherwise.
    """
    codes = form.codes().view(form.rows, form.groups, -1).to(torch.int32)
    zero = form.zero()
    if zero is not None and zero.is_floating_point():
        return "its zero points are not whole numbers; quantize by a method whose zero points are"
    offset = 2 ** (form.bits - 1) if zero is None else zero.unsqueeze(-1).to(torch.int32)
    signed = codes - offset
    scales = form.scale.detach().float()
    smallest = scales.amin(1, keepdim=True)
    multiple = torch.where(scales == smallest, torch.ones_like(scales), scales / smallest)
    whole = torch.isfinite(multiple) & (multiple == multiple.round()) & (multiple.abs() <= 127)
    if not bool((whole & (multiple * smallest == scales)).all()):
        return (
            f"scales by group of {form.group_size} cannot run in the int8 kernel, which has one "
            f"scale a row; quantize with group_size='channel'"
        )
    folded = signed * multiple.to(torch.int32).unsqueeze(-1)
    low, high = (int(value) for value in torch.aminmax(folded))
    if low < -128 or high > 127:
        return (
            f"integers {low}..{high} do not fit into signed 8 bits; quantize symmetrically, with "
            f"one scale a row"
        )
    return folded.to(torch.int8).view(form.rows, form.cols), smallest.squeeze(1)


def int8_run(form: Form, kernel: str) -> Run | str:
    """Return a callable that multiplies by a form in integers, or why that cannot be.

    A quantized form runs as a whole; in a sum its quantized terms do (the others multiply as they
    are), under a rotation the rotated form does, of kept columns their form.
    """
    if form.rows * form.cols == 0:
        return "an empty weight has nothing to multiply"
    if isinstance(form, Quantized):
        weights = int8_weights(form)
        if isinstance(weights, str):
            return weights
        if form.activations is not None:
            return RoundedProduct(form, kernel, *weights)
        product = OnednnInt8 if kernel == "int8-onednn" else IntMm
        return product(*weights)
    if isinstance(form, Rotated):
        inner = int8_run(form.form, kernel)
        if isinstance(inner, str):
            return inner
        return lambda x: form.after(inner(form.before(x)), x.dtype)
    if isinstance(form, Sum):
        return _sum_run(form, kernel)
    if isinstance(form, Sparse) and form.pattern == "column":
        run = int8_run(form.values, kernel)
        return run if isinstance(run, str) else _picked(run, form.kept_index())
    if isinstance(form, Permuted):
        run = int8_run(form.form, kernel)
        return run if isinstance(run, str) else _picked(run, form.order)
    return f"{form.signature} does not hold integers with scales"


def _picked(inner: Run, kept: Tensor) -> Run:
    return lambda x: inner(x.index_select(-1, kept))


def _sum_run(form: Sum, kernel: str) -> Run | str:
    runs: list[Run] = []
    for term in form.terms:
        if not any(isinstance(inner, Quantized) for _, inner in term.walk()):
            runs.append(term.matmul)
            continue
        run = int8_run(term, kernel)
        if isinstance(run, str):
            return run
        runs.append(run)
    if all(run == term.matmul for run, term in zip(runs, form.terms, strict=True)):
        return f"{form.signature} does not hold integers with scales"

    def total(x: Tensor) -> Tensor:
        out = runs[0](x)
        for run in runs[1:]:
            out = out + run(x)
        return out

    return total


class OnednnInt8:
    """oneDNN's product of unsigned 8-bit activations with prepacked signed 8-bit weights.

    Activations are rounded at each call: a scale for each row and one zero point for the call,
    where the range of all its values puts it, so that the output of a ReLU uses all 256 levels.

    Args:
        weight: (rows, cols) int8.
        scale: (rows,) float32.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
        self._scale = scale.contiguous()
        self._zero = torch.zeros(len(scale), dtype=torch.int64)
        self._dense = (weight, scale)

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x (..., cols) -> (..., rows)`` in the type of ``x``."""
        flat = x.reshape(-1, x.shape[-1]).float()
        if not len(flat):
            return x.new_zeros(*x.shape[:-1], len(self._scale))
        low, high = torch.aminmax(flat, dim=1, keepdim=True)
        least, most = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
        if not (isfinite(least) and isfinite(most)):
            return _plain(x, *self._dense)  # carries infinities and NaN through
        zero = _zero_point(least, most)
        if len(flat) == 1:
            step = max(most / max(255 - zero, 1), -least / max(zero, 1), _TINY)
            out = self._product(torch.add(zero, flat, alpha=1 / step), step, zero)
        else:
            each = torch.maximum(high / max(255 - zero, 1), low / -max(zero, 1)).clamp_(min=_TINY)
            levels = torch.div(flat, each).add_(zero)
            out = self._product(levels, 1.0, zero).mul_(each)
        return out.to(x.dtype).view(*x.shape[:-1], len(self._scale))

    def _product(self, levels: Tensor, step: float, zero: int) -> Tensor:
        """Multiply activations that lie in 0..255 before rounding."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            levels.round_().to(torch.uint8), step, zero, self._packed, self._scale, self._zero,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out


def _zero_point(least: float, most: float) -> int:
    """Return the level of zero, 0..255; values below or above it keep at least one level."""
    if least == 0:
        return 0
    if most == 0:
        return 255
    return min(max(round(255 * -least / (most - least)), 1), 254)


class IntMm:
    """``torch._int_mm``: signed 8-bit activations, a scale for each row, no zero point.

    Args:
        weight: (rows, cols) int8.
        scale: (rows,) float32.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self._weight, self._scale = weight.contiguous(), scale.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x (..., cols) -> (..., rows)`` in the type of ``x``."""
        flat = x.reshape(-1, x.shape[-1]).float()
        if not len(flat):
            return x.new_zeros(*x.shape[:-1], len(self._scale))
        step = flat.abs().amax(1, keepdim=True).div_(127).clamp_(min=_TINY)
        if not isfinite(float(step.max())):
            return _plain(x, self._weight, self._scale)
        levels = torch.div(flat, step).round_().clamp_(-127, 127).to(torch.int8)
        out = torch._int_mm(levels, self._weight.T).float()
        return out.mul_(step).mul_(self._scale).to(x.dtype).view(*x.shape[:-1], len(self._scale))


class RoundedProduct:
    """The product of a form that says how its inputs are rounded: the same sums, in integers.

    Differs from the form's own product by the rounding of float32 sums alone.

    Args:
        form: The form; its activations round the inputs.
        kernel: ``"int8-onednn"`` or ``"int8-intmm"``.
        weight: (rows, cols) int8.
        scale: (rows,) float32.
    """

    def __init__(self, form: Quantized, kernel: str, weight: Tensor, scale: Tensor) -> None:
        self._form, self._weight, self._scale = form, weight.contiguous(), scale.contiguous()
        self._sums = weight.to(torch.int32).sum(1).float()
        self._packed = None
        if kernel == "int8-onednn":
            self._packed = torch.ops.onednn.qlinear_prepack(self._weight, None)
            self._ones = torch.ones_like(scale)
            self._zeros = torch.zeros(len(scale), dtype=torch.int64)

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x (..., cols) -> (..., rows)`` in the type of ``x``."""
        activations = self._form.activations
        flat = x.reshape(-1, x.shape[-1]).float()
        if activations is None or not len(flat) or not bool(torch.isfinite(flat).all()):
            return self._form.matmul(x)  # carries infinities and NaN through
        codes, scale, zero = activations.levels(flat, self._form.input_scale)
        out = self._integers(codes, zero).mul_(scale).mul_(self._scale)
        return out.to(x.dtype).view(*x.shape[:-1], len(self._scale))

    def _integers(self, codes: Tensor, zero: Tensor | int) -> Tensor:
        """Return the sums of ``(code - zero) * weight``: whole numbers, as float32."""
        if self._packed is None:
            centred = (codes - 128).to(torch.int8)
            out = torch._int_mm(centred, self._weight.T).float()
            return out.sub_((zero - 128) * self._sums)
        whole = zero if isinstance(zero, int) else 0  # one zero point a row is taken off below
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes.to(torch.uint8), 1.0, whole, self._packed, self._ones, self._zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return found if isinstance(zero, int) else found.sub_(zero * self._sums)


def _plain(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return torch.nn.functional.linear(x.float(), weight.float() * scale[:, None]).to(x.dtype)


@lru_cache(maxsize=4)
def why_unavailable(kernel: str) -> str:
    """Return why a kernel cannot run on this machine; the empty string where it can.

    It is run on the largest products there are: a CPU whose instructions saturate in 16 bits
    would give wrong sums, and is found here.
    """
    weight = torch.full((8, 64), 127, dtype=torch.int8)
    weight[1::2] = -128
    x = torch.full((2, 64), 255.0)
    x[1] = -255.0
    exact = x @ weight.float().T
    product = OnednnInt8 if kernel == "int8-onednn" else IntMm
    try:
        with torch.inference_mode(False), torch.no_grad():
            found = product(weight, torch.ones(8))(x)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return f"{kernel} does not run here ({str(error).splitlines()[0][:80]})"
    if not torch.allclose(found, exact, rtol=0.01):
        return f"{kernel} gives wrong sums on this CPU (its instructions saturate)"
    return ""
