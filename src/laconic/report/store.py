"""Read and write ``report.json`` and ``report.html``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laconic.errors import ArtifactError
from laconic.files import write_atomic
from laconic.report.model import Report, parse
from laconic.report.page import render_html


def write(report: Mapping[str, Any] | Report, folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into a folder, each whole or not at all.

    Raises:
        ConfigError: The report does not fit its definition.
    """
    checked = parse(report)
    page = render_html(checked)
    write_atomic(folder / "report.json", to_json(checked))
    write_atomic(folder / "report.html", page)


def read(path: Path) -> Report:
    """Read the report of a folder, or a ``report.json`` itself.

    Raises:
        ArtifactError: There is none, or it is not JSON.
        ConfigError: It does not fit the definition.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            str(file), "there is no report; give a folder that laconic compress wrote"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(str(file), f"not JSON ({error})") from error
    return parse(values)


def to_json(report: Report) -> str:
    """Return a report as JSON text; values that are not finite become the texts inf and nan."""
    plain = {"format_version": report.format_version} | report.model_dump(exclude_defaults=True)
    return json.dumps(_finite(plain), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
