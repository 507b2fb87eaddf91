"""Students: smaller networks searched by a policy and trained by their teacher (N2N)."""

from laconic.budget.policy import PolicySpec
from laconic.weights.students.result import N2NResult, Student
from laconic.weights.students.reward import Reward
from laconic.weights.students.spaces import PAPER_RATIOS, RATIOS
from laconic.weights.students.spec import StudentSpec
from laconic.weights.students.train import ChildTraining
from laconic.weights.students.twostage import FINAL, Rules, n2n
from laconic.weights.students.units import Unit, extract_units

__all__ = [
    "FINAL",
    "PAPER_RATIOS",
    "RATIOS",
    "ChildTraining",
    "N2NResult",
    "PolicySpec",
    "Reward",
    "Rules",
    "Student",
    "StudentSpec",
    "Unit",
    "extract_units",
    "n2n",
]
