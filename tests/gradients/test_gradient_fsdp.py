"""Shards inside, compressed gradients between replicas."""

from __future__ import annotations

from pathlib import Path

import gradient_sharded_ranks as sharded
import pytest
from gradient_ranks import network, run_ranks

from laconic.errors import ConfigError
from laconic.gradients import TopK
from laconic.gradients.fsdp import compress_replicas


def test_sharded_replicas(tmp_path: Path) -> None:
    results = run_ranks(sharded.replicas, 4, tmp_path)
    for result in results:
        assert "error" not in result, result["error"]
        assert "exit" not in result, result
        assert result["all"]["from ddp"] < 1e-6
        for name in ("all", "top-k", "qsgd", "sign"):
            part = result[name]
            assert part["same"], name
            assert part["modules"] == ["", "0", "2"]
            assert part["steps"] == [4, 4, 4]
            # Half of 32 * 48 weights and of 48 biases; the root has the layers left over.
            assert part["dense"] == {"0": 4 * 24 * 33, "2": 4 * 20 * 49, "": 4 * (18 * 41 + 5 * 37)}
            assert part["bytes"].keys() == part["dense"].keys()
        for name in ("top-k", "qsgd", "sign"):
            assert result[name]["from ddp"] > 1e-6
            assert sum(result[name]["bytes"].values()) < sum(result[name]["dense"].values()) / 5
        assert result["restart"]
        assert "this method goes by their shapes" in result["refused"]
        assert "laconic.gradients.fsdp compresses between replicas" in result["as ddp"]


def test_a_model_that_is_not_sharded() -> None:
    with pytest.raises(ConfigError, match="no module is sharded by fully_shard"):
        compress_replicas(network(), TopK, group=None)
