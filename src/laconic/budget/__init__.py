"""How much to compress where: level tables, solvers, and the loop that meets real bytes.

The room knows nothing of weights: it sees sites, levels, costs and errors.
"""

from laconic.budget.cheapest import Cheapest, cheapest
from laconic.budget.descent import greedy_search
from laconic.budget.evolve import evolve
from laconic.budget.levels import bits_table, depth_table, sparsity_step, sparsity_table
from laconic.budget.meet import Met, meet
from laconic.budget.owl import owl, owl_assignments
from laconic.budget.plain import Verdict, never_worse, uniform_assignments
from laconic.budget.random_search import random_search
from laconic.budget.sampler import Minibatch, Sampler
from laconic.budget.search import Fitness, Generation, SearchResult
from laconic.budget.solve import dynamic_programme, greedy, smallest, uniform
from laconic.budget.solvers import SOLVERS, solver
from laconic.budget.table import Assignment, LevelTable
from laconic.budget.target import Budget, parse_budget
from laconic.budget.workers import open_workers

__all__ = [
    "SOLVERS",
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
    "Verdict",
    "bits_table",
    "cheapest",
    "depth_table",
    "dynamic_programme",
    "evolve",
    "greedy",
    "greedy_search",
    "meet",
    "never_worse",
    "open_workers",
    "owl",
    "owl_assignments",
    "parse_budget",
    "random_search",
    "smallest",
    "solver",
    "sparsity_step",
    "sparsity_table",
    "uniform",
    "uniform_assignments",
]
