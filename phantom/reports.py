"""The report of a drawn study: it states the labels, and each finding with its side and size as drawn."""

import tomllib
from pathlib import Path

import numpy as np

from phantom.anatomy import MASS_EXTENT, Finding, nodule_count
from utils import findings as cxr

_WORDING = tomllib.loads(Path(__file__).with_name("wording.toml").read_text(encoding="utf-8"))
_BY_SEVERITY = ("Cardiomegaly", "Edema", "Atelectasis", "Enlarged Cardiomediastinum")


def write_report(drawn: list[Finding], labels: np.ndarray, rng: np.random.Generator) -> str:
    """A report in MIMIC-CXR's layout; drawn, labels: from `random_findings`, uncertain findings included."""
    by_name = {finding.name: finding for finding in drawn}
    labelled = {code: [n for n, label in zip(cxr.FINDINGS, labels) if label == code] for code in set(labels.tolist())}
    present = [by_name[name] for name in labelled.get(cxr.PRESENT, ()) if name != "No Finding"]
    uncertain = [by_name[name] for name in labelled.get(cxr.UNCERTAIN, ())]
    absent = list(rng.permutation(labelled.get(cxr.ABSENT, [])))
    normal = labels[cxr.finding_index("No Finding")] == cxr.PRESENT

    sentences = _findings_section(present, uncertain, absent, normal, rng)
    impression = [rng.choice(_WORDING["normal_impressions"])] if normal else []
    impression += [_capital(_mention(finding)) + "." for finding in present]
    impression += [f"Possible {_hedged(finding)}." for finding in uncertain]
    impression = impression or [sentences[0]]
    if len(impression) > 1 and rng.random() < 0.5:
        impression = [f"{number}. {sentence}" for number, sentence in enumerate(impression, 1)]
    parts = [
        str(rng.choice(["EXAMINATION:  CHEST RADIOGRAPH", "EXAMINATION:  CHEST (SINGLE VIEW)"])),
        "INDICATION:  " + str(rng.choice(_WORDING["indications"])).format(rng.choice(["man", "woman"])),
        "COMPARISON:  " + str(rng.choice(["None.", "Chest radiograph of ___.", "___."])),
        "FINDINGS: \n\n " + " ".join(sentences),
        "IMPRESSION: \n\n " + " ".join(impression),
    ]
    return " " * 33 + "FINAL REPORT\n " + "\n \n ".join(parts) + "\n"


def _findings_section(present, uncertain, absent, normal, rng):
    """Sentences about all labelled findings, with fillers up to about three sentences."""
    positives = [_say(_words_for(finding), _mention(finding), rng) for finding in rng.permutation(present)]
    hedges = [_say(_WORDING["uncertain"], _hedged(finding), rng) for finding in uncertain]
    # one sentence negates at most two findings
    pairs = [" or ".join(_unqualified(name) for name in absent[at : at + 2]) for at in range(0, len(absent), 2)]
    negatives = [_say(_WORDING["absent"], pair, rng) for pair in pairs]
    in_order = rng.random() < 0.7
    sentences = [rng.choice(_WORDING["clear"])] if normal else []
    sentences += [*positives, *hedges, *negatives] if in_order else [*negatives, *positives, *hedges]
    for place in rng.permutation(len(_WORDING["fillers"]))[: max(1, 3 - len(sentences))]:
        if len(sentences) < 6:
            sentences.append(rng.choice(_WORDING["fillers"][place]))
    return sentences


def _mention(finding):
    """The finding in words, with its degree, side and zone as drawn."""
    degrees = _WORDING["severities"] if finding.name in _BY_SEVERITY else _WORDING["sizes"]
    name = finding.kind or finding.name
    if finding.name == "Lung Lesion" and finding.extent <= MASS_EXTENT:
        name = f"nodules {nodule_count(finding)}"
    degree = degrees[min(2, int(3 * finding.extent))]
    return _WORDING["names"][name].format(degree=degree, side=finding.side, zone=finding.zone)


def _hedged(finding):
    """An uncertain finding in words: with its side, but no degree."""
    side = "" if finding.side == "both" or finding.name == "Support Devices" else finding.side + " "
    return side + _unqualified(finding.name).removeprefix("focal ")


def _unqualified(name):
    return _WORDING["unqualified"].get(name, name.lower())


def _words_for(finding):
    """Sentence templates for a finding, singular or plural as `_mention` words it."""
    several = finding.kind in ("rib", "plaque") or (finding.name == "Lung Lesion" and nodule_count(finding) > 1)
    return _WORDING["present_plural"] if several or finding.kind == "lines" else _WORDING["present"]


def _say(templates, words, rng):
    """One of the templates, filled with the words, as a sentence."""
    template = str(rng.choice(templates))
    if template.startswith("There is {}") and words.split()[0] not in ("severe", "mild", "moderate"):
        words = ("an " if words[0] in "aeiou" else "a ") + words
    return _capital(template.format(words))


def _capital(words):
    """The sentence with its first letter in upper case."""
    return words[0].upper() + words[1:]
