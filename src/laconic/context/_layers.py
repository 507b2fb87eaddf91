"""The cache as transformers wants it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from laconic.context.cache import KvSettings
from laconic.context.window import Window


class KvLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers gives no types
    """Keys and values of one layer, in codes but for the last tokens.

    Args:
        settings: How they are held.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, settings: KvSettings) -> None:
        super().__init__()
        self.settings = settings
        self._start()

    def _start(self) -> None:
        kept = self.settings
        self.held_keys = Window(kept.bits, kept.group, kept.residual, kept.keys)
        self.held_values = Window(kept.bits, kept.group, kept.residual, kept.values)
        self.full_bytes_per_token = 0
        self.is_initialized = False

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.held_keys.nbytes + self.held_values.nbytes

    @property
    def full_nbytes(self) -> int:
        """Bytes that the same tokens would take in full precision."""
        return self.full_bytes_per_token * self.get_seq_length()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note what a token takes in full precision."""
        self.full_bytes_per_token = sum(
            t.shape[0] * t.shape[1] * t.shape[3] * t.element_size()
            for t in (key_states, value_states)
        )
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add states of new tokens; return the keys and values of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self.held_keys.append(key_states), self.held_values.append(value_states)

    def get_seq_length(self) -> int:
        """Return the number of tokens held."""
        return self.held_keys.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens the next call attends to, and the first of them."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is no most."""
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier versions

    def crop(self, tokens: int) -> None:
        """Remove ``-tokens`` tokens at the end; a positive number is how many stay."""
        length = max(self.get_seq_length() + tokens, 0) if tokens <= 0 else tokens
        self.held_keys.cut(length)
        self.held_values.cut(length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows of the batch in another order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of the batch."""
        rows = self._rows()
        self.held_keys.select(indices)
        self.held_values.select(indices)
        self._rescale(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        rows = self._rows()
        self.held_keys.repeat(repeats)
        self.held_values.repeat(repeats)
        self._rescale(rows)

    def _rows(self) -> int:
        return 0 if self.held_keys.recent is None else len(self.held_keys.recent)

    def _rescale(self, rows: int) -> None:
        if rows:
            self.full_bytes_per_token = self.full_bytes_per_token // rows * self._rows()

    def reset(self) -> None:
        """Forget all tokens."""
        self._start()


class KvCache(Cache):  # type: ignore[misc]  # transformers gives no types
    """Keys and values of a whole model, in codes but for the last tokens.

    Args:
        settings: How every layer holds them.
        config: Configuration of the model, where layers differ.
    """

    def __init__(self, settings: KvSettings, config: Any = None) -> None:
        self.settings = settings
        if config is None:
            super().__init__(layer_class_to_replicate=self._layer)
            return
        layers = DynamicCache(config=config).layers
        super().__init__(
            layers=[self._layer() if type(layer) is DynamicLayer else layer for layer in layers]
        )

    def _layer(self) -> KvLayer:
        return KvLayer(self.settings)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for all layers."""
        return sum(_bytes(layer) for layer in self.layers)

    @property
    def full_nbytes(self) -> int:
        """Bytes that the same tokens would take in full precision."""
        return sum(
            layer.full_nbytes if isinstance(layer, KvLayer) else _bytes(layer)
            for layer in self.layers
        )


def _bytes(layer: Any) -> int:
    if isinstance(layer, KvLayer):
        return layer.nbytes
    held = (getattr(layer, name, None) for name in ("keys", "values"))
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor))
