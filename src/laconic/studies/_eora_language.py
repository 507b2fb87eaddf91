"""Parts B and C of the EoRA study: a language model, and calibration on the text that counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from laconic import measure
from laconic.studies._eora_methods import (
    BLOCKS,
    CORRECTIONS,
    against_rivals,
    corrections,
    gptq,
    rounded,
    rounded_in_groups,
    sparsegpt,
    two_of_four,
)
from laconic.studies._eora_models import (
    CALIBRATION,
    LENGTH,
    WIDTH,
    Domain,
    Subject,
    byte_model,
    domain_task,
    language_model,
    trained_here,
)
from laconic.studies.base import Conditions, Section
from laconic.studies.stand import Forms, Stand, bytes_of
from laconic.task import Task
from laconic.weights.base import LayerStep
from laconic.weights.factor.eora import Eora
from laconic.weights.sites import find_sites

COMPRESSORS = (
    "RTN 3-bit per row",
    "RTN 2-bit group 32",
    "GPTQ 3-bit per row",
    "2:4 magnitude",
    "SparseGPT 2:4",
)
PLAIN_ORDER = "GPTQ 3-bit per row, left to right"  # shown beside the others, without a bar
SHARES = (4, 8, 16)  # ranks, in 96ths of the width
JUDGED = (8, 16)
DOMAINS: tuple[Domain, ...] = ("code", "english")
_OF = 96
_SEEDS = 3


@dataclass(frozen=True)
class LanguageFindings:
    """EoRA's KL as a share of its best rival's, by compressor and 96ths of the width.

    Attributes:
        ratios: On the first model.
        sections: One a model.
    """

    ratios: dict[tuple[str, int], float]
    sections: dict[str, Section]


@dataclass(frozen=True)
class DomainFindings:
    """KL with the matching calibration as a share of that with the other one, by domain."""

    ratios: dict[Domain, float]
    section: Section


def study_language_model(conditions: Conditions) -> LanguageFindings:
    """Judge the published model, and show the one trained here beside it."""
    subject = language_model(conditions)
    ratios, section = compare(subject, conditions)
    sections = {"B": section}
    if subject.published:
        other = compare(trained_here(conditions), conditions)[1]
        title = "B, without bars. The model trained here"
        sections["B2"] = replace(other, title=title)
    return LanguageFindings(ratios, sections)


def compare(
    subject: Subject, conditions: Conditions
) -> tuple[dict[tuple[str, int], float], Section]:
    """Compress a model in several ways and compare the corrections on unseen text.

    Returns:
        EoRA's KL as a share of its best rival's by compressor and 96ths of the width, and the
        table of all figures.
    """
    stand = Stand(subject.model, seed=conditions.seed, device=conditions.device)
    task = subject.task
    bases = {name: stand.apply([step], task) for name, step in _compressors(subject).items()}
    none = {name: stand.divergence(forms, task) for name, forms in bases.items()}
    rows: list[dict[str, object]] = []
    ratios: dict[tuple[str, int], float] = {}
    for share in SHARES:
        rank = max(1, round(subject.width * share / _OF))
        steps = corrections(rank, where=BLOCKS)
        corrected = stand.correct(bases, steps, task)
        for name in bases:
            found = {s: stand.divergence(corrected[name, s], task) for s in CORRECTIONS}
            ratios[name, share] = against_rivals(found)
            rows.append(
                {
                    "compressed by": name, "rank": rank, "share of width": f"{share}/{_OF}",
                    "none": none[name], **found, "ratio": ratios[name, share],
                }
            )  # fmt: skip
    section = Section(
        title="B. A language model",
        about=(
            f"{subject.name}: mean KL(original, compressed) in nats a token on "
            f"{len(task.test)} held-out windows of {LENGTH} tokens of {task.name}. Calibration on "
            f"{CALIBRATION} windows of other documents; all linear layers of the blocks, factors "
            "in float32. Ratio is EoRA over the better of SVD and ACT-S. No bar stands at 4/96 "
            "and for GPTQ that goes from left to right."
        ),
        rows=tuple(sorted(rows, key=lambda row: list(bases).index(str(row["compressed by"])))),
        facts={
            "model": subject.name,
            "perplexity of the original": _perplexity(stand, task),
            **_propagation(stand, task, bases, subject.width),
            **_equal_size(stand, task, bases, none, subject.width),
        },
    )
    return ratios, section


def _compressors(subject: Subject) -> dict[str, LayerStep]:
    steps: Sequence[LayerStep] = (
        rounded(3, where=BLOCKS),
        rounded_in_groups(2, 32, find_sites(subject.model), where=BLOCKS),
        gptq(3, where=BLOCKS),
        two_of_four(where=BLOCKS),
        sparsegpt(where=BLOCKS),
    )
    plain = gptq(3, where=BLOCKS, by_input=False)
    return {**dict(zip(COMPRESSORS, steps, strict=True)), PLAIN_ORDER: plain}


def _propagation(
    stand: Stand, task: Task, bases: Mapping[str, Forms], width: int
) -> dict[str, float]:
    """Return the KL where each block's calibration sees what the corrected ones before it give."""
    found: dict[str, float] = {}
    for name, share in (("2:4 magnitude", 16), ("SparseGPT 2:4", 8)):
        rank = max(1, round(width * share / _OF))
        step = Eora(rank=rank, propagate="compensated", factor_dtype="float32", where=BLOCKS)
        forms = stand.apply([step], task, start=bases[name])
        found[f"KL, {name}, {share}/{_OF}, Gram from corrected blocks"] = stand.divergence(
            forms, task
        )
    return found


def _equal_size(
    stand: Stand, task: Task, bases: Mapping[str, Forms], none: Mapping[str, float], width: int
) -> dict[str, float]:
    """Return bytes and KL of 3-bit rounding with 16-bit factors, and of plain 4-bit rounding."""
    rank = max(1, round(width * JUDGED[0] / _OF))
    base = bases[COMPRESSORS[0]]
    names = [site.name for site in find_sites(stand.original) if BLOCKS.matches(
        site.name, site.kind, ("linear",))]  # fmt: skip
    thin = stand.apply([Eora(rank=rank, where=BLOCKS)], task, start=base)
    finer = stand.apply([rounded(4, where=BLOCKS)], task)
    variants = {
        "RTN 3-bit": (base, none[COMPRESSORS[0]]),
        f"RTN 3-bit + EoRA rank {rank} in bfloat16": (thin, stand.divergence(thin, task)),
        "RTN 4-bit": (finer, stand.divergence(finer, task)),
    }
    return {
        key: value
        for name, (forms, kl) in variants.items()
        for key, value in ((f"bytes, {name}", bytes_of(forms, names)), (f"KL, {name}", kl))
    }


def study_domains(conditions: Conditions) -> DomainFindings:
    """Correct a model with statistics of one domain or the other, and judge on both."""
    model = byte_model(conditions)
    stand = Stand(model, seed=conditions.seed, device=conditions.device)
    base = stand.apply([two_of_four(where=BLOCKS)], None)
    rank = round(WIDTH * JUDGED[-1] / _OF)
    step = {"EoRA": corrections(rank, where=BLOCKS)["EoRA"]}
    found: dict[tuple[Domain, Domain], list[float]] = {
        (text, by): [] for text in DOMAINS for by in DOMAINS
    }
    for seed in range(conditions.seed, conditions.seed + _SEEDS):
        tasks = {domain: domain_task(domain, seed) for domain in DOMAINS}
        for by in DOMAINS:
            forms = stand.correct({"base": base}, step, tasks[by])["base", "EoRA"]
            for text in DOMAINS:
                found[text, by].append(stand.divergence(forms, tasks[text]))
    rows = []
    ratios: dict[Domain, float] = {}
    for text in DOMAINS:
        own, other = (fmean(found[text, by]) for by in _own_first(text))
        ratios[text] = own / other
        rows.append(
            {
                "judged on": text, "none": stand.divergence(base, domain_task(text, 0)),
                "calibrated on it": own, "calibrated on the other": other, "ratio": own / other,
                "better at": f"{_wins(found, text)} of {_SEEDS} seeds",
            }
        )  # fmt: skip
    perplexities = {
        f"perplexity of the original on {text}": _perplexity(stand, domain_task(text, 0))
        for text in DOMAINS
    }
    section = Section(
        title="C. Calibration on the text that counts",
        about=(
            "Byte-level Llama trained here on Python's standard library (6 blocks, width "
            f"{WIDTH}), 2:4 by magnitude, EoRA rank {rank}: mean KL(original, compressed) in nats "
            f"a byte on held-out files, averaged over {_SEEDS} draws of {CALIBRATION} calibration "
            f"windows of {LENGTH} bytes: source code, or the docstrings and comments in it."
        ),
        rows=tuple(rows),
        facts=perplexities,
    )
    return DomainFindings(ratios, section)


def _own_first(text: Domain) -> tuple[Domain, ...]:
    return (text, *(domain for domain in DOMAINS if domain != text))


def _wins(found: Mapping[tuple[Domain, Domain], list[float]], text: Domain) -> int:
    own, other = _own_first(text)
    pairs = zip(found[text, own], found[text, other], strict=True)
    return sum(mine < theirs for mine, theirs in pairs)


def _perplexity(stand: Stand, task: Task) -> float:
    found = measure.evaluate(stand.original, task, device=stand.device)
    return float(found["perplexity"]["value"])
