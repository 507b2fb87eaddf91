"""Models and tasks by the names that people type: folders, hub ids, ``package.module:factory``."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laconic.errors import (
    ArtifactError,
    ConfigError,
    LaconicError,
    UnsupportedModelError,
    nearest,
)
from laconic.extras import require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from laconic.task import Task

_FACTORY = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
_INNER_KEYS = ("state_dict", "model_state_dict", "model")
_FORMS = (
    "a Hugging Face folder or id, a folder that laconic wrote, or package.module:factory with "
    "--weights FILE"
)


def load_model(spec: str, weights: str | Path | None = None) -> tuple[nn.Module, Any | None]:
    """Load a model by what was typed.

    Args:
        spec: A folder that laconic wrote, a Hugging Face folder (one that compressed-tensors,
            GPTQ or AWQ has packed comes back with its codes as forms), the id of a Hugging Face
            model in the local cache (nothing is downloaded), or ``package.module:factory`` (found
            from the current folder too). A factory returns a module, or a module and its tokenizer;
            it is called without arguments.
        weights: For a factory, a ``.safetensors`` file or a ``.pt`` file of tensors alone.

    Returns:
        The model in eval mode, and its tokenizer where there is one.

    Raises:
        ConfigError: Nothing has this name, or the weights do not fit; has the nearest name.
        ArtifactError: A folder or file is damaged.
        MissingExtraError: A Hugging Face model without transformers.
    """
    if _FACTORY.match(spec):
        model, tokenizer = _from_factory(spec)
        if weights is not None:
            load_weights_(model, Path(weights))
        return model.eval(), tokenizer
    if weights is not None:
        raise ConfigError(
            f"--weights {weights} goes with package.module:factory, but MODEL is {spec!r}, which "
            "brings its own weights. Leave --weights out."
        )
    folder = Path(spec)
    if (folder / "laconic.json").is_file():
        from laconic import artifact

        return artifact.load(folder), _tokenizer(folder)
    if folder.is_dir() and _is_quantized(folder):
        from laconic import artifact

        return artifact.import_checkpoint(folder), _tokenizer(folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigError(f"MODEL {spec!r} is a folder without config.json. Give {_FORMS}.")
    if not folder.is_dir() and (folder.exists() or not _HUB_ID.match(spec)):
        raise ConfigError(f"MODEL {spec!r} is neither a folder nor a name. Give {_FORMS}.")
    return _from_hub(spec)


def initial_model(spec: str, weights: str | Path | None = None) -> nn.Module | None:
    """Return a model as it was before training, for methods that rewind to it.

    Args:
        spec: As for :func:`load_model`.
        weights: File of the initial weights. Without it ``package.module:factory`` is called
            again, and what it builds is taken for the initial weights.

    Returns:
        None where neither tells them: a folder holds trained weights alone.

    Raises:
        ConfigError: The file does not fit, or the factory draws other weights at every call.
    """
    if weights is not None:
        model = _from_factory(spec)[0] if _FACTORY.match(spec) else load_model(spec)[0]
        load_weights_(model, Path(weights))
        return model.eval()
    if not _FACTORY.match(spec):
        return None
    model, again = _from_factory(spec)[0], _from_factory(spec)[0]
    other = again.state_dict()
    for name, value in model.state_dict().items():
        if not value.equal(other[name]):
            raise ConfigError(
                f"MODEL {spec!r}: two calls gave different {name}, so its first weights are not "
                "known. Seed the factory as it was for training, or give --initial FILE."
            )
    return model.eval()


def _is_quantized(folder: Path) -> bool:
    from laconic import artifact

    return artifact.is_quantized_checkpoint(folder)


def hub_folder(spec: str) -> Path | None:
    """Return the folder of a Hugging Face model on disk; None for anything else."""
    folder = Path(spec)
    ours = (folder / "laconic.json").is_file()
    return folder if (folder / "config.json").is_file() and not ours else None


def _from_factory(spec: str) -> tuple[nn.Module, Any | None]:
    from torch import nn

    made = _attribute(spec, "MODEL")
    if callable(made) and not isinstance(made, nn.Module):
        made = _called("MODEL", spec, made, {})
    model, tokenizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"MODEL {spec!r} gave {type(model).__name__}; it must give a torch.nn.Module, or a "
            "pair of a module and its tokenizer."
        )
    return model, tokenizer


def _called(what: str, spec: str, made: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Call a user's factory; whatever it raises is told in one line."""
    try:
        return made(**options)
    except LaconicError:
        raise
    except Exception as error:  # the code is not ours
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise ConfigError(
            f"{what} {spec!r}: {made.__name__ if hasattr(made, '__name__') else spec}({given}) "
            f"raised {type(error).__name__}: {error}. Mend the factory, or what it is given."
        ) from error


def _attribute(spec: str, what: str) -> Any:
    """Import ``package.module:name``; the current folder counts as installed from then on."""
    module_name, _, name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigError(
                f"{what} {spec!r}: no module {missing!r} on the path or in the current folder. "
                "Run from the folder that holds it, or install it."
            ) from error
        raise ConfigError(f"{what} {spec!r}: {module_name} needs {missing!r}: {error}.") from error
    except LaconicError:
        raise
    except Exception as error:  # the code is not ours
        raise ConfigError(
            f"{what} {spec!r}: importing {module_name} raised {type(error).__name__}: {error}."
        ) from error
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ConfigError(
            f"{what} {spec!r}: module {module_name} has no {name!r}.{nearest(name, public)} "
            f"Give the name of a function or class in it."
        )
    return getattr(module, name)


def load_weights_(model: nn.Module, path: Path) -> None:
    """Load a file of tensors into a model, in place; every name and shape must fit.

    Raises:
        ArtifactError: The file is missing, damaged, or holds more than tensors.
        ConfigError: Names or shapes do not fit the model.
    """
    tensors = _read_tensors(path)
    own = model.state_dict()
    missing = [name for name in own if name not in tensors]
    extra = [name for name in tensors if name not in own]
    wrong = [n for n, t in tensors.items() if n in own and tuple(t.shape) != tuple(own[n].shape)]
    if missing or extra:
        hint = nearest(extra[0], missing) if extra and missing else ""
        raise ConfigError(
            f"{path.name}: does not fit {type(model).__name__}: missing {_some(missing)}; "
            f"unknown {_some(extra)}.{hint} Give the weights of this very architecture."
        )
    if wrong:
        name = wrong[0]
        raise ConfigError(
            f"{path.name}: {name} has shape {tuple(tensors[name].shape)}, the model wants "
            f"{tuple(own[name].shape)} ({len(wrong)} such). Give the settings it was trained with."
        )
    model.load_state_dict(tensors)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise ArtifactError(str(path), "no such file; give --weights a .safetensors or .pt file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the reader of .pt files raise anything
        first = (str(error).splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {first.partition('. ')[0][:200]}"
        raise ArtifactError(
            path.name,
            f"not a file of tensors alone ({reason}); save model.state_dict(), best as safetensors",
        ) from error
    for key in _INNER_KEYS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not all(isinstance(t, torch.Tensor) for t in held.values()):
        raise ArtifactError(path.name, "is not a mapping of names to tensors; save state_dict()")
    return dict(held)


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _from_hub(spec: str) -> tuple[nn.Module, Any | None]:
    transformers = require("transformers", "hf", purpose=f"the Hugging Face model {spec!r}")
    from laconic.artifact.hub import no_bars

    try:
        with no_bars():
            config = transformers.AutoConfig.from_pretrained(spec, local_files_only=True)
            cls = _hub_class(transformers, spec, config)
            model, told = cls.from_pretrained(
                spec, dtype="auto", local_files_only=True, output_loading_info=True
            )
    except LaconicError:
        raise
    except Exception as error:  # a damaged folder makes the reader raise anything
        if not Path(spec).is_dir():
            raise ConfigError(
                f"MODEL {spec!r} is no folder, and the Hugging Face cache does not hold it. "
                f"Fetch it once with 'hf download {spec}' (laconic uses no network), or give "
                "a folder."
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"MODEL {spec!r} cannot be loaded: {reason.rstrip('.')}. Give {_FORMS}."
        ) from error
    missing = sorted(told["missing_keys"])
    if missing:
        raise ConfigError(
            f"MODEL {spec!r}: its files hold no {_some(missing)}, which would be random. Give the "
            f"weights of all of {cls.__name__}, or the right 'architectures' in config.json."
        )
    return model.eval(), _tokenizer(Path(spec), spec)


def _hub_class(transformers: Any, spec: str, config: Any) -> Any:
    names = list(getattr(config, "architectures", None) or [])
    if not names:
        return transformers.AutoModelForCausalLM
    if not hasattr(transformers, names[0]):
        raise UnsupportedModelError(
            f"MODEL {spec!r}: its class {names[0]} is not in transformers; code that comes with a "
            "model is never run. Give package.module:factory with --weights."
        )
    return getattr(transformers, names[0])


def _tokenizer(folder: Path, spec: str | None = None) -> Any | None:
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if folder.is_dir() and not any((folder / name).is_file() for name in names):
        return None
    transformers = require("transformers", "hf", purpose="the model's tokenizer")
    names_or_folder = spec or str(folder)
    try:
        return transformers.AutoTokenizer.from_pretrained(names_or_folder, local_files_only=True)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            reason = f"its tokenizer cannot be read: {error}"
            raise ArtifactError(names_or_folder, reason) from error
        return None  # a hub id that was fetched without a tokenizer has none


def load_task(
    name: str, *, tokenizer: Any | None = None, seed: int = 0, options: Mapping[str, Any] = {}
) -> Task:
    """Load a task by the name of a data set, or from ``package.module:factory``.

    Args:
        name: One of ``datasets.names()``, or a factory that returns a Task.
        tokenizer: Goes to data sets of text; text is read as bytes where None.
        seed: Draws the calibration examples.
        options: Options of the data set or arguments of the factory.

    Raises:
        ConfigError: Unknown name or option; has the nearest one.
        DataError: A file is missing; says what to do.
    """
    import inspect

    from laconic import datasets
    from laconic.task import Task

    if _FACTORY.match(name):
        task = _attribute(name, "--data")
        task = task if isinstance(task, Task) else _called("--data", name, task, options)
        if not isinstance(task, Task):
            raise ConfigError(f"--data {name!r} gave {type(task).__name__}, not a laconic Task.")
        return task
    extra: dict[str, Any] = {}
    takes = inspect.signature(datasets.describe(name).loader).parameters
    if tokenizer is not None and "tokenizer" in takes and "tokenizer" not in options:
        extra["tokenizer"] = _as_function(tokenizer)
    return datasets.load(name, seed=seed, **options, **extra)


def require_fit(model: nn.Module, task: Task) -> None:
    """Run one example of a task through a model, so that a wrong pair fails before any work.

    Raises:
        ConfigError: The model or the loss does not take the example; has its shapes.
    """
    import torch

    batch = next(iter(task.test.batches(1)))
    try:
        with torch.no_grad():
            task.compute_loss(task.forward(model, batch), batch)
    except LaconicError:
        raise
    except Exception as error:  # any model may meet any data here
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in batch.items())
        raise ConfigError(
            f"data {task.name!r} does not fit {type(model).__name__}: an example with {shapes} "
            f"raised {type(error).__name__}: {error}. Give the data that the model was made for."
        ) from error


def _as_function(tokenizer: Any) -> Callable[[str], list[int]]:
    """Return ``text -> ids`` of a Hugging Face tokenizer, without special tokens."""
    if not hasattr(tokenizer, "encode"):
        function: Callable[[str], list[int]] = tokenizer
        return function

    def encode(text: str) -> list[int]:
        try:
            return list(tokenizer.encode(text, add_special_tokens=False))
        except TypeError:  # a tokenizer that has no special tokens to leave out
            return list(tokenizer.encode(text))

    return encode
