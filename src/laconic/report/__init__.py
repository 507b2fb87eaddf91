"""One JSON and one self-contained HTML page that say what compression did and cost."""

from laconic.report.compare import comparison
from laconic.report.model import Report, parse
from laconic.report.page import compare_html, render_html
from laconic.report.store import read, to_json, write

__all__ = [
    "Report",
    "compare_html",
    "comparison",
    "parse",
    "read",
    "render_html",
    "to_json",
    "write",
]
