"""How much to compress where: level tables, solvers, and the loop that meets real bytes.

The room knows nothing of weights: it sees sites, levels, costs and errors.
"""

from laconic.budget.cheapest import Cheapest, cheapest
from laconic.budget.evolve import evolve
from laconic.budget.meet import Met, meet
from laconic.budget.sampler import Minibatch, Sampler
from laconic.budget.search import Fitness, Generation, SearchResult
from laconic.budget.solve import dynamic_programme, greedy, smallest, uniform
from laconic.budget.table import Assignment, LevelTable
from laconic.budget.target import Budget, parse_budget
from laconic.budget.workers import open_workers

__all__ = [
    "Assignment",
    "Budget",
    "Cheapest",
    "Fitness",
    "Generation",
    "LevelTable",
    "Met",
    "Minibatch",
    "Sampler",
    "SearchResult",
    "cheapest",
    "dynamic_programme",
    "evolve",
    "greedy",
    "meet",
    "open_workers",
    "parse_budget",
    "smallest",
    "uniform",
]
