"""EoRA: a thin correction in the metric of the inputs makes up for compression best.

Small scale: (A) layers of a digits classifier, (B) a small language model, (C) calibration on the
domain that counts. Full scale: the paper's protocol on an 8 billion weight model. Bars are ratios
to the better of two rivals of the same rank: plain SVD of the residual, and SVD in the metric of
mean input magnitudes (ACT-S).
"""

from __future__ import annotations

from laconic.studies import _eora_full as full
from laconic.studies import _eora_language as language
from laconic.studies import _eora_layers as layers
from laconic.studies.base import Bar, Conditions, Findings, Study

_DATA_FREE = ("RTN 3-bit", "2:4 magnitude")
_LIMITS = {8: 0.95, 16: 0.90}  # by rank, in 96ths of the width


def _layer_name(compressor: str) -> str:
    return f"A. {compressor}, {layers.LAYERS[0]}"


def _language_name(compressor: str, share: int) -> str:
    return f"B. {compressor}, rank {share}/96 of the width"


def _domain_name(domain: str) -> str:
    return f"C. {domain}: calibrated on it, over calibrated on the other"


_WHOLE = f"A. {layers.WHOLE}, logit KL"
_SMALL = (
    *(Bar(_layer_name(c), 0.40 if c in _DATA_FREE else 0.80) for c in layers.COMPRESSORS),
    Bar(_WHOLE, 0.20),
    *(Bar(_language_name(c, s), _LIMITS[s]) for c in language.COMPRESSORS for s in language.JUDGED),
    *(Bar(_domain_name(domain), 1.0, strict=True) for domain in language.DOMAINS),
)
_FULL = (
    *(
        Bar(full.order_name(c, task), 1.0, strict=True)
        for c in full.COMPRESSORS
        for task in full.TASKS
    ),
    *(Bar(full.gain_name(*key), 1.0) for key in full.GAINS),
)


def run_small(conditions: Conditions) -> Findings:
    """Run the three parts on digits, a small language model and Python's standard library."""
    alone = layers.study_layers(conditions)
    model = language.study_language_model(conditions)
    domains = language.study_domains(conditions)
    values = {
        **{_layer_name(c): alone.ratios[layers.LAYERS[0], c] for c in layers.COMPRESSORS},
        _WHOLE: alone.whole,
        **{
            _language_name(c, s): model.ratios[c, s]
            for c in language.COMPRESSORS
            for s in language.JUDGED
        },
        **{_domain_name(domain): domains.ratios[domain] for domain in language.DOMAINS},
    }
    sections = {"A": alone.section, **model.sections, "C": domains.section}
    return Findings(values, sections)


STUDY = Study(
    name="eora",
    claim=(
        "A low-rank correction in the metric of a layer's inputs makes up for quantization and "
        "pruning better than plain or magnitude-weighted SVD of the same rank, without training."
    ),
    source="Liu et al. 2024, EoRA, arXiv 2410.21271",
    bars={"small": _SMALL, "full": _FULL},
    protocols={"small": run_small, "full": full.run_full},
)
CLAIM, SOURCE, run = STUDY.claim, STUDY.source, STUDY.run
