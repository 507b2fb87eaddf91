"""A cache of keys and values in few bits, for ``generate()``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laconic.context.window import Along
from laconic.errors import ConfigError
from laconic.extras import require
from laconic.settings import check_settings, setting

if TYPE_CHECKING:
    from laconic.context._layers import KvCache


@dataclass(frozen=True, kw_only=True)
class KvSettings:
    """How a cache holds keys and values.

    Args:
        bits: Bits of a rounded value, 1..8, without scales; 2 and 4 in the paper.
        group: Values that share a scale and a least value (two half floats); 32 in the paper.
        residual: Last tokens in full precision, a multiple of ``group``; 128 in the paper. None
            keeps all and is exact.
        keys: ``"channel"``: groups of tokens for each channel, as keys have outlier channels;
            ``"token"``: groups of channels for each token; ``"full"``: not rounded.
        values: The same for values; ``"token"`` in the paper.

    Raises:
        ConfigError: A value out of bounds, or ``residual`` no multiple of ``group``.
    """

    bits: int = setting(2, help="Bits of a rounded value.", low=1, high=8)
    group: int = setting(32, help="Values that share a scale.", low=1)
    residual: int | None = setting(128, help="Last tokens in full precision; none: all.", low=1)
    keys: Along = setting("channel", help="How keys are grouped.")
    values: Along = setting("token", help="How values are grouped.")

    def __post_init__(self) -> None:
        check_settings(self, owner="kv-cache")
        if self.residual is not None and self.residual % self.group:
            above = -(-self.residual // self.group) * self.group
            raise ConfigError(
                f"kv-cache: residual={self.residual} must be a multiple of group={self.group}, so "
                f"that groups of tokens are whole. Use {above}."
            )


def kv_cache(
    *,
    bits: int = 2,
    group: int = 32,
    residual: int | None = 128,
    keys: Along = "channel",
    values: Along = "token",
    config: Any = None,
) -> KvCache:
    """Return a cache for a Hugging Face model or ``generate()``.

    It is passed as ``cache``, or as ``past_key_values`` where transformers still calls it that.

    Old tokens are held as packed codes; keys and values of one layer at a time are rebuilt for
    attention. So memory falls and time does not: each token costs a pass over all codes. A
    prompt shorter than ``residual`` is not rounded at all. Padding at the left of a batch counts
    in the ranges of key groups as any token does.

    Args:
        bits: Bits of a rounded value, 1..8.
        group: Values that share a scale; divides the head's channels where groups lie along them.
        residual: Last tokens in full precision, a multiple of ``group``; None keeps all.
        keys: ``"channel"``, ``"token"`` or ``"full"``, see :class:`KvSettings`.
        values: The same for values.
        config: Configuration of the model; needed only where layers differ, as with sliding
            windows: layers that do not attend to all tokens then keep transformers' own cache.

    Raises:
        ConfigError: Settings out of bounds.
        MissingExtraError: transformers is not installed.

    Source: Liu et al. 2024, KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache,
    section 3.

    Example:
        >>> import torch
        >>> from laconic import zoo
        >>> model = zoo.tiny_llama(heads=4, kv_heads=2)
        >>> cache = kv_cache(bits=2, group=16, residual=32)
        >>> ids = model.generate(
        ...     torch.ones(1, 40, dtype=torch.long), cache=cache,
        ...     max_new_tokens=2, do_sample=False, pad_token_id=0,
        ... )
        >>> cache.get_seq_length(), cache.nbytes < cache.full_nbytes
        (41, True)
    """
    settings = KvSettings(bits=bits, group=group, residual=residual, keys=keys, values=values)
    require("transformers", "hf", purpose="kv_cache")
    from laconic.context._layers import KvCache

    return KvCache(settings, config)
