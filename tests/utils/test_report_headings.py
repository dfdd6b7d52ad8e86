"""Headings by their names, the end of a report, addenda: what `report_sections` reads of reports of each kind."""

import re

import pytest

from evaluation.labeler import label_report
from utils.report_cleaning import clean_report
from utils.report_text import report_file, report_sections, report_text

CLEAR = ("Clear lungs.", "Small nodule.")


@pytest.mark.parametrize(
    "raw",
    [
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule.",
        "Findings: Clear lungs. Impression: Small nodule.",
        "history: edema. findings: Clear lungs. impression: Small nodule.",
        "Clinical history: edema. Comparison: film with edema. Findings: Clear lungs. Impression: Small nodule.",
        "## Findings\nClear lungs.\n\n## Impression\nSmall nodule.",
        "**FINDINGS:** Clear lungs.\n\n**IMPRESSION**: Small nodule.",
        "<b>Findings</b>: Clear lungs.<br><b>Impression</b>: Small nodule.",
        "FINDINGS\uff1aClear lungs.\nIMPRESSION\uff1aSmall nodule.",
        "FINDINGS \u2014 Clear lungs.\nIMPRESSION \u2013 Small nodule.",
        "Findings- Clear lungs.\nImpression- Small nodule.",
        "FINDINGS:Clear lungs.IMPRESSION:Small nodule.",
        "INDICATION: Edema.\nFINDINGS\nClear lungs.\nIMPRESSION Small nodule.",
        "FINDGINGS: Clear lungs.\nIMPRESION: Small nodule.\nRECOMENDATION: CT for edema.",
        "HISTROY: Edema.\nFINDNGS: Clear lungs.\nCONCLUSON: Small nodule.",
        "FINDINGS: Clear lungs.\nOPINION: Small nodule.",
        "Findings: Clear lungs.\nSummary: Small nodule.",
        "FINDINGS: Clear lungs.\nCONCLUSION: Small nodule.\nCOMPARISION: large effusion in May.",
        "[FINDINGS]\nClear lungs.\n[IMPRESSION]\nSmall nodule.",
        "<FINDINGS> Clear lungs. </FINDINGS> <IMPRESSION> Small nodule. </IMPRESSION>",
        "Clinical notes: edema?\nReport: Clear lungs.\nComment: Small nodule.",
        "FINDINGS: Clear lungs. SUMMARY: Small nodule.",
        "FINDIGNS: Clear lungs.\nIMPRESSOIN: Small nodule.",
        # where a report ends
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule.\n*** END OF REPORT ***",
        'FINDINGS: Clear lungs. IMPRESSION: Small nodule.\n"Physician to Physician Consult Line"',
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule.\nReported by: Dr A Roe, Consultant Radiologist",
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule.\nDr Ann Roe\nConsultant Radiologist",
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule.\nDr. R. K. Roe\nMD (Radiodiagnosis)",
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule.\nThanks for the referral.",
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule.\nEND OF IMPRESSION:\nACCESSION NUMBER: 42",
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule. Electronically signed by: Ann Roe, MD on 1/2/2003",
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule.\n\nI have personally reviewed the images and agree with "
        "Ann Roe.",
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule. I, Ann B. Roe, M.D., have reviewed the images.",
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule.\nAnn B. Roe, M.D.",
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule.\n\nDr. Ann Roe\n",
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule.\nSUMMARY: 2-POSSIBLE SIGNIFICANT FINDING",
        "FINDINGS: Clear lungs. IMPRESSION: Small nodule. This report was dictated by Ann Roe.",
        # a preliminary reading
        "WET READ: Edema.\n\nFINAL REPORT\nFINDINGS: Clear lungs.\nIMPRESSION: Small nodule.",
    ],
)
def test_one_report_in_many_forms(raw):
    assert report_sections(raw) == CLEAR
    canonical = report_text(raw)
    assert report_text(canonical) == canonical and report_sections(report_file(*CLEAR)) == CLEAR
    assert label_report(raw).tolist() == label_report(canonical).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "Edema with the following findings: effusion.",
        "Incidental finding: 4 mm nodule.",
        "See the FINAL REPORT of the CT for the nodule.",
        "LUNGS: Clear. HEART: Enlarged.",
        "Compared by time 5:25 and ratio 1:2.",
    ],
)
def test_words_of_a_sentence_are_no_heading(text):
    assert report_sections(f"FINDINGS: {text} IMPRESSION: Edema.") == (text, "Edema.")


@pytest.mark.parametrize(
    "raw",
    [
        "FINAL REPORT\nFINDINGS: Edema.\nIMPRESSION: Small effusion.\n\nADDENDUM: There is no effusion.",
        "IMPRESSION: Edema. Small effusion.\nSUPPLEMENTARY REPORT: The effusion was described in error.",
        "IMPRESSION: Edema. Small effusion.\nAddendum by Dr. Roe on 3/4/2011: There is no effusion.",
        "ADDENDUM  There is no effusion.\n\nFINAL REPORT\nFINDINGS: Edema. Small effusion.\n",
    ],
)
def test_an_addendum_outweighs_what_it_corrects(raw):
    wanted = label_report("Edema. No effusion.").tolist()
    assert label_report(raw).tolist() == label_report(report_text(raw)).tolist() == wanted
    assert report_text(report_text(raw)) == report_text(raw)
    assert "ADDENDUM" not in clean_report(report_text(raw)) and re.search("no effusion|in error", clean_report(raw))


@pytest.mark.parametrize("piece", ["a: ", "FINDINGS ", "x - ", "Impression", "ADDENDUM ", "Ann Roe, ", "\n", ": ", "A"])
def test_long_reports_take_time_in_proportion(piece):
    assert report_sections(f"{piece * (20_000 // len(piece))}\nFINDINGS: Clear.")[0].endswith("Clear.")


@pytest.mark.parametrize(
    ("comparison", "rest"),
    [
        ("3/4/2010.\nThe heart is enlarged.", " The heart is enlarged."),
        (
            "Chest radiograph of ___.\n\nThere is no effusion. Heart is normal.",
            " There is no effusion. Heart is normal.",
        ),
        ("None available.\nNo effusion or pneumothorax.", " No effusion or pneumothorax."),
        ("Film of May, large\neffusion then.", ""),
        ("Film of May.\nA large effusion was seen then.", ""),
        ("CT of ___.\nChest radiograph ___.", ""),
        ("Film of May. There is an effusion.", ""),  # on its own line
    ],
)
def test_a_comparison_within_the_findings_ends_with_its_own_sentence(comparison, rest):
    raw = f"FINDINGS:\nClear lungs.\nComparison: {comparison}\nIMPRESSION: Small nodule."
    assert report_sections(raw) == (f"Clear lungs.{rest}", "Small nodule.")


def test_a_number_that_ends_a_sentence_stays():
    raw = "FINDINGS: Wedge deformity of level 8. IMPRESSION: 1. No acute disease. 2. Old fracture."
    findings, impression = report_sections(raw)
    assert findings == "Wedge deformity of level 8." and impression == "1. No acute disease. 2. Old fracture."
    assert report_sections("1. FINDINGS: Clear lungs. 2. IMPRESSION: Normal.") == ("Clear lungs.", "Normal.")
