"""What a data set says of itself, and the decorator that enters it into the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from laconic.datasets._files import DataFile
from laconic.task import Kind, Task

Loader = Callable[..., Task]
_Loader = TypeVar("_Loader", bound=Loader)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a data set holds and where it comes from.

    Attributes:
        name: What :func:`laconic.datasets.load` calls it.
        summary: What it holds, in one line.
        kind: Kind of the task.
        licence: Licence, or what the authors say of its use.
        source: Where the authors publish it.
        files: Files that it reads; empty where it comes with an installed package.
        loader: The function behind it; its keyword arguments are the options.
    """

    name: str
    summary: str
    kind: Kind
    licence: str
    source: str
    files: tuple[DataFile, ...] = ()
    loader: Loader


LOADERS: dict[str, Description] = {}


def dataset(
    name: str,
    *,
    summary: str,
    kind: Kind,
    licence: str,
    source: str,
    files: tuple[DataFile, ...] = (),
) -> Callable[[_Loader], _Loader]:
    """Enter the decorated loader into the catalogue under ``name``."""

    def enter(loader: _Loader) -> _Loader:
        LOADERS[name] = Description(
            name=name,
            summary=summary,
            kind=kind,
            licence=licence,
            source=source,
            files=files,
            loader=loader,
        )
        return loader

    return enter
