"""The text of a radiology report: from the file of a hospital to the one form used here, and back.

raw report file  => sections  (findings, impression), headings known by their names (utils/report_headings.py)
sections         => text      "FINDINGS: ... IMPRESSION: ...", an absent section left out: the column `report`
text             => clean     for BART: no de-identification marks, control characters or tokenizer's signs
                              (utils/report_marks.py)
sections         => file      MIMIC-CXR's layout, lines of at most 78 characters
"""

import re
import textwrap

from utils.report_headings import headings
from utils.report_marks import clean_report, has_marks, without_marks

__all__ = [
    "ADDENDUM", "clean_report", "has_marks", "join_sections", "report_file", "report_sections", "report_text",
    "without_marks",
]  # fmt: skip

ADDENDUM = "ADDENDUM:"  # begins an addendum within the last section of a report
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\ufeff]")
_TAG = re.compile(r"</?(?:b|i|u|p|div|span|strong|em|h\d)(?: [^<>]*)?>", re.IGNORECASE)
_LINE_BREAK = re.compile(r"\r\n?|<br ?/?>", re.IGNORECASE)
_EMPHASIS = re.compile(  # of Markdown; "[**...**]" is a mark
    r"(?<![\[*])\*{1,3}(?=[A-Za-z])|(?<=[A-Za-z:.])\*{1,3}(?![\]*])|^#{1,6} +|^_{2}(?=[A-Z])|(?<=[a-z:])_{2}(?=:|\s|$)",
    re.MULTILINE,
)


def report_sections(raw: str) -> tuple[str, str]:
    """A report => (findings, impression), white space collapsed, "" for what it does not have.

    Headings are known by their names: "FINDINGS:", "findings:", "**Findings:**", "FINDINGS -", "IMPRESSION" alone on a
    line, "IMPRESSON:", "FINDINGS AND IMPRESSION:" (counts as findings), "CONCLUSION:" and "OPINION:" (as impression).
    A section ends at the next known heading; other words in capitals inside it ("LUNGS:") are its text.

    - Of a report with a FINAL REPORT only that is read, so a wet read is not.
    - An addendum, wherever it stands, ends the last section: "... ADDENDUM: ...".
    - Signatures, attestations, accession numbers and what else stands behind the radiologist's words are left out.
    - Text under a heading that names the views, in capitals ("PA AND LATERAL CHEST RADIOGRAPH:"), is the findings of a
      report without a FINDINGS heading.
    - A report with neither section has its last paragraphs without a heading as findings, if there are any.
    """
    text = _plain_lines(raw)
    sections = [["title", 0, len(text)]]  # kind, start and end of the text
    for kind, start, end in headings(text):
        if kind in ("view", "unknown") and sections[-1][0] in ("findings", "impression", "view", "addendum"):
            continue
        sections[-1][2] = start
        sections.append([kind, end, len(text)])

    final = max((place for place, section in enumerate(sections) if section[0] == "final"), default=-1)
    addenda = _text_of("addendum", text, sections)
    if any(text[start:end].strip() for _, start, end in sections[final:]):
        sections = sections[final:] if final >= 0 else sections
    findings, impression, views = (_text_of(kind, text, sections) for kind in ("findings", "impression", "view"))
    if re.search("[a-z]{4}", views):  # words, not the date after a title
        findings = findings or views
    if not findings and not impression:
        findings = _last_paragraphs([(kind, text[start:end]) for kind, start, end in sections])
    if addenda and impression:
        impression = f"{impression} {ADDENDUM} {addenda}"
    elif addenda:
        findings = f"{findings} {ADDENDUM} {addenda}".lstrip()
    return findings, impression


def _plain_lines(raw):
    """A report with single blanks, without Markdown and HTML; a line of underscores is an empty one."""
    text = _LINE_BREAK.sub("\n", _CONTROL_CHARACTERS.sub("", raw.replace("\r\n", "\n")).replace("\uff1a", ":"))
    text = _EMPHASIS.sub("", _TAG.sub("", text))
    return "\n".join(" ".join(line.split()) if line.strip("_ ") or len(line) < 5 else "" for line in text.split("\n"))


def _text_of(kind, text, sections):
    return _collapse(" ".join(text[start:end] for name, start, end in sections if name == kind))


def report_text(raw: str) -> str:
    """A report in the one form used here, "FINDINGS: ... IMPRESSION: ...", an absent section left out.

    `report_sections` and `report_text` read this form too and give it back unchanged.
    """
    return join_sections(*report_sections(raw))


def join_sections(findings: str, impression: str) -> str:
    sections = {"FINDINGS": _collapse(findings), "IMPRESSION": _collapse(impression)}
    return " ".join(f"{heading}: {text}" for heading, text in sections.items() if text)


def report_file(findings: str, impression: str, further: dict[str, str] | None = None) -> str:
    """(findings, impression) => the text of a report file in MIMIC's layout, lines of at most 78 characters.

    The inverse of `report_sections`, white space aside. (A text in which FINDINGS: or another heading in capitals
    stands itself has no inverse.) further: {heading in capitals: text} of sections that stand first, for other readers;
    they are left out where one of them would be read as findings or impression.
    """
    last = {"FINDINGS": findings, "IMPRESSION": impression}
    for first in (further or {}, {}):
        sections = {heading: _collapse(text) for heading, text in {**first, **last}.items()}
        sections = {heading: text for heading, text in sections.items() if text}
        title = " " * 33 + "FINAL REPORT\n"
        wrapped = [f" {heading}: \n \n{_wrap(text)}\n" for heading, text in sections.items()]
        report = title + " \n".join(wrapped)
        if report_text(report) == join_sections(findings, impression):
            return report
        # a line break has made a heading of a word such as "Comparison:"; without line breaks it stays a word
        report = title + " \n".join(f" {heading}: {text}\n" for heading, text in sections.items())
        if report_text(report) == join_sections(findings, impression):
            return report
    return report


def _last_paragraphs(sections):
    """The last paragraphs that stand under no heading: all but the first of a section; titles in capitals left out."""
    for kind, text in reversed(sections):
        paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
        paragraphs = paragraphs if kind in ("title", "final") else paragraphs[1:]
        found = _collapse(" ".join(paragraph for paragraph in paragraphs if paragraph != paragraph.upper()))
        if found:
            return found
    return ""


def _collapse(text):
    return " ".join(_CONTROL_CHARACTERS.sub("", text).split())


def _wrap(text):
    return textwrap.fill(
        text, 78, initial_indent=" ", subsequent_indent=" ", break_long_words=False, break_on_hyphens=False
    )
