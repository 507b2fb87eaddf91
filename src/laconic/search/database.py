"""The database of a search: every level of every site, fitted once and kept as codes."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laconic.artifact import container
from laconic.artifact.container import Container
from laconic.artifact.decode import PartsReader
from laconic.artifact.encode import PartsWriter
from laconic.artifact.manifest import FactoryRecord, FileRecord, Manifest
from laconic.budget import LevelTable
from laconic.errors import ArtifactError, ConfigError, LaconicWarning, LayerError
from laconic.files import sha256, write_atomic
from laconic.forms.base import Form
from laconic.search.fitting import Fitted, Level

_CACHE_BYTES = 2**31
_FORMS = "levels.forms"


@dataclass(frozen=True)
class Entry:
    """What is known of one level at one site, beside its form.

    Attributes:
        cost: Predicted bytes at rest.
        error: Relative squared error of the output.
        said: Warnings of the fit.
        kept: The level leaves the site as it is; no form is kept for it.
    """

    cost: int
    error: float
    said: tuple[str, ...] = ()
    kept: bool = False


class FormDatabase:
    """Forms of every site and level, as coded parts in files or in memory.

    With a folder each site is one file of coded parts, read when a level is asked for; those
    used last stay in memory as packed forms, never as dense tensors. What a killed build left
    is taken up again.

    Args:
        levels: Names of the levels, the same for every site.
        folder: Where forms are kept; None keeps them in memory.
        cache_bytes: Most bytes of packed forms that are held beside the files.
    """

    def __init__(
        self, levels: Sequence[str], folder: Path | None = None, *, cache_bytes: int = _CACHE_BYTES
    ) -> None:
        self.levels, self.folder, self.cache_bytes = tuple(levels), folder, cache_bytes
        self.entries: dict[str, tuple[Entry | None, ...]] = {}
        self._held: OrderedDict[tuple[str, int], Form] = OrderedDict()
        self._held_bytes = 0
        self._numbers: dict[str, int] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._take_up()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is None:
            return _revive, (self.levels, self.entries, dict(self._held), self.cache_bytes)
        return _reopen, (self.levels, self.folder, self.cache_bytes)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that are there."""
        return tuple(self.entries)

    def put(
        self, site: str, levels: Sequence[Level | None], fitted: Sequence[Fitted | None]
    ) -> None:
        """Keep the levels of a site.

        Raises:
            ConfigError: Another number of levels than the database has.
        """
        if len(fitted) != len(self.levels) or len(levels) != len(self.levels):
            raise ConfigError(f"{site}: {len(fitted)} levels for the {len(self.levels)} there are.")
        entries: list[Entry | None] = []
        forms: dict[int, Form] = {}
        for number, (level, f) in enumerate(zip(levels, fitted, strict=True)):
            if level is None or f is None:
                entries.append(None)
                continue
            entries.append(Entry(f.cost, f.error, tuple(_words(f)), kept=not level.steps))
            if level.steps:
                forms[number] = f.form
        if self.folder is not None:
            number = self._numbers.setdefault(site, len(self._numbers))
            self._write(self.folder / f"{number:05d}", site, forms, entries)
        for number, form in forms.items():
            self._hold((site, number), form)
        self.entries[site] = tuple(entries)

    def form(self, site: str, level: int) -> Form | None:
        """Return the form of a level at a site; None where the level leaves the site as it is.

        Raises:
            LayerError: The site has no such level.
        """
        key = (site, level)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        entry = self.entries[site][level] if site in self.entries else None
        if entry is None:
            raise LayerError(f"{site}: it has no level {self.levels[level]!r}.")
        if entry.kept or self.folder is None:
            return None
        form = _read(self.folder / f"{self._numbers[site]:05d}", str(level))
        self._hold(key, form)
        return form

    def _hold(self, key: tuple[str, int], form: Form) -> None:
        self._held[key] = form
        self._held_bytes += form.nbytes
        while self.folder is not None and self._held_bytes > self.cache_bytes and self._held:
            _, gone = self._held.popitem(last=False)
            self._held_bytes -= gone.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of all forms as they lie in files, or packed in memory where there are none."""
        if self.folder is None:
            return sum(form.nbytes for form in self._held.values())
        files = [file for file in self.folder.iterdir() if file.suffix in (".forms", ".manifest")]
        return sum(file.stat().st_size for file in files)

    def _take_up(self) -> None:
        if self.folder is None:
            return
        for file in sorted(self.folder.glob("*.json")):
            held = json.loads(file.read_text())
            self._numbers[held["site"]] = int(file.stem)
            if held["levels"] == list(self.levels):
                rows = (r and Entry(r[0], float(r[1]), tuple(r[2]), r[3]) for r in held["entries"])
                self.entries[held["site"]] = tuple(rows)

    def _write(
        self, stem: Path, site: str, forms: Mapping[int, Form], entries: Sequence[Entry | None]
    ) -> None:
        """Write the forms of a site, then what is known of them: without it they never were."""
        writer = PartsWriter("fast")
        records = {str(number): writer.form(str(number), form) for number, form in forms.items()}
        told = FactoryRecord(kind="factory", factory="laconic.search:database", reason="levels")
        bundles = writer.bundles()
        temporary = stem.with_suffix(".part")
        container.write(temporary, writer.payloads)
        whole = FileRecord(bytes=temporary.stat().st_size, sha256=sha256(temporary))
        temporary.replace(stem.with_suffix(".forms"))
        manifest = Manifest(
            format=1, files={_FORMS: whole}, architecture=told, forms=records, bundles=bundles
        )
        write_atomic(stem.with_suffix(".manifest"), manifest.to_bytes())
        rows = [e and [e.cost, repr(e.error), list(e.said), e.kept] for e in entries]
        told_too = {"site": site, "levels": list(self.levels), "entries": rows}
        write_atomic(stem.with_suffix(".json"), json.dumps(told_too))

    def table(self, sites: Sequence[str], *, fixed_bytes: int = 0) -> LevelTable:
        """Return the table of predicted bytes and errors."""
        rows = [self.entries[site] for site in sites]
        costs = [[0 if e is None else e.cost for e in row] for row in rows]
        errors = [[np.inf if e is None else e.error for e in row] for row in rows]
        return LevelTable(sites, self.levels, costs, errors, fixed_bytes=fixed_bytes)


def _words(fitted: Fitted) -> Iterator[str]:
    return (str(w.message) for w in fitted.said if issubclass(w.category, LaconicWarning))


def _revive(
    levels: tuple[str, ...],
    entries: dict[str, tuple[Entry | None, ...]],
    held: Mapping[tuple[str, int], Form],
    cache_bytes: int,
) -> FormDatabase:
    made = FormDatabase(levels, cache_bytes=cache_bytes)
    made.entries = entries
    for key, form in held.items():
        made._hold(key, form)
    return made


def _reopen(levels: tuple[str, ...], folder: Path, cache_bytes: int) -> FormDatabase:
    return FormDatabase(levels, folder, cache_bytes=cache_bytes)


def _read(stem: Path, level: str) -> Form:
    manifest = Manifest.from_bytes(stem.with_suffix(".manifest").read_bytes())
    size = stem.with_suffix(".forms").stat().st_size
    if size != manifest.files[_FORMS].bytes:
        raise ArtifactError(
            f"{stem.name}.forms", f"{size} bytes, not {manifest.files[_FORMS].bytes}"
        )
    with Container(stem.with_suffix(".forms")) as held:
        return PartsReader(manifest, held).form(level)
