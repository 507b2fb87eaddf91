"""Studies: a paper's claim each, at two scales, against bars that stand before the run.

A study is a module of this folder that holds a :class:`Study` and names its ``run`` function;
modules that begin with an underscore are parts of studies.
"""

from __future__ import annotations

from laconic.studies.base import Bar, Conditions, Findings, Section, Study
from laconic.studies.page import studies_page

__all__ = ["Bar", "Conditions", "Findings", "Section", "Study", "studies_page"]
