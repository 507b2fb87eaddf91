"""What levels a site may take: bits, sparsity, rank, families mixed, or a file of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml

from laconic.budget import sparsity_step
from laconic.errors import ConfigError, LaconicError, RecipeError, nearest
from laconic.recipe import Recipe
from laconic.search.drop import Drop
from laconic.search.fitting import Level
from laconic.weights.base import LayerStep, Site, Where
from laconic.weights.factor.eora import Eora
from laconic.weights.factor.svd import Svd
from laconic.weights.prune.magnitude import Magnitude
from laconic.weights.prune.sparsegpt import SparseGpt
from laconic.weights.quantize.gptq import Gptq
from laconic.weights.quantize.kmeans import KMeans
from laconic.weights.quantize.round_to_nearest import RoundToNearest

Kind = Literal["bits", "sparsity", "depth", "rank", "mixed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BITS = (2, 3, 4, 5, 6, 8)
_REACH = 8  # sparsity levels on each side of the middle one, as in the paper
_CALIBRATED_AT = 3  # bits at which blocks see the ones before them, as in the paper
_SPARSE_MOST = 0.999
_THIN = 64
_CODED_RANK = 16  # below it a factor's scales would take more than 8 bits save


@dataclass(frozen=True)
class LevelSet:
    """The levels of a search, the same names for every site.

    Attributes:
        kind: What was asked for.
        names: Names of the levels.
        families: Family of each level, for comparing families.
        of: Gives the levels of a site in that order; None for those it does not have.
        calibration: Index of the level whose outputs later blocks are calibrated on; None for
            those of the dense model.
        step: Weights between two sparsity levels; 0 for other kinds.
    """

    kind: str
    names: tuple[str, ...]
    families: tuple[str, ...]
    of: Callable[[Site], Sequence[Level | None]]
    calibration: int | None = None
    step: int = 0

    def family(self, name: str) -> list[str]:
        """Return the names of the levels of a family."""
        pairs = zip(self.names, self.families, strict=True)
        return [level for level, family in pairs if family == name]


@dataclass(frozen=True)
class _Draft:
    name: str
    family: str
    steps: tuple[LayerStep, ...]
    metric: Literal["gram", "identity"] | None = None  # of a thin correction after the steps


_AS_IT_IS = _Draft("as it is", "dense", ())


def level_set(
    levels: str,
    *,
    data: bool,
    sites: Sequence[Site] = (),
    sparsity: float | None = None,
    dense: bool = False,
) -> LevelSet:
    """Return the levels of a kind, or of a YAML file.

    Args:
        levels: ``"bits"``: GPTQ at 2 to 8 bits, embeddings rounded. ``"sparsity"``: SparseGPT at
            equally many weights more or fewer than ``sparsity``, so that two sites of any size
            can exchange a step exactly. ``"rank"``: factors that keep 5 to 90 % of the
            parameters. ``"mixed"``: bits, bits with a low-rank correction, sparse with coded
            values, factors, codebooks, or dropped. Else the path of a file, see
            docs/budget.md. Depth has levels of its own kind.
        data: There is calibration data; without it rounding and magnitude stand in.
        sites: Sites of the search, for the step between sparsities.
        sparsity: Middle of the sparsity levels; without it they are shares from 30 to 95 %.
        dense: Bits and mixed levels also leave a site as it is, for costs other than bytes.

    Raises:
        ConfigError: Neither a kind nor a file, or a level that cannot be.
    """
    if levels == "bits":
        drafts = [*(_bits(bits, data) for bits in BITS), *([_AS_IT_IS] if dense else [])]
        return _set("bits", drafts, f"{_CALIBRATED_AT} bits" if data else None)
    if levels == "sparsity":
        return _sparsity(sites, sparsity, data) if sparsity is not None else _shares(data)
    if levels == "rank":
        drafts = [
            _Draft(f"keep {keep:.0%}", "rank", (Svd(keep=keep),))
            for keep in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
        ]
        return _set("rank", [*drafts, _AS_IT_IS])
    if levels == "mixed":
        drafts = [*mixed(data), *([_AS_IT_IS] if dense else [])]
        return _set("mixed", drafts, f"{_CALIBRATED_AT} bits" if data else None)
    if Path(levels).suffix in (".yaml", ".yml"):
        return read_levels(Path(levels))
    raise ConfigError(
        f"levels={levels!r} must be one of {list(KINDS)} or a .yaml file.{nearest(levels, KINDS)}"
    )


def _set(kind: str, drafts: Sequence[_Draft], calibrated: str | None = None) -> LevelSet:
    names = tuple(draft.name for draft in drafts)
    place = names.index(calibrated) if calibrated is not None else None

    def of(site: Site) -> list[Level | None]:
        found = [_at(draft, site) for draft in drafts]
        works = any(level is not None and level.steps for level in found)
        return found if works else [None] * len(found)

    return LevelSet(kind, names, tuple(draft.family for draft in drafts), of, place)


def _at(draft: _Draft, site: Site) -> Level | None:
    """Return a level at a site: the steps whose scope the site is in."""
    if not draft.steps:
        return Level(draft.name, ())
    steps = tuple(step.for_site(site.name) for step in draft.steps if step.selects(site))
    if steps and draft.metric is not None:
        steps = (*steps, thin_correction(site, draft.metric))
    return Level(draft.name, steps) if steps else None


def thin_correction(site: Site, metric: Literal["gram", "identity"]) -> Eora:
    """Return EoRA at a rank of 1/64 of the weight's smaller side, 1 to 64."""
    rank = min(max(min(site.form.rows, site.form.cols) // _THIN, 1), _THIN)
    return Eora(rank=rank, metric=metric, factor_bits=8 if rank >= _CODED_RANK else None)


def _bits(bits: int, data: bool) -> _Draft:
    return _Draft(f"{bits} bits", "bits", _rounded(bits, data))


def _rounded(bits: int, data: bool, *, embeddings: bool = True) -> tuple[LayerStep, ...]:
    plain = RoundToNearest(bits=bits, range="mse")
    main: LayerStep = Gptq(bits=bits, range="mse") if data else plain
    if not embeddings:
        return (main,)
    others = Where(types=("embedding", "experts") if data else ("embedding",))
    return main, RoundToNearest(bits=bits, range="mse", where=others)


def _pruned(data: bool, **settings: Any) -> LayerStep:
    return SparseGpt(**settings) if data else Magnitude(**settings)


def mixed(data: bool) -> list[_Draft]:
    """Return the levels of all families."""
    metric: Literal["gram", "identity"] = "gram" if data else "identity"
    drafts = [_bits(bits, data) for bits in BITS]
    drafts += [
        _Draft(
            f"{bits} bits + rank 1/64",
            "corrected",
            _rounded(bits, data, embeddings=False),
            metric,
        )
        for bits in (2, 3, 4)
    ]
    drafts += [
        _Draft(
            f"{name} at {bits} bits", "sparse",
            (_pruned(data, **settings), *_rounded(bits, data, embeddings=False)),
        )
        for name, settings in (
            ("2:4", {"pattern": "2:4"}), ("50 %", {"sparsity": 0.5}), ("75 %", {"sparsity": 0.75}),
        )
        for bits in (3, 4, 6)
    ]  # fmt: skip
    drafts += [_Draft(f"{bits}-bit table", "table", (KMeans(bits=bits),)) for bits in (2, 3, 4, 5)]
    drafts += [
        _Draft(
            f"rank keeping {keep:.0%} at 8 bits", "rank",
            (Svd(keep=keep), RoundToNearest(bits=8)),
        )
        for keep in (0.25, 0.5)
    ]  # fmt: skip
    return [*drafts, _Draft("dropped", "dropped", (Drop(),))]


def _shares(data: bool) -> LevelSet:
    drafts = [
        _Draft(f"{share:.0%} zeros", "sparsity", (_pruned(data, sparsity=share),))
        for share in (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)
    ]
    return _set("sparsity", [*drafts, _AS_IT_IS])


def _sparsity(sites: Sequence[Site], share: float, data: bool) -> LevelSet:
    if not 0 < share <= _SPARSE_MOST:
        raise ConfigError(f"levels: sparsity={share} must lie between 0 and {_SPARSE_MOST}.")
    # The paper takes the square of the width for the size: here the median weight.
    middle = int(np.median([site.form.rows * site.form.cols for site in sites]))
    step = sparsity_step(middle, share, reach=_REACH)
    steps = range(-_REACH, _REACH + 1)  # more is sparser
    names = tuple(f"{number:+d}" for number in steps)

    def of(site: Site) -> list[Level | None]:
        size = site.form.rows * site.form.cols
        return [
            _exactly(name, base_zeros(size, share) + number * step, site, data)
            for name, number in zip(names, steps, strict=True)
        ]

    return LevelSet("sparsity", names, ("sparsity",) * len(names), of, step=step)


def base_zeros(size: int, share: float) -> int:
    """Return the zeros of a site of ``size`` weights at the middle level."""
    return round(share * size)


def _exactly(name: str, zeros: int, site: Site, data: bool) -> Level | None:
    """Return the level with exactly so many zeros; None where a site cannot have them.

    SparseGPT rounds in every block of columns: it is asked for so few that no rounding passes
    the count, and magnitude takes the few that are left.
    """
    size = site.form.rows * site.form.cols
    if zeros < 0 or zeros > _SPARSE_MOST * size or site.kind == "embedding":
        return None
    if zeros == 0:
        return Level(name, ())
    rest = Magnitude(sparsity=zeros / size)
    if not data or site.kind not in SparseGpt.supported_types:
        return Level(name, (rest,))
    main = SparseGpt()
    blocks = -(-site.form.cols // main.block)
    asked = max(0.0, (zeros - blocks / 2) / size)
    return Level(name, (SparseGpt(sparsity=asked), rest))


def read_levels(path: Path) -> LevelSet:
    """Read levels from a YAML file: a list of names with their recipe steps.

    Raises:
        ConfigError: The file is missing or malformed, or a step works on whole models.
    """
    if not path.is_file():
        raise ConfigError(f"levels file {path} does not exist.")
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"levels file {path.name} is not YAML: {error}") from error
    if not isinstance(held, Mapping) or not isinstance(held.get("levels"), list):
        raise ConfigError(
            f"levels file {path.name}: it needs 'levels', a list such as "
            "'- {name: 3 bits, steps: [gptq: 3]}'."
        )
    strange = sorted(map(str, set(held) - {"levels", "calibrate"}))
    if strange:
        raise ConfigError(
            f"levels file {path.name} has no field {strange[0]!r}."
            f"{nearest(strange[0], ('levels', 'calibrate'))} Allowed: levels, calibrate."
        )
    drafts = [_draft(row, path.name) for row in held["levels"]]
    names = [draft.name for draft in drafts]
    if len(set(names)) != len(names) or not names:
        raise ConfigError(f"levels file {path.name}: every level needs a name of its own.")
    wanted = held.get("calibrate")
    if wanted is not None and wanted not in names:
        raise ConfigError(
            f"levels file {path.name}: calibrate={wanted!r} is no level."
            f"{nearest(str(wanted), names)}"
        )
    return _set(path.stem, drafts, wanted)


def _draft(row: Any, file: str) -> _Draft:
    if not isinstance(row, Mapping) or not isinstance(row.get("name"), str):
        raise ConfigError(f"levels file {file}: {row!r} must have a 'name' and 'steps'.")
    name, strange = row["name"], sorted(map(str, set(row) - {"name", "family", "steps"}))
    if strange:
        raise ConfigError(f"levels file {file}, level {name!r}: unknown field {strange[0]!r}.")
    steps = row.get("steps") or []
    if not steps:
        return _Draft(name, str(row.get("family", "own")), ())
    if steps == ["drop"]:
        return _Draft(name, str(row.get("family", "dropped")), (Drop(),))
    try:
        found = Recipe.from_yaml(yaml.safe_dump({"steps": steps}), source=f"level {name!r}").steps
    except LaconicError as error:
        raise RecipeError(f"levels file {file}: {error}") from error
    whole = [step.method_name for step in found if not isinstance(step, LayerStep)]
    if whole:
        raise ConfigError(
            f"levels file {file}, level {name!r}: {whole[0]} works on the whole model, not on one "
            "weight; put it into a recipe after the search."
        )
    return _Draft(
        name, str(row.get("family", "own")), tuple(s for s in found if isinstance(s, LayerStep))
    )
