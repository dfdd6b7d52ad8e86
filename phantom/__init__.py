"""Drawn chests with visible findings, and their reports, as a CXR tree: `python -m phantom`. No data of patients."""

from phantom.anatomy import Anatomy, Finding, random_anatomy, random_findings
from phantom.drawing import draw_chest
from phantom.reports import write_report
from phantom.tree import draw_tree, random_chest

__all__ = [
    "Anatomy", "Finding", "draw_chest", "draw_tree", "random_anatomy", "random_chest", "random_findings", "write_report"
]  # fmt: skip
