"""Reports as hospitals write them: sections, layout, marks."""

import random

import numpy as np
import pytest
from small_data import CANONICAL, REPORT

from utils.report_cleaning import MARK, clean_report, without_marks
from utils.report_text import report_file, report_sections, report_text


@pytest.mark.parametrize(
    ("raw", "findings", "impression"),
    [
        (REPORT, "The heart is enlarged. No pneumothorax.", "Cardiomegaly."),
        (" FINDINGS: \n \n Clear.\n \n IMPRESSION: \n \n Normal.\n", "Clear.", "Normal."),
        (" FINDINGS:Clear.\n IMPRESSION:Normal.", "Clear.", "Normal."),
        (" Findings : Clear.\n\n Impression : Normal.", "Clear.", "Normal."),
        (" HISTORY: Cough.\n\n Findings:\n Clear.\n\n Impression\n\n Normal.", "Clear.", "Normal."),
        (" COMPARISON: None.\n FINDINGS\n Clear.\n IMPRESSION\n Normal.", "Clear.", "Normal."),
        (" IMPRESSION:  AP chest compared to ___:\n\n Clear.", "", "AP chest compared to ___: Clear."),
        (" FINDINGS AND IMPRESSION: Clear.", "Clear.", ""),
        (" FINDINGS/IMPRESSION:\n Clear.", "Clear.", ""),
        (" FINDINGS: Clear.\n CONCLUSION: Normal.", "Clear.", "Normal."),
        (" FINDINGS: Clear.\n\n RECOMMENDATION(S):  CT.\n", "Clear.", ""),
        (" FINDINGS: Clear.\n\n NOTIFICATION: Dr. ___ was called.\n\n IMPRESSION: Normal.", "Clear.", "Normal."),
        (" FINDINGS: PA AND LATERAL VIEWS: Clear.\n LUNGS: Clear.", "PA AND LATERAL VIEWS: Clear. LUNGS: Clear.", ""),
        (" FINDINGS:\n PORTABLE CHEST: Clear.", "PORTABLE CHEST: Clear.", ""),
        # a heading that names the views
        (" PA AND LATERAL CHEST RADIOGRAPH: Clear lungs.\n IMPRESSION: Normal.", "Clear lungs.", "Normal."),
        (" PORTABLE CHEST: ___\n\n HISTORY: Cough.\n\n FINDINGS: Clear.", "Clear.", ""),
        (" PORTABLE CHEST: ___\n\n IMPRESSION: Normal.", "", "Normal."),
        # sentences that begin like a heading
        (
            " IMPRESSION: Edema.\n\n Findings were discussed with Dr. ___ at 3 pm.",
            "", "Edema. Findings were discussed with Dr. ___ at 3 pm.",
        ),
        (" FINDINGS: Normal. My\n Impression\n of it is good.", "Normal. My Impression of it is good.", ""),
        (" FINDINGS: Clear. These\n findings are new.", "Clear. These findings are new.", ""),
        # what stands before the final report
        (" WET READ: ___ PM\n IMPRESSION: Edema.\n ____________\n FINAL REPORT\n IMPRESSION: Clear.", "", "Clear."),
        # no section at all
        (" FINAL REPORT\n REASON FOR EXAM:  Cough.\n \n Clear lungs.\n \n No edema.\n", "Clear lungs. No edema.", ""),
        (" FINAL REPORT\n AP CHEST, 5:25 A.M.\n\n HISTORY:\n\n Cough.\n\n Clear lungs.\n", "Clear lungs.", ""),
        (" PORTABLE CHEST\n\n Clear lungs.", "Clear lungs.", ""),
        ("Clear lungs.", "Clear lungs.", ""),
        (" PORTABLE CHEST\n\n INDICATION: Cough.\n", "", ""),
        (" FINAL REPORT\n", "", ""),
        ("", "", ""),
    ],
)  # fmt: skip
def test_report_sections(raw, findings, impression):
    assert report_sections(raw) == (findings, impression)
    canonical = report_text(raw)
    assert report_sections(canonical) == (findings, impression)
    assert report_text(canonical) == canonical
    assert report_sections(report_file(findings, impression)) == (findings, impression)


def test_report_without_line_breaks():
    assert report_text(" ".join(REPORT.split())) == CANONICAL


def test_report_file_reads_back_and_is_narrow():
    words = [
        "the",
        "heart",
        "is",
        "Enlarged.",
        "___",
        "1.",
        "Study:",
        "Compared:",
        "LUNGS:",
        "Impression",
        "Findings",
        "no",
        "5:25",
        "CHEST",
        "(PA)",
        "NEW",
    ]
    choose = random.Random(0)
    for _ in range(500):
        findings = " ".join(choose.choices(words, k=choose.randint(1, 60)))
        impression = " ".join(choose.choices(words, k=choose.randint(0, 20)))
        assert report_sections(report_file(findings, impression)) == (findings, impression)
    report = report_file("heart " * 80, "")
    assert max(map(len, report.splitlines())) <= 78
    assert report.splitlines()[0].strip() == "FINAL REPORT"


def test_further_sections_of_a_file_are_not_read():
    further = {"INDICATION": "Cough. " * 20, "COMPARISON": ""}
    report = report_file("Clear lungs.", "Normal.", further)
    assert report_sections(report) == ("Clear lungs.", "Normal.")
    assert (
        report.index("INDICATION: ") < report.index("Cough.") < report.index("FINDINGS: ")
        and "COMPARISON" not in report
    )
    assert report_file("Clear lungs.", "", {"INDICATION": "FINDINGS: Edema."}) == report_file("Clear lungs.", "")


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("FINDINGS: The heart is normal.  No\nedema.", "FINDINGS: The heart is normal. No edema."),
        ("Since ___, the left effusion has increased.", "The left effusion has increased."),
        ("As compared to the prior study of ___, there is new edema.", "There is new edema."),
        ("In comparison with the study of ___, no change.", "No change."),
        ("Dr. ___ was notified at ___ on ___. Clear lungs.", "Clear lungs."),
        ("___-year-old with cough and fever.", "With cough and fever."),
        ("There are no XXXX of an effusion. The heart is normal.", "The heart is normal."),
        ("FINDINGS: Normal chest x-XXXX. IMPRESSION: No edema.", "IMPRESSION: No edema."),
        ("FINDINGS: ___. IMPRESSION: XXXX XXXX.", ""),
        # other spellings of marks
        ("since _ _, the heart is larger.", "The heart is larger."),
        ("Compared to [**1999-1-2**], new edema.", "New edema."),
        ("No edema, unchanged from [DATE].", "No edema, unchanged."),
        ("Since XX/XX/XXXX, new edema.", "New edema."),
        ("Compared to <unk>, new edema.", "New edema."),
        ("the lungs are xxxx. no edema.", "no edema."),
        ("Comparison is made to <DATE>. No edema.", "No edema."),
        # a message leaves the finding that it is about
        ("New edema, telephoned to Dr. ___ at ___.", "New edema."),
        ("Large effusion was communicated to Dr. ___.", "Large effusion."),
        ("Dr. ___ was informed of the effusion at ___.", "The effusion."),
        ("There is a nodule and this was discussed with ___ by phone.", "There is a nodule."),
        ("Edema; Dr. ___ was paged.", "Edema."),
        ("Effusion (findings conveyed to Dr. ___).", "Effusion."),
        ("These results were conveyed to Dr. ___.", ""),
        ("Moderate effusion was discussed with Dr. XXXX by phone.", "Moderate effusion."),
        ("[redacted] year old. Clear lungs.", "Clear lungs."),
        ("Clear lungs (see ___).", "Clear lungs."),
    ],
)
def test_marks(text, wanted):
    assert without_marks(text) == wanted
    marked = any(mark in text for mark in ("__", "_ _", "XXX", "xxx", "[", "<"))
    assert bool(MARK.search(text)) == marked and not MARK.search(wanted)


def test_no_mark_is_left_in_training_text_nor_written():
    rng = np.random.default_rng(0)
    text = "the heart of ___ XXXX no edema. ___, since x-XXXX (___) Dr. ___. FINDINGS: IMPRESSION: at ___: [___] a__b"
    words = text.split(" ")
    for _ in range(500):
        text = clean_report(" ".join(rng.choice(words, size=20)))
        assert "__" not in text and "XXX" not in text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("the of on at " * 20_000 + "___ heart is normal.", "Heart is normal."),
        ("a" * 200_000 + " ___ lungs.", "A" + "a" * 199_999 + " lungs."),
        ("clear lungs" + "," * 200_000 + "___ no edema", "Clear lungs" + "," * 200_000 + " no edema"),
        ("clear lungs" + ", ;" * 70_000 + "a ___ b", "Clear lungs; b"),
    ],
)
def test_long_texts_take_time_in_proportion(text, wanted):
    """Each of these would take hours if every word were tried as the first of a phrase."""
    assert without_marks(text) == wanted


def test_odd_characters():
    text = "FINDINGS: Nödule, 3\u202fmm — \x07left\x00 lung\u200b, \ud800\x1b[31m µ中. </s><mask> Clear."
    assert clean_report(text) == "FINDINGS: Nödule, 3 mm — left lung , [31m µ中. Clear."
