"""One training loop: losses, schedule, checkpoints that resume to the same bits."""

from laconic.training.fitting import fit
from laconic.training.losses import Distance, distillation_loss
from laconic.training.plan import FitSummary

__all__ = ["Distance", "FitSummary", "distillation_loss", "fit"]
