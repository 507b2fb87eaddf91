"""Low-rank corrections as a PEFT LoRA adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from laconic.extras import require
from laconic.forms.lowrank import LowRank

_PREFIX = "base_model.model."


def write_adapter(folder: Path, corrections: Mapping[str, LowRank]) -> None:
    """Write corrections as an adapter whose alpha is its rank, so that its scale is 1.

    Args:
        folder: Made here; holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        corrections: Corrections by the name of their linear layer.

    Raises:
        MissingExtraError: ``peft`` is not installed.
    """
    peft = require("peft", "hf", purpose="writing a LoRA adapter")
    ranks = {name: form.rank for name, form in corrections.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    other = {name: rank for name, rank in ranks.items() if rank != usual}
    config = peft.LoraConfig(
        r=usual,
        lora_alpha=usual,
        lora_dropout=0.0,
        bias="none",
        target_modules=sorted(corrections),
        rank_pattern=other,
        alpha_pattern=other,
        inference_mode=True,
        task_type="CAUSAL_LM",
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tensors: dict[str, Tensor] = {}
    for name, form in corrections.items():
        up, down = _two_factors(form)
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = down.contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = up.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _two_factors(form: LowRank) -> tuple[Tensor, Tensor]:
    """Return ``(rows, r)`` and ``(r, cols)``: a longer chain is multiplied from the right."""
    with torch.no_grad():
        dense = [factor.dense().detach().to(form.dtype) for factor in form.factors]
        first, rest = dense[0], dense[1:]
        while len(rest) > 1:
            last = rest.pop()
            rest[-1] = (rest[-1].double() @ last.double()).to(form.dtype)
    return first, rest[0]
