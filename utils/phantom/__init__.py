"""A procedural CXR tree: drawn chests with visible findings, and their reports. No patient was ever in front of it.

python -m utils.phantom --OUTPUT_ROOT demo/phantom --STUDIES 1500 --IMAGE_SIZE 64
"""

from utils.phantom.anatomy import Anatomy, Finding, random_anatomy, random_findings
from utils.phantom.drawing import draw_chest
from utils.phantom.reports import write_report
from utils.phantom.tree import draw_tree, random_chest

__all__ = [
    "Anatomy", "Finding", "draw_chest", "draw_tree", "random_anatomy", "random_chest", "random_findings", "write_report"
]  # fmt: skip
