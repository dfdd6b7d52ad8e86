"""The codes that sentences state and those that are read in them, for the tests of the labeler."""

from benchmarks.labeler import codes_of
from evaluation.labeler import label_report
from utils.findings import FINDINGS, NOT_MENTIONED

__all__ = ["codes_of", "codes_read"]


def codes_read(report):
    """The codes of a report's findings, No Finding left out => {finding: code}."""
    return {
        name: int(code)
        for name, code in zip(FINDINGS, label_report(report))
        if code != NOT_MENTIONED and name != "No Finding"
    }
