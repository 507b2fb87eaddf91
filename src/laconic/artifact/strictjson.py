"""JSON read without mercy and written in the fewest bytes."""

from __future__ import annotations

import json
from typing import Any

from laconic.artifact.limits import MAX_JSON_BYTES
from laconic.errors import ArtifactError


def dumps(value: Any) -> str:
    """Write JSON without spaces, in the order of insertion; NaN and infinity are refused."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def loads(data: bytes, *, file: str) -> Any:
    """Read JSON that was written by ``dumps``: no repeated keys, no NaN, bounded size and depth.

    Raises:
        ArtifactError: The bytes are not such JSON.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ArtifactError(file, f"{len(data)} bytes of JSON are more than {MAX_JSON_BYTES}")
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise ArtifactError(file, "JSON is nested too deeply") from error
    except ValueError as error:
        raise ArtifactError(file, f"not valid JSON ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice[:80]!r} stands twice")
    return made


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
