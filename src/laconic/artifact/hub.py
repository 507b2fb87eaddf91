"""Hugging Face models: built from ``config.json`` and a class name, weights left for later."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from laconic.artifact import strictjson
from laconic.artifact.limits import CONFIG
from laconic.artifact.tree import named_tensors
from laconic.errors import ArtifactError, UnsupportedModelError
from laconic.extras import require
from laconic.forms.layers import installed

# Keys of a configuration that make transformers fetch or run code from elsewhere.
_REFUSED = ("auto_map", "quantization_config", "trust_remote_code")
_REFUSED_PARTS = ("attn_implementation", "experts_implementation", "name_or_path")
_FREE_ELEMENTS = 2**24
_FREE_TENSORS = 4096


def is_hugging_face(model: nn.Module) -> bool:
    """Return whether a model is exactly of a class that ``transformers`` offers by name."""
    library = sys.modules.get("transformers")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return False
    return getattr(library, type(model).__name__, None) is type(model)


def config_of(model: nn.Module) -> dict[str, Any]:
    """Return the configuration of a Hugging Face model as it is written.

    The type of its weights and its class are written down; where it came from is not.
    """
    config: Any = model.config
    data = cleaned(dict(strictjson.loads(config.to_json_string().encode(), file=CONFIG)))
    data["architectures"] = [type(model).__name__]
    data["dtype"] = str(_usual_dtype(model)).removeprefix("torch.")
    return {key: data[key] for key in sorted(data)}


def _usual_dtype(model: nn.Module) -> torch.dtype:
    """Return the floating point type that most weights have, those in forms included."""
    sizes = {torch.get_default_dtype(): 0}
    forms = [held.form for held in installed(model).values()]
    inside = {id(p) for form in forms for p in form.parameters()}
    weights = [(form.dtype, prod(form.shape)) for form in forms]
    weights += [(p.dtype, p.numel()) for p in model.parameters() if id(p) not in inside]
    for dtype, count in weights:
        if dtype.is_floating_point:
            sizes[dtype] = sizes.get(dtype, 0) + count
    return max(sizes, key=lambda dtype: sizes[dtype])


def cleaned(value: Any) -> Any:
    """Return a configuration without keys that name code or places elsewhere."""
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: cleaned(item)
        for key, item in value.items()
        if key not in _REFUSED and not any(part in key for part in _REFUSED_PARTS)
    }


def build(class_name: str, config: Any, *, largest: int, count: int) -> nn.Module:
    """Build a model from its configuration: parameters on the meta device, buffers real.

    Args:
        class_name: Name of the model's class in ``transformers``.
        config: What ``config.json`` holds.
        largest: Elements of the largest tensor that is stored; bounds what may be allocated.
        count: Tensors that are stored; bounds how many may be made.

    Raises:
        ArtifactError: Class and configuration do not belong together, or ask for more than is
            stored.
        MissingExtraError: ``transformers`` is not installed.
    """
    library = require("transformers", "hf", purpose="loading a Hugging Face model")
    mapping = require(
        "transformers.models.auto.configuration_auto", "hf", purpose="loading a model"
    ).CONFIG_MAPPING
    cls = _model_class(library, class_name)
    if not isinstance(config, dict) or config.get("architectures") != [class_name]:
        raise ArtifactError(CONFIG, f"architectures must be [{class_name!r}]")
    model_type, dtype = config.get("model_type"), config.get("dtype")
    if not isinstance(model_type, str) or model_type not in mapping:
        raise ArtifactError(CONFIG, f"transformers has no model_type {str(model_type)[:80]!r}")
    held = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if not isinstance(held, torch.dtype) or not held.is_floating_point:
        raise ArtifactError(CONFIG, f"dtype {str(dtype)[:40]!r} is not a floating point type")
    try:
        settings = mapping[model_type].from_dict(cleaned(config))
        if not isinstance(settings, cls.config_class):
            raise ArtifactError(CONFIG, f"{class_name} is not a model of type {model_type!r}")
        with _skeleton(held, largest=largest, count=count):
            model: nn.Module = cls(settings)
    except ArtifactError:
        raise
    except Exception as error:  # the configuration is not trusted, and any code may meet it
        reason = f"no {class_name} comes from it: {type(error).__name__}: {error}"
        raise ArtifactError(CONFIG, reason[:2000]) from error
    return model.eval()


@contextmanager
def no_bars() -> Iterator[None]:
    """Within the block transformers draws no progress bars of its own."""
    logging = require("transformers", "hf", purpose="a Hugging Face model").utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _model_class(library: ModuleType, name: str) -> Any:
    found = getattr(library, name, None)
    if not isinstance(found, type) or not issubclass(found, library.PreTrainedModel):
        raise ArtifactError(CONFIG, f"transformers has no model class {name!r}")
    return found


class _Bounded(TorchFunctionMode):
    """Refuses to make tensors that are larger than allowed."""

    def __init__(self, elements: int, tensors: int) -> None:
        super().__init__()
        self.elements, self.left = elements, tensors

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in _device_constructors() and func is not torch.tensor:
            size = func(*args, **{**named, "device": "meta"})
            if isinstance(size, Tensor) and size.numel() > self.elements:
                raise ArtifactError(CONFIG, f"asks for a tensor of {tuple(size.shape)}")
        return func(*args, **named)


@contextmanager
def _skeleton(dtype: torch.dtype, *, largest: int, count: int) -> Iterator[None]:
    """Within the block parameters go to the meta device as soon as a module gets them."""
    plain = nn.Module.register_parameter
    allowed = 8 * count + _FREE_TENSORS
    made = 0

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        nonlocal made
        made += 1
        if made > allowed:
            raise ArtifactError(CONFIG, f"asks for more than {allowed} parameters")
        plain(self, name, param)
        if param is not None and not param.is_meta:  # one on meta may be tied: keep the object
            away = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
            self._parameters[name] = away

    default = torch.get_default_dtype()
    # Torch has no hook for one block alone: the method itself is exchanged and given back.
    nn.Module.register_parameter = register  # type: ignore[method-assign]
    torch.set_default_dtype(dtype)
    try:
        with _Bounded(max(largest, _FREE_ELEMENTS), allowed), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(default)
        nn.Module.register_parameter = plain  # type: ignore[method-assign]


def changed_buffers(model: nn.Module, config: dict[str, Any]) -> frozenset[str]:
    """Return names of buffers outside the state dict that the configuration does not give.

    Raises:
        UnsupportedModelError: The model cannot be built from its configuration.
    """
    tensors = list(named_tensors(model, without=set()))
    largest = max((prod(held.tensor.shape) for held in tensors), default=0)
    try:
        fresh = build(type(model).__name__, config, largest=largest, count=len(tensors))
    except ArtifactError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be built from its own configuration: {error}"
        ) from error
    given = dict(fresh.named_buffers())
    return frozenset(
        held.name
        for held in tensors
        if held.buffer and not held.persistent and not _same(given.get(held.name), held.tensor)
    )


def _same(given: Tensor | None, held: Tensor) -> bool:
    return given is not None and given.dtype == held.dtype and torch.equal(given, held.cpu())
