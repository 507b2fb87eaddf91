"""Part A of the EoRA study: single layers of a digits classifier, and the whole of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from torch import nn

from laconic import datasets, measure, zoo
from laconic.studies._eora_methods import (
    CORRECTIONS,
    against_rivals,
    corrections,
    gptq,
    rounded,
    sparsegpt,
    two_of_four,
)
from laconic.studies.base import Conditions, Section
from laconic.studies.stand import Forms, Stand
from laconic.task import Task
from laconic.training import fit
from laconic.weights.base import LayerStep, Where

SIZES = (64, 256, 256, 128, 10)
RANK = 16
CALIBRATION = 512
NETWORKS = 3
LAYERS = ("fc2", "fc3")  # the hidden layers that are fed by hidden layers
COMPRESSORS = ("RTN 3-bit", "2:4 magnitude", "GPTQ 3-bit", "SparseGPT 2:4")
PLAIN_ORDER = "GPTQ 3-bit, left to right"  # shown beside the others, without a bar
WHOLE = "2:4 magnitude + RTN 3-bit, whole net"
_EPOCHS = 60
_LR = 2e-3


Errors = Mapping[str, float]  # by correction


@dataclass(frozen=True)
class LayerFindings:
    """EoRA's errors as shares of its best rival's, and the section.

    Attributes:
        ratios: By layer and compressor.
        whole: Of the logit KL of the whole net.
        section: Table and facts.
    """

    ratios: dict[tuple[str, str], float]
    whole: float
    section: Section


def trained_mlp(task: Task, conditions: Conditions) -> nn.Module:
    """Return a ReLU network trained on the task."""
    model = zoo.mlp(SIZES, seed=conditions.seed)
    fit(
        model, task, epochs=_EPOCHS, lr=_LR, batch_size=64, seed=conditions.seed,
        device=conditions.device, progress=conditions.progress, label="digits network",
    )  # fmt: skip
    return model.eval()


def study_layers(conditions: Conditions) -> LayerFindings:
    """Compress one layer at a time, then all, and compare the corrections on unseen images."""
    alone: dict[tuple[str, str], list[Errors]] = {}
    whole: list[Errors] = []
    top1: list[float] = []
    for seed in range(conditions.seed, conditions.seed + NETWORKS):
        task = datasets.load("digits", seed=seed, calibration=CALIBRATION)
        model = trained_mlp(task, replace(conditions, seed=seed))
        stand = Stand(model, seed=seed, device=conditions.device)
        top1.append(measure.evaluate(stand.original, task, device=stand.device)["top1"]["value"])
        for layer in LAYERS:
            where = Where(include=(f"{layer}.weight",))
            for name, step in _compressors(where).items():
                errors = _layer_errors(stand, task, where, step)
                alone.setdefault((layer, name), []).append(errors)
        whole.append(_whole_net(stand, task))
    errors_of = {key: _mean(errors) for key, errors in alone.items()}
    rows = [_row(f"{name}, {layer}", "error", e) for (layer, name), e in errors_of.items()]
    section = Section(
        title="A. Layers of a digits classifier",
        about=(
            f"ReLU network {'-'.join(map(str, SIZES))} on scikit-learn's digits, mean over "
            f"{NETWORKS} networks. Rank {RANK}, calibration on {CALIBRATION} training images, "
            f"figures on {len(task.test)} unseen ones. Error: of the layer's output, relative, on "
            "the original's inputs; for the whole net mean KL(original, compressed) in nats. "
            "Ratio is EoRA over the better of SVD and ACT-S. Bars stand for fc2 and the whole net."
        ),
        rows=(*rows, _row(WHOLE, "logit KL", _mean(whole))),
        facts={"top-1 of the original": fmean(top1)},
    )
    ratios = {key: against_rivals(errors) for key, errors in errors_of.items()}
    return LayerFindings(ratios, against_rivals(_mean(whole)), section)


def _mean(found: Sequence[Errors]) -> dict[str, float]:
    return {name: fmean(errors[name] for errors in found) for name in found[0]}


def _compressors(where: Where) -> dict[str, LayerStep]:
    steps = (
        rounded(3, where=where),
        two_of_four(where=where),
        gptq(3, where=where),
        sparsegpt(where=where),
    )
    plain = gptq(3, where=where, by_input=False)
    return {**dict(zip(COMPRESSORS, steps, strict=True)), PLAIN_ORDER: plain}


def _layer_errors(stand: Stand, task: Task, where: Where, step: LayerStep) -> dict[str, float]:
    (name,) = where.include
    base = stand.apply([step], task)
    found = stand.correct({"base": base}, corrections(RANK, where=where), task)
    variants: dict[str, Forms] = {"none": base, **{s: found["base", s] for s in CORRECTIONS}}
    found_by: dict[str, float] = {}
    for label, forms in variants.items():
        model = stand.put(forms)
        errors = measure.output_errors(stand.original, model, task, device=stand.device, limit=None)
        found_by[label] = errors[name]
    return found_by


def _whole_net(stand: Stand, task: Task) -> dict[str, float]:
    everywhere = Where(types=("linear",))
    steps = [two_of_four(where=everywhere), rounded(3, where=everywhere)]
    base = stand.apply(steps, task)
    found = stand.correct({"base": base}, corrections(RANK, where=everywhere), task)
    variants: dict[str, Forms] = {"none": base, **{s: found["base", s] for s in CORRECTIONS}}
    return {label: stand.divergence(forms, task) for label, forms in variants.items()}


def _row(name: str, what: str, found: Errors) -> dict[str, object]:
    return {"compressed by": name, "figure": what, **found, "ratio": against_rivals(found)}
