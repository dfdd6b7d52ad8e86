"""evaluation/details.py: sentences with the details that they name, and drawn reports with those that were drawn."""

import numpy as np
import pytest

from evaluation.details import DETAILS, detail_flags, read_details
from evaluation.labeler import label_report
from phantom import random_findings, write_report
from phantom.anatomy import MASS_EXTENT, nodule_count
from utils.errors import InputError
from utils.findings import ABSENT, FINDINGS, PRESENT, UNCERTAIN

# "finding: side/zone/degree/kind"; what is empty at the end is left out
SENTENCES = {
    "sides": [
        ("Left pleural effusion.", "Pleural Effusion: left"),
        ("There is a right-sided pneumothorax.", "Pneumothorax: right"),
        ("Bilateral pleural effusions.", "Pleural Effusion: bilateral"),
        ("Right and left pleural effusions.", "Pleural Effusion: bilateral"),
        ("Interval development of left and right effusions.", "Pleural Effusion: bilateral"),
        ("Pleural effusions, left greater than right.", "Pleural Effusion: bilateral"),
        ("Left greater than right bibasilar atelectasis.", "Atelectasis: bilateral/lower"),
        ("Effusions are present bilaterally, R > L.", "Pleural Effusion: bilateral"),
        ("Pneumothorax is again seen on the right.", "Pneumothorax: right"),
        ("Consolidation throughout both lungs.", "Consolidation: bilateral"),
        ("On the left, there is a pneumothorax.", "Pneumothorax: left"),
        ("In the right lung, there are nodules.", "Lung Lesion: right///nodule"),
        ("Small effusion on the left and larger one on the right.", "Pleural Effusion: bilateral//small"),
        ("Left pleural effusion and the right lung is clear.", "Pleural Effusion: left"),
        ("The right lung is clear, small left effusion.", "Pleural Effusion: left//small"),
        ("Left effusion; the right costophrenic angle is sharp.", "Pleural Effusion: left"),
        ("No right effusion, but a left pneumothorax.", "Pneumothorax: left"),
        ("Cardiomegaly with left ventricular configuration.", ""),
        ("Left pleural effusion. Right pleural effusion.", "Pleural Effusion: bilateral"),
        ("No left pleural effusion.", ""),
        ("Possible right pneumothorax.", ""),
    ],
    "zones": [
        ("RLL pneumonia.", "Pneumonia: right/lower"),
        ("LUL consolidation.", "Consolidation: left/upper"),
        ("Opacity in the right upper lobe.", "Lung Opacity: right/upper"),
        ("Right middle lobe opacity.", "Lung Opacity: right/middle"),
        ("Patchy opacity in the lingula.", "Lung Opacity: left/middle"),
        ("Consolidation at both lung bases.", "Consolidation: bilateral/lower"),
        ("Opacities at the bases.", "Lung Opacity: bilateral/lower"),
        ("Bibasilar opacities.", "Lung Opacity: bilateral/lower"),
        ("Retrocardiac opacity.", "Lung Opacity: /lower"),
        ("Tiny left apical pneumothorax.", "Pneumothorax: left/upper/small"),
        ("Biapical pleural thickening.", "Pleural Other: bilateral/upper//thickening"),
        ("Scarring at the right apex.", "Lung Opacity: right/upper//scar"),
        ("Perihilar edema.", "Edema: /middle"),
        ("Nodule projecting over the left mid lung zone.", "Lung Lesion: left/middle//nodule"),
        ("Opacities in the mid and lower lung zones.", "Lung Opacity: /lower, middle"),
        ("Opacities in the right upper lobe and left lower lobe.", "Lung Opacity: bilateral/lower, upper"),
        ("Opacities in the right upper lobe and left lower lobe are unchanged.",
         "Lung Opacity: bilateral/lower, upper"),
        ("Upper and lower lobe nodules.", "Lung Lesion: /lower, upper//nodule"),
        ("Fluid and opacity in the left costophrenic angle.", "Lung Opacity: left/lower"),
        ("Right internal jugular line ends in the upper SVC.", "Support Devices: right///line"),
        ("Opacity and low lower lung volumes.", ""),
    ],
    "degrees": [
        ("Trace pleural effusion.", "Pleural Effusion: //small"),
        ("Mild pulmonary edema.", "Edema: //small"),
        ("Mild to moderate pulmonary edema.", "Edema: //moderate"),
        ("Moderate-to-severe cardiomegaly.", "Cardiomegaly: //large"),
        ("Marked interstitial edema.", "Edema: //large/interstitial"),
        ("The heart is mildly enlarged.", "Cardiomegaly: //small"),
        ("Heart size is moderately enlarged.", "Cardiomegaly: //moderate"),
        ("The heart is slightly large.", "Cardiomegaly: //small"),
        ("Moderate widening of the mediastinum.", "Enlarged Cardiomediastinum: //moderate"),
        ("Left effusion has increased and is now moderate.", "Pleural Effusion: left//moderate"),
        ("Right effusion, moderate in size.", "Pleural Effusion: right//moderate"),
        ("Mildly increased left effusion.", "Pleural Effusion: left"),
        ("Slight interval improvement of the edema.", ""),
        ("Moderate right and small left effusions.", "Pleural Effusion: bilateral//moderate"),
        ("Cardiomegaly with mildly tortuous aorta.", ""),
    ],
    "kinds": [
        ("Healed fractures of the left sixth and seventh ribs.", "Fracture: left///rib"),
        ("Displaced fracture of the right clavicle.", "Fracture: right///clavicle"),
        ("Compression fracture of T8.", "Fracture: ///vertebra"),
        ("Endotracheal tube 4 cm above the carina.", "Support Devices: ///airway tube"),
        ("Left-sided dual-lead pacemaker, leads in the right atrium and right ventricle.",
         "Support Devices: left///pacemaker"),
        ("ET tube and right IJ line in place.", "Support Devices: right///airway tube, line"),
        ("Nasogastric tube courses below the left hemidiaphragm.", "Support Devices: ///enteric tube"),
        ("Right chest tube with small right apical pneumothorax.",
         "Support Devices: right///chest tube; Pneumothorax: right/upper/small"),
        ("Calcified left pleural plaques.", "Pleural Other: left///plaque"),
        ("Large right hilar mass.", "Lung Lesion: right/middle/large/mass"),
        ("Linear atelectasis at the left base.", "Atelectasis: left/lower//linear"),
    ],
    "each finding has its own": [
        ("Left basilar atelectasis and small right effusion.",
         "Atelectasis: left/lower; Pleural Effusion: right//small"),
        ("Pleural effusion on the right, atelectasis on the left.", "Pleural Effusion: right; Atelectasis: left"),
        ("Left effusion is large, right pneumothorax is small.",
         "Pleural Effusion: left//large; Pneumothorax: right//small"),
        ("Mild cardiomegaly and severe edema.", "Cardiomegaly: //small; Edema: //large"),
        ("Small left effusion, and on the right, a pneumothorax.",
         "Pleural Effusion: left//small; Pneumothorax: right"),
        ("Opacity in the right upper lobe with left effusion.", "Lung Opacity: right/upper; Pleural Effusion: left"),
        ("Moderate cardiomegaly, small bilateral effusions and right lower lobe pneumonia.",
         "Cardiomegaly: //moderate; Pleural Effusion: bilateral//small; Pneumonia: right/lower"),
        ("Opacity in the left base and effusion.", "Lung Opacity: left/lower"),
        ("Left effusion and edema.", "Pleural Effusion: left"),
    ],
    "findings that share a place": [
        ("Left base opacity, likely atelectasis.", "Lung Opacity: left/lower; Atelectasis: left/lower"),
        ("Opacity in the right upper lobe consistent with pneumonia.",
         "Lung Opacity: right/upper; Pneumonia: right/upper"),
        ("Left pleural effusion and atelectasis.", "Pleural Effusion: left; Atelectasis: left"),
        ("Atelectasis and consolidation in the left lower lobe.",
         "Atelectasis: left/lower; Consolidation: left/lower"),
        ("Small bilateral effusions with adjacent atelectasis.",
         "Pleural Effusion: bilateral//small; Atelectasis: bilateral"),
        ("Nodular opacity in the left mid lung.", "Lung Lesion: left/middle//nodule; Lung Opacity: left/middle"),
        ("Right hydropneumothorax.", "Pleural Effusion: right; Pneumothorax: right"),
    ],
}  # fmt: skip


def named(report):
    """The details of a report in the notation of SENTENCES, sorted."""
    read = read_details([report])
    rows = ["/".join(read[detail][0, place] for detail in DETAILS).rstrip("/") for place in range(len(FINDINGS))]
    return sorted(f"{name}: {row}" for name, row in zip(FINDINGS, rows) if row)


@pytest.mark.parametrize(
    ("sentence", "expected"), [pair for group in SENTENCES.values() for pair in group], ids=lambda text: text[:40]
)
def test_sentences_and_the_details_that_they_name(sentence, expected):
    assert named(sentence) == sorted(filter(None, expected.split("; ")))
    assert named(f"FINDINGS: {sentence} IMPRESSION: {sentence}") == named(sentence)  # said twice


def test_details_are_of_present_findings_only_in_the_order_of_the_reports():
    read = read_details(["Small left effusion.", "", "No effusion.", "Large right effusion."])
    effusion = FINDINGS.index("Pleural Effusion")
    assert list(read) == list(DETAILS) and read["side"].shape == (4, 14)
    assert read["side"][:, effusion].tolist() == ["left", "", "", "right"]
    assert read["degree"][:, effusion].tolist() == ["small", "", "", "large"]
    assert read_details([])["zone"].shape == (0, 14)
    with pytest.raises(InputError, match="text"):
        read_details([None])


# ---- drawn reports ---------------------------------------------------------------------------------------------------

ZONES = {"upper": "upper", "mid": "middle", "lower": "lower"}
KINDS = {
    "rib": "rib", "clavicle": "clavicle", "pacemaker": "pacemaker", "lines": "airway tube, line", "plaque": "plaque",
    "thickening": "thickening", "cap": "thickening",
}  # fmt: skip
DEGREELESS = ("Fracture", "Lung Lesion", "Support Devices")


def drawn_details(finding):
    """{detail: value} of a drawn finding that its report names."""
    unplaced = finding.name in ("Cardiomegaly", "Edema", "Enlarged Cardiomediastinum")
    several = finding.name == "Lung Lesion" and nodule_count(finding) == 3
    in_zone = finding.name in ("Atelectasis", "Consolidation", "Lung Opacity", "Pneumonia") or finding.kind == "cap"
    in_zone |= finding.name == "Lung Lesion" and not several
    kind = KINDS.get(finding.kind, "")
    if finding.name == "Lung Lesion":
        kind = "mass" if finding.extent > MASS_EXTENT else "nodule"
    without_degree = finding.name in DEGREELESS or finding.kind == "plaque"
    return {
        "side": "" if unplaced else finding.side,
        "zone": ZONES[finding.zone] if in_zone else "",
        "degree": "" if without_degree else ("small", "moderate", "large")[min(2, int(3 * finding.extent))],
        "kind": kind,
    }


def test_details_read_from_drawn_reports_are_those_that_were_drawn():
    rng, right, count = np.random.default_rng(5), dict.fromkeys(DETAILS, 0), dict.fromkeys(DETAILS, 0)
    for _ in range(600):
        drawn, labels = random_findings(rng)
        read = read_details([write_report(drawn, labels, rng)])
        for finding in drawn:
            place = FINDINGS.index(finding.name)
            if labels[place] != PRESENT:
                continue
            for detail, expected in drawn_details(finding).items():
                value = read[detail][0, place]
                assert expected or not value, (detail, finding, value)  # nothing is read that is not said
                count[detail] += expected != ""
                right[detail] += expected != "" and value == expected
    assert min(count.values()) > 150
    assert {detail: share for detail in DETAILS if (share := right[detail] / count[detail]) < 0.98} == {}


def test_findings_that_are_not_present_in_drawn_reports_have_no_details():
    rng = np.random.default_rng(6)
    for _ in range(100):
        drawn, labels = random_findings(rng)
        report = write_report(drawn, labels, rng)
        absent = np.isin(label_report(report), (ABSENT, UNCERTAIN))
        assert not any((values[0, absent] != "").any() for values in read_details([report]).values())


def test_flags_are_the_findings_and_the_details_that_are_named_often(monkeypatch):
    monkeypatch.setattr("evaluation.details.LEAST_REPORTS", 2)
    reports = ["Small left effusion.", "Large left effusion. No edema.", "Mild edema.", "Clear lungs."]
    names, flags = detail_flags(reports)
    said = {name: flags[:, column].tolist() for column, name in enumerate(names)}
    assert [*said][:14] == [*FINDINGS] and {*names[14:]} == {"Pleural Effusion, side: left"}
    assert said["Pleural Effusion"] == said["Pleural Effusion, side: left"] == [True, True, False, False]
    assert said["Edema"] == [False, False, True, False]
    wanted = ["Edema, degree: small", "Fracture, side: right", "Pleural Effusion, degree: large"]
    names, flags = detail_flags(reports, wanted)
    assert names == wanted and flags.T.tolist() == [
        [False, False, True, False],
        [False] * 4,
        [False, True, False, False],
    ]
    again, counted = detail_flags([*reports, *reports], counted=np.arange(4))
    assert again[14:] == ["Pleural Effusion, side: left"] and np.array_equal(counted[:4], counted[4:])
    assert detail_flags([*reports, *reports], counted=np.arange(1))[0] == [*FINDINGS]
