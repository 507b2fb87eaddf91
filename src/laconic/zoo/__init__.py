"""Small reference networks, and published weights of some of them."""

from __future__ import annotations

from laconic.zoo._vit import digits_vit

__all__ = ["digits_vit"]
