"""The report of a drawn study: it states the labels, and each finding with its side and size as drawn."""

import numpy as np

from phantom.anatomy import MASS_EXTENT, Finding, nodule_count
from utils import findings as cxr

_SIZES, _SEVERITIES = ("small", "moderate", "large"), ("mild", "moderate", "severe")  # from the smallest to the largest
_BY_SEVERITY = ("Cardiomegaly", "Edema", "Atelectasis", "Enlarged Cardiomediastinum")
_NAMES = {  # name of a finding, or of its kind, in a report; {degree}, {side} and {zone} as drawn
    "Atelectasis": "{degree} {side} basilar atelectasis", "Cardiomegaly": "{degree} cardiomegaly",
    "Consolidation": "{degree} consolidation in the {side} {zone} lung", "Edema": "{degree} pulmonary edema",
    "Enlarged Cardiomediastinum": "{degree} widening of the mediastinum",
    "rib": "displaced fractures of several {side} ribs", "clavicle": "displaced fracture of the {side} clavicle",
    "Lung Lesion": "mass in the {side} {zone} lung", "nodules 1": "{side} {zone} lung nodule",
    "nodules 2": "two nodules in the {side} {zone} lung", "nodules 3": "three nodules in the {side} lung",
    "Lung Opacity": "{degree} hazy opacity in the {side} {zone} lung",
    "Pleural Effusion": "{degree} {side} pleural effusion", "thickening": "{degree} {side} pleural thickening",
    "cap": "{degree} {side} apical pleural thickening", "plaque": "calcified {side} pleural plaques",
    "Pneumonia": "{degree} patchy pneumonia in the {side} {zone} lung", "Pneumothorax": "{degree} {side} pneumothorax",
    "pacemaker": "{side} pacemaker with two leads", "lines": "endotracheal tube and {side} central line",
}  # fmt: skip
_UNQUALIFIED = {  # findings named without place or size in other words than their own, to be negated
    "Consolidation": "focal consolidation", "Edema": "pulmonary edema",
    "Enlarged Cardiomediastinum": "widening of the mediastinum", "Fracture": "displaced fracture",
    "Lung Lesion": "nodule or mass", "Lung Opacity": "hazy opacity", "Pleural Other": "pleural thickening",
    "Support Devices": "support device",
}  # fmt: skip
_PRESENT_WORDS = ("There is {}.", "{} is seen.", "{} is present.", "{}.")
_PRESENT_WORDS_PLURAL = ("There are {}.", "{} are seen.", "{} are present.", "{}.")
_UNCERTAIN_WORDS = ("Possible {}.", "There is possible {}.", "{} cannot be excluded.", "There may be {}.")
_ABSENT_WORDS = ("There is no {}.", "No {} is seen.", "No evidence of {}.", "No {}.")
_CLEAR = ("The lungs are clear.", "Both lungs are well expanded and clear.", "The lungs appear clear.")
_FILLERS = (
    ("The trachea is midline.", "The airway is midline."),
    ("The stomach bubble is in the usual place.", "The upper abdomen is unremarkable."),
    ("The patient is slightly rotated.", "The technique is adequate.", "Image quality is good."),
)
_NORMAL_IMPRESSIONS = ("No acute cardiopulmonary process.", "Normal chest.", "No acute cardiopulmonary abnormality.")
_INDICATIONS = (
    "___ year old {} with cough.", "___ year old {} with shortness of breath.", "___ year old {} with chest pain.",
    "___ year old {} with fever, please evaluate.", "___ year old {} after a fall.",
)  # fmt: skip


def write_report(drawn: list[Finding], labels: np.ndarray, rng: np.random.Generator) -> str:
    """A report in MIMIC-CXR's layout that states the labels, and each finding with its side and size as drawn.

    drawn, labels: from `random_findings`, uncertain findings included.
    """
    by_name = {finding.name: finding for finding in drawn}
    labelled = {code: [n for n, label in zip(cxr.FINDINGS, labels) if label == code] for code in set(labels.tolist())}
    present = [by_name[name] for name in labelled.get(cxr.PRESENT, ()) if name != "No Finding"]
    uncertain = [by_name[name] for name in labelled.get(cxr.UNCERTAIN, ())]
    absent = list(rng.permutation(labelled.get(cxr.ABSENT, [])))
    normal = labels[cxr.finding_index("No Finding")] == cxr.PRESENT

    sentences = _findings_section(present, uncertain, absent, normal, rng)
    impression = _impression_section(present, uncertain, normal, rng) or [sentences[0]]
    if len(impression) > 1 and rng.random() < 0.5:
        impression = [f"{number}. {sentence}" for number, sentence in enumerate(impression, 1)]
    parts = [
        str(rng.choice(["EXAMINATION:  CHEST RADIOGRAPH", "EXAMINATION:  CHEST (SINGLE VIEW)"])),
        "INDICATION:  " + str(rng.choice(_INDICATIONS)).format(rng.choice(["man", "woman"])),
        "COMPARISON:  " + str(rng.choice(["None.", "Chest radiograph of ___.", "___."])),
        "FINDINGS: \n\n " + " ".join(sentences),
        "IMPRESSION: \n\n " + " ".join(impression),
    ]
    return " " * 33 + "FINAL REPORT\n " + "\n \n ".join(parts) + "\n"


def _findings_section(present, uncertain, absent, normal, rng):
    """Sentences about all labelled findings, with fillers up to about three sentences."""
    positives = [_say(_words_for(finding), _mention(finding), rng) for finding in rng.permutation(present)]
    hedges = [_say(_UNCERTAIN_WORDS, _hedged(finding), rng) for finding in uncertain]
    # one sentence negates at most two findings
    pairs = [" or ".join(_unqualified(name) for name in absent[at : at + 2]) for at in range(0, len(absent), 2)]
    negatives = [_say(_ABSENT_WORDS, pair, rng) for pair in pairs]
    in_order = rng.random() < 0.7
    sentences = [rng.choice(_CLEAR)] if normal else []
    sentences += [*positives, *hedges, *negatives] if in_order else [*negatives, *positives, *hedges]
    for place in rng.permutation(len(_FILLERS))[: max(1, 3 - len(sentences))]:
        if len(sentences) < 6:
            sentences.append(rng.choice(_FILLERS[place]))
    return sentences


def _impression_section(present, uncertain, normal, rng):
    """A sentence for each present or uncertain finding, after one that calls a normal chest normal."""
    sentences = [rng.choice(_NORMAL_IMPRESSIONS)] if normal else []
    sentences += [_capital(_mention(finding)) + "." for finding in present]
    return sentences + [f"Possible {_hedged(finding)}." for finding in uncertain]


def _mention(finding):
    """The finding in words, with its degree, side and zone as drawn."""
    degrees = _SEVERITIES if finding.name in _BY_SEVERITY else _SIZES
    name = finding.kind or finding.name
    if finding.name == "Lung Lesion" and finding.extent <= MASS_EXTENT:
        name = f"nodules {nodule_count(finding)}"
    degree = degrees[min(2, int(3 * finding.extent))]
    return _NAMES[name].format(degree=degree, side=finding.side, zone=finding.zone)


def _hedged(finding):
    """An uncertain finding in words: with its side, but no degree."""
    side = "" if finding.side == "both" or finding.name == "Support Devices" else finding.side + " "
    return side + _unqualified(finding.name).removeprefix("focal ")


def _unqualified(name):
    return _UNQUALIFIED.get(name, name.lower())


def _words_for(finding):
    """Sentence templates for a finding, singular or plural as `_mention` words it."""
    several = finding.kind in ("rib", "plaque") or (finding.name == "Lung Lesion" and nodule_count(finding) > 1)
    return _PRESENT_WORDS_PLURAL if several or finding.kind == "lines" else _PRESENT_WORDS


def _say(templates, words, rng):
    """One of the templates, filled with the words, as a sentence."""
    template = str(rng.choice(templates))
    if template.startswith("There is {}") and words.split()[0] not in ("severe", "mild", "moderate"):
        words = ("an " if words[0] in "aeiou" else "a ") + words
    return _capital(template.format(words))


def _capital(words):
    """The sentence with its first letter in upper case."""
    return words[0].upper() + words[1:]
