"""A procedural CXR tree: drawn chests with visible findings, and their reports. No patient was ever in front of it.

python -m phantom --OUTPUT_ROOT demo/phantom --STUDIES 1500 --IMAGE_SIZE 64
"""

from phantom.anatomy import Anatomy, Finding, random_anatomy, random_findings
from phantom.drawing import draw_chest
from phantom.reports import write_report
from phantom.tree import draw_tree, random_chest

__all__ = [
    "Anatomy", "Finding", "draw_chest", "draw_tree", "random_anatomy", "random_chest", "random_findings", "write_report"
]  # fmt: skip
