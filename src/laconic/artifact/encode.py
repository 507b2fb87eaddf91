"""From forms and values to coded parts."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from laconic import coding
from laconic.artifact import strictjson
from laconic.artifact.container import Payload
from laconic.artifact.dtypes import dtype_name, itemsize, raw_bytes
from laconic.artifact.limits import BUNDLED_BYTES, MAX_DEPTH, Allowance
from laconic.artifact.manifest import BundleRecord, FormRecord, PartRecord
from laconic.coding.bits import pack_fixed, width_of
from laconic.errors import UnsupportedModelError
from laconic.forms.base import Form, Part

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int32]
Effort = Literal["fast", "smallest", "none"]


def part_key(name: str, path: tuple[str, ...], part: str) -> str:
    """Return the name of a form's part in the container.

    >>> part_key("fc1.weight", ("values",), "codes")
    'fc1.weight/values/codes'
    """
    return "/".join((name, *path, part))


def bundle_key(dtype: str) -> str:
    """Return the name of a bundle in the container; no parameter has an empty name."""
    return f"//{dtype}"


@dataclass
class PartsWriter:
    """Codes parts one after another and keeps what shall be written.

    Args:
        effort: ``"fast"`` or ``"smallest"`` as in ``coding``; ``"none"`` stores values as they
            are, each under its own name.
    """

    effort: Effort = "fast"
    payloads: list[Payload] = field(default_factory=list)
    stored: dict[str, int] = field(default_factory=dict)
    _bundles: dict[str, list[tuple[str, bytes]]] = field(default_factory=dict)
    _keys: set[str] = field(default_factory=set)
    _allowance: Allowance = field(default_factory=Allowance)

    def form(self, name: str, form: Form) -> FormRecord:
        """Code a form and all below it; return its record."""
        return self._form(name, form, ())

    def _form(self, name: str, form: Form, path: tuple[str, ...]) -> FormRecord:
        if len(path) > MAX_DEPTH:
            raise UnsupportedModelError(f"{name}: forms are nested more than {MAX_DEPTH} deep.")
        parts = {
            part: self._part(name, part_key(name, path, part), held)
            for part, held in form.parts().items()
        }
        children = {
            child: self._form(name, held, (*path, child))
            for child, held in form.children_forms().items()
        }
        return FormRecord(
            kind=form.kind,
            shape=list(form.shape),
            dtype=dtype_name(form.dtype, where=name),
            settings=plain_json(form.settings(), where=f"{name}: settings of {form.kind}"),
            parts=parts,
            children=children,
        )

    def value(self, name: str, tensor: Tensor) -> PartRecord:
        """Code a plain parameter or buffer; return its record."""
        return self._value(name, name, tensor)

    def _part(self, name: str, key: str, part: Part) -> PartRecord:
        if part.alphabet is None:
            return self._value(name, key, part.tensor)
        symbols = _symbols(part, where=key)
        encoded = _fewest(symbols, part, self.effort, self._allowance)
        self._add(name, Payload(key, "U8", (len(encoded.data),), encoded.data))
        return PartRecord(
            coder=encoded.coder,
            shape=list(part.tensor.shape),
            content=alphabet_of(part),
            crc32=zlib.crc32(symbols.data),
        )

    def _value(self, name: str, key: str, tensor: Tensor) -> PartRecord:
        if tensor.is_meta or tensor.layout is not torch.strided:
            raise UnsupportedModelError(f"{key}: a tensor without dense values cannot be stored.")
        dtype, shape = dtype_name(tensor.dtype, where=key), list(tensor.shape)
        raw = raw_bytes(tensor)
        if len(raw) <= BUNDLED_BYTES and self.effort != "none":
            self._claim(key)
            self._bundles.setdefault(dtype, []).append((name, raw.tobytes()))
            return PartRecord(coder="", shape=shape, content=dtype)
        coder, data = _encode_raw(raw, tensor.element_size(), self.effort, self._allowance)
        if coder == "raw":
            payload = Payload(key, dtype, tuple(shape), raw.data)
        else:
            payload = Payload(key, "U8", (len(data),), data)
        self._add(name, payload)
        return PartRecord(coder=coder, shape=shape, content=dtype, crc32=zlib.crc32(raw.data))

    def _claim(self, key: str) -> None:
        if key in self._keys:
            raise UnsupportedModelError(f"two parts of the model would be stored as {key!r}.")
        self._keys.add(key)

    def _add(self, name: str, payload: Payload) -> None:
        self._claim(payload.name)
        self.payloads.append(payload)
        self.stored[name] = self.stored.get(name, 0) + len(payload.data)

    def bundles(self) -> dict[str, BundleRecord]:
        """Code the short values that were gathered; called once, at the end."""
        records = {}
        for dtype, held in self._bundles.items():
            whole = b"".join(data for _, data in held)
            raw = np.frombuffer(whole, np.uint8)
            coder, data = _encode_raw(raw, itemsize(dtype), self.effort, self._allowance)
            key = bundle_key(dtype)
            self._claim(key)
            self.payloads.append(Payload(key, "U8", (len(data),), data))
            records[dtype] = BundleRecord(coder=coder, bytes=len(whole), crc32=zlib.crc32(whole))
            share = len(data) / max(1, len(whole))
            for name, short in held:
                self.stored[name] = self.stored.get(name, 0) + round(len(short) * share)
        return records


def predict_bytes(form: Form, *, effort: Effort = "fast") -> int:
    """Return the bytes that the parts of a form take at rest, coded as ``save`` codes them.

    The manifest's records are left out: they hardly depend on a form's settings. Short values
    are counted as they are, since they are coded together with those of the whole model.
    """
    total, allowance = 0, Allowance()
    for _, below in form.walk():
        for name, part in below.parts().items():
            if part.alphabet is not None:
                total += len(_fewest(_symbols(part, where=name), part, effort, allowance).data)
                continue
            raw = raw_bytes(part.tensor)
            short = len(raw) <= BUNDLED_BYTES
            size = part.tensor.element_size()
            total += len(raw) if short else len(_encode_raw(raw, size, effort, allowance)[1])
    return total


def plain_json(value: Any, *, where: str) -> Any:
    """Return a value as it comes back from JSON.

    Raises:
        UnsupportedModelError: JSON cannot hold it.
    """
    try:
        return strictjson.loads(strictjson.dumps(value).encode(), file=where)
    except (TypeError, ValueError) as error:
        raise UnsupportedModelError(f"{where} cannot be written as JSON: {error}") from error


def alphabet_of(part: Part) -> int:
    """Return the alphabet that symbols are coded with: at least 2, so that they take space."""
    return max(2, int(part.alphabet or 0))


def _symbols(part: Part, *, where: str) -> Bytes | Integers:
    tensor = part.tensor.detach().cpu().reshape(-1)
    wanted = torch.uint8 if (part.alphabet or 0) <= 256 else torch.int32
    if tensor.is_meta or tensor.dtype not in (torch.uint8, torch.bool, torch.int32):
        raise UnsupportedModelError(f"{where}: symbols of type {tensor.dtype} cannot be stored.")
    return np.ascontiguousarray(tensor.to(wanted).numpy())


def _fewest(
    symbols: Bytes | Integers, part: Part, effort: Effort, allowance: Allowance
) -> coding.Encoded:
    alphabet = alphabet_of(part)

    def coded(allowed: Literal["fast", "smallest"]) -> coding.Encoded:
        if part.sparse_pattern:
            return coding.encode_pattern(symbols.astype(np.uint8, copy=False), effort=allowed)
        return coding.encode(symbols, alphabet, effort=allowed)

    encoded = coded("fast")
    if effort == "smallest":
        encoded = min(encoded, coded("smallest"), key=_taken)
    if not allowance.takes(symbols.nbytes, len(encoded.data)):
        encoded = coding.Encoded("packed", pack_fixed(symbols, width_of(alphabet)))
    return encoded


def _taken(encoded: coding.Encoded) -> int:
    """Return the bytes on disk: the data, and the coder's name in the record."""
    return len(encoded.data) + len(encoded.coder)


def _encode_raw(
    raw: Bytes, size: int, effort: Effort, allowance: Allowance
) -> tuple[str, bytes | memoryview]:
    if effort == "none" or not len(raw):
        return "raw", raw.data
    encoded = coding.encode_values(raw.tobytes(), size, effort="fast")
    if effort == "smallest":
        smallest = coding.encode_values(raw.tobytes(), size, effort="smallest")
        encoded = min(encoded, smallest, key=_taken)
    if encoded.coder == "raw" or not allowance.takes(len(raw), len(encoded.data)):
        return "raw", raw.data
    return encoded.coder, encoded.data
