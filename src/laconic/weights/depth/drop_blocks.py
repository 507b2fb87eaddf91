"""Remove whole blocks of a decoder, or named parts of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from laconic.artifact.hub import is_hugging_face
from laconic.errors import ConfigError, LaconicError, RecipeError
from laconic.registry import method
from laconic.settings import setting
from laconic.task import Task
from laconic.weights.base import SITE_KINDS, ModelStep
from laconic.weights.depth.remove import dropped_count, take_out_
from laconic.weights.depth.scores import choose_blocks, parts_of_blocks
from laconic.weights.depth.subblocks import SubBlock, sub_blocks_of
from laconic.weights.recover.base import RecoverJob
from laconic.weights.sites import blocks_of


@method("drop-blocks", family="prune", source="Men et al. 2024; Kim et al. 2024")
@dataclass(frozen=True, kw_only=True)
class DropBlocks(ModelStep):
    """Remove residual blocks of a decoder in one shot, by a score or by name.

    What is removed is gone from the artefact: whole blocks are deleted and the others numbered
    anew, half a block keeps its class. ``laconic search --levels depth`` chooses attentions and
    feed-forward parts one by one, which is better at the same size.

    Args:
        share: Share of the blocks that go, rounded down; not used by ``named``.
        score: ``shortgpt``: blocks that turn the residual stream least; ``sliding-window``: the
            span of blocks whose end is most like its start; ``weight-subcloning``: blocks that
            move the stream least; ``shortened-llama``: blocks whose loss without them is least;
            ``named``: every attention or feed-forward part that where.include names whole.

    Raises:
        RecipeError: The model is no decoder of transformers with residual blocks, or nothing is
            named.
        ConfigError: Every block would go.

    Source: Men et al. 2024 (ShortGPT), section 3; Gromov et al. 2024; Samragh et al. 2023; Kim et
    al. 2024 (Shortened LLaMA), section 2.
    Differs: scores look at the stream itself, so that the last block is judged before the final
    norm.
    """

    shorthand: ClassVar[str | None] = "share"

    share: float = setting(0.25, help="Share of the blocks that go.", low=0.0, high=0.99)
    score: Literal[
        "shortgpt", "sliding-window", "weight-subcloning", "shortened-llama", "named"
    ] = setting("shortgpt", help="How blocks are chosen.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where.types is not None or self.overrides:
            raise ConfigError(
                "drop-blocks: where.types and overrides do not apply to blocks; name parts with "
                "where.include and score='named'."
            )

    def check_structure(self, model: nn.Module) -> None:
        """Refuse a model that has no parts to remove.

        Raises:
            RecipeError: Says what is missing.
        """
        if not is_hugging_face(model):
            raise RecipeError(
                f"drop-blocks needs a decoder of transformers; {type(model).__name__} is none."
            )
        try:
            parts = sub_blocks_of(model)
        except LaconicError as error:
            raise RecipeError(f"drop-blocks: {error}") from error
        self.chosen(model, parts, None)

    def check_data(self, task: Task | None) -> None:
        """Check that there is the data that the score looks at.

        Raises:
            RecipeError: There is none.
        """
        if self.score != "named" and (task is None or not len(task.calibration_split() or ())):
            raise RecipeError(
                f"drop-blocks: score={self.score!r} looks at calibration data. Give --data NAME, "
                "or score: named with where.include."
            )

    def chosen(self, model: nn.Module, parts: list[SubBlock], task: Task | None) -> list[SubBlock]:
        """Return the parts that go; without a task only those that are named."""
        if self.score == "named":
            found = [part for part in parts if self._names(model, part)]
            if not found:
                raise RecipeError(
                    f"drop-blocks: where.include={list(self.where.include)} names none of the "
                    f"{len(parts)} parts whole, such as '{parts[0].name}.*'."
                )
            return found
        if task is None:
            return []
        count = dropped_count(self.share, len(blocks_of(model)))
        return parts_of_blocks(parts, choose_blocks(model, task, count=count, score=self.score))

    def _names(self, model: nn.Module, part: SubBlock) -> bool:
        names = [
            f"{part.block_path}.{member}.{name}"
            for member in part.members
            for name, _ in model.get_submodule(f"{part.block_path}.{member}").named_parameters()
        ]
        return bool(names) and all(self.where.matches(n, "linear", SITE_KINDS) for n in names)

    def run_(self, job: RecoverJob) -> dict[str, Any]:
        """Take the parts out of the model, in place; return their names."""
        parts = self.chosen(job.model, sub_blocks_of(job.model), job.task)
        take_out_(job.model, parts)
        return {"removed": [part.name for part in parts]}
