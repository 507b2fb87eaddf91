"""Runs one layer by a chosen kernel, and keeps what the kernel needs fresh."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms._check import wide
from laconic.forms._int8 import int8_run
from laconic.forms.base import Form
from laconic.forms.convolutions import Conv, FormConv1d, FormConv2d
from laconic.forms.layers import FormLinear, TransposedLinear
from laconic.forms.owner import Run, kernel_of, set_kernel_

Layer = FormLinear | TransposedLinear | Conv
SIMULATED = "simulated"  # inputs rounded and multiplied in floating point, the weight cached


class Cached:
    """The dense tensor of a form, or its integer product, rebuilt when the form has changed."""

    def __init__(self, form: Form, kernel: str | None) -> None:
        self.form, self._kernel = form, kernel
        self._tensors = [
            (held, key)
            for module in form.modules()
            for held in (module._parameters, module._buffers)
            for key, tensor in held.items()
            if tensor is not None
        ]
        self._stamp: list[tuple[int, int]] = []
        self._held: Tensor | Run | None = None

    def trains(self) -> bool:
        """Return whether a gradient is wanted for a tensor of the form."""
        return any(cast(Tensor, held[key]).requires_grad for held, key in self._tensors)

    def _now(self) -> list[tuple[int, int]]:
        tensors = [cast(Tensor, held[key]) for held, key in self._tensors]
        return [(id(t), 0 if t.is_inference() else t._version) for t in tensors]

    def value(self) -> Tensor | Run:
        """Return what is cached, fresh."""
        stamp = self._now()
        if self._held is None or stamp != self._stamp:
            with torch.inference_mode(False), torch.no_grad():
                self._held = self._build()
            self._stamp = stamp
        return self._held

    def _build(self) -> Tensor | Run:
        if self._kernel is None:
            return self.form.dense().detach()
        if self._kernel == SIMULATED:
            return self.form.operand(wide(self.form.dtype)).detach()
        run = int8_run(self.form, self._kernel)
        if isinstance(run, str):
            raise ConfigError(
                f"kernels: {run}, after its tensors were changed. Call prepare_ on the model again."
            )
        return run


def _product(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """Run a layer on a dense weight in the form's shape."""
    if isinstance(layer, Conv):
        return cast(Tensor, layer._conv_forward(x, weight.to(x.dtype), layer.bias))
    matrix = weight.reshape(weight.shape[0], -1).to(x.dtype)
    return F.linear(x, matrix, cast("Tensor | None", layer.bias))


def run_of(layer: Layer, form: Form, kernel: str, dense: Cached) -> Run:
    """Return a callable from a layer's input to its output, bias included."""
    if kernel == "form":
        return _own(layer, form)
    if kernel == "dense":
        return lambda x: _product(layer, x, cast(Tensor, dense.value()))
    cached = Cached(form, kernel)
    if kernel == SIMULATED:
        return _with_bias(layer, lambda x: _simulated(form, cast(Tensor, cached.value()), x))

    return _with_bias(layer, lambda x: cast(Run, cached.value())(x))


def _simulated(form: Form, weight: Tensor, x: Tensor) -> Tensor:
    """Multiply a rounded input with a cached matrix, in floating point."""
    held = form.incoming(x)
    return F.linear(held, weight.to(held.dtype)).to(x.dtype)


def _own(layer: Layer, form: Form) -> Run:
    """Return how a layer runs without any kernel."""
    if isinstance(layer, Conv):
        return lambda x: _convolve(layer, x)
    return _with_bias(layer, lambda x: form.matmul(x))


def _with_bias(layer: Layer, product: Run) -> Run:
    def run(x: Tensor) -> Tensor:
        out = product(x)
        bias = cast("Tensor | None", layer.bias)
        return out if bias is None else out + bias

    return run


def _convolve(layer: Conv, x: Tensor) -> Tensor:
    """Run a convolution as if no kernel were set."""
    held = kernel_of(layer)
    set_kernel_(layer, None)
    try:
        if isinstance(layer, FormConv1d):
            return FormConv1d.forward(layer, x)
        return FormConv2d.forward(layer, x)
    finally:
        if held is not None:
            set_kernel_(layer, held)


class Runner:
    """Runs one layer by the kernel of the nearest measured batch size."""

    def __init__(self, layer: Layer, by_batch: dict[int, str], dense: Cached) -> None:
        form = dense.form
        runs = {k: run_of(layer, form, k, dense) for k in {*by_batch.values(), "form"}}
        self._own, self._dense = runs["form"], dense
        self._exact = {runs[k] for k in runs if k in ("form", "dense", SIMULATED)}
        self._cols = max(form.cols, 1)
        self._conv = isinstance(layer, Conv)
        sizes = sorted(by_batch)
        self._last = runs[by_batch[sizes[-1]]]
        # Up to the geometric mean of two measured sizes the smaller one's kernel runs.
        self._steps = [((a * b) ** 0.5, runs[by_batch[a]]) for a, b in pairwise(sizes)]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layer's output; gradients that a kernel cannot give go the form's way."""
        rows = x.shape[0] if self._conv else x.numel() // self._cols
        run = next((run for limit, run in self._steps if rows <= limit), self._last)
        if torch.is_grad_enabled() and (
            self._dense.trains() or (x.requires_grad and run not in self._exact)
        ):
            run = self._own
        return run(x)
