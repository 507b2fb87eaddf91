"""How much to compress where: level tables, solvers, and the loop that meets real bytes.

The room knows nothing of weights: it sees sites, levels, costs and errors.
"""

from laconic.budget.meet import Met, meet
from laconic.budget.solve import dynamic_programme, greedy, smallest, uniform
from laconic.budget.table import Assignment, LevelTable
from laconic.budget.target import Budget, parse_budget

__all__ = [
    "Assignment",
    "Budget",
    "LevelTable",
    "Met",
    "dynamic_programme",
    "greedy",
    "meet",
    "parse_budget",
    "smallest",
    "uniform",
]
