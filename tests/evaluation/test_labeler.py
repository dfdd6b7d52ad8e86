"""evaluation/labeler.py: sentences of every kind with the codes that they say, whole reports, and what is no report."""

import numpy as np
import pytest
from sentences import codes_of, codes_read

from evaluation.labeler import contradictions, label_report, label_reports
from phantom import random_findings, write_report
from utils.errors import InputError
from utils.findings import ABSENT, FINDINGS, NOT_MENTIONED, PRESENT, UNCERTAIN, finding_index
from utils.report_text import report_file

# "heart- edema?" says: cardiomegaly absent, edema uncertain, every other finding but No Finding not mentioned
SENTENCES = {
    "a finding in its words": [
        ("Bibasilar atelectasis.", "atelectasis+"),
        ("Platelike atelectatic change in the lingula.", "atelectasis+"),
        ("Collapse of the right middle lobe.", "atelectasis+"),
        ("Severe cardiomegaly.", "heart+"),
        ("Left ventricular enlargement.", "heart+"),
        ("Dense consolidation of the left lower lobe.", "consolidation+"),
        ("Mild interstitial edema.", "edema+"),
        ("Mild pulmonary vascular congestion.", "edema+"),
        ("Findings of fluid overload.", "edema+"),
        ("Healing fractures of the left sixth and seventh ribs.", "fracture+"),
        ("A 9 mm nodule projects over the left apex.", "lesion+"),
        ("Large left hilar mass.", "lesion+"),
        ("Known bronchogenic carcinoma.", "lesion+"),
        ("Patchy opacities at both bases.", "opacity+"),
        ("New infiltrate in the right upper lobe.", "opacity+"),
        ("Retrocardiac airspace disease.", "opacity+"),
        ("Air-space disease on the left.", "opacity+"),
        ("Coarse interstitial markings.", "opacity+"),
        ("Reticular markings and ground-glass change.", "opacity+"),
        ("Scarring in the right upper lobe.", "opacity+"),
        ("Nodular opacity in the left mid lung.", "lesion+ opacity+"),
        ("Small bilateral pleural effusions.", "effusion+"),
        ("Loculated pleural fluid on the left.", "effusion+"),
        ("Biapical pleural thickening.", "pleura+"),
        ("Calcified pleural plaques.", "pleura+"),
        ("Pleural scarring at the left apex.", "pleura+"),
        ("Right lower lobe pneumonia.", "pneumonia+"),
        ("Findings of an infectious process.", "pneumonia+"),
        ("Tiny left apical pneumothorax.", "pneumothorax+"),
        ("Right hydropneumothorax.", "pneumothorax+ effusion+"),
    ],
    "support devices": [
        ("Endotracheal tube in place.", "device+"),
        ("A left PICC ends in the lower SVC.", "device+"),
        ("Right chest port, tip at the cavoatrial junction.", "device+"),
        ("Dual-chamber pacemaker.", "device+"),
        ("An ICD is again seen.", "device+"),
        ("Status is unchanged; prosthetic mitral valve.", "device+"),
        ("Fixation plate and screws in the left clavicle.", "device+"),
        ("Lines and tubes are unchanged.", "device+"),
        ("The central line has been removed.", "device-"),
        ("The central venous line catheter has also been removed.", "device-"),
        ("Interval removal of the chest tube.", "device-"),
        ("Kerley B lines at both bases.", "edema+"),
        ("Suture lines and breast prostheses.", ""),
        ("No support device is seen.", "device-"),
        ("Sternal wires are intact.", ""),
        ("Surgical clips in the right upper quadrant.", ""),
        ("No pleural line.", ""),
        ("Endplate irregularities.", ""),
    ],
    "what only sounds like a finding": [
        ("Small pericardial effusion.", ""),
        ("Knee effusion.", ""),
        ("Calcified nodule in the left base.", ""),
        ("Several calcified granulomas.", ""),
        ("No mass effect on the trachea.", ""),
        ("Soft tissue edema of the chest wall.", ""),
        ("Collapse of the T8 vertebral body.", ""),
        ("Wedge deformity of a thoracic vertebra.", ""),
        ("Fracture of the uppermost sternal wire.", ""),
        ("Blunting of the left costophrenic angle.", ""),
        ("Volume loss in the left lung.", ""),
        ("Sequela of old granulomatous infection.", ""),
        ("Sclerotic opacities in two ribs.", ""),
        ("Lung markings are within normal limits.", ""),
        ("The trachea is midline.", ""),
    ],
    "heart and mediastinum": [
        ("Heart size is normal.", "heart-"),
        ("Normal heart size.", "heart-"),
        ("Heart size within normal limits.", "heart-"),
        ("The heart is not enlarged.", "heart-"),
        ("No enlargement of the cardiac silhouette.", "heart-"),
        ("Heart size is at the upper limits of normal.", "heart-"),
        ("The cardiac silhouette is mildly enlarged.", "heart+"),
        ("Enlarged heart.", "heart+"),
        ("There is enlargement of the cardiac silhouette.", "heart+"),
        ("Borderline heart size.", "heart?"),
        ("The heart is top normal in size.", "heart?"),
        ("The heart may be enlarged.", "heart?"),
        ("Possible enlargement of the heart.", "heart?"),
        ("Heart size is unchanged.", "heart?"),
        ("Heart size is stable and within normal limits.", "heart-"),
        ("The cardiomediastinal silhouette is unremarkable.", "mediastinum-"),
        ("Normal and stable cardiomediastinal contours.", "mediastinum-"),
        ("Stable cardiomediastinal silhouette.", "mediastinum?"),
        ("Widened mediastinum.", "mediastinum+"),
        ("There is mediastinal widening.", "mediastinum+"),
        ("No mediastinal widening.", "mediastinum-"),
        ("The cardio-mediastinal silhouette is enlarged.", "mediastinum+"),
        ("Heart size and mediastinal contours are normal.", "heart- mediastinum-"),
        ("Normal heart size, mediastinal and hilar contours.", "heart- mediastinum-"),
        ("The heart, hila and mediastinum are within normal limits.", "heart- mediastinum-"),
        ("Cardiac and mediastinal silhouettes are unremarkable.", "heart- mediastinum-"),
        ("Heart size is normal, and the mediastinum is widened.", "heart- mediastinum+"),
        ("The heart is enlarged and the lungs are normal.", "heart+"),
        ("Enlargement of the heart, mediastinal contours are normal.", "heart+ mediastinum-"),
        ("Normal size and configuration of the cardiac silhouette.", "heart-"),
        ("The heart is obscured.", ""),
        ("A prominent fat pad behind the heart.", ""),
        ("The lungs are clear.", ""),
    ],
    "heart failure": [
        ("Congestive heart failure.", "edema+ heart?"),
        ("CHF cannot be excluded.", "edema? heart?"),
        ("No evidence of heart failure.", "edema-"),
        ("Mild cardiomegaly and heart failure.", "edema+ heart+"),
    ],
    "negation before": [
        ("No pneumothorax.", "pneumothorax-"),
        ("No effusion, pneumothorax or edema.", "effusion- pneumothorax- edema-"),
        ("There is no focal consolidation, large pleural effusion, or pneumothorax.",
         "consolidation- effusion- pneumothorax-"),
        ("No evidence of pneumonia.", "pneumonia-"),
        ("No definite fracture.", "fracture-"),
        ("Negative for effusion or edema.", "effusion- edema-"),
        ("The lungs are free of airspace disease.", "opacity-"),
        ("The lungs are clear of infiltrate.", "opacity-"),
        ("Lungs are clear, without consolidation or effusion.", "consolidation- effusion-"),
        ("Neither effusion nor pneumothorax is seen.", "effusion- pneumothorax-"),
        ("Absence of edema.", "edema-"),
        ("Resolution of the right effusion.", "effusion-"),
        ("Atelectasis rather than pneumonia.", "atelectasis+ pneumonia-"),
        ("No opacity to suggest pneumonia.", "opacity- pneumonia-"),
        ("No suspicious nodule or mass.", "lesion-"),
        ("No new infiltrate.", "opacity-"),
        ("No XXXX of a pleural effusion.", "effusion-"),
        ("There is no longer evidence of edema.", "edema-"),
    ],
    "negation after": [
        ("Pneumothorax is absent.", "pneumothorax-"),
        ("Effusion, edema, and pneumothorax are absent.", "effusion- edema- pneumothorax-"),
        ("The effusion has resolved.", "effusion-"),
        ("The left basilar opacity has completely cleared.", "opacity-"),
        ("A pneumothorax is not seen.", "pneumothorax-"),
        ("The pneumothorax is no longer seen.", "pneumothorax-"),
        ("Pleural effusion or pneumothorax is not identified.", "effusion- pneumothorax-"),
        ("Pneumonia has been ruled out.", "pneumonia-"),
        ("Pneumonia is unlikely.", "pneumonia-"),
        ("Pneumothorax: none.", "pneumothorax-"),
        ("Opacity in the left base; effusion is not seen.", "opacity+ effusion-"),
    ],
    "where a negation ends": [
        ("No effusion, but there is edema.", "effusion- edema+"),
        ("No pneumothorax; small effusion.", "pneumothorax- effusion+"),
        ("No pneumonia, however atelectasis persists.", "pneumonia- atelectasis+"),
        ("No acute disease except a small effusion.", "effusion+"),
        ("No pneumothorax with a small effusion.", "pneumothorax- effusion+"),
        ("No pneumothorax, stable cardiomegaly.", "pneumothorax- heart+"),
        ("There is no pneumothorax and the heart is enlarged.", "pneumothorax- heart+"),
        ("No pneumothorax and the effusion has increased.", "pneumothorax- effusion+"),
        ("Without edema there is a small effusion.", "edema- effusion+"),
        ("Cardiomegaly without edema.", "heart+ edema-"),
        ("No consolidation (small effusion).", "consolidation- effusion+"),
    ],
    "no negation": [
        ("No change in the effusion.", "effusion+"),
        ("No significant interval change in bibasilar atelectasis.", "atelectasis+"),
        ("No increase in the size of the pneumothorax.", "pneumothorax+"),
        ("Effusion without significant change.", "effusion+"),
        ("The effusion has not resolved.", "effusion+"),
        ("The pneumonia has nearly resolved.", "pneumonia+"),
        ("Partial resolution of the edema.", "edema+"),
        ("Not only edema is seen.", "edema+"),
        ("The opacity is not changed.", "opacity+"),
    ],
    "doubt before": [
        ("Possible pneumonia.", "pneumonia?"),
        ("There is possible edema.", "edema?"),
        ("Probable small effusion.", "effusion?"),
        ("Opacity that may represent pneumonia.", "opacity+ pneumonia?"),
        ("Opacities could reflect atelectasis or infection.", "opacity+ atelectasis? pneumonia?"),
        ("Opacity suggesting pneumonia.", "opacity+ pneumonia?"),
        ("Opacity concerning for a mass.", "opacity+ lesion?"),
        ("Question of a small pneumothorax.", "pneumothorax?"),
        ("Cannot exclude a small effusion.", "effusion?"),
        ("It is difficult to exclude pneumonia.", "pneumonia?"),
        ("The differential includes pneumonia and edema.", "pneumonia? edema?"),
        ("Suspected rib fracture.", "fracture?"),
        ("Questionable nodule.", "lesion?"),
        ("? effusion.", "effusion?"),
        ("There may be an effusion.", "effusion?"),
        ("Possible pneumonia, no effusion.", "pneumonia? effusion-"),
        ("Possible pneumonia with small effusion.", "pneumonia? effusion+"),
        ("No effusion, possible atelectasis.", "effusion- atelectasis?"),
        ("Obtain oblique views to rule out fracture.", "fracture?"),
        ("Pneumonia is less likely, edema more so.", "pneumonia? edema+"),
    ],
    "doubt after": [
        ("Pneumonia cannot be excluded.", "pneumonia?"),
        ("Pneumonia is not excluded.", "pneumonia?"),
        ("Pneumonia or effusion cannot be entirely excluded.", "pneumonia? effusion?"),
        ("A fracture is possible.", "fracture?"),
        ("Edema is suspected.", "edema?"),
        ("A small effusion may be present.", "effusion?"),
        ("An effusion is difficult to exclude.", "effusion?"),
        ("Pneumonia would be a consideration.", "pneumonia?"),
        ("Fracture should be excluded by oblique views.", "fracture?"),
        ("Cardiomegaly; a small effusion cannot be excluded.", "heart+ effusion?"),
    ],
    "one or the other": [
        ("Basilar atelectasis versus pneumonia.", "atelectasis? pneumonia?"),
        ("Scar or atelectasis in the lingula.", "opacity? atelectasis?"),
        ("Left basilar consolidation/atelectasis.", "consolidation? atelectasis?"),
        ("Effusion and/or pleural thickening.", "effusion? pleura?"),
        ("Nodules or masses in both lungs.", "lesion+"),
        ("Opacity, more marked versus the prior study.", "opacity+"),
        ("Atelectasis and effusion.", "atelectasis+ effusion+"),
        ("No change in the effusion or the pneumothorax.", "effusion+ pneumothorax+"),
    ],
    "no doubt": [
        ("Opacity consistent with pneumonia.", "opacity+ pneumonia+"),
        ("Opacity, likely atelectasis.", "opacity+ atelectasis+"),
        ("Opacity compatible with infection.", "opacity+ pneumonia+"),
    ],
    "nothing said": [
        ("History of pneumonia.", ""),
        ("If there is concern for fracture, consider rib views.", ""),
        ("Limited evaluation for effusion.", ""),
        ("Follow up to document resolution of the infiltrate.", ""),
        ("Correlate clinically for infection.", ""),
        ("Fractures may not be demonstrated.", ""),
        ("Overlying bone could obscure a small nodule.", ""),
        ("History of lung cancer, small effusion.", "effusion+"),
    ],
    "where sentences end": [
        ("Nodule of 1.5 cm. No effusion", "lesion+ effusion-"),
        ("1. No pneumothorax. 2. Cardiomegaly. 3. Possible edema.", "pneumothorax- heart+ edema?"),
        ("No edema.Small effusion.", "edema- effusion+"),
        ("No effusion\nor pneumo-\nthorax. Left\nlower lobe pneumonia.", "effusion- pneumonia+"),
        ("LUNGS: No consolidation. HEART: Enlarged.", "consolidation- heart+"),
        ("No pneumothorax 2) cardiomegaly", "pneumothorax- heart+"),
        ("Compared with ___, no effusion. Dr. ___ was told of the pneumothorax.", "effusion- pneumothorax+"),
    ],
}  # fmt: skip
ROWS = [
    pytest.param(sentence, said, id=f"{kind}: {sentence}")
    for kind, rows in SENTENCES.items()
    for sentence, said in rows
]


def no_finding(report):
    return label_report(report)[finding_index("No Finding")]


@pytest.mark.parametrize(("sentence", "said"), ROWS)
def test_a_sentence_says_its_codes(sentence, said):
    assert codes_read(sentence) == codes_of(said)


@pytest.mark.parametrize("name", [name for name in FINDINGS if name != "No Finding"])
@pytest.mark.parametrize(
    ("words", "code"), [("There is {}.", PRESENT), ("There is no {}.", ABSENT), ("Possible {}.", UNCERTAIN)]
)
def test_every_finding_by_its_own_name(name, words, code):
    assert codes_read(words.format(name.lower())) == {name: code}


def test_present_outweighs_uncertain_and_uncertain_outweighs_absent():
    absent, uncertain, present = "No edema. ", "Possible edema. ", "Mild edema. "
    assert codes_read(absent + uncertain) == codes_read(uncertain + absent) == {"Edema": UNCERTAIN}
    assert codes_read(absent + present) == codes_read(present + uncertain + absent) == {"Edema": PRESENT}


@pytest.mark.parametrize(
    ("report", "code"),
    [
        ("The lungs are clear.", PRESENT),
        ("No effusion. Heart size is normal.", PRESENT),
        ("Endotracheal tube in place. Lungs are clear.", PRESENT),  # devices do not count
        ("Tortuous aorta.", PRESENT),
        ("Small effusion.", NOT_MENTIONED),
        ("Possible effusion.", NOT_MENTIONED),
        ("Stable cardiomediastinal silhouette.", NOT_MENTIONED),
        ("Emphysema. Lungs otherwise clear.", NOT_MENTIONED),
        ("Calcified granuloma in the left base.", NOT_MENTIONED),
        ("No emphysema.", PRESENT),
        ("Blunting of the left costophrenic angle.", NOT_MENTIONED),
    ],
)
def test_no_finding_is_what_is_left(report, code):
    assert no_finding(report) == code


REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old man with fever.  Rule out pneumonia, pneumothorax.

 COMPARISON:  Chest radiograph of ___ with a large effusion.

 FINDINGS:

 There is a new opacity in the right lower lobe, which may
 represent pneumonia.  The left costophrenic angle is sharp.  There is no
 pneumothorax or
 pulmonary edema.  Heart size is normal.  Left PICC
 ends in the SVC.

 IMPRESSION:

 1.  Right lower lobe opacity, possible pneumonia.
 2.  No pneumothorax.
"""


def test_a_whole_report_in_any_form():
    said = codes_of("opacity+ pneumonia? pneumothorax- edema- heart- device+")
    assert codes_read(REPORT) == said  # neither the indication's pneumothorax nor the comparison's effusion
    findings = "New opacity that may be pneumonia. No pneumothorax or edema. Heart size is normal. Left PICC."
    for text in (f"FINDINGS: {findings} IMPRESSION: No pneumothorax.", report_file(findings, ""), findings):
        assert codes_read(text) == said
    assert codes_read("IMPRESSION: NO EFFUSION OR PNEUMOTHORAX. CARDIOMEGALY.") == codes_of(
        "effusion- pneumothorax- heart+"
    )


@pytest.mark.parametrize("text", ["", " \n\t ", "___", "XXXX XXXX.", ". 1. 2) - ?", "FINDINGS: IMPRESSION:", "\0"])
def test_a_report_that_says_nothing_is_zero_everywhere(text):
    assert label_report(text).tolist() == [0] * len(FINDINGS)


def test_many_reports():
    labels = label_reports(["No edema.", "", "Edema."])
    assert labels.shape == (3, len(FINDINGS)) and labels.dtype == np.int8
    assert labels[:, finding_index("Edema")].tolist() == [ABSENT, 0, PRESENT]
    assert label_reports([]).shape == (0, len(FINDINGS))


@pytest.mark.parametrize("read", [label_report, contradictions])
@pytest.mark.parametrize("text", [None, 3.5, b"No edema."])
def test_what_is_no_text(text, read):
    with pytest.raises(InputError, match="a report to label is a text, not"):
        read(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Severe cardiomegaly. The lungs are clear. No cardiomegaly.", ["Cardiomegaly"]),
        ("No cardiomegaly. Severe cardiomegaly.", ["Cardiomegaly"]),
        ("Severe cardiomegaly is seen. Heart size is normal.", ["Cardiomegaly"]),
        (
            "FINDINGS: No edema, effusion or pneumothorax. IMPRESSION: 1. Small effusion. 2. Mild edema.",
            ["Edema", "Pleural Effusion"],
        ),
        ("Left pleural effusion, no right pleural effusion. No effusion.", ["Pleural Effusion"]),
        ("Left effusion. No right effusion.", ["Pleural Effusion"]),  # sides are not told apart
        ("Left pleural effusion, no right pleural effusion.", []),  # one sentence
        ("Severe cardiomegaly. The heart is enlarged. No edema.", []),
        ("No edema. Possible edema.", []),
        ("Possible pneumonia. Pneumonia in the right lower lobe.", []),
        ("INDICATION: Pneumothorax. FINDINGS: No pneumothorax.", []),
        ("No fracture. No acute fracture.", []),
        ("", []),
    ],
)
def test_a_report_that_contradicts_itself(text, found):
    assert contradictions(text) == found


@pytest.mark.parametrize(
    "piece",
    ["No effusion. ", "no effusion, ", "effusion or edema ", "effusion / ", "the heart and ", "no ", ", ",
     "may be not ", "normal size of the ", "word ", "xxxx ", "( ", "a", "1. ", "heart is ",
     ".", "/", "-", ",", "?", "effusion//", "effusion,", "effusion versus ", "normal heart ", "granulomatous ",
     "fracture of the ", "no significant ", "normal and stable ", "A: "],
)  # fmt: skip
def test_a_report_of_100_kilobytes(piece):
    """Of any shape, in a time that grows with its length: with its square it would take many minutes."""
    text = (piece * (100_000 // len(piece) + 1))[:100_000]
    assert label_report(f"{text}. No pneumothorax.")[finding_index("Pneumothorax")] == ABSENT


def f1(found, wanted):
    return 2 * (found & wanted).sum() / (found.sum() + wanted.sum())


def test_drawn_reports_are_read_as_they_were_meant():
    rng = np.random.default_rng(7)
    drawn = [random_findings(rng) for _ in range(400)]
    wanted = np.array([labels for _, labels in drawn])
    reports = [write_report(findings, labels, rng) for findings, labels in drawn]
    found = label_reports(reports)
    assert not any(map(contradictions, reports))
    for code in (PRESENT, ABSENT, UNCERTAIN):
        assert f1(found == code, wanted == code) >= 0.98
