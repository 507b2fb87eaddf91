"""Search: which level at which site, judged by the whole model.

The package can be called: ``laconic.search(model, "mixed", task, budget="8x")`` is
:func:`laconic.search.run.search`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laconic.search.finish import SearchOutcome


class _Room(ModuleType):
    """The package itself, with its one verb."""

    def __call__(self, *args: Any, **kwargs: Any) -> SearchOutcome:
        """Search; arguments as of :func:`laconic.search.run.search`."""
        from laconic.search.run import search

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
search = sys.modules[__name__]  # what ``laconic.search`` is, however it was first asked for
