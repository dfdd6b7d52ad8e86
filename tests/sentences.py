"""The codes that sentences state and those that are read in them, for the tests of the labeler."""

from evaluation.labeler import label_report
from utils.findings import ABSENT, FINDINGS, NOT_MENTIONED, PRESENT, UNCERTAIN

SIGNS = {"+": PRESENT, "-": ABSENT, "?": UNCERTAIN}
SHORT = {  # a finding's name in sentences
    "atelectasis": "Atelectasis", "heart": "Cardiomegaly", "consolidation": "Consolidation", "edema": "Edema",
    "mediastinum": "Enlarged Cardiomediastinum", "fracture": "Fracture", "lesion": "Lung Lesion",
    "opacity": "Lung Opacity", "effusion": "Pleural Effusion", "pleura": "Pleural Other", "pneumonia": "Pneumonia",
    "pneumothorax": "Pneumothorax", "device": "Support Devices",
}  # fmt: skip


def codes_of(said):
    """ "heart- edema?" => {"Cardiomegaly": ABSENT, "Edema": UNCERTAIN}."""
    return {SHORT[word[:-1]]: SIGNS[word[-1]] for word in said.split()}


def codes_read(report):
    """The codes of a report's findings, No Finding left out => {finding: code}."""
    return {
        name: int(code)
        for name, code in zip(FINDINGS, label_report(report))
        if code != NOT_MENTIONED and name != "No Finding"
    }
