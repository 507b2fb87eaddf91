"""``laconic gradients``."""

from __future__ import annotations

import click

from laconic.cli._group import LazyGroup

_HERE = "laconic.cli"
COMMANDS = {
    "plan": (f"{_HERE}._gradients_plan", "Show which tensors are compressed, how, and the bytes."),
    "bench": (f"{_HERE}._gradients_bench", "Time training steps over links of given speeds."),
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    examples=(
        "laconic gradients plan net:build --method dgc --set density=0.001",
        "laconic gradients bench net:build --data digits --ranks 4 --link 100 --method dgc",
    ),
)
def command() -> None:
    """Make the gradients of distributed training smaller on the wire.

    In a training script it is one line, after the model is wrapped in DDP:

    \b
        state = laconic.gradients.TopK(ddp, density=0.01)
        ddp.register_comm_hook(state, laconic.gradients.hook)
    """
